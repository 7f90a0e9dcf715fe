#!/usr/bin/env python
"""A trained model answers: the class of images or rows, new images, the rest of images, the next tokens.

python inference.py --model outputs/mine/best_model --mode classify --dataset_dir data/mine
python inference.py --model outputs/mine/best_model --mode generate --num_samples 16 --output_image drawn.png
python inference.py --model outputs/mine/best_model --mode continue --images photos/ --output_image completed.png
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import NoReturn

from imagelm.inference.arguments import GROUPS, MODES, InferenceArguments, flag_of
from imagelm.utils.errors import InputError, run_script


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage, which would fill a screen here."""
        raise InputError(f"{message}; --help lists the options")


def parse_arguments() -> InferenceArguments:
    parser = Parser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 the input is wrong, 1 anything else.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    modes = "; ".join(f"{mode}: {text}" for mode, text in MODES.items())
    parser.add_argument("--mode", choices=list(MODES), required=True, help=modes)
    for group in GROUPS:
        titled = parser.add_argument_group(group.__doc__)
        for entry in fields(group):
            words = {name: value for name, value in entry.metadata["words"].items() if name != "flag"}
            if entry.default is False:
                words["action"] = "store_true"
            else:
                words["default"] = entry.default
                words.setdefault("metavar", None if "choices" in words else entry.name[0].upper())
            titled.add_argument(flag_of(entry), dest=entry.name, help=entry.metadata["help"], **words)
    given = vars(parser.parse_args())
    groups = [group(**{entry.name: given[entry.name] for entry in fields(group)}) for group in GROUPS]
    return InferenceArguments(given["mode"], *groups)


def main() -> None:
    arguments = parse_arguments()
    # Imported late, so that --help answers at once.
    from imagelm.inference.loading import load_for_inference
    from imagelm.inference.results import deliver
    from imagelm.inference.tasks import run_mode

    loaded = load_for_inference(arguments.model)
    if arguments.mode == "interactive":
        from imagelm.inference.repl import converse

        converse(loaded, arguments)
    else:
        deliver(run_mode(arguments, loaded), arguments.output)


if __name__ == "__main__":
    run_script(main)
