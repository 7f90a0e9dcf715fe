"""The usual names of splits, images and labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from imagelm.utils.errors import InputError
from imagelm.utils.text import printable

# The likelier a name, the earlier; in any case.
IMAGE_NAMES = ("image", "images", "img", "imgs", "pixel_values", "x", "data")
PATH_NAMES = (
    *("image", "file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img_path", "img"),
    *("image_file", "image_name", "images"),
)
LABEL_NAMES = (
    *("label", "labels", "fine_label", "fine_labels", "y", "target", "targets", "class", "classes", "class_name"),
    *("category", "cls", "json.label", "json.class", "json.cls"),  # the last ones in WebDataset archives
)
# The words of `datasets.data_files.SPLIT_KEYWORDS`, which a folder of images is read without.
SPLIT_KINDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# A word inside a name stands between the characters that the Hub takes for separators: `mnist_train-00000-of-00002`.
_SPLIT_WORD = re.compile(rf"(?<![^-._ 0-9])(?:{'|'.join(SPLIT_KINDS)})(?![^-._ 0-9])")


def rank(name: str, usual: Sequence[str]) -> int:
    """The place of a name among the usual ones; their number if it is none of them."""
    return usual.index(name.lower()) if name.lower() in usual else len(usual)


def by_rank(names: Iterable[str], usual: Sequence[str]) -> list[str]:
    """The names that are among the usual ones, the likeliest first."""
    return sorted((name for name in names if rank(name, usual) < len(usual)), key=lambda name: rank(name, usual))


def split_kind(name: str) -> str | None:
    """`train`, `validation` or `test`, by the Hub's convention; None for any other name."""
    return SPLIT_KINDS.get(name.lower())


def kind_of(name: str) -> str | None:
    """The kind of a split by its whole name, or else by a word in it, as in `pets_train`."""
    return split_kind(name) or split_kind(split_word(name) or "")


def split_word(name: str) -> str | None:
    """The word in the name of a file or folder that says its split, such as `train`; None if none or several do."""
    words = _SPLIT_WORD.findall(name.lower())
    return words[0] if len(set(map(split_kind, words))) == 1 else None


def without_split_word(name: str) -> str:
    """What is left of such a name: equal for the splits of one dataset (`pets_train`, `pets_test`)."""
    return _SPLIT_WORD.sub("*", name.lower())


def find_split(names: Iterable[str], kind: str, where: str) -> str | None:
    """The name of the split of a kind, or None; an InputError if several have this kind."""
    found = [name for name in names if kind_of(name) == kind]
    if len(found) > 1:
        shown = ", ".join(map(printable, found))
        raise InputError(f"--images {where} has {len(found)} {kind} splits ({shown}); rename or remove all but one")
    return found[0] if found else None


def choose_splits(names: Sequence[str], where: str, with_validation: bool) -> dict[str, str]:
    """Which names to use as `train`, `validation` and `test`; the only held-out split is the test split.

    Empty without a training or a held-out split; an InputError if several names fit. Beside a test split, a validation
    split is used `with_validation` if it is the only one.
    """
    if (train := find_split(names, "train", where)) is None:
        return {}
    if (test := find_split(names, "test", where)) is None:
        held_out = find_split(names, "validation", where)
        return {"train": train, "test": held_out} if held_out else {}
    validation = [name for name in names if kind_of(name) == "validation"]
    used = {"validation": validation[0]} if with_validation and len(validation) == 1 else {}
    return {"train": train, **used, "test": test}
