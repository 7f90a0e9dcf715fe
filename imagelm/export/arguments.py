"""The options of `imagelm export`."""

from __future__ import annotations

from dataclasses import dataclass

from imagelm.utils.artifacts import EXPORT_FORMATS
from imagelm.utils.command_line import OptionGroup, option
from imagelm.utils.errors import InputError


@dataclass(kw_only=True)
class ExportArguments(OptionGroup):
    """Which model becomes which graph."""

    model: str = option(
        "trained folder, such as outputs/mine/best_model, or Hub id", group="Options", metavar="FOLDER|ID"
    )
    format: str = option(
        "onnx, for onnxruntime and transformers.js, or openvino, the fastest on Intel CPUs",
        "onnx",
        choices=EXPORT_FORMATS,
    )
    int8: bool = option("8-bit weights: smaller and faster, with slightly different results", False)
    slot_only: bool = option("onnx: a graph that classifies only, in less time; it can't score or generate", False)
    output_dir: str | None = option(
        "write onnx/ or openvino/ into this folder; into the model's own folder if not given", None, metavar="FOLDER"
    )
    overwrite: bool = option("replace an existing export", False)
    push_to_hub: str | None = option(
        "then publish the model with its exports, as imagelm push does", None, metavar="REPOSITORY"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slot_only and self.format != "onnx":
            raise InputError("--slot_only needs --format onnx; remove one of the two")
        if self.slot_only and self.push_to_hub:
            raise InputError("--push_to_hub publishes a graph that also generates; remove --slot_only")
        if self.push_to_hub and self.output_dir:
            raise InputError("--push_to_hub publishes the exports in the model's own folder; remove --output_dir")
