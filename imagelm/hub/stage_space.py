"""Puts the demo Space together: the template `space/`, pointed at the pushed model."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
    """Puts the gradio Space together.

    Raises:
        InputError: The template is missing.
    """
    about = "The page shows the tokens that the model reads, and how surprising each one was. It runs on a CPU."
    staged = stage_demo(
        *(options, folder, SPACE_FOLDER, APP_FILES, about),
        colorTo="purple",
        short_description="Draw, and a small GPT reads, completes and draws images",
        sdk="gradio",
        sdk_version=_gradio_version(),
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file=APP_FILES[0],
    )
    # Without the suffix of a local build (2.13.0+cpu), which no package index has.
    pins = [f"{name}=={version(name).partition('+')[0]}\n" for name in LIBRARIES]
    write_text(folder / "requirements.txt", "".join(pins))
    if options.private:
        staged.notes.append("the model is private: add a secret HF_TOKEN that may read it to the Space")
    return staged


def stage_demo(
    options: PushArguments, folder: Path, template: Path, files: Sequence[str], about: str, **settings: Any
) -> Staged:
    """Copies the files of a template into a Space, with its card and the name of the model that it shows.

    Args:
        about: The end of the card's text.
        settings: Of the Space, for its card.

    Raises:
        InputError: The template is missing.
    """
    folder.mkdir(parents=True)
    for name in files:
        if not (template / name).is_file():
            raise InputError(f"the demo's template {template.name}/{name} is missing; install the package again")
        shutil.copyfile(template / name, folder / name)
    write_text(folder / MODEL_ID_FILE, options.repo_id + "\n")
    repo_id = options.repositories["space"]
    name = repo_id.split("/")[-1]
    metadata = SpaceCardData(
        title=name,
        emoji="✏️",
        colorFrom="indigo",
        models=[options.repo_id],
        datasets=[options.dataset_repo_id] if options.dataset_repo_id else None,
        license=options.license,
        tags=[OUR_TAG],
        **settings,
    )
    text = f"""---
{metadata}
---

# {name}

A demo of [{options.repo_id}](https://huggingface.co/{options.repo_id}): draw or upload a picture, and the model
classifies and completes it; it also draws new ones. {about}
"""
    write_text(folder / CARD_FILE, str(SpaceCard(text)))
    return Staged("space", repo_id, folder)


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return SDK_VERSION
