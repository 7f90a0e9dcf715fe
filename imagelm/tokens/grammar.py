"""The grammar of a row: `<IMG> <Z_012> … </IMG> <CLS> <CLS_7> <EOS>`.

One idea: `MAY_FOLLOW` says which role may follow which, and the role of a row's last token is all that decides what may
come next. Composing rows, reading them whole or cut, explaining and repairing wrong ones, and masking the next token
all read this table; everything else asks this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import pairwise

import numpy as np

from imagelm.tokens import vocabulary as names
from imagelm.utils.text import join_first, shorten


class Role(IntEnum):
    """What a token is for; in the order of a row."""

    OTHER = 0  # padding, the unknown token, and tokens that have no place in a row
    START = 1  # before the first token
    IMG = 2
    CODE = 3
    IMG_END = 4
    CLS = 5
    CLASS = 6
    EOS = 7


# The grammar. Codebook tokens may follow each other, so an image has any length.
MAY_FOLLOW: dict[int, tuple[Role, ...]] = {
    Role.START: (Role.IMG,),
    Role.IMG: (Role.CODE,),
    Role.CODE: (Role.CODE, Role.IMG_END),
    Role.IMG_END: (Role.CLS,),
    Role.CLS: (Role.CLASS,),
    Role.CLASS: (Role.EOS,),
    Role.EOS: (),
}
TOKENS = {Role.IMG: names.IMG, Role.IMG_END: names.IMG_END, Role.CLS: names.CLS, Role.EOS: names.EOS}
WORDS = {**TOKENS, Role.CODE: "a codebook token", Role.CLASS: "a class token"}

# What follows from the table: the frame around an image's codebook tokens.
_ORDER = tuple(Role)[Role.START + 1 :]
HEAD, TAIL = _ORDER[: _ORDER.index(Role.CODE)], _ORDER[_ORDER.index(Role.CODE) + 1 :]
# The predecessor repeated the question instead of answering it; the label gives the answer.
BROKEN_TAIL = tuple(Role.CLS if role is Role.CLASS else role for role in TAIL)
HEAD_TEXT, BROKEN_TAIL_TEXT = (" ".join(TOKENS[role] for role in roles) for roles in (HEAD, BROKEN_TAIL))
NUM_TAIL_TOKENS = len(TAIL)
NUM_FRAME_TOKENS = len(HEAD) + NUM_TAIL_TOKENS
NUM_QUESTION_TOKENS = len(HEAD) + TAIL.index(Role.CLASS)  # of the frame, up to `<CLS>`
BODY = slice(len(HEAD), -NUM_TAIL_TOKENS)  # the image in a whole row
ROW_FORM = " ".join([HEAD_TEXT, "<Z_…> …", *(TOKENS.get(role, "<CLS_y>") for role in TAIL)])
_ANSWER = TAIL.index(Role.CLASS) - NUM_TAIL_TOKENS  # counted from the end of a whole row
_IS_ALLOWED = np.array([[after in MAY_FOLLOW.get(before, ()) for after in Role] for before in Role])


@dataclass(frozen=True)
class Grammar(names.Vocabulary):
    """A vocabulary whose tokens form rows."""

    @cached_property
    def roles(self) -> np.ndarray:
        """Role of each id, then `OTHER`, so that -1 and `size` can mean an unknown token; int8, shape (size + 1,)."""
        roles = np.full(self.size + 1, Role.OTHER, dtype=np.int8)
        for role in _ORDER:
            roles[self.ids_of(role)] = role
        return roles

    def ids_of(self, role: Role) -> np.ndarray:
        """The ids with this role, codes and classes in the order of their numbers; int64."""
        if role is Role.CODE:
            return self.code_ids
        return self.class_ids if role is Role.CLASS else np.array([self.id(TOKENS[role])])

    def followers(self, role: Role) -> np.ndarray:
        """The ids that may follow a token of this role; int64, empty where nothing may follow."""
        return np.concatenate([np.empty(0, np.int64), *map(self.ids_of, MAY_FOLLOW.get(role, ()))])

    # Writing

    def compose(self, bodies: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole rows around image bodies: all ids one after the other, and the rows' offsets, shape (rows + 1,).

        Args:
            bodies: Codebook ids of all rows, one after the other; shape (sum of lengths,).
            lengths: Number of body tokens of each row; shape (rows,).
            labels: Class of each row; shape (rows,).
        """
        offsets = np.concatenate([[0], np.cumsum(lengths + NUM_FRAME_TOKENS)]).astype(np.int64)
        ids = np.empty(offsets[-1], dtype=self.id_dtype)
        inside = np.ones(offsets[-1], dtype=bool)
        frame = [(offsets[:-1] + i, role) for i, role in enumerate(HEAD)]
        frame += [(offsets[1:] + i, role) for i, role in enumerate(TAIL, start=-NUM_TAIL_TOKENS)]
        for positions, role in frame:
            ids[positions] = self.class_ids[labels] if role is Role.CLASS else self.ids_of(role)
            inside[positions] = False
        ids[inside] = bodies
        return ids, offsets

    def sentences(self, bodies: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> list[str]:
        """The rows of `compose` as text: tokens with a space between them."""
        ids, offsets = self.compose(bodies, lengths, labels)
        words = np.array(self.tokens, dtype=object)[ids]
        return [" ".join(words[start:end]) for start, end in pairwise(offsets)]

    def tail_text(self, label: int) -> str:
        """The text after the image in a row of class `label`."""
        return " ".join(self.tokens[self.class_ids[label]] if r is Role.CLASS else TOKENS[r] for r in TAIL)

    def prefix(self, body: np.ndarray, num_tail: int = 0, label: int | None = None) -> np.ndarray:
        """The ids of a row up to the first `num_tail` tokens after its image, of which `body` may be a part; int64."""
        assert label is not None or num_tail <= TAIL.index(Role.CLASS), "the answer needs a label"
        answer = self.class_ids[[] if label is None else [label]]
        frame = [answer if role is Role.CLASS else self.ids_of(role) for role in (*HEAD, *TAIL[:num_tail])]
        return np.concatenate([*frame[: len(HEAD)], body, *frame[len(HEAD) :]]).astype(np.int64)

    def question(self, body: np.ndarray) -> np.ndarray:
        """The ids of a row up to `<CLS>`; int64, shape (body + 3,)."""
        return self.prefix(body, TAIL.index(Role.CLASS))

    # Reading

    def parse(self, tokens: Sequence[str], label: int | None, place: str) -> Row:
        """Reads a row, whole or cut anywhere; the leading `<IMG>` may be missing.

        The predecessor's tail `</IMG> <CLS> <CLS> <EOS>` is accepted. `label` is the class where it's known apart from
        the tokens.

        Raises:
            BadRow: It isn't in the grammar; says what was found and what was expected.
        """
        ids = np.array([self.vocabulary.get(token, -1) for token in tokens], dtype=np.int64)
        if not len(ids):
            raise BadRow(f"no token at all, expected {HEAD_TEXT} and codebook tokens")
        if (unknown := np.flatnonzero(ids < 0)).size:
            token = shorten(repr(tokens[unknown[0]]))
            raise BadRow(f"token {unknown[0] + 1} is {token}, which isn't among the model's {self.size} tokens")
        roles = self.roles[ids]
        start = HEAD[-1] if roles[0] == Role.CODE else Role.START
        _repair(roles, np.array([0, len(roles)]))
        if (wrong := np.flatnonzero(_breaks(roles, [0], start))).size:
            before = Role(roles[wrong[0] - 1]) if wrong[0] else start
            expected = " or ".join(WORDS[role] for role in MAY_FOLLOW[before]) or "nothing more"
            raise BadRow(f"token {wrong[0] + 1} is {tokens[wrong[0]]}, expected {expected}")
        answer = int(self.label_of_id[ids].max())
        if answer >= 0 and label not in (None, answer):
            raise BadRow(f"the class token is {self.tokens[self.class_ids[answer]]}, but the label is {label}")
        body = ids[roles == Role.CODE].astype(self.id_dtype)
        return Row(body, int(np.isin(roles, TAIL).sum()), answer if answer >= 0 else label, place)

    def check(self, ids: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which whole rows are in the grammar, and which have the predecessor's tail; bool, shape (rows,).

        Args:
            ids: Of all rows, one after the other; -1 for unknown tokens.
            offsets: Where each row begins, and the end; shape (rows + 1,). No row is empty.
            labels: Shape (rows,).
        """
        if not len(labels):
            return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
        roles, starts, ends = self.roles[ids], offsets[:-1], offsets[1:]
        repaired = _repair(roles, offsets)
        good = ~np.logical_or.reduceat(_breaks(roles, starts), starts)
        good &= roles[ends - 1] == TAIL[-1]
        good &= repaired | (ids[np.maximum(ends + _ANSWER, 0)] == self.class_ids[labels])
        return good, repaired

    def explain(self, tokens: list[str], label: int) -> tuple[str, str] | None:
        """Why a row isn't whole and in the grammar, as (kind, what was found and what was expected); None if it is.

        The predecessor's tail `</IMG> <CLS> <CLS> <EOS>` is accepted: it's repaired from the label.
        """
        if not any(tokens):
            return "empty_row", f"no token at all, expected {HEAD_TEXT} … {TOKENS[TAIL[-1]]}"
        if not 0 <= label < self.num_classes:
            return "label_out_of_range", f"label {label}, expected 0 to {self.num_classes - 1}"
        ids = [self.vocabulary.get(token, -1) for token in tokens]
        if -1 in ids:
            found = f"token {ids.index(-1) + 1} is {shorten(repr(tokens[ids.index(-1)]))}"
            return "unknown_token", f"{found}, expected one of the vocabulary's {self.size} tokens"
        roles = self.roles[ids].tolist()
        for role in (HEAD[-1], TAIL[0]):
            if (count := roles.count(role)) != 1:
                return "image_markers", f"{TOKENS[role]} occurs {count} times, expected once"
        if roles[0] not in MAY_FOLLOW[Role.START]:
            return "image_markers", f"the row begins with {tokens[0]}, expected {TOKENS[HEAD[0]]}"
        end = roles.index(TAIL[0])
        return _explain_body(tokens[:end], roles[:end]) or self._explain_tail(tokens[end:], tuple(roles[end:]), label)

    def _explain_tail(self, tokens: list[str], roles: tuple[int, ...], label: int) -> tuple[str, str] | None:
        expected = self.tail_text(label).split()
        if tokens == expected or roles == BROKEN_TAIL:
            return None
        if roles == TAIL:
            found, needed = tokens[_ANSWER], expected[_ANSWER]
            return "label_mismatch", f"the class token is {found}, expected {needed} because the label is {label}"
        shown = join_first(map(shorten, tokens[1:]), 6, " ") or "nothing"
        return "tail", f"{shown} after {tokens[0]}, expected {' '.join(expected[1:])}"

    def find(self, ids: np.ndarray, role: Role) -> int:
        """Position of the first token with this role; the row's length where there is none."""
        found = np.flatnonzero(self.roles[np.minimum(ids, self.size)] == role)
        return int(found[0]) if found.size else len(ids)


@dataclass(frozen=True)
class Row:
    """A row, whole or cut: its image body and how much of the tail it has.

    Attributes:
        body: Ids of the image's tokens; shape (tokens,).
        num_tail: How many tokens of the tail `</IMG> <CLS> <CLS_y> <EOS>` it has; 0 while the image is open.
        label: Its class, where it's known.
        place: Where it comes from, for people.
        image_index: Its number in the image source, where it comes from one.
    """

    body: np.ndarray
    num_tail: int
    label: int | None
    place: str
    image_index: int | None = None

    def is_whole(self, num_image_tokens: int | None) -> bool:
        """Whether its image is complete: closed, or as long as the images of this model are."""
        return self.num_tail > 0 or (num_image_tokens is not None and len(self.body) == num_image_tokens)

    def prefix(self, grammar: Grammar) -> np.ndarray:
        """The ids of the row as far as it goes, with `<IMG>` in front; int64, shape (1 + body + tail,)."""
        return grammar.prefix(self.body, self.num_tail, self.label)

    def question(self, grammar: Grammar) -> np.ndarray:
        """The ids up to `<CLS>`, whatever came after it; int64, shape (body + 3,)."""
        return grammar.question(self.body)


class BadRow(Exception):
    """A row that isn't in the grammar, and why."""


def _explain_body(tokens: list[str], roles: list[int]) -> tuple[str, str] | None:
    if len(roles) == len(HEAD):
        return "empty_image", f"nothing between {HEAD_TEXT} and {TOKENS[TAIL[0]]}, expected codebook tokens"
    for i in range(len(HEAD), len(roles)):
        if roles[i] not in MAY_FOLLOW[roles[i - 1]]:
            kind = "class_token_in_image" if roles[i] == Role.CLASS else "not_a_code"
            return kind, f"token {i + 1} is {tokens[i]} inside the image, expected {WORDS[Role.CODE]}"
    return None


def _breaks(roles: np.ndarray, starts: Sequence[int] | np.ndarray, first: Role = Role.START) -> np.ndarray:
    """Whether each token may not follow the one before it; the first token of a row follows `first`; bool."""
    before = np.empty_like(roles)
    before[1:] = roles[:-1]
    before[starts] = first
    return ~_IS_ALLOWED.ravel().take(before * len(Role) + roles)


def _repair(roles: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Turns the roles of the predecessor's tail into those of the grammar's, in place; which rows had it, bool."""
    ends = offsets[1:]
    broken = np.diff(offsets) >= NUM_TAIL_TOKENS
    for distance, role in enumerate(reversed(BROKEN_TAIL), start=1):
        broken &= roles[np.maximum(ends - distance, 0)] == role
    roles[ends[broken] + _ANSWER] = Role.CLASS
    return broken
