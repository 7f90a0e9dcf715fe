"""The grammar of a row: `<IMG> <Z_012> … </IMG> <CLS> <CLS_7> <EOS>`.

One idea: this module alone knows which tokens exist, which role each plays and where it may stand; every other module
asks it. A row is fully given by its image body (codebook tokens) and its label.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from imagelm.utils.atomic_io import read_input
from imagelm.utils.errors import InputError

PAD, UNK, IMG, IMG_END, CLS, EOS = "<PAD>", "<UNK>", "<IMG>", "</IMG>", "<CLS>", "<EOS>"
SPECIAL_TOKENS = (PAD, UNK, IMG, IMG_END, CLS, EOS)
CODE_PATTERN = re.compile(r"<Z_([0-9]{1,9})>")
CLASS_PATTERN = re.compile(r"<CLS_([0-9]{1,9})>")
NUM_SHOWN_CHARACTERS = 60

NUM_TAIL_TOKENS = 4  # </IMG> <CLS> <CLS_y> <EOS>
NUM_FRAME_TOKENS = 1 + NUM_TAIL_TOKENS  # and the leading <IMG>
IGNORE_INDEX = -100  # what torch's cross entropy leaves out


def code_token(entry: int, width: int = 3) -> str:
    """The token of a codebook entry: `<Z_012>` for 12."""
    return f"<Z_{entry:0{width}d}>"


def class_token(label: int) -> str:
    """The token that answers with `label`: `<CLS_7>` for 7."""
    return f"<CLS_{label}>"


def make_vocabulary(codebook_size: int, num_classes: int) -> dict[str, int]:
    """A new vocabulary in the reference order: specials, codebook entries, classes."""
    width = max(3, len(str(codebook_size - 1)))
    codes = [code_token(entry, width) for entry in range(codebook_size)]
    tokens = [*SPECIAL_TOKENS, *codes, *(class_token(label) for label in range(num_classes))]
    return {token: i for i, token in enumerate(tokens)}


@dataclass(frozen=True)
class Grammar:
    """The roles of a vocabulary's ids.

    Args:
        vocabulary: Token to id, ids 0 to n-1 in any order. Tokens that play no role in a row (neither special, codebook
            nor class) may be there, but can't occur in data.

    Raises:
        InputError: The vocabulary can't serve; the message names the first token or id that is wrong.
    """

    vocabulary: dict[str, int]

    def __post_init__(self) -> None:
        _check_ids(self.vocabulary)
        missing = [token for token in SPECIAL_TOKENS if token not in self.vocabulary]
        if missing:
            raise InputError(
                f"the vocabulary lacks {' '.join(missing)}; all of {' '.join(SPECIAL_TOKENS)} are required"
            )
        codes = [number for number, _ in self._numbered(CODE_PATTERN)]
        if not codes:
            raise InputError("the vocabulary has no codebook token; at least one like <Z_000> is required")
        if len(set(codes)) < len(codes):
            twice = next(number for number, following in pairwise(codes) if number == following)
            raise InputError(f"two codebook tokens carry the number {twice} (such as <Z_{twice}> and <Z_0{twice}>)")
        labels = [number for number, _ in self._numbered(CLASS_PATTERN)]
        if len(labels) < 2 or labels != list(range(len(labels))):
            raise InputError(
                f"the class tokens are numbered {labels[:12]}; they must be <CLS_0>, <CLS_1>, … without a gap, "
                "two at least"
            )

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.vocabulary)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_ids)

    @property
    def codebook_size(self) -> int:
        """Number of codebook tokens."""
        return len(self.code_ids)

    @cached_property
    def code_ids(self) -> np.ndarray:
        """Ids of the codebook tokens, in the order of their numbers; int64, shape (codebook_size,)."""
        return np.array([i for _, i in self._numbered(CODE_PATTERN)], dtype=np.int64)

    @cached_property
    def class_ids(self) -> np.ndarray:
        """Ids of the class tokens, indexed by label; int64, shape (num_classes,)."""
        return np.array([i for _, i in self._numbered(CLASS_PATTERN)], dtype=np.int64)

    @cached_property
    def is_code(self) -> np.ndarray:
        """For each id whether it's a codebook token; bool, shape (size,)."""
        table = np.zeros(self.size, dtype=bool)
        table[self.code_ids] = True
        return table

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens in the order of their ids."""
        return sorted(self.vocabulary, key=self.vocabulary.__getitem__)

    @property
    def id_dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id (ids need no int64 on disk)."""
        return np.min_scalar_type(max(self.size - 1, 256))

    def id(self, token: str) -> int:
        """The id of a token."""
        return self.vocabulary[token]

    def compose(self, bodies: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole rows around image bodies.

        Args:
            bodies: Codebook ids of all rows, one after the other; shape (sum of lengths,).
            lengths: Number of body tokens of each row; shape (rows,).
            labels: Class of each row; shape (rows,).

        Returns:
            The ids of all rows one after the other, and the rows' offsets; shapes (sum of row lengths,), (rows + 1,).
        """
        offsets = np.concatenate([[0], np.cumsum(lengths + NUM_FRAME_TOKENS)]).astype(np.int64)
        ids = np.empty(offsets[-1], dtype=self.id_dtype)
        inside = np.ones(offsets[-1], dtype=bool)
        ends = offsets[1:]
        frame = [
            (offsets[:-1], self.id(IMG)),
            (ends - 4, self.id(IMG_END)),
            (ends - 3, self.id(CLS)),
            (ends - 2, self.class_ids[labels]),
            (ends - 1, self.id(EOS)),
        ]
        for positions, values in frame:
            ids[positions] = values
            inside[positions] = False
        ids[inside] = bodies
        return ids, offsets

    def explain(self, tokens: list[str], label: int) -> tuple[str, str] | None:
        """Why a row isn't in the grammar, as (kind, what was found and what was expected); None if it is.

        The predecessor's tail `</IMG> <CLS> <CLS> <EOS>` is accepted: it's mended from the label.
        """
        if not 0 <= label < self.num_classes:
            return "label_out_of_range", f"label {label}, expected 0 to {self.num_classes - 1}"
        for position, token in enumerate(tokens, start=1):
            if token not in self.vocabulary:
                return (
                    "unknown_token",
                    f"token {position} is {_shown(token)}, expected one of the vocabulary's {self.size} tokens",
                )
        return self._explain_frame(tokens) or self._explain_body(tokens) or self._explain_tail(tokens, label)

    def _explain_frame(self, tokens: list[str]) -> tuple[str, str] | None:
        for token in (IMG, IMG_END):
            if (count := tokens.count(token)) != 1:
                return "image_markers", f"{token} stands {count} times, expected once"
        if tokens[0] != IMG:
            return "image_markers", f"the row begins with {tokens[0]}, expected {IMG}"
        return None

    def _explain_body(self, tokens: list[str]) -> tuple[str, str] | None:
        end = tokens.index(IMG_END)
        if end == 1:
            return "empty_image", f"nothing between {IMG} and {IMG_END}, expected codebook tokens"
        for position, token in enumerate(tokens[1:end], start=2):
            if CLASS_PATTERN.fullmatch(token):
                return (
                    "class_token_in_image",
                    f"token {position} is {token} inside the image, expected a codebook token",
                )
            if not CODE_PATTERN.fullmatch(token):
                return "not_a_code", f"token {position} is {token} inside the image, expected a codebook token"
        return None

    def _explain_tail(self, tokens: list[str], label: int) -> tuple[str, str] | None:
        tail = tokens[tokens.index(IMG_END) + 1 :]
        expected = [CLS, self.tokens[self.class_ids[label]], EOS]
        if tail in (expected, [CLS, CLS, EOS]):
            return None
        if len(tail) == 3 and tail[0] == CLS and tail[2] == EOS and CLASS_PATTERN.fullmatch(tail[1]):
            return "label_mismatch", f"{tail[1]} stands in the class slot, expected {expected[1]} as label is {label}"
        shown = " ".join(map(_cut, tail[:6])) + (" …" if len(tail) > 6 else "") or "nothing"
        return "tail", f"after {IMG_END} stands {shown}, expected {' '.join(expected)}"

    def _numbered(self, pattern: re.Pattern) -> list[tuple[int, int]]:
        found = [(int(m.group(1)), i) for token, i in self.vocabulary.items() if (m := pattern.fullmatch(token))]
        return sorted(found)


def load_vocabulary(path: str | Path) -> Grammar:
    """Reads `vocab.json` (token to id) and checks it.

    Raises:
        InputError: The file can't be read, isn't a JSON object of token to id, or is no vocabulary (see `Grammar`).
    """
    text = read_input(path, "--vocab_file")
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise InputError(f'{path} isn\'t JSON: {error}; expected an object like {{"<PAD>": 0, …}}') from error
    if not isinstance(content, dict):
        raise InputError(f'{path} holds a JSON {type(content).__name__}; expected an object like {{"<PAD>": 0, …}}')
    try:
        return Grammar(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _cut(text: str) -> str:
    return text if len(text) <= NUM_SHOWN_CHARACTERS else text[:NUM_SHOWN_CHARACTERS] + "…"


def _shown(value: object) -> str:
    return _cut(repr(value))


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        repeated = next(token for token, _ in pairs if token in seen or seen.add(token))
        raise InputError(f"token {_shown(repeated)} stands twice; each token has one id")
    return content


def _check_ids(vocabulary: dict[str, int]) -> None:
    by_id: dict[int, str] = {}
    for token, i in vocabulary.items():
        if type(i) is not int or i < 0:
            raise InputError(f"token {_shown(token)} has id {_shown(i)}; ids are whole numbers from 0")
        if not token or any(character.isspace() for character in token):
            raise InputError(
                f"token {_shown(token)} (id {i}) is empty or has white space in it, so no row could contain it"
            )
        if i in by_id:
            raise InputError(f"{_shown(by_id[i])} and {_shown(token)} share id {i}; each id has one token")
        by_id[i] = token
    gap = next((i for i in range(len(vocabulary)) if i not in by_id), None)
    if gap is not None:
        raise InputError(
            f"no token has id {gap}, though ids go up to {_shown(max(by_id))}; ids must run from 0 without a gap"
        )
