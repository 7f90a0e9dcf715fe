"""What a model repository holds: a list of files, and nothing outside it.

One idea: a folder is built by naming what goes in. Pickles, optimizer states and whatever else lies in a trained
folder stay where they are because they aren't named, not because they are recognized.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry

from imagelm.evaluation.report import write_plots
from imagelm.hub.arguments import PushArguments
from imagelm.hub.card import model_card
from imagelm.hub.facts import CardFacts
from imagelm.hub.privacy import without_paths
from imagelm.hub.staged import (
    CARD_FILE,
    COPIED,
    DRAWINGS_FILE,
    EVAL_RESULTS_FOLDER,
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    WHOLE_WEIGHTS,
    Staged,
)
from imagelm.hub.wholeness import file_problems
from imagelm.inference.arguments import ClassArguments, GenerationArguments, LoadArguments
from imagelm.inference.generation import generate_images
from imagelm.inference.loading import load_for_inference
from imagelm.inference.results import generated_grid
from imagelm.models.processor import copy_code
from imagelm.remote_code.codec_imagelm import CODEC_CONFIG
from imagelm.remote_code.processing_imagelm import PROCESSOR_CONFIG
from imagelm.tokens.tokenizer import load_tokenizer, save_tokenizer
from imagelm.utils.artifacts import RESULTS_FILE
from imagelm.utils.atomic_io import read_json, write_json, write_text
from imagelm.utils.errors import InputError
from imagelm.utils.image_grid import save_png

# Why a file that lies in many trained folders stays there.
REASONS = {
    re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt|npy|npz)"): "may hold a pickle, which runs code when it is loaded",
    re.compile(r"(optimizer|scheduler|rng_state|scaler).*"): "a state of training",
    re.compile(
        r"(training_args|trainer_state|run|stats|log_history|selection)\.json"
    ): "the card tells what matters of it",
    re.compile(r".*\.py"): "no code of this project",
}


def stage_model(options: PushArguments, folder: Path) -> Staged:
    """Puts a model repository together.

    Raises:
        InputError: The folder isn't a trained model, or its figures are of other weights.
    """
    source = Path(options.model_dir)
    weights = check_model_folder(source)
    staged = Staged("model", options.repo_id, folder)
    folder.mkdir(parents=True)
    for name in [*COPIED, *weights]:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    # Before anything is loaded, which would tell less clearly what is wrong.
    present = [source / name for name in (*COPIED, *weights, *TOKENIZER_FILES) if (source / name).is_file()]
    if problems := [problem for file in present for problem in file_problems(file.name, file)]:
        raise InputError(f"--model_dir {source} is damaged: {'; '.join(problems)}")
    # Saved anew, since every other save leaves a class name that older versions refuse.
    save_tokenizer(load_tokenizer(source), folder)
    if (folder / PROCESSOR_CONFIG).is_file():
        copy_code(folder)
    facts = CardFacts(options, source, folder)
    if facts.results:
        write_json(folder / RESULTS_FILE, facts.results)
        _write_eval_results(folder, options, facts)
        facts.plots = write_plots(folder, facts.results, facts.history)
    if (folder / CODEC_CONFIG).is_file() and options.num_drawings:
        facts.drawings = _draw(folder, options.num_drawings)
    card, hidden = without_paths(model_card(facts))
    write_text(folder / CARD_FILE, card)
    staged.notes = _left_out(source, staged.files) + facts.notes
    if hidden:
        staged.notes.append(f"{CARD_FILE}: {hidden} paths of this machine were shortened to their last part")
    return staged


def check_model_folder(source: Path) -> list[str]:
    """The names of the weight files, with their index where there are several.

    Raises:
        InputError: Something that a model is made of is missing.
    """
    if not source.is_dir():
        raise InputError(f"--model_dir {source}: no such folder; train.py writes one to …/best_model")
    if not (source / "config.json").is_file():
        inner = sorted(source.glob("*/config.json"))
        remedy = f"--model_dir {inner[0].parent} does" if inner else "name a folder that train.py wrote (…/best_model)"
        raise InputError(f"--model_dir {source} holds no config.json; {remedy}")
    weights = _weight_files(source)
    if not weights:
        pickled = next(source.glob("pytorch_model*.bin"), None)
        what = f"only {pickled.name}, a pickle, which isn't published" if pickled else "no model.safetensors"
        raise InputError(f"--model_dir {source} holds {what}; save the model with safetensors first")
    if not (source / "tokenizer_config.json").is_file():
        raise InputError(f"--model_dir {source} holds no tokenizer; push the folder that train.py wrote")
    return weights


def _weight_files(source: Path) -> list[str]:
    """What transformers loads: one file, or an index and its shards; others beside them are of an older save."""
    if (source / WHOLE_WEIGHTS).is_file():
        return [WHOLE_WEIGHTS]
    if not (source / WEIGHTS_INDEX).is_file():
        return []
    try:
        shards = sorted(set(read_json(source / WEIGHTS_INDEX)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"--model_dir {source} is damaged: {WEIGHTS_INDEX} isn't whole: {error}") from error
    if strange := [name for name in shards if not WEIGHTS.fullmatch(name)]:
        raise InputError(f"--model_dir {source}: {WEIGHTS_INDEX} names {strange[0]!r}, which is no file of weights")
    return [WEIGHTS_INDEX, *shards]


def _left_out(source: Path, files: dict[str, Path]) -> list[str]:
    """A line for each entry of the trained folder that doesn't go out."""
    lines = []
    for path in sorted(source.iterdir()):
        if path.name in files:
            continue
        reason = next((why for pattern, why in REASONS.items() if pattern.fullmatch(path.name)), "not of a model")
        lines.append(f"left out: {source.name}/{path.name}{'/' if path.is_dir() else ''} ({reason})")
    return lines


def _write_eval_results(folder: Path, options: PushArguments, facts: CardFacts) -> None:
    """The figure in the Hub's newer format, beside `model-index`; it needs a dataset on the Hub to point at.

    The Hub shows it where that dataset is registered there as a benchmark, and leaves it alone elsewhere.
    """
    if options.dataset_repo_id is None:
        return
    from huggingface_hub import eval_result_entries_to_yaml

    entry = EvalResultEntry(
        dataset_id=options.dataset_repo_id,
        task_id="default",
        value=facts.results["eval_cls_accuracy"],
        notes=f"CLS-slot accuracy on {facts.results['eval_samples']} held-out rows",
    )
    (folder / EVAL_RESULTS_FOLDER).mkdir()
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    write_text(folder / EVAL_RESULTS_FOLDER / "held_out.yaml", text)


def _draw(folder: Path, count: int) -> str | None:
    """Draws images with the staged model; the name of the picture, or None where the codec can't draw."""
    loaded = load_for_inference(LoadArguments(model=str(folder)))
    if not loaded.codec.can_decode:
        return None
    drawings, _ = generate_images(loaded, GenerationArguments(), ClassArguments(num_samples=count), None, count)
    picture = generated_grid(loaded, drawings)
    if picture is None:
        return None
    save_png(picture, folder / DRAWINGS_FILE)
    return DRAWINGS_FILE
