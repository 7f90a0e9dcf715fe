"""The README is short, shows real output, and says the same in both languages."""

from __future__ import annotations

import json
import re

import pytest

from imagelm.data.stats import summary as preparation_summary
from imagelm.evaluation.report import summary
from tests.conftest import ROOT
from tests.docs.documents import CHINESE_README, README, read

MAX_WORDS = 1_100


def text_block(document, start: str) -> list[str]:
    """The lines of the text block that begins with `start`."""
    return next(block for block in document.blocks("text") if block.startswith(start)).splitlines()


def test_the_readme_has_at_most_1100_words():
    lines = [line for line in read(README).prose.splitlines() if not line.lstrip().startswith("|")]
    assert 400 < len(" ".join(lines).split()) <= MAX_WORDS


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/quickstart.md"])
def test_the_shown_summary_has_the_lines_that_training_prints(trained, name):
    results = json.loads((trained / "best_model/eval_results.json").read_text())
    run = json.loads((trained / "run.json").read_text())
    labels = [line[:22].rstrip() for line in summary(results, run, trained / "report").splitlines()]
    shown = [line[:22].rstrip() for line in text_block(read(ROOT / name), "test rows")]
    assert shown == labels[: len(shown)]


def test_the_quickstart_shows_what_preparing_prints(prepared):
    def shape(lines: list[str]) -> list[str]:
        """The lines about rows without their figures."""
        plain = [re.sub(r"\(.*\)|[\d.]+", "N", line) for line in lines]
        return [line for line in plain if line.startswith(("rows", "split", "length", "codebook"))]

    printed = preparation_summary(json.loads((prepared / "stats.json").read_text()))
    assert shape(text_block(read(ROOT / "docs/quickstart.md"), "codec: ")) == shape(printed)


@pytest.mark.parametrize("file", [README, CHINESE_README], ids=lambda file: file.name)
def test_every_entry_of_the_file_tree_exists(file):
    folder, count = "", 0
    for line in text_block(read(file), "prepare_dataset.py,"):
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        for name in names:
            assert (ROOT / (folder if line.startswith(" ") else "") / name).exists(), name
            count += 1
        if not line.startswith(" "):
            folder = names[0]
    assert count > 20


def test_both_languages_have_the_same_commands_snippets_figures_and_images():
    english, chinese = read(README), read(CHINESE_README)
    assert english.commands() == chinese.commands()
    assert english.blocks("python") == chinese.blocks("python")
    figures = re.compile(r"\d[\d,]*\.?\d*")
    for line, other in zip(tables(english), tables(chinese), strict=True):
        assert figures.findall(line) == figures.findall(other)
    decimals = re.compile(r"\d+\.\d+")
    assert set(decimals.findall(english.text)) == set(decimals.findall(chinese.text))
    pictures = re.compile(r"!\[.+\]\((\S+)\)")
    assert pictures.findall(english.text) == pictures.findall(chinese.text)


def tables(document) -> list[str]:
    return [line for line in document.text.splitlines() if line.startswith("|")]
