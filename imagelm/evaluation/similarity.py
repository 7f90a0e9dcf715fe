"""How close a continuation is to the truth: token accuracy, BLEU and ROUGE.

One idea: tokens are words split at white space and nowhere else, so the text metrics are computed by their reference
implementations (sacrebleu, rouge-score) without these libraries' own tokenizers. They are imported where they are used:
with nltk, they would be a tenth of the start of every command that answers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def token_accuracy(generated: Sequence[str], true: Sequence[str]) -> float:
    """Share of the true tokens at their position; missing tokens count as wrong, surplus tokens don't count."""
    return sum(a == b for a, b in zip(generated, true, strict=False)) / len(true)


def rouge(generated: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L (F-measure) of one continuation, 0 to 1."""
    scores = _rouge_scorer().score(" ".join(true), " ".join(generated))
    return {name: scores[name].fmeasure for name in ROUGE_TYPES}


def bleu(generated: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Corpus BLEU of all continuations, 0 to 100, and sacrebleu's signature, which records how it was computed.

    Up to 4-grams; if all texts are shorter, up to their length (sacrebleu's effective order).
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="none", force=True, effective_order=True)
    score = metric.corpus_score([" ".join(words) for words in generated], [[" ".join(words) for words in true]])
    return score.score, str(metric.get_signature())


def similarity(generated: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, float | str | int]:
    """All figures over all continuations: BLEU of the corpus, means over continuations of ROUGE, and token accuracy.

    Token accuracy is over all true tokens, so a longer remainder counts more.
    """
    rouges = [rouge(a, b) for a, b in zip(generated, true, strict=True)]
    lengths = np.array([len(words) for words in true])
    accuracies = np.array([token_accuracy(a, b) for a, b in zip(generated, true, strict=True)])
    score, signature = bleu(generated, true)
    figures = {"token_accuracy": float((accuracies * lengths).sum() / lengths.sum()), "bleu": score}
    figures |= {name: float(np.mean([row[name] for row in rouges])) for name in ROUGE_TYPES}
    return {**figures, "num_continuations": len(true), "num_tokens": int(lengths.sum()), "bleu_signature": signature}


@functools.cache
def _rouge_scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class WhitespaceTokenizer(Tokenizer):
        """Splits at white space; rouge-score's own tokenizer splits `<Z_012>` into `z` and `012`."""

        def tokenize(self, text: str) -> list[str]:
            return text.split()

    return RougeScorer(list(ROUGE_TYPES), tokenizer=WhitespaceTokenizer())
