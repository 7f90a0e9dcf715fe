"""The vocabulary: the names of all tokens, and `vocab.json` loaded and checked.

One idea: ids come from the vocabulary alone, in any order; a token's role is in its name. Only this module knows how a
codebook or class token is spelled.
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
from imagelm.utils.text import join_first, shorten

PAD, UNK, IMG, IMG_END, CLS, EOS = "<PAD>", "<UNK>", "<IMG>", "</IMG>", "<CLS>", "<EOS>"
SPECIAL_TOKENS = (PAD, UNK, IMG, IMG_END, CLS, EOS)
CODE_PATTERN = re.compile(r"<Z_([0-9]{1,9})>")
CLASS_PATTERN = re.compile(r"<CLS_([0-9]{1,9})>")


def code_token(entry: int, width: int = 3) -> str:
    """The token of a codebook entry: `<Z_012>` for 12."""
    return f"<Z_{entry:0{width}d}>"


def class_token(label: int) -> str:
    """The token that answers with `label`: `<CLS_7>` for 7."""
    return f"<CLS_{label}>"


def class_number(token: str) -> int | None:
    """The number in a class token: 7 for `<CLS_7>`; None for any other text."""
    match = CLASS_PATTERN.fullmatch(token)
    return int(match.group(1)) if match else None


def make_vocabulary(codebook_size: int, num_classes: int) -> dict[str, int]:
    """A new vocabulary in the reference order: specials, codebook entries, classes."""
    width = max(3, len(str(codebook_size - 1)))
    codes = [code_token(entry, width) for entry in range(codebook_size)]
    tokens = [*SPECIAL_TOKENS, *codes, *(class_token(label) for label in range(num_classes))]
    return {token: i for i, token in enumerate(tokens)}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and their ids.

    Args:
        vocabulary: Token to id, ids 0 to n-1 in any order. Tokens without a role in a row (neither special, codebook
            nor class) are allowed, but can't occur in data.

    Raises:
        InputError: The vocabulary isn't valid; the message names the first token or id that is wrong.
    """

    vocabulary: dict[str, int]

    def __post_init__(self) -> None:
        check_vocabulary(self.vocabulary)

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
        return np.array([i for _, i in numbered(self.vocabulary, CODE_PATTERN)], dtype=np.int64)

    @cached_property
    def class_ids(self) -> np.ndarray:
        """Ids of the class tokens, indexed by label; int64, shape (num_classes,)."""
        return np.array([i for _, i in numbered(self.vocabulary, CLASS_PATTERN)], dtype=np.int64)

    @cached_property
    def entry_of_id(self) -> np.ndarray:
        """Codebook entry of each id, -1 where it isn't a codebook token; int64, shape (size,)."""
        return self._inverse(self.code_ids)

    @cached_property
    def label_of_id(self) -> np.ndarray:
        """Label of each id, -1 where it isn't a class token; int64, shape (size,)."""
        return self._inverse(self.class_ids)

    @cached_property
    def is_code(self) -> np.ndarray:
        """For each id whether it's a codebook token; bool, shape (size,)."""
        return self.entry_of_id >= 0

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

    def _inverse(self, ids: np.ndarray) -> np.ndarray:
        numbers = np.full(self.size, -1)
        numbers[ids] = np.arange(len(ids))
        return numbers


def load_vocabulary(path: str | Path) -> dict[str, int]:
    """Reads `vocab.json` (token to id) and checks it.

    Raises:
        InputError: The file can't be read, isn't a JSON object of token to id, or isn't a valid vocabulary (see
            `check_vocabulary`).
    """
    text = read_input(path, "--vocab_file")
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
        if isinstance(content, dict):
            check_vocabulary(content)
            return content
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise InputError(f'{path} isn\'t JSON: {error}; expected an object like {{"<PAD>": 0, …}}') from error
    raise InputError(f'{path} holds a JSON {type(content).__name__}; expected an object like {{"<PAD>": 0, …}}')


def check_vocabulary(vocabulary: dict[str, int]) -> None:
    """Raises an InputError unless ids run from 0 without a gap, and rows can be written with the tokens."""
    _check_ids(vocabulary)
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise InputError(f"the vocabulary lacks {' '.join(missing)}; all of {' '.join(SPECIAL_TOKENS)} are required")
    codes = [number for number, _ in numbered(vocabulary, CODE_PATTERN)]
    if not codes:
        raise InputError("the vocabulary has no codebook token; at least one like <Z_000> is required")
    if len(set(codes)) < len(codes):
        twice = next(number for number, following in pairwise(codes) if number == following)
        raise InputError(f"two codebook tokens have the number {twice} (such as <Z_{twice}> and <Z_0{twice}>)")
    labels = [number for number, _ in numbered(vocabulary, CLASS_PATTERN)]
    if len(labels) < 2 or labels != list(range(len(labels))):
        raise InputError(
            f"the class tokens are numbered {join_first(labels)}; they must be <CLS_0>, <CLS_1>, … without a gap, "
            "two at least"
        )


def numbered(vocabulary: dict[str, int], pattern: re.Pattern[str]) -> list[tuple[int, int]]:
    """(number, id) of the tokens with this spelling, in the order of their numbers."""
    return sorted((int(m.group(1)), i) for token, i in vocabulary.items() if (m := pattern.fullmatch(token)))


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content: dict[str, object] = {}
    for token, i in pairs:
        if token in content:
            raise InputError(f"token {shorten(repr(token))} occurs twice; each token has one id")
        content[token] = i
    return content


def _check_ids(vocabulary: dict[str, int]) -> None:
    by_id: dict[int, str] = {}
    for token, i in vocabulary.items():
        name = shorten(repr(token))
        if type(i) is not int or i < 0:
            raise InputError(f"token {name} has id {shorten(repr(i))}; ids are whole numbers from 0")
        if not token or any(character.isspace() for character in token):
            raise InputError(f"token {name} (id {i}) is empty or contains white space, so no row could contain it")
        if i in by_id:
            raise InputError(f"{shorten(repr(by_id[i]))} and {name} share id {i}; each id has one token")
        by_id[i] = token
    gap = next((i for i in range(len(vocabulary)) if i not in by_id), None)
    if gap is not None:
        raise InputError(
            f"no token has id {gap}, though ids go up to {shorten(max(by_id))}; ids must run from 0 without a gap"
        )
