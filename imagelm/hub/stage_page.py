"""Puts a demo Space without a server together: the page `space_static/`, whose visitors' browsers run the model.

One idea: the page reads the model's codec and ONNX export from the Hub, so a model without them is refused before
anything is uploaded.
"""

from __future__ import annotations

from pathlib import Path

from imagelm.hub.arguments import PushArguments
from imagelm.hub.stage_space import stage_demo
from imagelm.hub.staged import PAGE_FILES, Staged
from imagelm.inference.exported import classifies_only, export_problem
from imagelm.remote_code.codec_imagelm import CODEC_CONFIG, Codec, LearnedCodec, UnifiedCodec, load_codec
from imagelm.utils.artifacts import GRAPH_FILES, TEMPLATES_FOLDER
from imagelm.utils.errors import InputError

PAGE_FOLDER = TEMPLATES_FOLDER / "space_static"
REMEDY = "choose --space_sdk gradio"


def check_page_model(options: PushArguments) -> None:
    """Refuses a model that a page in the browser can't run.

    Raises:
        InputError: It has no codec, one of a kind that the page can't compute, or no ONNX export of its weights.
    """
    source = Path(options.model_dir)
    flag = f"--space_sdk static: {source}"
    if not (source / CODEC_CONFIG).is_file():
        raise InputError(f"{flag} holds no codec, and the page reads and draws images; {REMEDY}")
    try:
        codec = load_codec(source)
    except (ValueError, FileNotFoundError) as error:
        raise InputError(f"--model_dir {source} is damaged: {error}; push an intact copy") from error
    if problem := _codec_problem(codec):
        raise InputError(f"{flag} holds {problem}; {REMEDY}")
    problem = export_problem(source / "onnx", source)
    if problem is None and classifies_only(source / "onnx"):
        problem = "this one classifies only (--slot_only); write it again with --overwrite"
    if problem:
        command = f"imagelm export --model {source} --format onnx"
        raise InputError(f"--space_sdk static runs the ONNX export, and {problem}: {command}")
    for weights in ("float32", "int8"):
        file = source / "onnx" / f"{GRAPH_FILES['onnx', weights]}.data"
        if file.is_file():
            raise InputError(f"{flag} has an export of more than 1 GiB, too large for a browser; {REMEDY}")


def stage_page(options: PushArguments, folder: Path) -> Staged:
    """Puts the page together; `check_page_model` was called before.

    Raises:
        InputError: The template is missing.
    """
    about = "The model runs in your browser, by onnxruntime-web; no picture leaves it."
    settings = {"colorTo": "blue", "sdk": "static", "app_file": "index.html"}
    return stage_demo(options, folder, PAGE_FOLDER, PAGE_FILES, about, **settings)


def _codec_problem(codec: Codec) -> str | None:
    """Why a page can't compute with a codec; None if it can."""
    if isinstance(codec, LearnedCodec):
        return "a learned codec, a neural network that the page can't run"
    if isinstance(codec, UnifiedCodec) and (not codec.can_decode or "t" in codec.config["features"]):
        return "a codec without colours, or with the number of an image's file, which the page can't compute"
    return None
