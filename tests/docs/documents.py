"""The documents as data for tests: their code blocks, commands, links and headings."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

README, CHINESE_README = ROOT / "README.md", ROOT / "README.zh-CN.md"
DOCUMENTS = [
    README,
    CHINESE_README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("recipes/*/README.md")),
    ROOT / "testing/local_hub/README.md",
]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
PROGRAMS = ("python", "accelerate", "imagelm", "make", "pip", "hf")


@dataclass(frozen=True)
class Document:
    """A Markdown file.

    Attributes:
        name: Its path in the repository.
        text: All of it.
    """

    name: str
    text: str

    def blocks(self, language: str) -> list[str]:
        """The fenced code blocks of a language."""
        return [body for _, found, body in FENCE.findall(self.text) if found == language]

    @property
    def prose(self) -> str:
        """The text without code blocks."""
        return INDENTED.sub("", FENCE.sub("", self.text))

    def commands(self) -> list[str]:
        """The command lines of bash blocks and of indented blocks, each on one line."""
        unfenced = INDENTED.findall(FENCE.sub("", self.text))
        indented = [line for line in _lines("".join(unfenced)) if _program(line) in PROGRAMS]
        return [line for block in self.blocks("bash") for line in _lines(block)] + indented

    def links(self) -> list[str]:
        """The targets of links and images that lie in the repository."""
        targets = re.findall(r"\]\(([^)\s]+)\)", self.prose)
        return [target for target in targets if not re.match(r"https?:", target)]

    def anchors(self) -> set[str]:
        """The anchors that GitHub gives the headings."""
        titles = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def read(file: Path) -> Document:
    """A document of the repository."""
    return Document(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))


def all_commands() -> list[str]:
    """The different commands of all documents."""
    return list(dict.fromkeys(command for file in DOCUMENTS for command in read(file).commands()))


def all_snippets() -> list[str]:
    """The different Python snippets of all documents."""
    return list(dict.fromkeys(snippet for file in DOCUMENTS for snippet in read(file).blocks("python")))


def _lines(block: str) -> list[str]:
    lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+", " ", line) for line in lines if line and not line.startswith("#")]


def _program(line: str) -> str:
    try:
        words = shlex.split(line)
    except ValueError:  # prose with an apostrophe
        return ""
    return next((word for word in words if "=" not in word), "")
