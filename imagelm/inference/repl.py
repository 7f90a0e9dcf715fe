"""The interactive prompt.

One idea: each command makes rows and options and calls the same modes as the command line; whatever is wrong with them
becomes one line, and the prompt goes on.
"""

from __future__ import annotations

import argparse
import cmd
import copy
import dataclasses
import io
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np

from imagelm.inference.arguments import InferenceArguments, InputArguments, check_output_file, settings_of
from imagelm.inference.loading import LoadedModel
from imagelm.inference.results import table
from imagelm.inference.tasks import answer
from imagelm.utils.command_line import Option
from imagelm.utils.errors import DivergedError, InputError
from imagelm.utils.image_grid import save_png

NOTHING = ("none", "off", "default")


def converse(loaded: LoadedModel, arguments: InferenceArguments) -> None:
    """Reads commands from standard input until it ends (Ctrl-D) or says `quit`; Ctrl-C drops the line at hand."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # so that a byte that isn't UTF-8 is a wrong token, not the end
    prompt = _Prompt(loaded, arguments)
    while True:
        try:
            prompt.cmdloop()
            return
        except KeyboardInterrupt:
            print("^C (Ctrl-D or quit ends)")
            prompt.intro = None


def _told(command: Callable[[_Prompt, str], None]) -> Callable[[_Prompt, str], None]:
    """A command whose errors are told in one message."""

    @wraps(command)
    def run(self: _Prompt, line: str) -> None:
        try:
            command(self, line.strip())
        except (InputError, DivergedError, OSError, UnicodeError) as error:
            print(f"error: {error}")

    return run


class _Prompt(cmd.Cmd):
    prompt = "imagelm> "

    def __init__(self, loaded: LoadedModel, arguments: InferenceArguments) -> None:
        super().__init__()
        self.loaded = loaded
        self.arguments = copy.copy(arguments)
        # A picture is asked for by itself here, and shows all rows.
        self.arguments.output = dataclasses.replace(arguments.output, num_pictures=sys.maxsize)
        self.see: Callable[[], np.ndarray | None] | None = None
        codec = "with its codec" if loaded.codec is not None else "without codec: tokens only"
        self.intro = f"{loaded.name}, {loaded.grammar.num_classes} classes, {codec}. help lists the commands."

    @_told
    def do_classify(self, line: str) -> None:
        """classify TOKENS | FILE: the class of a row or an image, with probabilities"""
        self._run("classify", input=self._input(line))

    @_told
    def do_next(self, line: str) -> None:
        """next TOKENS | FILE: the most probable next tokens"""
        self._run("next_token", input=self._input(line))

    @_told
    def do_continue(self, line: str) -> None:
        """continue TOKENS | FILE: complete a row; of a whole image its top (keep_percent) is kept"""
        self._run("continue", input=self._input(line))

    @_told
    def do_generate(self, line: str) -> None:
        """generate [N] [CLASS]: draw N images (default 1), of a class where one is named"""
        words = _split(line)
        count = int(words.pop(0)) if words and words[0].isdecimal() else 1
        name = " ".join(words) or None
        classes = dataclasses.replace(self.arguments.classes, num_samples=count, class_name=name)
        self._run("generate", classes=classes)

    @_told
    def do_picture(self, line: str) -> None:
        """picture F.png: write what was drawn last as a PNG grid"""
        if self.loaded.codec is None:
            raise InputError(f"there is no codec beside {self.loaded.name}, so its tokens can't be drawn")
        if self.see is None:
            raise InputError("nothing has been drawn yet; generate or continue first")
        if Path(line).suffix.lower() != ".png":
            raise InputError(f"picture {line}: give a name that ends in .png")
        check_output_file(line, "picture", self.arguments.output.overwrite)
        if (pixels := self.see()) is None:
            raise InputError("what was drawn last is no whole image")
        save_png(pixels, line)
        print(f"written: {line}")

    @_told
    def do_set(self, line: str) -> None:
        """set [NAME VALUE]: change an option of the command line, such as set temperature 0.8; alone: show them"""
        words = _split(line)
        groups = {name: getattr(self.arguments, name) for name in ("answer", "draw", "classes")}
        settings = {name: (holder, entry) for holder in groups for name, entry in settings_of(groups[holder]).items()}
        if not words:
            for name, (holder, _) in settings.items():
                print(f"{name:22} {getattr(groups[holder], name)}")
            return
        name = words[0].removeprefix("--")
        if len(words) != 2 or name not in settings:
            raise InputError(f"set takes one of {', '.join(settings)} and a value, such as set temperature 0.8")
        holder, entry = settings[name]
        changed = dataclasses.replace(groups[holder], **{name: _value(entry, words[1])})
        setattr(self.arguments, holder, changed)
        print(f"{name} is {getattr(changed, name)}")

    def do_help(self, line: str) -> None:
        """help: this list"""
        for name in ("classify", "next", "continue", "generate", "picture", "set", "help", "quit"):
            if line in ("", name):
                usage, _, text = getattr(self, f"do_{name}").__doc__.partition(": ")
                print(f"  {usage:26} {text}")
        if line and not hasattr(self, f"do_{line}"):
            print(f"error: there is no command {line!r}; help lists them")

    def do_quit(self, line: str) -> bool:
        """quit: end, as Ctrl-D does"""
        return True

    def do_EOF(self, line: str) -> bool:
        print()
        return True

    def emptyline(self) -> None:
        """An empty line does nothing; the library would repeat the last command."""

    def default(self, line: str) -> None:
        print(f"error: there is no command {line.split()[0]!r}; help lists them")

    def _input(self, line: str) -> InputArguments:
        """A row of tokens, or an image file."""
        if not line:
            raise InputError(
                f"give a row of tokens{' or an image file' if self.loaded.codec else ''} after the command"
            )
        if line.startswith("<"):
            return InputArguments(tokens=[line])
        file = line if Path(line).exists() else " ".join(_split(line))
        if not Path(file).exists():
            raise InputError(f"{file} is neither a file nor a row of tokens such as <IMG> <Z_012>")
        return InputArguments(images=[file])

    def _run(self, mode: str, **groups: object) -> None:
        """Runs a mode and shows its outcome; after a drawing takes another seed, or the next would be the same."""
        arguments = copy.copy(self.arguments)  # unchecked: a setting that has no effect in this mode waits for another
        vars(arguments).update(mode=mode, **groups)
        arguments.check_drawing(mode, arguments.draw, arguments.classes)
        outcome = answer(arguments, self.loaded)
        print(table(outcome.columns, outcome.cells))
        for text in outcome.summary:
            print(text)
        if outcome.see is None:
            return
        self.see = outcome.see
        if self.loaded.codec is not None:
            print("see it with picture F.png")
        draw = self.arguments.draw
        self.arguments.draw = dataclasses.replace(draw, seed=(draw.seed + 1) % 2**32)


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise InputError(f"{error}; quotes come in pairs") from error


def _value(entry: Option, word: str) -> object:
    """A word as the value of an option."""
    if entry.default is None and word.lower() in NOTHING:
        return None
    try:
        value = entry.parse(word)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"set {entry.name} {word}: {error}") from error
    if value not in (entry.choices or (value,)):
        raise InputError(f"set {entry.name} {word}: choose one of {', '.join(entry.choices)}")
    return value
