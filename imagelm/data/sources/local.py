"""Image folders and single files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagelm.data.sources.decode import ImageSource, LazyImages, natural_key, read_image
from imagelm.data.sources.kinds import SYSTEM_FILES, is_other_file, not_read, shown
from imagelm.data.sources.names import split_kind
from imagelm.utils.errors import InputError
from imagelm.utils.text import decoded, normalized, printable

INTERNAL = ("__MACOSX", "__pycache__")  # folders of programs; `__background__` may be a class


class FileSource(ImageSource):
    """Image files without labels."""

    def __init__(self, files: list[Path], root: Path) -> None:
        super().__init__(str(root))
        self.files, self.root = files, root

    def __len__(self) -> int:
        return len(self.files)

    def place(self, i: int) -> str:
        return printable(self.files[i])

    def name(self, i: int) -> str:
        return decoded(self.files[i].relative_to(self.root).as_posix())

    def load(self, start: int, stop: int) -> LazyImages:
        return LazyImages(read_image, self.files[start:stop])


class FolderSource(FileSource):
    """A folder with one folder per class; or, without class folders, images without labels.

    With `split`, the images of a class are in the folder of this name inside the class folder.
    """

    def __init__(self, root: Path, split: str | None = None) -> None:
        folders = sorted((e for e in root.iterdir() if e.is_dir() and is_visible(e, root)), key=natural_key)
        splits = [folder for folder in folders if split_kind(folder.name)]
        if len({split_kind(folder.name) for folder in splits}) > 1:  # else they would become classes
            names = ", ".join(printable(folder.name) for folder in splits)
            raise InputError(f"--images {root} holds the splits {names}; name one of them, such as {splits[0]}")
        found: dict[Path, list[Path]] = {}
        links: list[Path] = []
        for folder in folders:
            start = folder if split is None else folder / split
            found[folder], unfollowed = _files_in(start, root) if start.is_dir() else ([], [])
            links += unfollowed
        loose = sorted((entry for entry in root.iterdir() if _is_candidate(entry, root)), key=natural_key)
        others = [file for files in found.values() for file in files if is_other_file(file)]
        found = {folder: [file for file in files if not is_other_file(file)] for folder, files in found.items()}
        if not any(found.values()):
            others += [file for file in loose if is_other_file(file)]
            super().__init__([file for file in loose if not is_other_file(file)], root)
            if not self.files:
                raise InputError(f"--images {root} {_reason(others)}")
        else:
            self._set_classes(root, found, loose)
        for reason, paths in (
            ("not followed, because it is a link to a folder", links),
            ("not used, because it is no image", others),
        ):
            if paths:
                self.notes.append(f"{root}: {reason}: {shown(paths, root)}")

    def _set_classes(self, root: Path, found: dict[Path, list[Path]], loose: list[Path]) -> None:
        classes = [folder for folder, files in found.items() if files]
        super().__init__([file for folder in classes for file in found[folder]], root)
        self.class_names = [normalized(folder.name) for folder in classes]
        self.labels = np.repeat(np.arange(len(classes)), [len(found[folder]) for folder in classes])
        if loose:
            self.notes.append(f"{root}: not used, because it is outside the class folders: {shown(loose, root)}")
        if empty := [printable(folder.name) for folder, files in found.items() if not files]:
            self.notes.append(f"{root}: not used as a class, because the folder holds no images: {', '.join(empty)}")


def is_visible(path: Path, root: Path) -> bool:
    """Whether neither the file nor a folder on the path to it is hidden or internal to a program."""
    return not any(part.startswith(".") or part in INTERNAL for part in path.relative_to(root).parts)


def _reason(others: Sequence[Path]) -> str:
    """What is in a folder without images, and what to do."""
    if not others:
        return "holds no files; expected a folder of images for each class"
    what = not_read(others[0]) or "a data file, which is read alone: name it instead of the folder"
    return f"holds no images; {printable(others[0])} is {what}"


def _is_candidate(path: Path, root: Path) -> bool:
    """Whether a file may be an image; a pipe or a broken link is reported when it is read."""
    return not path.is_dir() and is_visible(path, root) and path.name.lower() not in SYSTEM_FILES


def _files_in(folder: Path, root: Path) -> tuple[list[Path], list[Path]]:
    """All files of a class in natural order, and links to folders, which could lead to another class or in a circle."""

    def refuse(error: OSError) -> None:  # the images of a folder that can't be listed would be missing silently
        raise InputError(f"--images {root}: {printable(error.filename)} can't be read: {error.strerror}") from error

    files: list[Path] = []
    links: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=refuse):
        files += [Path(where, name) for name in names]
        links += [Path(where, name) for name in folders if Path(where, name).is_symlink()]
    files = [file for file in files if _is_candidate(file, root)]
    links = [link for link in links if is_visible(link, root)]
    return sorted(files, key=natural_key), sorted(links, key=natural_key)
