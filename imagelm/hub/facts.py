"""The facts of a model card: the records saved with a model, as far as they exist and belong to its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from imagelm.hub.arguments import PushArguments
from imagelm.hub.privacy import without_paths
from imagelm.models.save import weights_sha256
from imagelm.utils.artifacts import (
    HISTORY_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SELECTION_FILE,
    STATS_FILE,
    TRAINING_ARGUMENTS_FILE,
)
from imagelm.utils.atomic_io import read_json
from imagelm.utils.errors import InputError

T = TypeVar("T")

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
    """The facts of a card.

    Args:
        options: The options of the push.
        source: The trained folder with its records.
        folder: The staged folder, which holds the weights already.

    Attributes:
        results: `eval_results.json`, without paths; None if there is none, as for the other records:
        run: `run.json`.
        stats: `stats.json` of the data.
        arguments: `training_args.json`.
        selection: `selection.json`.
        history: Trainer's log history; empty if there is none.
        sha256: SHA-256 of the published weights.
        plots: Figure → file name; set by the caller.
        samples: Name of the file with samples, or None; set by the caller.
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

    def _record(self, file: Path) -> dict[str, Any] | None:
        """A record; None if there is none, or if an earlier version wrote less than the card needs."""
        record = read_record(file, dict)
        missing = [name for name in NEEDED[file.name] if name not in (record or {})]
        if record is None or not missing:
            return record
        self.notes.append(f"{file.name} lacks {missing[0]} (written by another version), so the card omits it")
        return None


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
