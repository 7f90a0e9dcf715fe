"""The figures of a saved model, as everyone gets them who loads it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from imagelm.evaluation.baselines import baseline_figures
from imagelm.evaluation.interval import accuracy_interval
from imagelm.evaluation.leakage import leak_proof_rows, prove_no_leak
from imagelm.models.build import load_model
from imagelm.models.save import weights_sha256
from imagelm.tokens.tokenizer import grammar_of
from imagelm.training.arguments import RunArguments
from imagelm.training.trainer import ImageTrainer
from imagelm.utils.errors import InputError
from imagelm.utils.manifest import damage


def evaluate_folder(
    folder: Path,
    args: TrainingArguments,
    run: RunArguments,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    hits: dict[str, np.ndarray] | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Evaluates a saved model on the rows of a split in fp32, and proves that it doesn't see the answer.

    The folder is loaded again, as the figures must be those that everyone gets who loads it. Every process calls this.
    With the `hits` of the baselines, the model is compared with them.

    Returns:
        The name of the split, Trainer's figures with the prefix `eval_`, the confusion matrix, per-class accuracy, the
        95 % interval of the CLS-slot accuracy, the leak check, the SHA-256 of the weights, and a row as an example.

    Raises:
        LeakError: The class logits depend on what comes after `<CLS>`.
        InputError: The folder is damaged.
    """
    if reason := damage(folder):
        raise InputError(f"{folder} is damaged: {reason}. Run the same command again: it writes the folder again")
    model, args = load_model(folder), copy.copy(args)
    args.report_to = []  # a tracker would open a second run
    args.train_sampling_strategy = "sequential"  # also sorts evaluations: rows must be in the baselines' order
    trainer = ImageTrainer(model, args, run, tokenizer, None, rows)
    # Before the first step: accelerate wraps the model in autocast only once.
    trainer.accelerator.autocast_handler = AutocastKwargs(enabled=False)
    results: dict[str, Any] = {"split": split, **trainer.evaluate()}
    results.pop("epoch", None)
    results.pop("eval_model_preparation_time", None)
    results["eval_samples"] = len(rows)
    results["eval_dtype"] = "float32"
    results["weights_sha256"] = weights_sha256(folder)
    results["example_row"] = tokenizer.decode(rows[0]["input_ids"])
    results["eval_cls_accuracy_interval"] = accuracy_interval(results["eval_cls_accuracy"], len(rows))
    results |= {f"eval_{name.removeprefix('cls_')}": value for name, value in trainer.metrics.details.items()}
    results |= baseline_figures(hits or {}, trainer.metrics.correct)
    proof = leak_proof_rows(rows)
    results["leak_proof_rows"] = len(proof)
    results["leak_proof_difference"] = prove_no_leak(model, grammar_of(tokenizer), proof, args.seed)
    return results
