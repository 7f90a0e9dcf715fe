"""Several sources as one, and labels in the order of other class names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagelm.data.sources.decode import ImageSource, LazyImages, natural_key
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, name_problem, printable


class JoinedSource(ImageSource):
    """Several sources, one after the other; labels are joined by class name."""

    def __init__(self, sources: list[ImageSource]) -> None:
        super().__init__(", ".join(source.origin for source in sources))
        self.sources = sources
        self.starts = np.cumsum([0, *map(len, sources)])
        self.notes = _merged([(source.origin, note) for source in sources for note in source.notes])
        self.columns = _merged([(source.origin, note) for source in sources for note in source.columns])
        named = [source.class_names for source in sources if source.class_names is not None]
        if len(named) == len(sources):
            names = list(dict.fromkeys(name for own in named for name in own))
            self.class_names = names if all(own == names for own in named) else sorted(names, key=natural_key)
            self.labels = np.concatenate([relabel(source, self.class_names) for source in sources])
        elif named:
            first = next(source for source in sources if source.class_names is None)
            raise InputError(f"--images: {first.place(0)} has no label, but other images have one")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, i: int) -> str:
        source, own = locate(self.sources, self.starts, i)
        return source.place(own)

    def name(self, i: int) -> str:
        source, own = locate(self.sources, self.starts, i)
        return source.name(own)

    def load(self, start: int, stop: int) -> LazyImages:
        places = [locate(self.sources, self.starts, i) for i in range(start, stop)]
        return LazyImages(lambda place: place[0].load(place[1], place[1] + 1)[0], places)

    def extra(self, name: str) -> np.ndarray | None:
        parts = [column for source in self.sources if (column := source.extra(name)) is not None]
        return np.concatenate(parts) if len(parts) == len(self.sources) else None


def locate(sources: Sequence[ImageSource], starts: np.ndarray, number: int) -> tuple[ImageSource, int]:
    """The source of an image, and the image's number in it; `starts` holds the number of each source's first image."""
    source = int(np.searchsorted(starts, number, side="right")) - 1
    return sources[source], number - int(starts[source])


def _merged(notes: list[tuple[str, str]]) -> list[str]:
    """The notes of several sources; a note that several of them share appears once."""
    origins: dict[str, list[str]] = {}
    for origin, note in notes:
        text = note.removeprefix(f"{origin}: ")
        origins.setdefault(text, []).extend([origin] if text != note else [])
    return [f"{join_first(origin, 2)}: {text}" if origin else text for text, origin in origins.items()]


def relabel(source: ImageSource, class_names: list[str]) -> np.ndarray:
    """The labels of a labelled source as indices of other class names; an InputError if one of its own isn't there."""
    own, labels = source.class_names or [], np.asarray(source.labels)
    number = {name: i for i, name in enumerate(class_names)}
    for label in np.unique(labels):
        if own[label] not in number:
            example = source.place(int(np.flatnonzero(labels == label)[0]))
            known = ", ".join(map(printable, class_names))
            raise InputError(f"{example} is of class {own[label]!r}, which isn't among {known}")
    return np.array([number.get(name, -1) for name in own])[labels]


def check_class_names(source: ImageSource) -> None:
    if problem := name_problem(source.class_names or []):
        raise InputError(f"--images {source.origin}: {problem}; rename one, or choose another --label_column")
