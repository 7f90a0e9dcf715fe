"""imagelm: images as sentences of tokens, learned by a small GPT and published with Hugging Face parts.

    import imagelm

    imagelm.prepare(images=["photos"], output_dir="data/photos")
    imagelm.train(dataset_dir="data/photos", output_dir="outputs/photos", num_train_epochs=20)
    model = imagelm.load("outputs/photos/best_model")
    imagelm.push("outputs/photos/best_model", "USER/NAME", dry_run="preview")

Each function takes the options of a command as keyword arguments; `imagelm COMMAND --help` lists them. Torch and
transformers are imported at the first call. Nothing is printed: `prepare`, `train` and `push` log their steps
through `logging`, under the name `imagelm`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagelm.data.arguments import PrepareArguments
    from imagelm.hub.arguments import PushArguments
    from imagelm.inference.arguments import LoadArguments
    from imagelm.inference.loading import LoadedModel
    from imagelm.utils.errors import DivergedError, HubError, InputError, LeakError, StoppedError, StorageError

__version__ = "0.2.0"
__all__ = ["DivergedError", "HubError", "InputError", "LeakError", "StoppedError", "StorageError"]
__all__ += ["LoadArguments", "LoadedModel", "PrepareArguments", "PushArguments"]
__all__ += ["load", "prepare", "push", "train"]

_TYPES = {
    "DivergedError": "imagelm.utils.errors",
    "HubError": "imagelm.utils.errors",
    "InputError": "imagelm.utils.errors",
    "LeakError": "imagelm.utils.errors",
    "LoadArguments": "imagelm.inference.arguments",
    "LoadedModel": "imagelm.inference.loading",
    "PrepareArguments": "imagelm.data.arguments",
    "PushArguments": "imagelm.hub.arguments",
    "StoppedError": "imagelm.utils.errors",
    "StorageError": "imagelm.utils.errors",
}


def prepare(output_dir: str, **options: Any) -> dict[str, Any]:
    """Turns images or raw JSONL rows into a saved `DatasetDict` with its tokenizer: `imagelm prepare`.

    Args:
        output_dir: Folder to write; it is complete or absent.
        **options: The other fields of `PrepareArguments`, such as `images=["photos"]`.

    Returns:
        The statistics, as in the folder's `stats.json`.

    Raises:
        InputError: The input is wrong or the output folder is taken; nothing is written.
        OSError: The system refuses to read or write, such as when the disk is full; nothing is written.
    """
    from imagelm.data.arguments import PrepareArguments
    from imagelm.data.prepare import prepare
    from imagelm.utils.command_line import call_text

    options = {"output_dir": output_dir, **options}
    return prepare(PrepareArguments(**options), command=call_text("prepare", options))


def train(dataset_dir: str, output_dir: str, **options: Any) -> dict[str, Any]:
    """Trains a model on prepared rows, or resumes an interrupted run: `imagelm train`.

    For several processes, call it from a script that `accelerate launch` starts. The output folder is locked until
    it returns.

    Args:
        dataset_dir: What `prepare` wrote.
        output_dir: Folder of the run; `best_model` and `report` are in it afterwards.
        **options: The other options of the command, such as `config="recipes/photos/config.yaml"`, `model_type` or
            any field of transformers' `TrainingArguments`.

    Returns:
        The figures of `best_model`, as in its `eval_results.json`.

    Raises:
        InputError: An option or the data is wrong, or the folder holds a run with other settings.
        DivergedError: Loss or gradient is no longer finite.
        LeakError: The model sees tokens after `<CLS>`.
        StorageError: A checkpoint or a model can't be written; what was there before is unchanged.
        StoppedError: SIGTERM or Ctrl-C stopped the run, which the same call resumes.
        HubError: The run is complete, but couldn't be pushed.
    """
    from imagelm.commands.parser import option_words
    from imagelm.commands.train import parse_launch, run
    from imagelm.utils.command_line import call_text

    options = {"dataset_dir": dataset_dir, "output_dir": output_dir, **options}
    return run(parse_launch(option_words(options), call_text("train", options)))


def load(model: str, **options: Any) -> LoadedModel:
    """Loads a trained folder, or a model from the Hub by its id, for inference.

    Args:
        model: Such as `outputs/photos/best_model` or `USER/NAME`.
        **options: The other fields of `LoadArguments`, such as `device="cuda"`.

    Raises:
        InputError: It isn't there, is incomplete, or isn't a model of images as sentences.
    """
    from imagelm.inference.arguments import LoadArguments
    from imagelm.inference.loading import load_for_inference

    return load_for_inference(LoadArguments(model=model, **options))


def push(model_dir: str, repo_id: str, **options: Any) -> None:
    """Publishes a trained folder on the Hub, and its data and a demo if asked: `imagelm push`.

    Args:
        model_dir: Such as `outputs/photos/best_model`.
        repo_id: `USER/NAME`, or `NAME` for a repository of your own.
        **options: The other fields of `PushArguments`, such as `dry_run="preview"` to send nothing.

    Raises:
        InputError: The folders or the options are wrong; nothing is sent.
        HubError: The Hub can't be reached or refuses.
    """
    from imagelm.hub.arguments import PushArguments
    from imagelm.hub.push import push

    push(PushArguments(model_dir=model_dir, repo_id=repo_id, **options))


def __getattr__(name: str) -> Any:
    if name not in _TYPES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_TYPES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
