"""A trained folder → ONNX, in float32 or with 8-bit weights, for onnxruntime.

One idea: an answer needs the logits at one position of each row, so the graph takes rows and positions and applies the
output layer at that position only. 8-bit weights are quantized dynamically, without calibration data; to measure the
cost on your own rows, run both.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imagelm.accel.last_block import at_positions, only_at
from imagelm.inference.arguments import LoadArguments
from imagelm.inference.loading import OnnxSession, load_for_inference, require_library
from imagelm.utils.artifacts import ONNX_CONFIG, ONNX_FILE
from imagelm.utils.atomic_io import write_json
from imagelm.utils.errors import InputError
from imagelm.utils.output_folder import atomic_folder, check_outside, check_replaceable

TOLERANCE = 1e-3  # of float32 weights, relative to the largest logit


def export_onnx(model_folder: str, output: Path, int8: bool, overwrite: bool = False) -> float:
    """Writes `model.onnx`, its weights in a file of their own, and `onnx.json`.

    Args:
        model_folder: A trained folder.
        output: Folder to write; it is complete or absent.
        int8: Whether to quantize the weights of matrices to 8 bits.
        overwrite: Replace an earlier export.

    Returns:
        The largest difference from the model's own logits on random rows.

    Raises:
        InputError: The folder holds no model, the output exists, or a library is missing.
    """
    check = partial(check_replaceable, marker=ONNX_CONFIG, overwrite=overwrite)
    check(output)
    check_outside(output, "--model", model_folder)
    loaded = load_for_inference(LoadArguments(model=model_folder, device="cpu"))
    model, positions = loaded.model, loaded.num_positions or 64
    model.set_attn_implementation("eager")  # fewer operations in the graph than sdpa's: a tenth of the time
    codes = torch.from_numpy(loaded.grammar.code_ids)
    ids = codes[torch.randint(len(codes), (3, positions - 2))]
    last = torch.tensor([ids.shape[1] - 1, 1, ids.shape[1] // 2])
    # Shapes that differ from the traced ones: a shape that became a constant of the graph shows here.
    other, other_last = ids[:2, : max(2, ids.shape[1] // 2)], torch.tensor([0, 1])
    with torch.no_grad():
        expected = model(input_ids=other, use_cache=False).logits[torch.arange(2), other_last].numpy()

    def difference(folder: Path) -> float:
        return float(np.abs(OnnxSession(folder)(other.numpy(), other_last.numpy()) - expected).max())

    with atomic_folder(output, check) as staging:
        content = {"model": model_folder, "weights": "int8" if int8 else "float32"}
        write_json(staging / ONNX_CONFIG, content | {"vocabulary": loaded.grammar.vocabulary})
        with _quiet():
            _export(model, ids, last, staging / ONNX_FILE)
        found = difference(staging)
        if found > TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise InputError(
                f"--model {model_folder}: a {model.config.model_type} model can't be exported: its exported logits "
                f"differ by {found:.2g}; use the model without --onnx"
            )
        if int8:
            with _quiet():
                _quantize(staging / ONNX_FILE)
            found = difference(staging)
    return found


class SlotLogits(nn.Module):
    """A model's logits at one position of each row."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, last: Tensor) -> Tensor:
        """Logits, shape (rows, vocabulary), of ids of shape (rows, length) at positions of shape (rows,)."""
        with only_at(self.model, last):
            hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.model.get_output_embeddings()(at_positions(hidden, last)[:, 0])


def _export(model: PreTrainedModel, ids: Tensor, last: Tensor, file: Path) -> None:
    require_library("onnxscript")
    rows, length = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("length", min=2, max=ids.shape[1] + 2)
    torch.onnx.export(
        SlotLogits(model).eval(),
        (ids, last),
        str(file),
        input_names=["input_ids", "last"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": {0: rows, 1: length}, "last": {0: rows}},
        dynamo=True,
        verbose=False,
    )


def _quantize(file: Path) -> None:
    require_library("onnx")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.rename(file.with_suffix(".float32.onnx"))
    quantize_dynamic(str(whole), str(file), weight_type=QuantType.QInt8, per_channel=True, reduce_range=False)
    whole.unlink()
    file.with_name(file.name + ".data").unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the libraries' warnings about operators that this export doesn't use."""
    handlers = list(logging.root.handlers)
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers  # the exporter adds one, which would print our own lines again
