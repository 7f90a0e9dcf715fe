"""A newcomer's test: docs/house.md names the room, the file and the function that answer twenty questions."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

HOUSE = (ROOT / "docs/house.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^\| (.+\?) \| `(.+)` \| `(.+)` \|$", HOUSE, re.MULTILINE)
FLOORS = re.findall(r"^\| (\d) \| (.+) \|$", HOUSE, re.MULTILINE)


def defined_names(file: Path) -> set[str]:
    """Functions, classes and variables of a module, and methods and fields as `Class.name`."""
    names: set[str] = set()

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{node.name}.")
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found = (part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
                names.update(prefix + part.id for part in found)

    add(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return names


def test_there_are_twenty_questions():
    assert len(QUESTIONS) == len({question for question, _, _ in QUESTIONS}) == 20


@pytest.mark.parametrize(("question", "file", "name"), QUESTIONS, ids=[question for question, _, _ in QUESTIONS])
def test_the_file_that_answers_a_question_defines_the_name(question: str, file: str, name: str):
    assert name in defined_names(ROOT / file), question


def test_the_rooms_of_the_page_are_the_floors_that_the_linter_checks():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    checked = [sorted(re.split(r" [|:] ", layer)) for layer in layers]
    assert [sorted(re.findall(r"`(\w+)`: ", rooms)) for _, rooms in FLOORS] == checked
    assert [int(floor) for floor, _ in FLOORS] == list(range(len(layers), 0, -1))


def test_every_folder_of_the_package_is_a_room():
    rooms = {room for _, floor in FLOORS for room in re.findall(r"`(\w+)`: ", floor)}
    folders = {path.name for path in (ROOT / "imagelm").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == rooms | {"templates"}
    assert f"{len(rooms)} rooms on {len(FLOORS)} floors" in HOUSE


def test_every_arguments_file_defines_the_options_of_its_room():
    for file in (ROOT / "imagelm").glob("*/arguments.py"):
        assert any(name.endswith("Arguments") for name in defined_names(file)), file
