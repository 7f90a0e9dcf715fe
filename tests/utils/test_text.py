"""Names that anyone may have made, where a person reads them: in a terminal, a table, a plot."""

from __future__ import annotations

import logging

import pytest

from imagelm.commands.logs import TERMINAL
from imagelm.utils.errors import InputError, StorageError, run_script
from imagelm.utils.text import display_names, name_problem, printable, table_cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ümlaut, 猫, 🐈", "plain, ümlaut, 猫, 🐈"),
        ("\x1b]0;pwned\x07", "\\x1b]0;pwned\\x07"),
        ("\r\x1b[2K", "\\r\\x1b[2K"),
        ("\x9b31m \x7f \x00", "\\x9b31m \\x7f \\x00"),
        ("a\u202egnp.exe\u2066\u2069\u200f", "a\\u202egnp.exe\\u2066\\u2069\\u200f"),
        ("c\u200ba\u200dt\ufeff\u2060\u00ad", "c\\u200ba\\u200dt\\ufeff\\u2060\\xad"),
        ("two\nlines\u2028three\x85", "two\\nlines\\u2028three\\x85"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("no UTF-8 \udcff", "no UTF-8 \\xff"),
    ],
)
def test_what_controls_reorders_or_hides_is_shown_as_an_escape(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_the_newlines_of_a_message_may_stay():
    assert printable("one\ntwo\x1b\r\n", keep="\n") == "one\ntwo\\x1b\\r\n"


def test_a_table_cell_is_one_printable_line():
    assert table_cell("a\x1b[2J\nb\u202e") == "a\\\\x1b\\[2J b\\\\u202e"


def test_names_in_tables_are_cut_and_equal_and_blank_ones_are_told_apart():
    names = ["dog", "cat", "cat", "cat\u200b", "", " \u3164", "e\u0301", "\u00e9", "x" * 99, "x" * 98]
    shown = display_names(names)
    assert shown[:6] == ["dog", "cat (1)", "cat (2)", "cat\\u200b", "(4)", "\u3164 (5)"]
    assert shown[6:8] == ["e\u0301 (6)", "\u00e9 (7)"]
    assert shown[8:] == ["x" * 39 + "… (8)", "x" * 39 + "… (9)"]
    assert display_names(["cat", "cat", "cat (1)"]) == ["cat (0)", "cat (1)", "cat (1) (2)"]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["cat", "Cat", "cats", "1", "01", "猫"], None),
        (["cat", "dog", "cat"], "classes 0 and 2 have names that look the same ('cat' and 'cat')"),
        (["\u00e9", "e\u0301"], "classes 0 and 1 have names that look the same ('\\xe9' and 'e\\u0301')"),
        (["cat", "c\u200bat"], "classes 0 and 1 have names that look the same ('cat' and 'c\\u200bat')"),
        (["cat", " cat\u00a0"], "classes 0 and 1 have names that look the same ('cat' and ' cat\\xa0')"),
        (["cat", ""], "class 1 has a blank name ('')"),
        (["\u200b\u2060", "cat"], "class 0 has a blank name ('\\u200b\\u2060')"),
        (["cat", "\u3164"], "class 1 has a blank name ('\\u3164')"),
    ],
)
def test_names_that_people_cannot_tell_apart_are_found(names, problem):
    assert name_problem(names) == problem


@pytest.mark.parametrize("error", [InputError, StorageError, OSError])
def test_errors_and_log_lines_reach_the_terminal_without_controls(error, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # so that this process keeps its own signal handler

    def main() -> None:
        TERMINAL.emit(logging.LogRecord("imagelm", logging.INFO, "", 0, "read %s\nall", ("a\x1b[2Kb\r",), None))
        raise error("2 bad rows\n  \u202eb\x9b.png")

    with pytest.raises(SystemExit):
        run_script(main)
    out, err = capsys.readouterr()
    assert out == "read a\\x1b[2Kb\\r\nall\n"
    assert err == "error: 2 bad rows\n  \\u202eb\\x9b.png\n"
