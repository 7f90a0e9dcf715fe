"""The usual names of splits, images and labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from datasets.data_files import SPLIT_KEYWORDS

from imagelm.utils.errors import InputError
from imagelm.utils.text import printable

# The likelier a name, the earlier; in any case.
IMAGE_NAMES = ("image", "images", "img", "imgs", "pixel_values", "x", "data")
LABEL_NAMES = ("label", "labels", "fine_label", "y", "target", "class")
SPLIT_KINDS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}


def rank(name: str, usual: Sequence[str]) -> int:
    """The place of a name among the usual ones; their number if it is none of them."""
    return usual.index(name.lower()) if name.lower() in usual else len(usual)


def by_rank(names: Iterable[str], usual: Sequence[str]) -> list[str]:
    """The names that are among the usual ones, the likeliest first."""
    return sorted((name for name in names if rank(name, usual) < len(usual)), key=lambda name: rank(name, usual))


def split_kind(name: str) -> str | None:
    """`train`, `validation` or `test`, by the Hub's convention; None for any other name."""
    return SPLIT_KINDS.get(name.lower())


def find_split(names: Iterable[str], kind: str, where: str) -> str | None:
    """The name of the split of a kind, or None; an InputError if several have this kind."""
    found = [name for name in names if split_kind(name) == kind]
    if len(found) > 1:
        shown = ", ".join(map(printable, found))
        raise InputError(f"--images {where} has {len(found)} {kind} splits ({shown}); rename or remove all but one")
    return found[0] if found else None


def choose_splits(names: Sequence[str], where: str) -> tuple[str, str] | None:
    """The names of the training and the held-out split, which is the test or else the validation split.

    None if one is missing; an InputError if several names fit.
    """
    if (train := find_split(names, "train", where)) is None:
        return None
    held_out = find_split(names, "test", where) or find_split(names, "validation", where)
    return (train, held_out) if held_out else None
