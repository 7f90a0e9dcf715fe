"""A trained folder → a graph with a cache for onnxruntime or OpenVINO, in float32 or with 8-bit weights.

One idea: transformers' exporters trace the step of `generate` with dynamic numbers of rows, new tokens and earlier
tokens. This one graph classifies (no earlier tokens), scores and generates. Inputs and outputs get the names that
transformers.js, Optimum and others expect: `past_key_values.0.key`, `present.0.key`, …
"""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from imagelm.export.arguments import ExportArguments
from imagelm.export.slot import SlotLogits, slot_inputs
from imagelm.inference.arguments import LoadArguments
from imagelm.inference.exported import ExportedSlot, load_export, require_library
from imagelm.inference.generation import generate_images
from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments
from imagelm.inference.loading import LoadedModel, load_for_inference, model_folder
from imagelm.models.save import weights_sha256
from imagelm.utils.artifacts import EXPORT_FILE, GRAPH_FILES
from imagelm.utils.atomic_io import write_json
from imagelm.utils.errors import InputError
from imagelm.utils.output_folder import atomic_folder, check_outside, check_replaceable
from imagelm.utils.quiet import quiet_transformers
from imagelm.utils.text import reason

NEEDED = "transformers>=5.23.0"
TOLERANCE = 1e-3  # of float32 weights, relative to the largest logit
NUM_CALIBRATION_ROWS = 64  # drawn by the model itself, so that no data are needed
NUM_CHECKED_ROWS = 4
MOST_IN_ONE_FILE = 1 << 30  # bytes of weights; a protobuf holds at most 2 GiB
CACHE_NAME = re.compile(r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s")


@dataclass
class Exported:
    """What was written, and how its logits compare with the model's own on rows that the model drew."""

    folder: Path
    largest_difference: float
    share_of_equal_tokens: float  # positions with the same most probable token


@quiet_transformers(errors_only=True)
def export_model(options: ExportArguments) -> Exported:
    """Writes `onnx/` or `openvino/`: the graph with its weights, and `imagelm.json`, which names the exported weights.

    Raises:
        InputError: There is no model, the output exists, a library is missing, or the architecture can't be exported.
    """
    if options.output_dir is None and not Path(options.model).expanduser().exists():
        raise InputError(
            f"--model {options.model} isn't a folder; for a Hub id give --output_dir, the folder for the export"
        )
    source = model_folder(options.model, None)
    output = Path(options.output_dir or source).expanduser() / options.format
    check = partial(check_replaceable, marker=EXPORT_FILE, overwrite=options.overwrite)
    check(output)
    check_outside(output, "--model", options.model)
    _require_libraries(options)
    loaded = load_for_inference(LoadArguments(model=options.model, device="cpu"))
    weights = "int8" if options.int8 else "float32"
    rows = _drawn(loaded, NUM_CALIBRATION_ROWS if options.int8 else NUM_CHECKED_ROWS)
    loaded.model.set_attn_implementation("eager")  # fewer operations in the graph than sdpa's, and faster
    with atomic_folder(output, check) as staging:
        try:
            with _quiet():
                cache = _write_graph(loaded, options, rows, staging, GRAPH_FILES[options.format, weights])
        except Exception as error:  # architectures fail in their own ways
            raise _refusal(options, loaded, reason(error)) from error
        record = {"format": options.format, "weights": weights, "weights_sha256": weights_sha256(source)}
        write_json(staging / EXPORT_FILE, {**record, "cache": cache})
        found = _compare(loaded.model, staging, rows[:NUM_CHECKED_ROWS])
        if not options.int8 and found[0] > TOLERANCE * found[1]:
            raise _refusal(options, loaded, f"its exported logits differ by {found[0]:.2g}")
    return Exported(output, found[0], found[2])


def _write_graph(
    loaded: LoadedModel, options: ExportArguments, rows: list[Tensor], folder: Path, name: str
) -> dict[str, list[int]]:
    """Traces, quantizes and writes the graph; gives the shape of each input of the cache: [heads, width]."""
    from transformers.exporters import OnnxConfig, OnnxExporter, OpenVINOConfig, OpenVINOExporter

    if options.slot_only:
        model: Any = SlotLogits(loaded.model).eval()  # any module will do for the exporter
        inputs = slot_inputs(rows[:2])
        axes = dict.fromkeys(inputs, dict.fromkeys((0, 1), Dim.AUTO))
        config = OnnxConfig(dynamic=True, dynamic_shapes=axes, quantizer=_quantizer(options, []))
        _write_onnx(OnnxExporter().export(model, inputs, config).program, folder / name)
        return {}
    inputs = _step_inputs(loaded)
    empty = [(layer.keys[:1, :, :0], layer.values[:1, :, :0]) for layer in inputs["past_key_values"].layers]
    shapes = {
        name: [{0: Dim.AUTO, 2: Dim.AUTO}] * (2 * len(empty))
        if name == "past_key_values"
        else dict.fromkeys((0, 1), Dim.AUTO)
        for name in inputs
    }
    calibration = [{name: _row_inputs(row, empty)[name] for name in inputs} for row in rows]
    common: dict[str, Any] = {"dynamic": True, "dynamic_shapes": shapes, "quantizer": _quantizer(options, calibration)}
    if options.format == "onnx":
        exported = OnnxExporter().export(loaded.model, inputs, OnnxConfig(**common))
        _write_onnx(exported.program, folder / name)
    else:
        exported = OpenVINOExporter().export(loaded.model, inputs, OpenVINOConfig(stateful=False, **common))
        for port in (*exported.program.inputs, *exported.program.outputs):
            names = port.get_names()
            port.get_tensor().set_names(names | {_standard_name(name) for name in names})
        exported.save_pretrained(folder)  # which transformers' ExportedModel reads
    pairs = {"key": 0, "value": 1}
    return {
        f"past_key_values.{i}.{kind}": [layer[part].shape[1], layer[part].shape[3]]
        for i, layer in enumerate(empty)
        for kind, part in pairs.items()
    }


def _step_inputs(loaded: LoadedModel) -> dict[str, Any]:
    """What `generate` passes to the model in the middle of two rows: two new tokens each, and the cache."""
    from transformers.exporters.utils import decompose_for_generation

    model = loaded.model
    prompt = torch.from_numpy(loaded.grammar.prefix(loaded.grammar.code_ids[:1])).repeat(2, 1)
    given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    settings = GenerationConfig(
        do_sample=False,
        use_cache=True,
        eos_token_id=loaded.tokenizer.eos_token_id,
        pad_token_id=loaded.tokenizer.pad_token_id,
    )
    _, captured = decompose_for_generation(model, given, settings, multi_token_decode=True)["decode"]
    cache = captured.get("past_key_values")
    if not isinstance(cache, DynamicCache) or not all(
        isinstance(getattr(layer, "keys", None), Tensor) for layer in cache.layers
    ):
        raise ValueError("it keeps another state than keys and values")
    inputs = {name: value for name, value in captured.items() if isinstance(value, Tensor)}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        length = cache.get_seq_length() + inputs["input_ids"].shape[1]
        inputs["attention_mask"] = torch.ones(2, length, dtype=torch.long)  # generate drops one that hides nothing
    return {**inputs, "past_key_values": cache}


def _row_inputs(row: Tensor, empty: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """The inputs for a whole row, of shape (length,)."""
    ids, positions = row[None], torch.arange(len(row))[None]
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": DynamicCache(empty)}


def _quantizer(options: ExportArguments, calibration: list[dict[str, Any]]) -> Any:
    if not options.int8:
        return None
    if options.format == "openvino":
        from transformers.exporters import NNCFOpenVINOQuantizer, NNCFQuantizationConfig

        return NNCFOpenVINOQuantizer(NNCFQuantizationConfig(), calibration)
    from onnxruntime.quantization import QuantType
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    # 7 bits of 8: CPUs without VNNI instructions add two products in 16 bits, which 8 would overflow.
    settings = OnnxRuntimeDynamicConfig(per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    return OnnxRuntimeQuantizer(settings)


def _write_onnx(program: Any, file: Path) -> None:
    """Writes the graph and its weights as one file if they fit, as transformers.js and others look for it."""
    import onnx_ir

    for value in (*program.graph.inputs, *program.graph.outputs):
        value.name = _standard_name(value.name)
    program.metadata_props.clear()
    program.graph.metadata_props.clear()
    for node in program.graph.all_nodes():  # stack traces, with paths of this machine
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
    weights = [value.const_value for value in program.graph.initializers.values() if value.const_value is not None]
    is_large = sum(weight.nbytes for weight in weights) > MOST_IN_ONE_FILE
    onnx_ir.save(program, str(file), external_data=f"{file.name}.data" if is_large else None)


def _standard_name(name: str) -> str:
    """`past_key_values.0.key` for `input.past_key_values.layers.0.keys`, `present.0.key` for such an output."""
    match = CACHE_NAME.fullmatch(name)
    return f"{'past_key_values' if match[1] == 'input' else 'present'}.{match[2]}.{match[3]}" if match else name


def _drawn(loaded: LoadedModel, count: int) -> list[Tensor]:
    images, _ = generate_images(loaded, GenerationArguments(), ClassArguments(num_samples=count), None, count)
    return [torch.from_numpy(np.asarray(image.ids, dtype=np.int64)) for image in images]


def _compare(model: PreTrainedModel, folder: Path, rows: list[Tensor]) -> tuple[float, float, float]:
    """Largest difference of logits, at once and in two steps; the largest logit; the share of equal best tokens."""
    exported = load_export(folder, model.config, "float32")
    ids = torch.stack([row[: min(map(len, rows))] for row in rows])
    half = ids.shape[1] // 2
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        if isinstance(exported, ExportedSlot):
            places = torch.tensor([half - 1, ids.shape[1] - 1])
            parts = [exported(input_ids=ids, logits_to_keep=place.expand(len(ids), 1)).logits for place in places]
            found, expected = torch.cat(parts, dim=1), expected[:, places]
        else:
            whole = exported(input_ids=ids, use_cache=False).logits
            first = exported(input_ids=ids[:, :half])
            second = exported(input_ids=ids[:, half:], past_key_values=first.past_key_values)
            found = torch.stack([whole, torch.cat([first.logits, second.logits], dim=1)])
    equal = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    return float((found - expected).abs().max()), max(1.0, float(expected.abs().max())), float(equal)


def _require_libraries(options: ExportArguments) -> None:
    if find_spec("transformers.exporters.runners") is None:  # the exporters of before wrote files themselves
        raise InputError(
            f"exporting needs {NEEDED}, and {version('transformers')} is installed: pip install '{NEEDED}'"
        )
    for name in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}[options.format]:
        require_library(name, options.format)
    if options.format == "openvino" and options.int8:
        with _quiet():  # NNCF greets
            require_library("nncf", options.format)


def _refusal(options: ExportArguments, loaded: LoadedModel, why: str) -> InputError:
    kind = loaded.model.config.model_type
    return InputError(
        f"--model {options.model}: a {kind} model can't be exported to {options.format}: {why}; "
        "use it with --backend torch"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the libraries' progress and their warnings about operators that this export doesn't use."""
    handlers = list(logging.root.handlers)
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers  # the exporter adds one, which would print our own lines again
