"""An exported model, run by onnxruntime: it computes the logits in place of the PyTorch model."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np

from imagelm.utils.artifacts import ONNX_CONFIG, ONNX_FILE
from imagelm.utils.atomic_io import read_json
from imagelm.utils.errors import InputError

EXTRA = "pip install -r requirements-onnx.txt"


class OnnxSession:
    """An exported model.

    Args:
        folder: The folder that `export_onnx` wrote.
        num_threads: CPU threads; with 0 onnxruntime decides.

    Attributes:
        vocabulary: Token to id, of the model that was exported.

    Raises:
        InputError: The folder or onnxruntime can't be loaded.
    """

    def __init__(self, folder: str | Path, num_threads: int = 0) -> None:
        onnxruntime = require_library("onnxruntime")
        file = Path(folder) / ONNX_FILE
        if not file.is_file():
            raise InputError(f"--onnx {folder} holds no {ONNX_FILE}; write it with imagelm export")
        self.vocabulary: dict[str, int] = read_json(Path(folder) / ONNX_CONFIG)["vocabulary"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's exceptions share no base class
            raise InputError(f"--onnx {folder} can't be loaded: {error}") from error

    def __call__(self, input_ids: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Logits at one position of each row; float32, shape (rows, vocabulary).

        Args:
            input_ids: int64, shape (rows, length).
            last: int64, shape (rows,).
        """
        return self.session.run(None, {"input_ids": input_ids, "last": last})[0]


def require_library(name: str) -> ModuleType:
    """Imports a library that ONNX needs.

    Raises:
        InputError: It isn't installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"ONNX needs {name}, which isn't installed: {EXTRA}") from error
