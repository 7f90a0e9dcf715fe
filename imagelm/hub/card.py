"""The card of a model: the template `model_card.md`, filled with the records that were saved with the weights.

One idea: every figure comes from `eval_results.json`, which names the weights it was measured on; for other weights
there is no card. Unknown facts are omitted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from imagelm.data.stats import dropped_rows, rows_in_words
from imagelm.evaluation.interval import baseline_warning, fitted_in_words
from imagelm.evaluation.report import fine_tuning, trained_length
from imagelm.hub.arguments import PushArguments
from imagelm.hub.privacy import without_paths
from imagelm.hub.staged import OUR_TAG
from imagelm.inference.loading import LoadedModel
from imagelm.models.decision import DECISION_TASK
from imagelm.models.save import CODE_FILES, PIPELINE_TASK, weights_sha256
from imagelm.tokens.vocabulary import class_token
from imagelm.utils.artifacts import (
    HISTORY_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SELECTION_FILE,
    STATS_FILE,
    TEMPLATES_FOLDER,
    TRAINING_ARGUMENTS_FILE,
    TRAINING_IMAGES_FILE,
)
from imagelm.utils.atomic_io import read_json
from imagelm.utils.errors import InputError
from imagelm.utils.fonts import drawable_names
from imagelm.utils.text import printable, processes, table_cell

T = TypeVar("T")

TEMPLATE = TEMPLATES_FOLDER / "model_card.md"
# The oldest versions that work, as tests/hub/test_old_transformers.py shows.
OLDEST_TRANSFORMERS, OLDEST_FOR_PIPELINE = "4.41", "4.57"
MAX_LISTED_CLASSES = 30
METRICS = (  # figure, its identifier on the Hub, its name
    ("eval_cls_accuracy", "accuracy", "CLS-slot accuracy"),
    ("eval_cls_macro_f1", "f1", "Macro-F1 of the classes"),
    ("eval_perplexity", "perplexity", "Perplexity, all tokens"),
    ("eval_image_perplexity", "perplexity", "Perplexity, image tokens"),
    ("eval_next_token_accuracy", "accuracy", "Next-token accuracy"),
)
# What the card needs of each record: one that lacks any of it isn't used, because half a table would mislead.
NEEDED = {
    RESULTS_FILE: (
        *("weights_sha256", "step", "class_names", "example_row", "majority_accuracy", "bag_of_tokens_accuracy"),
        *("leak_proof_rows", "leak_proof_difference", "eval_samples", "eval_cls_accuracy_interval"),
        *("eval_cls_accuracy", "eval_cls_macro_f1", "eval_cls_calibration_error", "eval_cls_perplexity"),
        *("eval_perplexity", "eval_image_perplexity", "eval_next_token_accuracy"),
        *("eval_confusion_matrix", "eval_per_class_accuracy"),
    ),
    RUN_FILE: ("command", "identity", "versions", "git_commit", "hardware", "durations"),
    STATS_FILE: (
        *("command", "options", "num_rows", "split", "duplicates_dropped", "bad_rows", "label_conflicts"),
        *("lengths", "truncation", "fingerprint"),
    ),
    TRAINING_ARGUMENTS_FILE: (
        *("imagelm", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    ),
    SELECTION_FILE: ("step",),
}


class CardFacts:
    """The facts of a card, by the names that the template uses.

    Args:
        options: The options of the push.
        source: The trained folder with its records.
        folder: The staged folder, which holds the weights already.

    Attributes:
        results, run, stats, arguments, selection: The records in the order of `NEEDED`, without paths; None where there
            is none.
        history: Trainer's log history; empty if there is none.
        sha256: SHA-256 of the published weights.
        plots: Figure → file name; set by the caller.
        samples: Name of the file with samples, or None; set by the caller.
        exports: Formats of the exports beside the weights; set by the caller.
        has_training_images: Whether the digests of the training images are published.
        notes: Notes for the user, a line each.

    Raises:
        InputError: The figures were measured on other weights.
    """

    def __init__(self, options: PushArguments, source: Path, folder: Path) -> None:
        self.options = options
        self.notes: list[str] = []
        records, _ = without_paths([self._record(source / name) for name in NEEDED])
        self.results, self.run, self.stats, self.arguments, self.selection = records
        self.history = read_record(source / HISTORY_FILE, list) or []
        self.sha256 = weights_sha256(folder)
        if self.results is None:
            self.notes.append(f"{source.name} holds no usable {RESULTS_FILE}: the card shows no figures")
        elif self.results["weights_sha256"] != self.sha256:
            raise InputError(
                f"{source / RESULTS_FILE} was measured on other weights than those of its folder, so its figures can't "
                "be published; push the folder that imagelm train wrote, or delete the file to publish without figures"
            )
        if options.license is None:
            self.notes.append("the card names no license, so nobody may reuse the model; add one: --license apache-2.0")
        self.plots: dict[str, str] = {}
        self.samples: str | None = None
        self.exports: list[str] = []
        self.has_training_images = (folder / TRAINING_IMAGES_FILE).is_file()

    def _record(self, file: Path) -> dict[str, Any] | None:
        """A record; None if there is none, or if an earlier version wrote less than the card needs."""
        record = read_record(file, dict)
        missing = [name for name in NEEDED[file.name] if name not in (record or {})]
        if record is None or not missing:
            return record
        self.notes.append(f"{file.name} lacks {missing[0]} (written by another version), so the card omits it")
        return None


def model_card(facts: CardFacts, loaded: LoadedModel) -> str:
    """Returns the text of README.md, metadata included.

    Raises:
        InputError: The template is missing or can't be filled.
    """
    metadata = _metadata(facts, loaded.codec is not None)
    names = loaded.shown_names if len(loaded.shown_names) <= MAX_LISTED_CLASSES else []
    values = {
        **vars(facts),
        **_question_and_answer(facts, loaded),
        "name": facts.options.repo_id.split("/")[-1],
        "model": loaded.model,
        "codec": loaded.codec,
        "grammar": loaded.grammar,
        "architecture": type(loaded.model).__name__,
        "classes": [(table_cell(name), class_token(label)) for label, name in enumerate(names)],
        "class_list": "decide.model.config.id2label.values()"
        if loaded.class_names
        else f"map(str, range({loaded.grammar.num_classes}))",
        "are_named": names != [str(label) for label in range(len(names))],
        "drawing_notes": [table_cell(note) for note in drawable_names(loaded.class_names or [])[1]],
        "code_files": CODE_FILES,
        "oldest_transformers": OLDEST_TRANSFORMERS,
        "oldest_for_pipeline": OLDEST_FOR_PIPELINE,
        "cell": table_cell,
        "processes": processes,
        "dropped": dropped_rows(facts.stats) if facts.stats else None,
        "fitted": fitted_in_words(facts.results or {}),
        "fine_tuning": fine_tuning(facts.run or {}),
        "rows": rows_in_words(facts.stats["num_rows"]) if facts.stats else None,
        "split": (facts.results or {}).get("split", "test"),
        "length": trained_length(facts.run or {}),
        "warning": baseline_warning(facts.results or {}),
        "commands": [printable(record["command"]) for record in (facts.stats, facts.run) if record],
    }
    try:
        card = ModelCard.from_template(metadata, template_path=str(TEMPLATE), **values)
    except jinja2.TemplateError as error:
        raise InputError(f"{TEMPLATE.name} can't be filled: {error}; restore the template") from error
    return printable(card, keep="\n")


def _metadata(facts: CardFacts, has_codec: bool) -> ModelCardData:
    options, results = facts.options, facts.results
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINE_TASK if has_codec else "text-generation",
        license=options.license,
        datasets=[options.dataset_repo_id] if options.dataset_repo_id else None,
        base_model=(facts.run or {}).get("base_model"),
        metrics=["accuracy", "perplexity"],
        tags=[OUR_TAG, DECISION_TASK, "image-tokens", "image-classification", "image-generation", "causal-lm"],
        model_name=options.repo_id.split("/")[-1] if results else None,
        eval_results=_eval_results(facts, results) if results else None,
    )


def _eval_results(facts: CardFacts, results: dict[str, Any]) -> list[EvalResult]:
    # The Hub expects one of its own ids, or at least a word of the same form.
    dataset = facts.options.dataset_repo_id or re.sub(r"[^\w.-]+", "-", _dataset_name(facts), flags=re.ASCII).strip(
        "-."
    )
    return [
        EvalResult(
            task_type=PIPELINE_TASK,
            task_name="Image classification by the next token",
            dataset_type=dataset or "held-out-rows",
            dataset_name=_dataset_name(facts),
            dataset_split=results.get("split", "test"),
            metric_type=kind,
            metric_name=name,
            metric_value=round(results[figure], 6),
        )
        for figure, kind, name in METRICS
    ]


def _question_and_answer(facts: CardFacts, loaded: LoadedModel) -> dict[str, Any]:
    """A real row, its part up to `<CLS>`, the published model's answer to it, and half of its image to be completed."""
    example = (facts.results or {}).get("example_row")
    if example is None:
        return {"example": None, "question": None}
    row = loaded.grammar.parse(example.split(), None, "example_row")
    question = torch.from_numpy(row.question(loaded.grammar))
    with torch.no_grad():
        answer = loaded.model(input_ids=question[None].to(loaded.device)).logits[0, -1].argmax()
    decode, half = loaded.tokenizer.decode, question[: 1 + len(row.body) // 2]
    beginning = {"beginning": decode(half), "num_new_tokens": len(example.split()) - len(half)}
    return {"example": example, "question": decode(question), "answer": decode(answer), **beginning}


def _dataset_name(facts: CardFacts) -> str:
    if facts.options.dataset_repo_id:
        return facts.options.dataset_repo_id.split("/")[-1]
    output = (facts.stats or {}).get("options", {}).get("output_dir")
    return Path(output).name if output else "held-out rows"


def read_record(file: Path, kind: type[T]) -> T | None:
    """A record of a trained folder; None if there is none.

    Raises:
        InputError: It is damaged.
    """
    try:
        content = read_json(file) if file.is_file() else None
        if content is None or isinstance(content, kind):
            return content
        raise ValueError(f"it doesn't hold a {kind.__name__}")
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}; push the folder that imagelm train wrote") from error
