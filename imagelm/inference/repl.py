"""The interactive prompt.

One idea: each command turns its line into input and options and runs the same tasks as the command line. An error is
printed on one line, and the prompt goes on.
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
from pathlib import Path

import numpy as np

from imagelm.inference.arguments import InferenceArguments, InputArguments, check_output_file, modes_of
from imagelm.inference.generation_arguments import check_samples
from imagelm.inference.inputs import require_codec
from imagelm.inference.loading import LoadedModel
from imagelm.inference.results import table
from imagelm.inference.tasks import run_task
from imagelm.utils.command_line import MAX_SEED, Option, options_of
from imagelm.utils.errors import DivergedError, InputError
from imagelm.utils.image_grid import save_png
from imagelm.utils.text import printable


def run_repl(loaded: LoadedModel, arguments: InferenceArguments) -> None:
    """Runs commands from standard input until its end (Ctrl-D) or `quit`; Ctrl-C drops the current line."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a byte that isn't UTF-8 becomes an unknown token
    repl = Repl(loaded, arguments)
    while True:
        try:
            repl.cmdloop()
            return
        except KeyboardInterrupt:
            print("^C (type quit or press Ctrl-D to leave)")
            repl.intro = None


class Repl(cmd.Cmd):
    """The commands; their docstrings are the help texts."""

    prompt = "imagelm> "

    def __init__(self, loaded: LoadedModel, arguments: InferenceArguments) -> None:
        super().__init__()
        self.loaded = loaded
        self.arguments = copy.copy(arguments)
        # Here the image command writes the grid, with all rows.
        self.arguments.output = dataclasses.replace(arguments.output, num_pictures=sys.maxsize)
        self.make_grid: Callable[[], np.ndarray | None] | None = None
        codec = "with its codec" if loaded.codec is not None else "without codec: tokens only"
        self.intro = (
            f"{printable(loaded.name)}, {loaded.grammar.num_classes} classes, {codec}. help lists the commands."
        )

    def onecmd(self, line: str) -> bool:
        """Runs a command; its errors are printed and don't end the prompt."""
        try:
            return super().onecmd(line)
        except (InputError, DivergedError, OSError, UnicodeError) as error:
            print(printable(f"error: {error}", keep="\n"))
            return False

    def do_classify(self, line: str) -> None:
        """classify TOKENS | FILE: the class of a row or an image, with probabilities"""
        self._run("classify", input=self._input(line))

    def do_next(self, line: str) -> None:
        """next TOKENS | FILE: the most probable next tokens"""
        self._run("next_token", input=self._input(line))

    def do_continue(self, line: str) -> None:
        """continue TOKENS | FILE: complete a row; of a complete image only the top (keep_percent) is kept"""
        self._run("continue", input=self._input(line))

    def do_generate(self, line: str) -> None:
        """generate [N] [CLASS]: generate N images (default 1), of this class if one is named"""
        words = _split(line)
        count = int(words.pop(0)) if words and words[0].isdecimal() else 1
        name = " ".join(words) or None
        classes = dataclasses.replace(self.arguments.classes, num_samples=count, class_name=name)
        self._run("generate", classes=classes)

    def do_image(self, line: str) -> None:
        """image F.png: write the images of the last generate or continue as a PNG grid"""
        require_codec(self.loaded, "image")
        if self.make_grid is None:
            raise InputError("nothing has been generated yet; run generate or continue first")
        if Path(line).suffix.lower() != ".png":
            raise InputError(f"image {line}: give a name that ends in .png")
        check_output_file(line, "image", self.arguments.output.overwrite)
        if (pixels := self.make_grid()) is None:
            raise InputError("the last command generated no complete image, so there is nothing to write")
        save_png(pixels, line)
        print(printable(f"written: {line}"))

    do_picture = do_image  # the name of the first release

    def do_set(self, line: str) -> None:
        """set [NAME VALUE]: change an option, such as set temperature 0.8; without NAME: show the options"""
        words = _split(line)
        groups = {name: getattr(self.arguments, name) for name in ("answer", "generation", "classes")}
        settings = {
            entry.name: (holder, entry)
            for holder, group in groups.items()
            for entry in options_of(type(group))
            if "interactive" in modes_of(entry)
        }
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
        """help: list the commands"""
        for name in ("classify", "next", "continue", "generate", "image", "set", "help", "quit"):
            if line in ("", name):
                usage, _, text = getattr(self, f"do_{name}").__doc__.partition(": ")
                print(f"  {usage:26} {text}")
        if line and not hasattr(self, f"do_{line}"):
            print(f"error: there is no command {line!r}; help lists them")

    def do_quit(self, line: str) -> bool:
        """quit: end the prompt (also Ctrl-D)"""
        return True

    def do_EOF(self, line: str) -> bool:
        print()
        return True

    def emptyline(self) -> bool:
        """Does nothing; the library would repeat the last command."""
        return False

    def default(self, line: str) -> None:
        print(f"error: there is no command {line.split()[0]!r}; help lists them")

    def _input(self, line: str) -> InputArguments:
        """A row of tokens, or an image file."""
        if not line:
            also = " or an image file" if self.loaded.codec else ""
            raise InputError(f"give a row of tokens{also} after the command")
        if line.startswith("<"):
            return InputArguments(tokens=[line])
        file = line if Path(line).exists() else " ".join(_split(line))
        if not Path(file).exists():
            raise InputError(f"{file} is neither a file nor a row of tokens, such as <IMG> <Z_012>")
        return InputArguments(images=[file])

    def _run(self, mode: str, **groups: object) -> None:
        """Runs a task and prints its result; after generating it changes the seed, so that the next images differ."""
        arguments = copy.copy(self.arguments)  # unchecked: a setting without effect in this mode is kept for another
        vars(arguments).update(mode=mode, **groups)
        check_samples(mode, arguments.generation, arguments.classes)
        result = run_task(arguments, self.loaded)
        print("\n".join([table(result.columns, result.cells), *map(printable, result.summary)]))
        if mode not in ("generate", "continue"):
            return
        self.make_grid = result.make_grid
        if result.make_grid is not None:
            print("to see the images: image F.png")
        generation = self.arguments.generation
        self.arguments.generation = dataclasses.replace(generation, seed=(generation.seed + 1) % (MAX_SEED + 1))


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise InputError(f"{error}; close the quotes") from error


def _value(entry: Option, word: str) -> object:
    """A word as the value of an option."""
    if entry.default is None and word.lower() in ("none", "off", "default"):
        return None
    try:
        return entry.parse(word)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"set {entry.name} {word}: {error}") from error
