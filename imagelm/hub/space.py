"""The demo: `space/` of this project, pointed at the model that was pushed."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import imagelm
from imagelm.errors import InputError
from imagelm.files import write_text
from imagelm.hub.content import CARD_FILE, Staged
from imagelm.hub.options import PushOptions

SPACE_FOLDER = Path(imagelm.__file__).parent.parent / "space"
MODEL_ID_FILE = "model_id.txt"
LIBRARIES = ("safetensors", "torch", "transformers")  # numpy and Pillow come with gradio, in versions it can take
SDK_VERSION = "6.31.0"  # of gradio, which is no requirement of this project


def stage_space(options: PushOptions, folder: Path) -> Staged:
    """Puts a demo Space together.

    Raises:
        InputError: The app isn't there.
    """
    app = SPACE_FOLDER / "app.py"
    if not app.is_file():
        raise InputError(f"{app.parent.name}/{app.name}, the demo, isn't beside the package; run from a checkout")
    folder.mkdir(parents=True)
    shutil.copyfile(app, folder / app.name)
    write_text(folder / MODEL_ID_FILE, options.repo_id + "\n")
    write_text(folder / "requirements.txt", "".join(f"{name}=={version(name)}\n" for name in LIBRARIES))
    name = options.space_repo_id.split("/")[-1]
    licence = f"license: {options.license}\n" if options.license else ""
    text = f"""---
title: {name}
sdk: gradio
sdk_version: {_gradio_version()}
app_file: {app.name}
models:
- {options.repo_id}
{licence}---

# {name}

A demo of [{options.repo_id}](https://huggingface.co/{options.repo_id}): which class an image has, what the
rest of it may look like, and new images. The model reads and writes images as tokens; all of it runs here, on a CPU.
"""
    write_text(folder / CARD_FILE, text)
    return Staged("space", options.space_repo_id, folder)


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return SDK_VERSION
