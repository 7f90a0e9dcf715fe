#!/usr/bin/env python
"""A trained folder → ONNX, in float32 or with 8-bit weights, for onnxruntime on any machine.

    python -m imagelm.export --model outputs/mine/best_model --output_dir outputs/mine/onnx --int8
    python inference.py --model outputs/mine/best_model --onnx outputs/mine/onnx --mode classify --dataset_dir data/mine

One idea: what answers need is the logits at one position of each row; the graph takes rows and positions and computes
the output layer there alone. 8-bit weights are quantized dynamically (no calibration data); what that costs is measured
on the user's own rows by running both.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from imagelm.errors import InputError, run_script
from imagelm.files import check_output_free, read_json, whole_folder, write_json

ONNX_FILE = "model.onnx"
ONNX_CONFIG = "onnx.json"
TOLERANCE = 1e-3  # of float32 weights, relative to the largest logit
EXTRA = "pip install -r requirements-onnx.txt"


def export_onnx(model_folder: str, output: Path, int8: bool, overwrite: bool = False) -> float:
    """Writes `model.onnx` (with its weights beside) and `onnx.json`.

    Args:
        model_folder: A trained folder.
        output: Folder to write, whole or not at all.
        int8: Whether the matrices' weights are quantized to 8 bits.
        overwrite: Replace an earlier export.

    Returns:
        The largest difference from the model's own logits on random rows.

    Raises:
        InputError: The folder holds no model, the output is taken, or a library is missing.
    """
    import torch

    from imagelm.inference.loading import load_for_inference
    from imagelm.inference.options import ModelOptions

    check_output_free(output, ONNX_CONFIG, overwrite)
    loaded = load_for_inference(ModelOptions(model=model_folder, device="cpu"))
    model, positions = loaded.model, loaded.num_positions or 64
    model.set_attn_implementation("eager")  # fewer operations in the graph than sdpa's: a tenth of the time
    codes = torch.from_numpy(loaded.grammar.code_ids)
    ids = codes[torch.randint(len(codes), (3, positions - 2))]
    last = torch.tensor([ids.shape[1] - 1, 1, ids.shape[1] // 2])
    # Other shapes than those that the graph was traced with: a shape that was baked in shows here.
    other, other_last = ids[:2, : max(2, ids.shape[1] // 2)], torch.tensor([0, 1])
    with torch.no_grad():
        expected = model(input_ids=other, use_cache=False).logits[torch.arange(2), other_last].numpy()
    with whole_folder(output) as staging:
        content = {"model": model_folder, "weights": "int8" if int8 else "float32"}
        write_json(staging / ONNX_CONFIG, content | {"vocabulary": loaded.grammar.vocabulary})
        with _quiet():
            _export(model, ids, last, staging / ONNX_FILE)
        difference = _difference(staging, other.numpy(), other_last.numpy(), expected)
        if difference > TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise InputError(
                f"--model {model_folder}: a {model.config.model_type} model can't be exported; its logits come out "
                f"{difference:.2g} apart"
            )
        if int8:
            with _quiet():
                _quantize(staging / ONNX_FILE)
            difference = _difference(staging, other.numpy(), other_last.numpy(), expected)
    return difference


class OnnxSession:
    """An exported model.

    Args:
        folder: What `export_onnx` wrote.
        num_threads: CPU threads; 0 leaves it to onnxruntime.

    Attributes:
        vocabulary: Token to id, of the model that was exported.

    Raises:
        InputError: It can't be loaded.
    """

    def __init__(self, folder: str | Path, num_threads: int = 0) -> None:
        onnxruntime = _library("onnxruntime")
        file = Path(folder) / ONNX_FILE
        if not file.is_file():
            raise InputError(f"--onnx {folder} holds no {ONNX_FILE}; write it with python -m imagelm.export")
        self.vocabulary: dict[str, int] = read_json(Path(folder) / ONNX_CONFIG)["vocabulary"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises classes of its own that share no base
            raise InputError(f"--onnx {folder} can't be loaded: {error}") from error

    def __call__(self, input_ids: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Logits at one position of each row; float32, shape (rows, vocabulary).

        Args:
            input_ids: int64, shape (rows, length).
            last: int64, shape (rows,).
        """
        return self.session.run(None, {"input_ids": input_ids, "last": last})[0]


def _difference(folder: Path, ids: np.ndarray, last: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(OnnxSession(folder)(ids, last) - expected).max())


def _export(model, ids, last, file: Path) -> None:
    import torch

    from imagelm.inference.last_block import at_positions, only_at

    class SlotLogits(torch.nn.Module):
        """The logits at one position of each row."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids, last):
            with only_at(self.model, last):
                hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            return self.model.get_output_embeddings()(at_positions(hidden, last)[:, 0])

    _library("onnxscript")
    rows, length = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("length", min=2, max=ids.shape[1] + 2)
    torch.onnx.export(
        SlotLogits().eval(),
        (ids, last),
        str(file),
        input_names=["input_ids", "last"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": {0: rows, 1: length}, "last": {0: rows}},
        dynamo=True,
        verbose=False,
    )


def _quantize(file: Path) -> None:
    _library("onnx")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.with_suffix(".float32.onnx")
    whole_data = file.with_name(file.name + ".data")
    file.rename(whole)
    quantize_dynamic(str(whole), str(file), weight_type=QuantType.QInt8, per_channel=True, reduce_range=False)
    whole.unlink()
    whole_data.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings about operators that aren't used here."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"ONNX needs {name}, which isn't installed: {EXTRA}") from error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m imagelm.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done, 2 the input is wrong, 1 anything else.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, metavar="M", help="trained folder (…/best_model) or Hub id")
    parser.add_argument("--output_dir", required=True, metavar="D", help="folder to write, whole or not at all")
    parser.add_argument("--int8", action="store_true", help="8-bit weights: smaller and faster, not quite the same")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that stands in --output_dir")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    output = Path(arguments.output_dir)
    difference = export_onnx(arguments.model, output, arguments.int8, arguments.overwrite)
    print(f"written: {output} ({'int8' if arguments.int8 else 'float32'} weights)")
    print(f"largest difference from the model's own logits on random rows: {difference:.2g}")


if __name__ == "__main__":
    run_script(main)
