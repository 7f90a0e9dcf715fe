"""A row that may be cut anywhere.

One idea: a row is its image body and how much of the tail it has; every mode makes its prompt from these two, so a row
may be whole, cut anywhere, or codes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagelm.tokens.grammar import CLASS_PATTERN, CLS, EOS, IMG, IMG_END, NUM_TAIL_TOKENS, Grammar

NUM_QUESTION_TOKENS = 3  # <IMG> before the image, </IMG> <CLS> behind it
TAIL_IN_WORDS = (f"a codebook token or {IMG_END}", CLS, "a class token", EOS, "nothing more")


@dataclass(frozen=True)
class Row:
    """A row, whole or cut.

    Attributes:
        body: Ids of the image's tokens; shape (tokens,).
        num_tail: How many tokens of the tail `</IMG> <CLS> <CLS_y> <EOS>` it has; 0 while the image is open.
        label: Its class, where it's known.
        place: Where it stands, for people.
        picture: Its number in the image source, where it comes from one.
    """

    body: np.ndarray
    num_tail: int
    label: int | None
    place: str
    picture: int | None = None

    def is_whole(self, num_image_tokens: int | None) -> bool:
        """Whether its image is complete: closed, or as long as the images of this model are."""
        return self.num_tail > 0 or (num_image_tokens is not None and len(self.body) == num_image_tokens)

    def prefix(self, grammar: Grammar) -> np.ndarray:
        """The ids of the row as far as it goes, with `<IMG>` in front; int64, shape (1 + body + tail,)."""
        answer = -1 if self.label is None else grammar.class_ids[self.label]
        tail = [grammar.id(IMG_END), grammar.id(CLS), answer, grammar.id(EOS)][: self.num_tail]
        return np.concatenate([[grammar.id(IMG)], self.body, tail]).astype(np.int64)

    def question(self, grammar: Grammar) -> np.ndarray:
        """The ids up to `<CLS>`, whatever stood behind it; int64, shape (body + 3,)."""
        frame = [grammar.id(IMG)], self.body, [grammar.id(IMG_END), grammar.id(CLS)]
        return np.concatenate(frame).astype(np.int64)


class BadRow(Exception):
    """A row that isn't in the grammar, and why."""


def parse_row(tokens: Sequence[str], label: int | None, place: str, grammar: Grammar) -> Row:
    """Tokens → a row.

    Args:
        tokens: A row in the grammar, cut anywhere; the leading `<IMG>` may be missing. The predecessor's tail
            `</IMG> <CLS> <CLS> <EOS>` is accepted.
        label: Its class where it's known beside the tokens.
        place: Where it stands.
        grammar: The model's.

    Raises:
        BadRow: It isn't; says what was found and what was expected.
    """
    ids = np.array([grammar.vocabulary.get(token, -1) for token in tokens], dtype=np.int64)
    if not len(ids):
        raise BadRow(f"no token at all, expected {IMG} and codebook tokens")
    if (unknown := np.flatnonzero(ids < 0)).size:
        raise BadRow(
            f"token {unknown[0] + 1} is {shorten(tokens[unknown[0]])}, which isn't among the model's "
            f"{grammar.size} tokens"
        )
    start = int(tokens[0] == IMG)
    others = np.flatnonzero(~grammar.is_code[ids[start:]])
    end = start + int(others[0]) if others.size else len(ids)
    tail = list(tokens[end:])
    if tail and start == end:
        expected = "a codebook token" if start else IMG
        raise BadRow(f"token {end + 1} is {tail[0]}, expected {expected}")
    return Row(ids[start:end].astype(grammar.id_dtype), len(tail), _read_tail(tail, end, label, grammar), place)


def _read_tail(tail: list[str], end: int, label: int | None, grammar: Grammar) -> int | None:
    """Checks the tokens after the body; the label that is known then."""
    expected = [IMG_END, CLS, None, EOS]
    mended = tail == [IMG_END, CLS, CLS, EOS]
    for i, token in enumerate(tail):
        fits = i < NUM_TAIL_TOKENS and (CLASS_PATTERN.fullmatch(token) if i == 2 else token == expected[i])
        if not fits and not mended:
            raise BadRow(f"token {end + i + 1} is {token}, expected {TAIL_IN_WORDS[min(i, NUM_TAIL_TOKENS)]}")
    if len(tail) < 3 or mended:
        return label
    answer = int(np.flatnonzero(grammar.class_ids == grammar.id(tail[2]))[0])
    if label not in (None, answer):
        raise BadRow(f"{tail[2]} stands in the class slot, but the label is {label}")
    return answer


def shorten(value: object) -> str:
    """A value for a message, cut where it's long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
