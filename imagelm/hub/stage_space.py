"""Puts the demo Space together: the template `space/`, pointed at the pushed model."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from imagelm.hub.arguments import PushArguments
from imagelm.hub.staged import APP_FILES, CARD_FILE, MODEL_ID_FILE, OUR_TAG, Staged
from imagelm.utils.artifacts import TEMPLATES_FOLDER
from imagelm.utils.atomic_io import write_text
from imagelm.utils.errors import InputError

SPACE_FOLDER = TEMPLATES_FOLDER / "space"
LIBRARIES = ("safetensors", "torch", "transformers")  # gradio brings numpy and Pillow, in versions it accepts
SDK_VERSION = "6.31.0"  # of gradio, which this project doesn't require


def stage_space(options: PushArguments, folder: Path) -> Staged:
    """Puts a demo Space together.

    Raises:
        InputError: The template is missing.
    """
    repo_id = options.repositories["space"]
    folder.mkdir(parents=True)
    for name in APP_FILES:
        if not (SPACE_FOLDER / name).is_file():
            raise InputError(f"the demo's template {SPACE_FOLDER.name}/{name} is missing; install the package again")
        shutil.copyfile(SPACE_FOLDER / name, folder / name)
    write_text(folder / MODEL_ID_FILE, options.repo_id + "\n")
    # Without the suffix of a local build (2.13.0+cpu), which no package index has.
    pins = [f"{name}=={version(name).partition('+')[0]}\n" for name in LIBRARIES]
    write_text(folder / "requirements.txt", "".join(pins))
    name = repo_id.split("/")[-1]
    metadata = SpaceCardData(
        title=name,
        emoji="✏️",
        colorFrom="indigo",
        colorTo="purple",
        short_description="Draw, and a small GPT reads, completes and draws images",
        sdk="gradio",
        sdk_version=_gradio_version(),
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file=APP_FILES[0],
        models=[options.repo_id],
        datasets=[options.dataset_repo_id] if options.dataset_repo_id else None,
        license=options.license,
        tags=[OUR_TAG],
    )
    text = f"""---
{metadata}
---

# {name}

A demo of [{options.repo_id}](https://huggingface.co/{options.repo_id}): draw or upload a picture, and the model
classifies and completes it; it also draws new ones. The page shows the tokens that the model reads, and how surprising
each of them was. Everything runs here, on a CPU.
"""
    write_text(folder / CARD_FILE, str(SpaceCard(text)))
    notes = ["the model is private: add a secret HF_TOKEN that may read it to the Space"] if options.private else []
    return Staged("space", repo_id, folder, notes)


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return SDK_VERSION
