"""The reported figures: those of a saved folder, loaded again, in fp32.

One idea: the figures in a report or a card must be the ones that everyone gets who loads that folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from imagelm.evaluation.interval import accuracy_interval
from imagelm.evaluation.leakage import prove_no_leak
from imagelm.models.build import load_model
from imagelm.models.save import weights_sha256
from imagelm.tokens.tokenizer import grammar_of
from imagelm.training.arguments import RunArguments
from imagelm.training.trainer import ImageTrainer

NUM_LEAK_PROOF_ROWS = 32


def evaluate_folder(
    folder: Path, args: TrainingArguments, run: RunArguments, tokenizer: PreTrainedTokenizerBase, test: Dataset
) -> dict[str, Any]:
    """Evaluates a saved model on the test rows and proves that it doesn't see the answer.

    Every process must call it.

    Returns:
        Trainer's figures with the prefix `eval_`, the confusion matrix, per-class accuracy, the 95 % interval of the
        CLS-slot accuracy, the leak check, the SHA-256 of the weights, and a row as an example.

    Raises:
        LeakError: The class logits depend on what comes after `<CLS>`.
    """
    model = load_model(folder)
    trainer = ImageTrainer(model, args, run, tokenizer, None, test)
    results: dict[str, Any] = dict(trainer.evaluate_in_fp32())
    results.pop("epoch", None)
    results.pop("eval_model_preparation_time", None)
    results["eval_samples"] = len(test)
    results["eval_dtype"] = "float32"
    results["weights_sha256"] = weights_sha256(folder)
    results["example_row"] = tokenizer.decode(test[0]["input_ids"])
    results["eval_cls_accuracy_interval"] = accuracy_interval(results["eval_cls_accuracy"], len(test))
    results |= {f"eval_{name.removeprefix('cls_')}": value for name, value in trainer.metrics.details.items()}
    rows = leak_proof_rows(test)
    results["leak_proof_rows"] = len(rows)
    results["leak_proof_difference"] = prove_no_leak(model, grammar_of(tokenizer), rows, args.seed)
    return results


def leak_proof_rows(dataset: Dataset) -> list[torch.Tensor]:
    """Rows for the leak check, spread evenly over the dataset; each int64, shape (length,)."""
    step = max(1, len(dataset) // NUM_LEAK_PROOF_ROWS)
    chosen = dataset.select(range(0, len(dataset), step)[:NUM_LEAK_PROOF_ROWS])
    return [torch.tensor(row) for row in chosen["input_ids"]]
