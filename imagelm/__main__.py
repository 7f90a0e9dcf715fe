"""The `imagelm` command: one word names what to do, the rest goes to that command."""

from __future__ import annotations

import importlib
import sys

from imagelm.utils.errors import InputError, run_script

COMMANDS = {
    "prepare": "images or raw JSONL rows → checked, deduplicated and split data",
    "train": "prepared data → a trained model with its metrics and report",
    "infer": "a trained model → classes, new images, completed images",
    "push": "a trained model → the Hugging Face Hub",
    "export": "a trained model → ONNX",
}


def main() -> None:
    """Runs the command that the first word names."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        lines = [f"  {name:10}{text}" for name, text in COMMANDS.items()]
        print(
            "\n".join(["usage: imagelm COMMAND [options]", "", *lines, "", "imagelm COMMAND --help lists its options."])
        )
        return
    name = sys.argv[1]
    if name not in COMMANDS:
        raise InputError(f"imagelm has no command {name!r}; choose one of {', '.join(COMMANDS)}")
    sys.argv[:2] = [f"imagelm {name}"]
    importlib.import_module(f"imagelm.commands.{name}").main()


def run() -> None:
    """The entry point of the installed command."""
    run_script(main)


if __name__ == "__main__":
    run()
