"""A graph that `imagelm export` wrote, run by onnxruntime or OpenVINO in place of a PyTorch model.

One idea: `ExportedCausalLM` has the interface of every causal language model of transformers (logits, a cache,
`generate`), so all tasks run on it unchanged. An export belongs to the weights that it was made from, and serves no
others.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from imagelm.inference.arguments import LoadArguments
from imagelm.models.save import weights_sha256
from imagelm.utils.artifacts import EXPORT_FILE, GRAPH_FILES
from imagelm.utils.atomic_io import read_json
from imagelm.utils.errors import InputError

logger = logging.getLogger(__name__)

RUNTIMES = {"openvino": "openvino", "onnx": "onnxruntime"}  # the fastest first
# Without these instructions OpenVINO, and onnxruntime in float32, were slower than PyTorch (docs/performance.md).
INT8_INSTRUCTIONS = ("amx_int8", "avx512_vnni", "avx_vnni")
PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class Graph(Protocol):
    """An exported graph: arrays by name in, arrays by name out."""

    input_names: set[str]

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Gives `logits` and `present.N.key`, `present.N.value`."""
        ...


class OnnxGraph:
    """A graph in onnxruntime, on the CPU."""

    def __init__(self, file: Path, num_threads: int, dtype: str) -> None:
        onnxruntime = require_library("onnxruntime", "onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.input_names = {value.name for value in self.session.get_inputs()}
        self.output_names = [value.name for value in self.session.get_outputs()]

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.output_names, self.session.run(self.output_names, inputs), strict=True))


class OpenVINOGraph:
    """A graph in OpenVINO, on the CPU."""

    def __init__(self, file: Path, num_threads: int, dtype: str) -> None:
        openvino = require_library("openvino", "openvino")
        settings = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": PRECISION_HINTS[dtype]}
        compiled = openvino.Core().compile_model(str(file), "CPU", {"PERFORMANCE_HINT": "LATENCY", **settings})
        self.request = compiled.create_infer_request()
        self.input_names = {name for port in compiled.inputs for name in port.get_names()}
        # A port may have several names; ours has no prefix of a direction.
        self.outputs = {
            name: port
            for port in compiled.outputs
            for name in port.get_names()
            if name.startswith(("logits", "present."))
        }

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.request.infer(inputs, share_inputs=True)
        return {name: found[port] for name, port in self.outputs.items()}


GRAPHS: dict[str, Callable[[Path, int, str], Graph]] = {"onnx": OnnxGraph, "openvino": OpenVINOGraph}


class ExportedCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model whose logits an exported graph computes; in float32, on the CPU.

    Args:
        config: Of the model that was exported.
        graph: Its graph.
        cache: The shape of each input of the graph that holds earlier keys or values: (heads, width).
    """

    def __init__(self, config: PreTrainedConfig, graph: Graph, cache: dict[str, tuple[int, int]]) -> None:
        super().__init__(config)
        self.graph, self.cache = graph, cache

    @property
    def device(self) -> torch.device:
        """The device of inputs and outputs."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The format of the logits."""
        return torch.float32

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, float32 of shape (rows, length, vocabulary), of ids of shape (rows, length) after those in the cache.

        Without `position_ids` rows start at position 0. Everything else that transformers passes is ignored.
        """
        rows, length = input_ids.shape
        start = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is None:
            attention_mask = input_ids.new_ones((rows, start + length))
        if position_ids is None:
            position_ids = torch.arange(start, start + length).expand(rows, length)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        inputs = {name: np.ascontiguousarray(value.numpy()) for name, value in given.items()}
        if start and past_key_values is not None:
            layers: list[Any] = past_key_values.layers
            for i, layer in enumerate(layers):
                inputs[f"past_key_values.{i}.key"] = np.ascontiguousarray(layer.keys)
                inputs[f"past_key_values.{i}.value"] = np.ascontiguousarray(layer.values)
        else:
            inputs |= {
                name: np.zeros((rows, heads, 0, width), np.float32) for name, (heads, width) in self.cache.items()
            }
        outputs = self.graph({name: value for name, value in inputs.items() if name in self.graph.input_names})
        found = {name: torch.from_numpy(value) for name, value in outputs.items()}
        pairs = [(found[f"present.{i}.key"], found[f"present.{i}.value"]) for i in range(len(self.cache) // 2)]
        if start and past_key_values is not None:
            for layer, (keys, values) in zip(layers, pairs, strict=True):
                layer.keys, layer.values = keys, values  # which hold the earlier ones, too
        elif use_cache is not False:
            past_key_values = DynamicCache(pairs)
        return CausalLMOutputWithPast(logits=found["logits"], past_key_values=past_key_values)


class ExportedSlot(ExportedCausalLM):
    """A graph of the `<CLS>` slot alone, of `imagelm export --slot_only`: it answers at one position of each row."""

    def forward(  # type: ignore[override]  # one of the many parameters
        self, input_ids: Tensor, logits_to_keep: Tensor | int = 0, **others: Any
    ) -> CausalLMOutputWithPast:
        """Logits, float32 of shape (rows, 1, vocabulary), at the positions `logits_to_keep` of shape (rows, 1).

        Raises:
            InputError: Logits at more positions are asked for.
        """
        if not isinstance(logits_to_keep, Tensor):
            raise InputError(
                "this export classifies only (--slot_only); use --backend torch, or export again without --slot_only"
            )
        mask = torch.arange(input_ids.shape[1]) <= logits_to_keep
        inputs = {"input_ids": input_ids, "attention_mask": mask.long()}
        outputs = self.graph({name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()})
        return CausalLMOutputWithPast(logits=torch.from_numpy(outputs["logits"]))


def load_export(folder: Path, config: PreTrainedConfig, dtype: str) -> ExportedCausalLM:
    """Loads a folder that `imagelm export` wrote, with as many threads as torch has.

    Raises:
        InputError: Its runtime isn't installed, or can't load it.
    """
    record = read_json(folder / EXPORT_FILE)
    try:
        file = folder / GRAPH_FILES[record["format"], record["weights"]]
        graph = GRAPHS[record["format"]](file, torch.get_num_threads(), dtype)
    except InputError:
        raise
    except Exception as error:  # the runtimes' exceptions share no base class
        raise InputError(f"{folder} can't be loaded: {error}; export the model again") from error
    kind = ExportedCausalLM if record["cache"] else ExportedSlot
    return kind(config, graph, {name: tuple(shape) for name, shape in record["cache"].items()}).eval()


def classifies_only(export: Path) -> bool:
    """Whether an export is one of the `<CLS>` slot alone, which has no cache."""
    return not read_json(export / EXPORT_FILE)["cache"]


def choose_export(options: LoadArguments, folder: Path) -> Path | None:
    """The export to answer with, or None for PyTorch.

    `--backend auto` takes the first of OpenVINO and onnxruntime that is installed, whose export of these weights is
    there, and that is faster than PyTorch on this CPU; it logs its choice.

    Raises:
        InputError: The export that the user asked for isn't there, or was made from other weights.
    """
    if options.backend == "torch":
        return None
    home = Path(options.export_dir).expanduser() if options.export_dir else folder
    if options.backend != "auto":
        if problem := export_problem(home / options.backend, folder):
            raise InputError(f"--backend {options.backend}: {problem}")
        return home / options.backend
    for name, library in RUNTIMES.items():
        if not (home / name).is_dir() or name not in options.exports() or find_spec(library) is None:
            continue
        if problem := export_problem(home / name, folder):
            logger.info("--backend auto doesn't use %s: %s", name, problem)
            continue
        if classifies_only(home / name):
            logger.info("--backend auto doesn't use %s: it classifies only; name it with --backend %s", name, name)
            continue
        weights = read_json(home / name / EXPORT_FILE)["weights"]
        if not _is_faster(name, weights):
            logger.info("--backend auto doesn't use %s: with %s weights it is slower on this CPU", name, weights)
            continue
        logger.info("backend: %s, %s weights, from %s", name, weights, home / name)
        return home / name
    logger.info("backend: torch; no usable export in %s", home)
    return None


def _is_faster(backend: str, weights: str) -> bool:
    """Whether a backend was measured to be faster than PyTorch on CPUs with the instructions of this one."""
    capabilities = torch.cpu.get_capabilities()
    has_int8 = any(capabilities.get(name) for name in INT8_INSTRUCTIONS)
    return has_int8 or (backend, weights) == ("onnx", "int8")


def export_problem(export: Path, model_folder: Path) -> str | None:
    """Why an export can't stand for a model; None if it can."""
    try:
        record = read_json(export / EXPORT_FILE)
        file = export / GRAPH_FILES[record["format"], record["weights"]]
        sha256, complete = record["weights_sha256"], file.is_file() and isinstance(record["cache"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return f"{export} holds no export; write it with imagelm export --format {export.name}"
    if not complete or record["format"] != export.name:
        return f"{export} isn't complete; write it again with imagelm export --format {export.name} --overwrite"
    if sha256 != weights_sha256(model_folder):
        return f"{export} was exported from other weights; write it again with imagelm export --overwrite"
    return None


def require_library(name: str, extra: str) -> ModuleType:
    """Imports a library of an extra; raises an InputError with the command that installs it."""
    # OpenVINO and NNCF report their use to Google Analytics at import, unless this module is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f'this needs {name}, which isn\'t installed: pip install "imagelm[{extra}]"') from error
