"""Puts a model repository together from a trained folder.

One idea: only named files are copied. Pickles, optimizer states and other files of a trained folder stay where they
are because they aren't on the list, not because they are recognized.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from imagelm.evaluation.plots import write_plots
from imagelm.hub.arguments import PushArguments
from imagelm.hub.card import CardFacts, model_card
from imagelm.hub.checks import file_problems
from imagelm.hub.privacy import without_paths
from imagelm.hub.staged import (
    CARD_FILE,
    COPIED,
    EVAL_RESULTS_FILE,
    EXPORTED,
    SAMPLES_FILE,
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    WHOLE_WEIGHTS,
    Staged,
)
from imagelm.inference.arguments import LoadArguments
from imagelm.inference.exported import classifies_only, export_problem
from imagelm.inference.generation import generate_images
from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments
from imagelm.inference.loading import LoadedModel, load_for_inference
from imagelm.inference.results import generated_grid
from imagelm.models.decision import save_decision
from imagelm.models.save import HANDLER_FILE, copy_code
from imagelm.remote_code.processing_imagelm import PROCESSOR_CONFIG
from imagelm.tokens.tokenizer import load_tokenizer, save_tokenizer
from imagelm.utils.artifacts import EXPORT_FORMATS, RESULTS_FILE
from imagelm.utils.atomic_io import read_json, write_json, write_text
from imagelm.utils.errors import InputError
from imagelm.utils.image_grid import save_png
from imagelm.utils.manifest import damage
from imagelm.utils.text import name_problem, number_of

# Why common files of trained folders aren't uploaded.
REASONS = {
    r".*\.(bin|pt|pth|pkl|pickle|ckpt|npy|npz)": "may hold a pickle, which runs code when it is loaded",
    r"(optimizer|scheduler|rng_state|scaler).*": "training state",
    r"(training_args|trainer_state|run|stats|log_history|selection)\.json": "the card contains what matters of it",
    r"complete\.json": "the list of this folder's files",
    r".*\.py": "not code of this project",
}


def stage_model(options: PushArguments, folder: Path) -> Staged:
    """Puts a model repository together, and loads its weights once for card, samples and checks.

    Raises:
        InputError: The folder isn't a trained model, or its figures belong to other weights.
    """
    source = Path(options.model_dir)
    weights = check_model_folder(source)
    staged = Staged("model", options.repo_id, folder)
    folder.mkdir(parents=True)
    for name in [*COPIED, *weights]:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    # Checked before the model is loaded, whose errors would be less clear.
    present = [source / name for name in (*COPIED, *weights, *TOKENIZER_FILES) if (source / name).is_file()]
    if problems := [problem for file in present for problem in file_problems(file.name, file)]:
        raise InputError(f"--model_dir {source} is damaged: {'; '.join(problems)}; push an intact copy")
    # Saved again, because every save by the library writes a class name that older versions refuse.
    save_tokenizer(load_tokenizer(source), folder)
    if (folder / PROCESSOR_CONFIG).is_file():
        copy_code(folder, HANDLER_FILE)
    exports = {name: _copy_export(source, folder, name) for name in EXPORT_FORMATS if (source / name).is_dir()}
    staged.loaded = loaded = _load(source, folder)
    if problem := name_problem(loaded.class_names or []):
        raise InputError(f"--model_dir {source}: {problem}; give them different ones in id2label of config.json")
    save_decision(folder, loaded.model, loaded.tokenizer)
    facts = CardFacts(options, source, folder)
    facts.exports = [name for name, problem in exports.items() if problem is None]
    if facts.results:
        write_json(folder / RESULTS_FILE, facts.results)
        if options.dataset_repo_id is not None:
            _write_eval_results(folder / EVAL_RESULTS_FILE, options.dataset_repo_id, facts.results)
        facts.plots = write_plots(folder, facts.results, facts.history)
    if options.num_drawings:
        facts.samples = _write_samples(loaded, folder, options.num_drawings)
    card, hidden = without_paths(model_card(facts, loaded))
    write_text(folder / CARD_FILE, card)
    staged.notes = _not_uploaded(source, {*staged.files, *exports})
    staged.notes += [f"not uploaded: {problem}" for problem in exports.values() if problem] + facts.notes
    if hidden:
        staged.notes.append(f"{CARD_FILE}: shortened {number_of(hidden, 'local path')} to the last part")
    return staged


def check_model_folder(source: Path) -> list[str]:
    """Returns the names of the weight files, and of their index if there are several.

    Raises:
        InputError: Weights, config or tokenizer are missing, or a file isn't as it was written.
    """
    if not source.is_dir():
        raise InputError(f"--model_dir {source}: no such folder; name one of imagelm train, such as …/best_model")
    if not (source / "config.json").is_file():
        inner = sorted(source.glob("*/config.json"))
        remedy = f"try --model_dir {inner[0].parent}" if inner else "name a folder of imagelm train (…/best_model)"
        raise InputError(f"--model_dir {source} holds no config.json; {remedy}")
    weights = _weight_files(source)
    if not weights:
        pickled = next(source.glob("pytorch_model*.bin"), None)
        what = f"only {pickled.name}, a pickle, which isn't published" if pickled else "no model.safetensors"
        raise InputError(f"--model_dir {source} holds {what}; save the model with safetensors first")
    if not (source / "tokenizer_config.json").is_file():
        raise InputError(f"--model_dir {source} holds no tokenizer; push the folder that imagelm train wrote")
    if reason := damage(source):
        raise InputError(f"--model_dir {source} is damaged: {reason}. Restore it, or train again with --overwrite")
    return weights


def _load(source: Path, folder: Path) -> LoadedModel:
    """Loads the staged model as its users will; an error names the trained folder, which the user knows."""
    try:
        return load_for_inference(LoadArguments(model=str(folder)))
    except InputError as error:
        raise InputError(str(error).replace(f"--model {folder}", f"--model_dir {source}")) from error


def _weight_files(source: Path) -> list[str]:
    """The files that transformers loads: one, or an index and its shards; other shards belong to an older save."""
    if (source / WHOLE_WEIGHTS).is_file():
        return [WHOLE_WEIGHTS]
    if not (source / WEIGHTS_INDEX).is_file():
        return []
    try:
        shards = sorted(set(read_json(source / WEIGHTS_INDEX)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"--model_dir {source} is damaged: {WEIGHTS_INDEX} can't be read: {error}") from error
    if strange := [name for name in shards if not WEIGHTS.fullmatch(name)]:
        raise InputError(
            f"--model_dir {source}: {WEIGHTS_INDEX} names {strange[0]!r}, not a weight file; save the model again"
        )
    return [WEIGHTS_INDEX, *shards]


def _copy_export(source: Path, folder: Path, name: str) -> str | None:
    """Copies an export of these weights; otherwise gives the reason why not."""
    if problem := export_problem(source / name, source):
        return problem
    if classifies_only(source / name):
        return f"{source / name} classifies only (--slot_only), and others expect a graph that also generates"
    if reason := damage(source / name):
        return f"{source / name} is damaged: {reason}; write it again with imagelm export --overwrite"
    (folder / name).mkdir()
    for file in (source / name).iterdir():
        if EXPORTED.fullmatch(f"{name}/{file.name}"):
            shutil.copyfile(file, folder / name / file.name)
    return None


def _not_uploaded(source: Path, files: Collection[str]) -> list[str]:
    """A line for each entry of the trained folder that isn't uploaded."""
    lines = []
    for path in sorted(source.iterdir()):
        if path.name in files:
            continue
        reason = next((why for pattern, why in REASONS.items() if re.fullmatch(pattern, path.name)), "not a model file")
        lines.append(f"not uploaded: {source.name}/{path.name}{'/' if path.is_dir() else ''} ({reason})")
    return lines


def _write_eval_results(file: Path, dataset_id: str, results: dict[str, Any]) -> None:
    """Writes the accuracy in the Hub's newer format too, shown where the dataset is registered as a benchmark."""
    notes = f"CLS-slot accuracy on {results['eval_samples']} {results.get('split', 'test')} rows"
    entry = EvalResultEntry(dataset_id, task_id="default", value=results["eval_cls_accuracy"], notes=notes)
    file.parent.mkdir()
    write_text(file, yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False))


def _write_samples(loaded: LoadedModel, folder: Path, count: int) -> str | None:
    """Writes a grid of samples; returns its name, or None if there is no codec or it can't decode."""
    if loaded.codec is None or not loaded.codec.can_decode:
        return None
    samples, _ = generate_images(loaded, GenerationArguments(), ClassArguments(num_samples=count), None, count)
    if (grid := generated_grid(loaded, samples)) is None:
        return None
    save_png(grid, folder / SAMPLES_FILE)
    return SAMPLES_FILE
