"""Names in pictures: every script that an installed font has, numbers for the others, never a box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import get_data_path
from matplotlib.font_manager import fontManager

from imagelm.evaluation.plots import write_plots
from imagelm.utils.fonts import default_font, drawable_names, font_files
from imagelm.utils.image_grid import image_grid


@pytest.fixture
def no_system_fonts(monkeypatch):
    """Only the fonts that matplotlib brings."""
    own = [entry for entry in fontManager.ttflist if Path(entry.fname).is_relative_to(get_data_path())]
    monkeypatch.setattr(fontManager, "ttflist", own)


@pytest.fixture
def cat_font(tmp_path, no_system_fonts) -> str:
    """A font with one character, 猫, drawn as a black square of the font's size."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "cat"])
    font.setupCharacterMap({ord("猫"): "cat"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": "Cat", "styleName": "Regular"})
    font.setupOS2(sTypoAscender=1000)
    font.setupPost()
    font.save(tmp_path / "cat.ttf")
    fontManager.addfont(tmp_path / "cat.ttf")
    return str(tmp_path / "cat.ttf")


def confusion_matrix(folder: Path, names: list[str]) -> bytes:
    folder.mkdir()
    matrix = (np.eye(len(names), dtype=int) * 5).tolist()
    write_plots(folder, {"eval_confusion_matrix": matrix, "class_names": names}, history=[])
    return (folder / "confusion_matrix.png").read_bytes()


def test_a_name_that_no_font_can_draw_is_replaced_by_the_number_of_its_class(no_system_fonts, tmp_path, caplog):
    names = ["Müller", "αβγ", "кошка", "قطة", "猫", "class 4", "a\u3000b"]
    drawn, notes = drawable_names(names)
    assert drawn == ["Müller", "αβγ", "кошка", "قطة", "class 4 (4)", "class 4 (5)", "class 6"]
    assert [note.split(": ")[1] for note in notes] == ["class 4 is 猫, class 6 is a\u3000b"]
    assert confusion_matrix(tmp_path / "cjk", ["猫", "dog"]) == confusion_matrix(tmp_path / "0", ["class 0", "dog"])
    assert "class 0 is 猫" in caplog.text
    assert drawable_names(["cat", "x" * 300], width=24) == (["cat", "x" * 23 + "…"], [])


def test_a_name_is_drawn_in_an_installed_font_that_has_its_characters(cat_font, tmp_path):
    assert font_files(["猫", "dog", "猫 dog"]) == [cat_font, default_font(), None]
    assert drawable_names(["猫", "dog"]) == (["猫", "dog"], [])
    white = [np.full((8, 8), 255, np.uint8)] * 2
    caption = image_grid(white, 2, captions=["猫", ""])[104:, :104]
    dark_rows, dark_columns = np.nonzero((caption < 200).all(2))
    assert np.ptp(dark_rows) + 1 == np.ptp(dark_columns) + 1 == 13  # the square, as large as the font
    assert len(dark_rows) == 13 * 13
    assert confusion_matrix(tmp_path / "cat", ["猫", "dog"]) != confusion_matrix(tmp_path / "0", ["class 0", "dog"])


@pytest.mark.parametrize("broken", ["deleted", "damaged"])
def test_a_font_that_cannot_be_read_is_skipped(cat_font, broken):
    if broken == "deleted":
        Path(cat_font).unlink()
    else:
        Path(cat_font).write_bytes(b"no font")
    assert font_files(["猫", "cat"]) == [None, default_font()]
