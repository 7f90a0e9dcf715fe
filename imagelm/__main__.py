"""The `imagelm` command: the first word names what to do, the other words are the options of that command."""

from __future__ import annotations

import difflib
import importlib
import sys

from imagelm.utils.errors import InputError, run_script

COMMANDS = {
    "prepare": "images or raw JSONL rows → checked, deduplicated and split data",
    "train": "prepared data → a trained model with its metrics and report",
    "infer": "a trained model → classes, new images, completed images",
    "push": "a trained model → the Hugging Face Hub",
    "verify": "a published model and its rows → whether each of its figures holds",
    "export": "a trained model → ONNX or OpenVINO",
    "serve": "a trained model → answers over HTTP",
}


def main() -> None:
    """Runs the command that the first word names."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        lines = [f"  {name:10}{text}" for name, text in COMMANDS.items()]
        print("usage: imagelm COMMAND [options]", "", *lines, "", "imagelm COMMAND --help lists its options.", sep="\n")
        return
    name = sys.argv[1]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise InputError(f"imagelm has no command {name!r}; {hint}")
    sys.argv[:2] = [f"imagelm {name}"]
    importlib.import_module(f"imagelm.commands.{name}").main()


def run() -> None:
    """The entry point of the installed command."""
    run_script(main)


if __name__ == "__main__":
    run()
