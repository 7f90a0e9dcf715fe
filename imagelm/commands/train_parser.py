"""The command line of `train.py`: its own options, and everything in transformers' `TrainingArguments`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import NoReturn

from transformers import HfArgumentParser, TrainingArguments

from imagelm.commands.parser import expand_config
from imagelm.training.arguments import OWN_ARGUMENTS
from imagelm.training.launch import Launch, resolve_launch
from imagelm.utils.device import resolve_mixed_precision
from imagelm.utils.errors import InputError


def parse_launch(words: list[str], defaults: list[str]) -> Launch:
    """Parses the command line, with the YAML recipe and our defaults before it, and settles the machine.

    Args:
        words: The command line without the program's name.
        defaults: Words that stand before all others.

    Raises:
        InputError: An option is unknown or missing, has a wrong value, or doesn't fit the way the program was launched.
    """
    parser = _Parser((*OWN_ARGUMENTS, TrainingArguments), allow_abbrev=False, prog="train.py")
    if "--help_all" in words:
        parser.print_help()
        sys.exit(0)
    words = [*defaults, *expand_config(words, _known_names())]
    precision = resolve_mixed_precision(use_cpu=_asks_for_cpu(words))
    for required in ("dataset_dir", "output_dir"):
        if not any(word.partition("=")[0] == f"--{required}" for word in words):
            raise InputError(f"--{required} is missing; give it on the command line or in the --config file")
    try:
        data, model, run, args = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training arguments: {error}") from error
    return resolve_launch(data, model, run, args, [precision] if precision else [])


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage, which would fill two screens here."""
        raise InputError(message)


def _asks_for_cpu(words: list[str]) -> bool:
    """What --use_cpu says, before `TrainingArguments` can be asked: building it would settle the precision."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--use_cpu", nargs="?", const="true", default="false")
    return parser.parse_known_args(words)[0].use_cpu.lower() in ("true", "1", "yes", "y", "t")


def _known_names() -> set[str]:
    names = {"config"}
    for arguments in (*OWN_ARGUMENTS, TrainingArguments):
        for entry in fields(arguments):
            names.add(entry.name)
            if entry.default is True:
                names.add(f"no_{entry.name}")  # what HfArgumentParser offers for a switch that is on
    return names
