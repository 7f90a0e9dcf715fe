"""Every figure equals the one worked out by hand from full logits, whatever the batch and the padding."""

from __future__ import annotations

import math

import evaluate
import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from imagelm.evaluation.interval import accuracy_interval
from imagelm.metrics import COLUMNS, GREATER_IS_BETTER, ComputeMetrics, RowReduction, token_nll
from imagelm.models.build import load_model
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import load_tokenizer
from imagelm.training.loss import RowCollator
from tests.conftest import NUM_CLASSES, ROOT, random_rows


@pytest.fixture(scope="module")
def rows(grammar: Grammar) -> list[np.ndarray]:
    texts = [row["tokens"].split() for row in random_rows(40, seed=21)]
    return [np.array([grammar.vocabulary[token] for token in text], dtype=np.uint16) for text in texts]


@pytest.fixture(scope="module")
def model(trained):
    return load_model(trained / "best_model").eval()


def by_hand(model, grammar: Grammar, rows: list[np.ndarray], shift: int = 1) -> dict[str, float]:
    """The figures from full logits, a row at a time, in plain Python; `shift=2` is the predecessor's fault."""
    vocabulary, class_ids = grammar.vocabulary, grammar.class_ids.tolist()
    nll = tokens = correct = image_nll = image_tokens = slot_nll = 0
    predictions, references, confidences = [], [], []
    for row in rows:
        ids = row.astype(int).tolist()
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        for position in range(len(ids) - shift):
            target = ids[position + shift]
            log_probabilities = logits[position] - logits[position].logsumexp(0)
            loss = -log_probabilities[target].item()
            nll, tokens = nll + loss, tokens + 1
            correct += int(logits[position].argmax()) == target
            if grammar.tokens[target].startswith("<Z_"):
                image_nll, image_tokens = image_nll + loss, image_tokens + 1
            if ids[position + shift - 1] == vocabulary["<CLS>"]:
                slot_nll += loss
                scores = [logits[position][i].item() for i in class_ids]
                exponentials = [math.exp(score - max(scores)) for score in scores]
                predictions.append(scores.index(max(scores)))
                confidences.append(max(exponentials) / sum(exponentials))
                references.append(class_ids.index(target))
    return {
        "loss": nll / tokens,
        "perplexity": math.exp(nll / tokens),
        "next_token_accuracy": correct / tokens,
        "image_perplexity": math.exp(image_nll / image_tokens),
        "cls_perplexity": math.exp(slot_nll / len(rows)),
        "cls_accuracy": sum(p == r for p, r in zip(predictions, references, strict=True)) / len(rows),
        "cls_macro_f1": f1_score(references, predictions, average="macro"),
        "cls_calibration_error": calibration_error(predictions, references, confidences),
    }


def calibration_error(predictions, references, confidences) -> float:
    bins = {}
    for p, r, c in zip(predictions, references, confidences, strict=True):
        bins.setdefault(math.ceil(c * 15), []).append((p == r, c))
    return sum(abs(sum(right for right, _ in b) - sum(c for _, c in b)) for b in bins.values()) / len(predictions)


def measured(
    model, prepared, rows: list[np.ndarray], batch_size: int, extra_padding: int = 0, shared: bool = False
) -> dict[str, float]:
    tokenizer = load_tokenizer(prepared / "tokenizer")
    grammar = Grammar(tokenizer.get_vocab())
    collate, reduce, parts = RowCollator(tokenizer), RowReduction(grammar), []
    for start in range(0, len(rows), batch_size):
        batch = collate([{"input_ids": row} for row in rows[start : start + batch_size]])
        logits, labels = model(input_ids=batch["input_ids"]).logits, batch["labels"]
        nll = token_nll(logits[:, :-1], labels[:, 1:]) if shared else None
        if extra_padding:  # as Trainer pads across processes: logits and labels with -100
            logits = torch.nn.functional.pad(logits, (0, 0, 0, extra_padding), value=-100.0)
            labels = torch.nn.functional.pad(labels, (0, extra_padding), value=-100)
        parts.append(reduce(logits, labels, nll))
    return ComputeMetrics(NUM_CLASSES).from_rows(torch.cat(parts).numpy())


@pytest.mark.parametrize("batch_size", [1, 7, 32])
@torch.no_grad()
def test_all_figures_equal_those_by_hand_for_any_batch_size_on_ragged_rows(model, prepared, grammar, rows, batch_size):
    assert len({len(row) for row in rows}) > 3
    expected = by_hand(model, grammar, rows)
    found = measured(model, prepared, rows, batch_size)
    assert set(found) == set(GREATER_IS_BETTER)
    assert found == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_padding_is_never_scored(model, prepared, rows, shared):
    """Whether the loss hands over what it has computed, before the padding of several processes, or not."""
    plain = measured(model, prepared, rows, 8)
    assert measured(model, prepared, rows, 8, extra_padding=13, shared=shared) == pytest.approx(plain, rel=1e-6)


@torch.no_grad()
def test_the_double_shift_of_the_predecessor_gives_other_figures(model, prepared, grammar, rows):
    """Were labels shifted once more, these would be equal, and the test above would fail."""
    found = measured(model, prepared, rows, 8)
    twice = by_hand(model, grammar, rows, shift=2)
    assert abs(found["perplexity"] - twice["perplexity"]) > 0.5
    assert abs(found["next_token_accuracy"] - twice["next_token_accuracy"]) > 0.05


def test_the_collator_does_not_shift_and_leaves_padding_alone_unscored(prepared, grammar, rows):
    """Padding needs no mask: it is on the right, where no scored position of a causal model sees it."""
    batch = RowCollator(load_tokenizer(prepared / "tokenizer"))([{"input_ids": row} for row in rows[:5]])
    assert batch.keys() == {"input_ids", "labels"}
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], rows, strict=False):
        n = len(row)
        assert ids[:n].tolist() == labels[:n].tolist() == row.tolist()
        assert set(ids[n:].tolist()) <= {grammar.vocabulary["<PAD>"]}
        assert set(labels[n:].tolist()) <= {-100}
        assert grammar.vocabulary["<EOS>"] in labels.tolist()  # a pad token equal to eos would mask it


def test_the_prediction_is_taken_among_class_tokens_only(grammar):
    ids, _ = grammar.compose(grammar.code_ids[[4, 5]], np.array([2]), np.array([1]))
    labels = torch.from_numpy(ids.astype(np.int64))[None]
    logits = torch.zeros(1, len(ids), grammar.size)
    logits[0, -3, grammar.vocabulary["<Z_003>"]] = 9.0  # position of <CLS>
    logits[0, -3, grammar.vocabulary["<CLS_1>"]] = 2.0
    row = dict(zip(COLUMNS, RowReduction(grammar)(logits, labels)[0].tolist(), strict=True))
    assert (row["prediction"], row["reference"]) == (1, 1)
    assert row["confidence"] == pytest.approx(math.exp(2) / (math.exp(2) + 2))
    assert row["num_correct"] == 0  # ties go to id 0, which is none of the targets here, and the slot to <Z_003>


@pytest.mark.parametrize(
    "name",
    [
        "perplexity",
        "next_token_accuracy",
        "cls_accuracy",
        "cls_macro_f1",
        "cls_calibration_error",
        "cls_confusion_matrix",
    ],
)
def test_each_module_loads_alone_without_a_network_and_its_example_is_true(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    metric = evaluate.load(f"imagelm/metrics/{name}")
    lines = [line.strip() for line in metric.inputs_description.splitlines()]
    code = [line.removeprefix(">>> ") for line in lines if line.startswith(">>> ")]
    shown = lines[lines.index(f">>> {code[-1]}") + 1]
    scope = {"evaluate": evaluate}
    exec("\n".join(code[:-1]), scope)
    assert repr(eval(code[-1], scope)) == shown


def test_the_confusion_matrix_counts_true_rows_and_predicted_columns(model, prepared, rows):
    compute = ComputeMetrics(3)
    table = np.zeros((4, len(COLUMNS)))
    table[:, COLUMNS.index("num_tokens")] = table[:, COLUMNS.index("num_image_tokens")] = 1
    table[:, COLUMNS.index("reference")] = [0, 0, 1, 1]
    table[:, COLUMNS.index("prediction")] = [0, 2, 1, 1]
    compute.from_rows(table)
    assert compute.details["cls_confusion_matrix"] == [[1, 0, 1], [0, 2, 0], [0, 0, 0]]
    assert compute.details["cls_per_class_accuracy"] == [0.5, 1.0, None]


@torch.no_grad()
def test_rows_that_are_added_in_parts_give_the_figures_of_all_and_keep_their_order():
    rng, compute = np.random.default_rng(5), ComputeMetrics(4)
    table = rng.random((50, len(COLUMNS))).astype(np.float32)
    table[:, 1:3], table[:, 4] = rng.integers(1, 20, (50, 2)), 3
    table[:, 6:8] = rng.integers(0, 4, (50, 2))
    whole = compute.from_rows(table)
    matrix, correct = compute.details["cls_confusion_matrix"], compute.correct
    compute.clear()
    for part in np.split(table, [1, 20, 33]):
        compute.add(part)
    assert compute.compute() == pytest.approx(whole, rel=1e-12)
    assert compute.details["cls_confusion_matrix"] == matrix
    assert compute.correct.tolist() == correct.tolist() == (table[:, 6] == table[:, 7]).tolist()
    assert whole["cls_macro_f1"] == pytest.approx(f1_score(table[:, 7], table[:, 6], average="macro"), rel=1e-12)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 360, 10_000, 9_000_000])
def test_the_interval_is_scipys(num_rows):
    for hits in {0, 1, num_rows // 3, num_rows // 2, num_rows - 1, num_rows}:
        expected = binomtest(hits, num_rows).proportion_ci(method="wilson")
        assert accuracy_interval(hits / num_rows, num_rows) == pytest.approx([expected.low, expected.high], rel=1e-13)


def test_the_interval_is_wilsons():
    # Worked out from (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964.
    low, high = accuracy_interval(0.9, 100)
    z, p, n = 1.959964, 0.9, 100
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert low == pytest.approx((p + z * z / (2 * n) - half) / (1 + z * z / n), abs=1e-6)
    assert high == pytest.approx((p + z * z / (2 * n) + half) / (1 + z * z / n), abs=1e-6)
