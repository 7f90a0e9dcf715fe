"""Which installed font can draw a text, and what stands in a picture for a name that none can draw.

One idea: a picture shows no boxes. A name is drawn whole in one font, or the class's number stands for it and a
sentence says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from imagelm.utils.text import NAME_WIDTH, display_names, join_first

# Fonts that draw boxes (Last Resort), or whose glyphs need colours.
UNUSABLE = ("last resort", "emoji")


def drawable_names(names: Sequence[str], width: int = NAME_WIDTH) -> tuple[list[str], list[str]]:
    """Class names for pictures, as `display_names`, with `class 3` for a name that no installed font can draw.

    Gives the names, indexed by label, and a sentence that says which numbers stand for which names, if any do.
    """
    shown = display_names(names, width)
    missing = {label for label, file in enumerate(font_files(shown)) if file is None}
    if not missing:
        return shown, []
    drawn = [f"class {label}" if label in missing else name for label, name in enumerate(shown)]
    numbers = join_first(f"class {label} is {shown[label]}" for label in sorted(missing))
    note = f"Pictures show numbers for classes whose names no installed font can draw: {numbers}"
    return display_names(drawn, width), [note]  # again, as another class could be called `class 3`


def font_files(texts: Sequence[str]) -> list[str | None]:
    """For each text the file of a font that has all its characters; None if no installed font has them.

    matplotlib's own DejaVu Sans (Latin, Greek, Cyrillic, Arabic, some symbols) is preferred to the machine's fonts.
    """
    needed = {text: {ord(character) for character in text} - {ord(" "), ord("\n")} for text in texts}
    found: dict[str, str] = {}
    for file in _fonts():
        if len(found) == len(needed):
            break
        characters = _characters(file)
        found |= {text: file for text in needed.keys() - found.keys() if needed[text] <= characters}
    return [found.get(text) for text in texts]


def default_font() -> str:
    """The file of DejaVu Sans, which matplotlib brings."""
    import matplotlib  # late, here and below: it takes a while

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _fonts() -> Iterator[str]:
    """The default font's file, then those of the machine, upright and of usual weight first."""
    yield default_font()
    from matplotlib.font_manager import fontManager

    usable = [entry for entry in fontManager.ttflist if not any(part in entry.name.lower() for part in UNUSABLE)]
    usable.sort(key=lambda entry: (entry.style != "normal", entry.weight not in (400, "normal"), entry.fname))
    yield from dict.fromkeys(entry.fname for entry in usable)


def _characters(file: str) -> Set[int]:
    """The code points that a font has glyphs for; empty if it can't be used."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(file)
    except (OSError, RuntimeError):  # deleted since matplotlib listed it, or damaged
        return set()
    return font.get_charmap().keys() if font.scalable else set()
