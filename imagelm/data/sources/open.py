"""Folders, files, archives, tables and Hub datasets → labelled images.

One idea: every source is a numbered list of images that is read a slice at a time; several sources are joined to one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash
from PIL import Image
from tqdm import tqdm

from imagelm.data.arguments import PrepareArguments
from imagelm.data.sources.arrays import ArraySource
from imagelm.data.sources.decode import BadImage, ImageSource, UnlabelledError
from imagelm.data.sources.joined import locate, relabel
from imagelm.data.sources.layouts import Part, Query, expand_globs, find_splits
from imagelm.data.sources.names import choose_splits, kind_of
from imagelm.data.sources.parts import check_effect, open_part, os_errors
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, printable

READ_SIZE = 64  # images per slice; memory holds at most their files and one decoded image


@dataclass(frozen=True)
class LabelledImages:
    """The images to prepare, numbered over one source, or over one for each split.

    Attributes:
        sources: The images to split; or those of each split, in the order of `splits`.
        splits: The split of each source; empty if the images are still to be split.
        class_names: Names of the classes, indexed by label.
        labels: Class of each image; int64, shape (images,).
        files: The names that were given, as one text.
        notes: Decisions made while opening the sources, for the summary.
    """

    sources: tuple[ImageSource, ...]
    splits: tuple[str, ...]
    class_names: list[str]
    labels: np.ndarray
    files: str
    notes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def identity(self) -> dict[str, object]:
        """What the images are, in a few words and digests, without reading them."""
        names, labels = xxhash.xxh3_128(), repr(self.class_names).encode() + self.labels.tobytes()
        for number in range(len(self)):
            names.update(self.name(number).encode())
        return {
            "images": len(self),
            "names of images": names.hexdigest(),
            "class names and labels": xxhash.xxh3_128_hexdigest(labels),
        }

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of each source's first image; shape (sources,)."""
        return np.cumsum([0, *map(len, self.sources[:-1])])

    def locate(self, number: int) -> tuple[ImageSource, int]:
        """The source of an image, and the image's number in it."""
        return locate(self.sources, self.starts, number)

    def place(self, number: int) -> str:
        """Where an image is, for messages."""
        source, own = self.locate(number)
        return source.place(own)

    def name(self, number: int) -> str:
        """Identifies an image in the published rows, without the folders of this machine."""
        source, own = self.locate(number)
        return f"{number}:{source.name(own)}"

    def load(self, number: int) -> Image.Image:
        """Decodes one image, which the scan could read."""
        source, own = self.locate(number)
        return self.check_readable(number, source.load(own, own + 1)[0])

    def check_readable(self, number: int, image: Image.Image | BadImage) -> Image.Image:
        """The image, if it can still be read; else an InputError."""
        if isinstance(image, BadImage):
            raise InputError(f"{self.place(number)} changed while it was prepared ({image.reason}); start again")
        return image

    def spans(self, share: tuple[int, int] = (0, 1)) -> list[range]:
        """The numbers of the images in each slice of a share: which one, from 0, and of how many."""
        ends = np.append(self.starts[1:], len(self)).tolist()
        spans = [
            range(start, min(start + READ_SIZE, end))
            for first, end in zip(self.starts.tolist(), ends, strict=True)
            for start in range(first, end, READ_SIZE)
        ]
        return spans[len(spans) * share[0] // share[1] : len(spans) * (share[0] + 1) // share[1]]

    def slices(
        self, description: str, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[int, Sequence[Image.Image | BadImage]]]:
        """The images of a share in slices, test images last, each slice with the number of its first image."""
        spans = self.spans(share)
        with tqdm(total=sum(map(len, spans)), unit=" images", desc=description, disable=None) as progress:
            for span in spans:
                source, own = self.locate(span.start)
                yield span.start, source.load(own, own + len(span))
                progress.update(len(span))


def open_labelled_images(arguments: PrepareArguments) -> LabelledImages:
    """Opens `--images` and `--test_images`.

    Raises:
        InputError: There are no images, labels or classes, or the options contradict each other.
    """
    query = _query_of(arguments)
    notes: list[str] = []
    given = {"train": _named(arguments.images or [], query, arguments.split)}
    if arguments.test_images is not None:
        given["test"] = _named(arguments.test_images, query)
    elif arguments.split is None and (
        found := own_splits(given["train"].names, query, with_validation=arguments.validation_size > 0)
    ):
        given, note = found
        notes += filter(None, [note])
    for option, split in (("test_size", "test"), ("split_by", "test"), ("validation_size", "validation")):
        if split in given and option in [entry.name for entry in arguments.changed()]:
            raise InputError(f"--{option} has no effect where {split} images are given; remove it")
    sources = [open_part(part, query, default=kind) for kind, part in given.items()]
    for source in sources:
        if not len(source):
            raise InputError(f"{source.origin} holds no images")
        if source.labels is None and isinstance(source, ArraySource):
            raise InputError(
                f"{source.origin}: an array of images without their labels; save these as y.npy beside it, or both in "
                "one archive: numpy.savez(FILE, images=…, labels=…)"
            )
        if source.labels is None:
            raise InputError(
                f"{source.place(0)} has no label; expected a folder for each class, or a label column or array "
                "(see --label_column)"
            )
        notes += [*source.notes, *source.columns]
    class_names = sources[0].class_names or []
    if len(class_names) < 2:
        raise InputError(f"all images are of one class ({printable(class_names[0])}); expected two or more")
    if arguments.split_by == "field" and "test" not in given:
        raise InputError("--split_by field: images have no such field; name the test images with --test_images")
    labels = np.concatenate([relabel(source, class_names) for source in sources])
    files = ", ".join([*(arguments.images or []), *(arguments.test_images or [])])
    return LabelledImages(tuple(sources), tuple(given) if "test" in given else (), class_names, labels, files, notes)


def open_images(
    names: Sequence[str],
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    image_root: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> ImageSource:
    """Opens folders, files, archives, tables or datasets of the Hub as one list of images.

    Args:
        names: Files, folders, patterns such as `photos/*.png`, or ids of datasets on the Hub.
        image_column, label_column: Columns or arrays; found by type and name by default.
        split: Which split of one name with several; None takes the only one, or the one that `prepare` holds out: test,
            else validation, else train.
        image_root: Where tables and lists may name image files; None: nowhere.
        config_name, revision: Which configuration and revision of a dataset on the Hub, as in `datasets`.

    Raises:
        InputError: A name doesn't exist or holds no images.
    """
    query = Query(image_column, label_column, image_root, config_name, revision)
    return open_part(_named(names, query, split), query, default="test")


def own_splits(names: list[str], query: Query, with_validation: bool) -> tuple[dict[str, Part], str | None] | None:
    """What to open for each split, and a note, if the names hold a training and a held-out split, or one part.

    None for anything else. A split without labels isn't used; it may leave the training images alone.

    Raises:
        InputError: Several splits could be the one to use.
    """
    with os_errors():
        parts, where = find_splits(names, query), join_first(names, 3)
    if not (wanted := choose_splits(list(parts), where, with_validation)):
        return ({"train": next(iter(parts.values()))}, None) if len(parts) == 1 else None
    train = parts[wanted["train"]]
    labelled = [name for name in parts if kind_of(name) in (None, "train") or _is_labelled(parts[name], train, query)]
    chosen = choose_splits(labelled, where, with_validation) or {"train": wanted["train"]}
    *first, last = (f"a {printable(name)}" for name in chosen.values())
    note = f"{where} {'has' if len(names) == 1 else 'have'} "
    note += (
        f"{', '.join(first)} and {last} split, which are used as they are" if first else f"{last} split, which is used"
    )
    offered = {name: name if name in labelled else f"{name} (it has no labels)" for name in parts}
    if unused := ", ".join(printable(offered[name]) for name in offered if name not in chosen.values()):
        note += f"; not used: {unused}"
    return {kind: parts[name] for kind, name in chosen.items()}, note


def batches(source: ImageSource, size: int = READ_SIZE) -> Iterator[tuple[int, Sequence[Image.Image | BadImage]]]:
    """The images in slices, each with the number of its first one."""
    for start in range(0, len(source), size):
        yield start, source.load(start, min(start + size, len(source)))


def _named(names: Sequence[str], query: Query, split: str | None = None) -> Part:
    names = expand_globs(names)
    check_effect(names, query)
    return Part(names, split)


def _query_of(arguments: PrepareArguments) -> Query:
    names = ("image_column", "label_column", "image_root", "config_name", "revision")
    return Query(**{name: getattr(arguments, name) for name in names})


def _is_labelled(part: Part, train: Part, query: Query) -> bool:
    """Whether a split has labels; the test split of a competition has none, −1 everywhere, or one folder of images."""
    try:
        source = open_part(part, query)
    except UnlabelledError:
        return False
    if source.labels is None or not source.class_names:
        return False
    return len(source.class_names) > 1 or source.class_names[0] in (open_part(train, query).class_names or [])
