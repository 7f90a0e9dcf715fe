"""What options of images mean, to whichever command they are given: names of files, sizes, features of pixels.

One idea: a text that can't be meant so is refused with an example of one that can. Nothing heavy is imported.
"""

from __future__ import annotations

from pathlib import Path

from imagelm.utils.errors import InputError

TABLE_SUFFIXES = (".parquet", ".arrow")
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")  # of files that name images and their classes
PIXEL_FEATURES = ("x", "y", "t", "R", "G", "B", "A", "Gx", "Gy")


def is_table(name: str | Path) -> bool:
    """Whether a name is that of a Parquet or Arrow file."""
    return Path(name).suffix.lower() in TABLE_SUFFIXES


def check_image_root(folder: str | None, images: list[str]) -> None:
    """Refuses an `--image_root` that is no folder, or that has no effect because no image comes from a table."""
    if folder is None:
        return
    if not folder or not Path(folder).is_dir():
        raise InputError(f"--image_root {folder}: no such folder; name the folder that the paths start from")
    if images and not any(is_table(name) or Path(name).suffix.lower() in LIST_SUFFIXES for name in images):
        raise InputError(f"--image_root {folder} has no effect, as no table and no list is named; remove it")


def check_not_in_images(output_dir: str, images: list[str]) -> None:
    """Refuses an output folder inside a folder of images."""
    for folder in images:
        inside = Path(output_dir).resolve().is_relative_to(Path(folder).resolve())
        if folder and Path(folder).is_dir() and inside:
            raise InputError(
                f"--output_dir {output_dir} is inside the image folder {folder}, and would be read as a class next "
                "time; choose another folder"
            )


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`"28"` or `"28x32"` (height x width)."""
    if text is None:
        return None
    sides = str(text).lower().replace("×", "x").split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise InputError(f"--image_size {text}: give pixels, such as 32, or height and width, such as 32x48")
    return int(sides[0]), int(sides[-1])


def check_features(text: str) -> None:
    """Refuses a list such as `"x,y,R"` with unknown or repeated features of a pixel."""
    names = text.split(",")
    if wrong := [name for name in names if name not in PIXEL_FEATURES]:
        raise InputError(f"--features: {wrong[0]!r} is unknown; choose from {','.join(PIXEL_FEATURES)}")
    if len(set(names)) < len(names):
        raise InputError(f"--features {text} names a feature twice; name each once")
