"""Options as dataclass fields, and the words that started the program, without its secrets.

One idea: a field holds everything about its option (default, help, choices). The command-line parser, the YAML files,
the interactive prompt and the reference read the fields, and nothing is written twice. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from imagelm.utils.errors import InputError

MAX_SEED = 2**32 - 1  # of numpy
HIDDEN = "<hidden>"
TRUE, FALSE = ("true", "yes", "on", "t", "y", "1"), ("false", "no", "off", "f", "n", "0")


def option(text: str, default: Any = MISSING, **metadata: object) -> Any:
    """A dataclass field that is an option of a command.

    Args:
        text: The help.
        default: The default value; an option without one is required.
        metadata: `choices`; `minimum` and `maximum`, inclusive; `metavar`; `flag`, if it differs from the field's name;
            `group`, the title of the options that start here; `bare`, the value of the option without a value; `adds`,
            if a list may be given in several parts; `modes`, if it works in some modes only; further keys for the
            room's own checks.
    """
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class Option:
    """An option of a command, read from a dataclass field."""

    field: Field[Any]
    type: type  # bool, int, float or str: of the value, or of each value of a list
    is_list: bool  # whether the option takes several values

    @property
    def name(self) -> str:
        """The field's name."""
        return self.field.name

    @property
    def flag(self) -> str:
        """The option's name on the command line, such as `--patch_size`."""
        return self.field.metadata.get("flag", f"--{self.name}")

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.field.default is MISSING

    @property
    def default(self) -> Any:
        """The default value; None if the option is required."""
        return None if self.is_required else self.field.default

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The allowed values, or None."""
        return self.field.metadata.get("choices")

    @property
    def is_bare(self) -> bool:
        """Whether the option may be given without a value."""
        return self.type is bool or "bare" in self.field.metadata

    @property
    def values(self) -> str:
        """Its values as shown in the help, such as `N`, `FILE [FILE ...]` or `{resize,pad}`."""
        if self.type is bool:
            return ""
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        name = self.field.metadata.get("metavar", {int: "N", float: "X"}.get(self.type, "TEXT"))
        if self.is_list:
            return f"{name} [{name} ...]"
        return f"[{name}]" if self.is_bare else name

    @property
    def text(self) -> str:
        """What it does, and the modes that it works in if these aren't all."""
        modes = self.field.metadata.get("modes")
        return self.field.metadata["help"] + (f" (modes: {', '.join(modes)})" if modes else "")

    @property
    def help(self) -> str:
        """The help text, with the default."""
        if self.is_required:
            return f"{self.text} (required)"
        if self.default is None or self.default is False:
            return self.text
        return f"{self.text} (default: {self.default})"

    def parse(self, word: str) -> Any:
        """The value that a word stands for.

        Raises:
            ArgumentTypeError: The word isn't a value of this type.
        """
        if self.type is bool:
            if word.lower() in (*TRUE, *FALSE):
                return word.lower() in TRUE
            raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
        try:
            return self.type(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"invalid {self.type.__name__} value: {word!r}") from error


def options_of(*classes: type) -> Iterator[Option]:
    """The options of dataclasses, in the order of their fields."""
    for cls in classes:
        hints = get_type_hints(cls)
        for entry in fields(cls):
            if "help" not in entry.metadata:
                continue
            hint = hints[entry.name]
            if isinstance(hint, types.UnionType):
                hint = next(part for part in get_args(hint) if part is not type(None))
            is_list = get_origin(hint) is list
            yield Option(entry, get_args(hint)[0] if is_list else hint, is_list)


class OptionGroup:
    """The base of a dataclass of options; an InputError refuses a value that is no choice or out of its range."""

    def __post_init__(self) -> None:
        for entry in options_of(type(self)):
            value, limits = getattr(self, entry.name), entry.field.metadata
            if value is None:
                continue
            if entry.choices and value not in entry.choices:
                raise InputError(f"{entry.flag} {value} is unknown; choose one of {', '.join(entry.choices)}")
            if "minimum" in limits and not limits["minimum"] <= value <= limits.get("maximum", value):
                needed = f"to {limits['maximum']}" if "maximum" in limits else "or more"
                raise InputError(f"{entry.flag} {value}: give {limits['minimum']} {needed}")

    def changed(self) -> list[Option]:
        """The options that aren't at their default."""
        return [entry for entry in options_of(type(self)) if getattr(self, entry.name) != entry.default]


def invocation() -> list[str]:
    """The words that start this program again, without its options: `python train.py` or `imagelm train`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("imagelm.commands."):
        return ["python", "-m", spec.name]
    words = sys.argv[0].split(" ")
    return words if words[0] == "imagelm" else ["python", sys.argv[0]]


def given_words() -> list[str]:
    """The words that follow `invocation()` on the command line, with secrets hidden."""

    def shown(before: str, word: str) -> str:
        name, equals, _ = word.partition("=")
        return HIDDEN if _is_secret(before) else f"{name}={HIDDEN}" if equals and _is_secret(name) else word

    return [shown(*pair) for pair in itertools.pairwise(sys.argv)]


def call_text(function: str, options: dict[str, Any]) -> str:
    """A call from Python, such as `imagelm.train(dataset_dir='data')`, with secrets hidden."""
    shown = {name: HIDDEN if _is_secret(name) else value for name, value in options.items()}
    return f"imagelm.{function}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _is_secret(name: str) -> bool:
    return name.endswith("token")
