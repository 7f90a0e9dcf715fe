"""Answers of a model: the class at `<CLS>`, the next token, the likelihood of an image.

One idea: rows are sorted by length and padded on the right without a mask, because no later token changes a position.
Only the logits that are needed are computed. The batch size changes no answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from imagelm.accel.last_block import at_positions, only_at
from imagelm.inference.loading import LoadedModel
from imagelm.tokens.vocabulary import PAD
from imagelm.utils.errors import DivergedError

# Logits held at once while scoring: 256 MiB in float32.
SCORE_ELEMENTS = 2**26


def class_probabilities(loaded: LoadedModel, questions: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Probabilities of the classes among the class tokens alone; float32, shape (rows, classes).

    Each question holds the ids of a row up to `<CLS>`, without the answer; shape (length,).
    """
    class_ids = torch.from_numpy(loaded.grammar.class_ids).to(loaded.device)
    probabilities = np.empty((len(questions), len(class_ids)), dtype=np.float32)
    for rows, logits in _last_logits(loaded, questions, batch_size):
        probabilities[rows] = logits[:, class_ids].softmax(-1).cpu().numpy()
    return probabilities


def next_tokens(
    loaded: LoadedModel, prompts: Sequence[np.ndarray], truths: Sequence[int], top: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `top` most probable next tokens among all tokens.

    Gives their ids and probabilities, best first, each of shape (rows, top); and how many tokens are more probable than
    the true one, shape (rows,). `truths` holds the ids of the true ones, -1 where unknown.
    """
    size = loaded.grammar.size
    ids = np.empty((len(prompts), min(top, size)), dtype=np.int64)
    probabilities, ranks = np.empty(ids.shape, dtype=np.float32), np.empty(len(prompts), dtype=np.int64)
    for rows, logits in _last_logits(loaded, prompts, batch_size):
        shares = logits[:, :size].softmax(-1).cpu()
        best = shares.topk(ids.shape[1])
        ids[rows], probabilities[rows] = best.indices.numpy(), best.values.numpy()
        true = torch.tensor([truths[row] for row in rows]).clamp(min=0)
        ranks[rows] = (shares > shares.gather(1, true[:, None])).sum(1).numpy()
    return ids, probabilities, ranks


def log_likelihoods(loaded: LoadedModel, bodies: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Log-likelihood in nats of whole images: of all tokens after `<IMG>` up to and with `</IMG>`, among all tokens.

    Each body holds the ids of an image's tokens, shape (tokens,); the result is float64, shape (images,). Fewer than
    `batch_size` rows are computed at once where their logits would take too much memory.
    """
    images = [loaded.grammar.prefix(body, num_tail=1) for body in bodies]
    longest = max(map(len, images), default=1)
    batch_size = max(1, min(batch_size, SCORE_ELEMENTS // (longest * loaded.model.config.vocab_size)))
    sums = np.empty(len(images))
    for rows in _batches_by_length(images, batch_size):
        batch = [images[row] for row in rows]
        inputs, targets = _pad(loaded, [ids[:-1] for ids in batch]), _pad(loaded, [ids[1:] for ids in batch])
        with torch.no_grad():
            logits = _finite(loaded.model(input_ids=inputs, use_cache=False).logits.float())
        chosen = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(-1)
        lengths = torch.tensor([len(ids) - 1 for ids in batch], device=inputs.device)
        scored = torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]
        sums[rows] = chosen.double().where(scored, 0).sum(1).cpu().numpy()
    return sums


def _last_logits(
    loaded: LoadedModel, prompts: Sequence[np.ndarray], batch_size: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Batches of row numbers with the logits at each row's last token; float32, shape (rows, vocabulary)."""
    selects = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters
    for rows in _batches_by_length(prompts, batch_size):
        input_ids = _pad(loaded, [prompts[row] for row in rows])
        last = torch.tensor([len(prompts[row]) - 1 for row in rows], device=input_ids.device)
        with torch.no_grad():
            if selects:
                with only_at(loaded.model, last):
                    logits = loaded.model(input_ids=input_ids, use_cache=False, logits_to_keep=last[:, None]).logits
            else:
                logits = at_positions(loaded.model(input_ids=input_ids, use_cache=False).logits, last)
        yield rows, _finite(logits[:, 0].float())


def _batches_by_length(rows: Sequence[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _pad(loaded: LoadedModel, rows: list[np.ndarray]) -> Tensor:
    """int64, shape (rows, longest), padding on the right."""
    padded = np.full((len(rows), max(map(len, rows))), loaded.grammar.id(PAD), dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded).to(loaded.device)


def _finite(logits: Tensor) -> Tensor:
    if not logits.isfinite().all():
        raise DivergedError("the model's logits aren't finite, so it has no answer; try --dtype float32")
    return logits
