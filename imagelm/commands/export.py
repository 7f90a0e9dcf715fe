"""Exports a trained folder to ONNX, in float32 or with 8-bit weights, for onnxruntime on any machine.

    imagelm export --model outputs/mine/best_model --output_dir outputs/mine/onnx --int8

Use it with: `imagelm infer --model outputs/mine/best_model --onnx outputs/mine/onnx --mode classify …`.
"""

from __future__ import annotations

from pathlib import Path

from imagelm.commands.parser import Command
from imagelm.export.arguments import ExportArguments
from imagelm.utils.errors import run_script

COMMAND = Command("export", __doc__, (ExportArguments,))


def main() -> None:
    arguments = ExportArguments(**COMMAND.parse())
    # Imported late, so that --help answers at once.
    from imagelm.commands.logs import log_to_terminal, logger
    from imagelm.export.onnx import export_onnx

    log_to_terminal()
    output = Path(arguments.output_dir)
    difference = export_onnx(arguments.model, output, arguments.int8, arguments.overwrite)
    logger.info("written: %s (%s weights)", output, "int8" if arguments.int8 else "float32")
    logger.info("largest difference from the model's own logits on random rows: %.2g", difference)


if __name__ == "__main__":
    run_script(main)
