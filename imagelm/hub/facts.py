"""What a card may tell: the records beside a model, as far as they are there and of these very weights."""

from __future__ import annotations

from pathlib import Path

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

# What the card takes from each record: one that lacks any of it tells nothing, as half a table would mislead.
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
    """All that a card may tell.

    Args:
        options: What the user asked for.
        source: The trained folder with its records.
        folder: The repository's folder, where model and tokenizer stand already.

    Attributes:
        results: `eval_results.json`, without paths; None where there is none. So the others:
        run: `run.json`.
        stats: `stats.json` of the data.
        arguments: `training_args.json`.
        selection: `selection.json`.
        history: Trainer's log history; empty where there is none.
        sha256: Of the weights that go out.
        plots: Figure → file name; filled by whoever draws them.
        drawings: File with images that the model drew, or None.
        notes: What the user should know, a line each.

    Raises:
        InputError: The figures were measured on other weights.
    """

    def __init__(self, options: PushArguments, source: Path, folder: Path) -> None:
        self.options, self.folder, self.notes = options, folder, []
        records, _ = without_paths([self._record(source / name) for name in NEEDED])
        self.results, self.run, self.stats, self.arguments, self.selection = records
        self.history = _read(source / HISTORY_FILE, list) or []
        self.sha256 = weights_sha256(folder)
        if self.results is None:
            self.notes.append(f"no {RESULTS_FILE} to go by in {source.name}: the card shows no figures")
        elif self.results["weights_sha256"] != self.sha256:
            raise InputError(
                f"{source / RESULTS_FILE} was measured on other weights than those beside it, so its figures can't be "
                "published; push the folder that train.py wrote, or delete the file to publish without figures"
            )
        if options.license is None:
            self.notes.append(
                "the card names no licence, so nobody may reuse the model; --license apache-2.0 names one"
            )
        self.plots: dict[str, str] = {}
        self.drawings: str | None = None

    def _record(self, file: Path) -> dict | None:
        """What a file tells; None where it isn't there, or is of a version that wrote less."""
        record = _read(file, dict)
        missing = [name for name in NEEDED[file.name] if name not in (record or {})]
        if record is None or not missing:
            return record
        self.notes.append(f"{file.name} doesn't tell {missing[0]}, as other versions wrote it: the card does without")
        return None


def _read(file: Path, kind: type) -> object:
    try:
        content = read_json(file) if file.is_file() else None
        if content is not None and not isinstance(content, kind):
            raise ValueError(f"it holds no {kind.__name__}")
    except ValueError as error:
        raise InputError(f"{file} isn't whole: {error}; push the folder that train.py wrote") from error
    return content
