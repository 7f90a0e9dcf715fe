"""Classifies, completes or generates images, or predicts next tokens, with a trained model.

    imagelm infer --model outputs/mine/best_model --mode classify --dataset_dir data/mine
    imagelm infer --model outputs/mine/best_model --mode generate --num_samples 16 --output_image samples.png
    imagelm infer --model outputs/mine/best_model --mode continue --images photos/ --output_image completed.png

Images need a model with its codec. An option that has no effect in a mode is refused.
"""

from __future__ import annotations

from imagelm.commands.parser import Command, fill
from imagelm.inference.arguments import GROUPS, InferenceArguments, ModeArguments
from imagelm.utils.errors import run_script
from imagelm.utils.imports import imports_kept

COMMAND = Command("infer", __doc__, (ModeArguments, *GROUPS))


def main() -> None:
    values = COMMAND.parse()
    arguments = InferenceArguments(values["mode"], *(fill(group, values) for group in GROUPS))
    # Imported late, so that --help answers at once.
    with imports_kept():
        from imagelm.commands.logs import log_to_terminal
        from imagelm.inference.loading import load_for_inference
        from imagelm.inference.results import write_results
        from imagelm.inference.tasks import run_task

    log_to_terminal()
    loaded = load_for_inference(arguments.model)
    if arguments.mode == "interactive":
        from imagelm.inference.repl import run_repl

        run_repl(loaded, arguments)
    else:
        print(write_results(run_task(arguments, loaded), arguments.output))


if __name__ == "__main__":
    run_script(main)
