"""Dataclasses → command line, `--config` YAML and `--help`: the one mechanism of all commands.

A YAML file becomes words that are put before the user's own, so the command line wins by the ordinary rule that the
last word counts. jsonargparse and tyro refuse words that the commands accept (`--images a b`, `--overwrite true`,
`--dry_run` alone), simple-parsing drops a `--dry_run` without a value, and none of them knows the rules by which
transformers reads its `TrainingArguments`; so this is argparse with the few lines that it lacks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imagelm.commands.older_names import remedy
from imagelm.utils.command_line import Option, invocation, option, options_of
from imagelm.utils.errors import InputError

if TYPE_CHECKING:  # imported where it is used, so that --help answers at once
    import yaml

MAX_CONFIG_BYTES = 64 << 10
HELP_COLUMN = 28


@dataclass
class CommonArguments:
    """The options of every command."""

    config: str | None = option(
        "YAML file with one option per line, such as seed: 1; the command line wins",
        None,
        group="Every command",
        metavar="FILE",
    )
    help: bool = option("show this help", False)


@dataclass(frozen=True)
class Command:
    """A command's options."""

    name: str  # the word after `imagelm`
    doc: str | None  # what it does, with examples (the module's docstring)
    groups: tuple[type, ...]  # dataclasses whose fields are the options
    failures: str = "any other error"  # what exit code 1 means
    first: str = ""  # the option that a first word without dashes gives

    def parse(self, words: list[str] | None = None, library: type | None = None) -> dict[str, Any]:
        """The value of every option, by field name; prints the help and exits where it is asked for.

        Args:
            words: The command line without the program's name.
            library: A dataclass with further options, which are read by the rules of transformers; of an option that
                both have, ours gives the default.

        Raises:
            InputError: An option is unknown, missing, or has a wrong value.
        """
        words = sys.argv[1:] if words is None else words
        if {"-h", "--help"} & set(words):
            print(self.help())
            sys.exit(0)
        if self.first and words and not words[0].startswith("-"):
            words = [f"--{self.first}", *words]
        parser = _Parser(allow_abbrev=False) if library is None else _library_parser(library)
        options = list(options_of(*self.groups))
        theirs = {} if library is None else {entry.name: entry for entry in fields(library)}
        for entry in options:
            if entry.name in theirs:
                parser.set_defaults(**{entry.name: entry.default})
            else:
                _add(parser, entry)
        switches = {f"no_{name}" for name, entry in theirs.items() if entry.default is True}
        known = {entry.flag[2:] for entry in options} | set(theirs) | switches
        words = expand_config(words, known, {entry.flag[2:] for entry in options if "bare" in entry.field.metadata})
        if "--help_all" in words and library is not None:
            parser.print_help()
            sys.exit(0)
        values = vars(parser.parse_args(words))
        for entry in options:
            if entry.is_required and values[entry.name] is None:
                raise InputError(f"{entry.flag} is missing; give it on the command line or in the --config file")
        return values

    def help(self) -> str:
        """The text of `--help`, with the options in titled groups."""
        program, options = " ".join(invocation()), list(options_of(*self.groups, CommonArguments))
        required = " ".join(f"{entry.flag} {entry.values}" for entry in options if entry.is_required)
        start = program if " -m " in program else program.removeprefix("python ")
        lines = [f"usage: {start} {required} [options]", "", self._examples(program)]
        width = min(shutil.get_terminal_size().columns, 100)
        for entry in options:
            if "group" in entry.field.metadata:
                lines += ["", f"{entry.field.metadata['group']}:"]
            lines += _entry_lines(entry, width)
        return "\n".join([*lines, "", self.exit_codes])

    @property
    def exit_codes(self) -> str:
        """What the exit codes mean, as a sentence."""
        stopped = "130 and 143 stopped by Ctrl-C and SIGTERM"
        return f"Exit codes: 0 done, 2 the input is wrong, {stopped}, 1 {self.failures}."

    def _examples(self, program: str) -> str:
        """The documentation with examples that start the program as the user did."""
        doc = (self.doc or "").strip().replace(f"imagelm {self.name}", program)
        script = invocation()[-1]
        if script.endswith(".py") and os.path.basename(script) == script:
            doc = doc.replace(f"launch -m imagelm.commands.{self.name}", f"launch {script}")
        return doc


def fill(cls: type, values: dict[str, Any]) -> Any:
    """An instance of a dataclass, from the values of its fields among others."""
    return cls(**{entry.name: values[entry.name] for entry in fields(cls) if entry.init})


def expand_config(words: list[str], known: Collection[str], bare: Collection[str] = ()) -> list[str]:
    """Replaces `--config FILE` by the words of the YAML file, put before all others, and checks every name.

    Args:
        words: The command line without the program's name.
        known: Names that an option or a key may have.
        bare: Names of options with an optional value; `true` in the YAML file gives them without one.

    Raises:
        InputError: The file can't be read or isn't a flat mapping, or it or the command line holds an unknown name.
    """
    rest, config = [], None
    iterator = iter(words)
    for word in iterator:
        if word == "--config" or word.startswith("--config="):
            config = word.partition("=")[2] or next(iterator, None)
            if config is None:
                raise InputError("--config needs a YAML file")
        elif word.startswith("--") and word != "--":
            # --learning-rate is --learning_rate.
            name, equals, value = word[2:].partition("=")
            _check_known(name.replace("-", "_"), {*known, "config", "help"}, None)
            rest.append(f"--{name.replace('-', '_')}{equals}{value}")
        else:
            rest.append(word)
    return rest if config is None else [*_words_of(Path(config), known, bare), *rest]


def option_words(values: Mapping[str, Any], bare: Collection[str] = ()) -> list[str]:
    """The words on a command line that give options these values; None leaves an option at its default.

    Args:
        values: By the option's name.
        bare: Names of options with an optional value; True gives them without one.
    """
    import json

    words = []
    for name, value in values.items():
        if value is False and name.endswith("_strategy"):
            value = "no"  # which YAML reads as false
        if value is None or (value is False and name in bare):
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            words.extend(str(entry) for entry in value)
        elif value is not True or name not in bare:
            words.append(json.dumps(value, default=str) if isinstance(value, dict | bool) else str(value))
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Gives one line instead of argparse's usage, which would fill a screen here."""
        raise InputError(f"{message}; --help lists the options")


def _library_parser(library: Any) -> argparse.ArgumentParser:
    """A parser with the options of a dataclass of transformers (imported here, as that takes more than a second)."""
    from transformers import HfArgumentParser

    class Parser(_Parser, HfArgumentParser):
        pass

    return Parser(library, allow_abbrev=False)


def _add(parser: argparse.ArgumentParser, entry: Option) -> None:
    words: dict[str, Any] = {"type": entry.parse, "default": entry.default, "choices": entry.choices}
    if entry.is_list:
        words |= {"nargs": "+"} | ({"action": "extend"} if entry.field.metadata.get("adds") else {})
    elif entry.is_bare:
        words |= {"nargs": "?", "const": entry.field.metadata.get("bare", True)}
    parser.add_argument(entry.flag, dest=entry.name, help=entry.help.replace("%", "%%"), **words)


def _entry_lines(entry: Option, width: int) -> list[str]:
    head, indent = f"  {entry.flag} {entry.values}".rstrip(), " " * HELP_COLUMN
    text = textwrap.wrap(entry.help, width - HELP_COLUMN, break_on_hyphens=False)
    if len(head) < HELP_COLUMN - 1:
        return [f"{head:{HELP_COLUMN}}{text[0]}", *(indent + line for line in text[1:])]
    return [head, *(indent + line for line in text)]


def _check_known(name: str, known: Collection[str], file: Path | None) -> None:
    """Refuses an option of the command line, or a key of a file, that doesn't exist; says which one was meant."""
    if name not in known:
        what = f"{file} has an unknown key {name!r}" if file else f"there is no option '--{name}'"
        raise InputError(f"{what}{remedy(name, known, dashes='' if file else '--')} --help lists the options")


def _words_of(config: Path, known: Collection[str], bare: Collection[str]) -> list[str]:
    import yaml

    from imagelm.utils.atomic_io import read_input

    try:
        text = read_input(config, "--config", MAX_CONFIG_BYTES).decode("utf-8-sig")
        _check_plain(yaml.compose(text, yaml.SafeLoader), config)
        content = yaml.safe_load(text)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no such date or number
        raise InputError(f"--config {config} isn't YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {config} holds no mapping; expected lines such as learning_rate: 3e-4")
    for name in content:
        _check_known(str(name), known, config)
    return option_words(content, bare)


def _check_plain(root: yaml.Node | None, config: Path) -> None:
    """Refuses what YAML would accept silently: a key that occurs twice, and text that grows when it is read."""
    import yaml

    seen, nodes = set(), [root] if root else []
    while nodes:
        node = nodes.pop()
        line = f"--config {config}:{node.start_mark.line + 1}"
        if id(node) in seen:
            raise InputError(f"{line}: anchors and aliases aren't allowed; write the value out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                raise InputError(f"{line}: key {Counter(keys).most_common(1)[0][0]!r} occurs twice; keep one of them")
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
