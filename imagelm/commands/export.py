"""Exports a trained folder to ONNX or OpenVINO, in float32 or with 8-bit weights, for fast answers on any CPU.

    imagelm export --model outputs/mine/best_model --format onnx
    imagelm export --model outputs/mine/best_model --format openvino --int8

The graph classifies and generates. Use it with: `imagelm infer --model outputs/mine/best_model --backend onnx …`.
"""

from __future__ import annotations

from imagelm.commands.parser import Command
from imagelm.export.arguments import ExportArguments
from imagelm.utils.errors import run_script

COMMAND = Command("export", __doc__, (ExportArguments,))


def main() -> None:
    options = ExportArguments(**COMMAND.parse())
    # Imported late, so that --help answers at once.
    from imagelm.commands.logs import log_to_terminal, logger
    from imagelm.export.graph import export_model
    from imagelm.hub.arguments import PushArguments
    from imagelm.hub.push import push

    log_to_terminal()
    publish = PushArguments(model_dir=options.model, repo_id=options.push_to_hub) if options.push_to_hub else None
    exported = export_model(options)
    logger.info("written: %s (%s weights)", exported.folder, "int8" if options.int8 else "float32")
    logger.info(
        "compared with the model's own logits on rows that it drew: largest difference %.2g, the same most probable "
        "token at %.1f %% of positions",
        exported.largest_difference,
        100 * exported.share_of_equal_tokens,
    )
    if publish is not None:
        push(publish)


if __name__ == "__main__":
    run_script(main)
