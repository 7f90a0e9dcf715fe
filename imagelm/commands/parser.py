"""Dataclasses → command line and `--config` YAML."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from dataclasses import fields
from pathlib import Path

import yaml

from imagelm.training.arguments import (
    COMMON_TRAINING_ARGUMENTS,
    OWN_ARGUMENTS,
)
from imagelm.utils.atomic_io import read_input
from imagelm.utils.errors import InputError

MAX_CONFIG_BYTES = 64 << 10


def expand_config(words: list[str], known: set[str]) -> list[str]:
    """Replaces `--config FILE` by the words of the YAML file, put before all others, and checks every name.

    Args:
        words: The command line without the program's name.
        known: Names that an option or a key may have.

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
        else:
            # Both spellings of an option are one.
            name, equals, value = word.partition("=")
            rest.append(
                name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word
            )
    for word in rest:
        if word.startswith("--"):
            _check_known(word[2:].partition("=")[0].replace("-", "_"), known, "the command line")
    return rest if config is None else [*_words_of(Path(config), known), *rest]


def short_help(usage: str) -> str:
    """The help that needs no heavy import: our own options, and the most used ones of `TrainingArguments`."""
    lines = [usage, ""]
    for arguments in OWN_ARGUMENTS:
        lines.append(arguments.__doc__)
        for entry in fields(arguments):
            default = "" if entry.default in (None, False) else f" (default {entry.default})"
            lines.append(f"  --{entry.name:28} {entry.metadata['help']}{default}")
        lines.append("")
    lines.append("Training: everything in transformers' TrainingArguments; --help_all lists it. Most used:")
    lines.extend(f"  --{name:28} {text}" for name, text in COMMON_TRAINING_ARGUMENTS.items())
    lines += ["", "A YAML recipe by --config FILE holds the same names; the command line wins.", ""]
    lines.append(
        "Exit codes: 0 done, 2 the input is wrong, 130 and 143 stopped by Ctrl-C and SIGTERM, 1 anything else."
    )
    return "\n".join(lines)


def _check_known(name: str, known: set[str], where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise InputError(f"{where} has an unknown key {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")


def _words_of(config: Path, known: set[str]) -> list[str]:
    try:
        text = read_input(config, "--config", MAX_CONFIG_BYTES).decode("utf-8-sig")
        _check_plain(yaml.compose(text, yaml.SafeLoader), config)
        content = yaml.safe_load(text)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no such date or number
        raise InputError(f"--config {config} isn't YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {config} holds no mapping; expected lines like learning_rate: 3e-4")
    words = []
    for name, value in content.items():
        _check_known(str(name), known, str(config))
        if value is None:
            continue
        words.append(f"--{name}")
        if value is False and name.endswith("_strategy"):
            value = "no"  # which YAML reads as false
        if isinstance(value, list):
            words.extend(str(entry) for entry in value)
        else:
            words.append(json.dumps(value, default=str) if isinstance(value, dict | bool) else str(value))
    return words


def _check_plain(root: yaml.Node | None, config: Path) -> None:
    """Refuses what YAML would take without a word: a key that stands twice, and text that unfolds when it's read."""
    seen, nodes = set(), [root] if root else []
    while nodes:
        node = nodes.pop()
        line = f"--config {config}:{node.start_mark.line + 1}"
        if id(node) in seen:
            raise InputError(f"{line}: anchors and aliases have no place in a recipe; write the value out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                raise InputError(f"{line}: key {Counter(keys).most_common(1)[0][0]!r} stands twice")
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
