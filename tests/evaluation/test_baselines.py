"""The baselines: counted by hand, and never weaker than they can be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from sklearn.linear_model import LogisticRegression

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.evaluation import baselines
from imagelm.evaluation.baselines import bag_of_tokens, baseline_figures, baseline_hits, fitted_record, fitted_rows
from imagelm.evaluation.interval import baseline_warning, fitted_in_words, paired_comparison
from tests.conftest import NUM_CODES, sentence, write_jsonl


def test_the_bag_counts_each_codebook_token_of_each_image(prepared, grammar):
    test = load_prepared(prepared)["test"]
    counts, labels = bag_of_tokens(test, grammar)
    assert counts.shape == (len(test), NUM_CODES)
    for row, found in zip(test["input_ids"], counts.toarray(), strict=True):
        expected = Counter(grammar.tokens[i] for i in row)
        assert found.tolist() == [expected[f"<Z_{entry:03d}>"] for entry in range(NUM_CODES)]
    assert labels.tolist() == test["label"]


def test_the_majority_is_the_most_frequent_class_of_the_training_rows(prepared, grammar):
    data = load_prepared(prepared)
    most = Counter(data["train"]["label"]).most_common(1)[0][0]
    expected = [label == most for label in data["test"]["label"]]
    hits = baseline_hits(data["train"], {"test": data["test"]}, grammar)["test"]
    assert hits["majority"].tolist() == expected
    assert baseline_figures(hits, np.array(expected))["majority_accuracy"] == np.mean(expected)


def test_variants_of_an_image_do_not_weaken_the_bag(tmp_path, grammar, vocab_file):
    """Originals tell the class by their tokens; twice as many variants carry tokens of the next class."""
    rng, rows = np.random.default_rng(0), []
    for source in range(90):
        label = source % 3
        split = "test" if source < 30 else "train"
        for variant in range(1 if split == "test" else 3):
            codes = rng.integers(0, 10, 8) + 10 * ((label + (variant > 0)) % 3)
            rows.append({"tokens": sentence(codes, label), "label": label, "split": split, "source": source})
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    prepare(
        PrepareArguments(
            data_files=[str(file)], vocab_file=str(vocab_file), output_dir=str(tmp_path / "out"), split_by="field"
        ),
        command="test",
    )
    data = load_prepared(tmp_path / "out")
    train, labels = bag_of_tokens(data["train"], grammar)
    test, truth = bag_of_tokens(data["test"], grammar)
    weakened = (LogisticRegression(max_iter=1000).fit(train, labels).predict(test) == truth).mean()
    assert weakened < 0.5
    assert baseline_hits(data["train"], {"test": data["test"]}, grammar)["test"]["bag_of_tokens"].all()


def test_of_many_rows_the_regression_is_fitted_on_one_of_each_stretch_and_says_so(monkeypatch):
    rows = Dataset.from_dict({"number": range(baselines.MAX_FITTED)})
    assert fitted_rows(rows) is rows and fitted_record(len(rows)) == {} and fitted_in_words({}) == ""
    monkeypatch.setattr(baselines, "MAX_FITTED", 100)
    rows = rows.select(range(1_030))
    drawn = fitted_rows(rows)["number"][:]
    assert [int(number * 100 / 1_030) for number in np.add(drawn, 1 - 1e-9)] == list(range(100))
    assert fitted_rows(rows)["number"][:] == drawn and len(set(np.diff(drawn))) > 5
    assert fitted_in_words(fitted_record(1_030)) == ", fitted on 100 of 1,030 training rows, drawn at random"
    words = ", fitted on 100 of 1,030 training rows, the first ones of the stream"
    assert fitted_in_words(fitted_record(1_030, streamed=True)) == words


def test_the_majority_is_that_of_all_rows_though_the_regression_is_fitted_on_some(prepared, grammar, monkeypatch):
    data = load_prepared(prepared)
    train, test = data["train"].select(np.argsort(data["train"]["label"], kind="stable")), data["test"]
    of_all = baseline_hits(train, {"test": test}, grammar)["test"]
    few = train.select(range(5))  # of the first class, as a stream may begin
    counts = np.bincount(train["label"]).tolist()
    of_few = baseline_hits(few, {"test": test}, grammar, counts)["test"]
    assert of_few["majority"].tolist() == of_all["majority"].tolist()
    assert of_few["bag_of_tokens"].tolist() == [label == 0 for label in test["label"]]
    monkeypatch.setattr(baselines, "BLOCK_ROWS", 7)
    in_blocks = baseline_hits(train, {"test": test}, grammar)["test"]
    assert all((in_blocks[name] == of_all[name]).all() for name in of_all)


@pytest.mark.parametrize(
    ("only_model", "only_baseline", "p_value", "better"),
    [
        (6, 0, 2 / 2**6, True),  # 56 and 50 right of 100: their intervals overlap, the paired rows tell
        (5, 0, 2 / 2**5, False),
        (0, 6, 2 / 2**6, False),  # clearly worse
        (9, 1, 2 * (1 + 10) / 2**10, True),
        (20, 20, 1, False),
        (0, 0, 1, False),
    ],
)
def test_the_model_is_compared_on_the_rows_that_only_one_gets_right(only_model, only_baseline, p_value, better):
    model = np.repeat([True, False, True, False], [50, 44, only_model, only_baseline])
    baseline = np.repeat([True, False, False, True], [50, 44, only_model, only_baseline])
    found = paired_comparison(model, baseline)
    assert found == {
        "only_model": only_model,
        "only_baseline": only_baseline,
        "p_value": pytest.approx(p_value),
        "clearly_better": better,
    }


def test_the_warning_names_the_baselines_that_the_model_does_not_beat_clearly():
    truth = np.arange(40) % 2 == 0
    hits = {"majority": np.zeros(40, bool), "bag_of_tokens": truth}
    figures = {"eval_samples": 40} | baseline_figures(hits, truth)
    assert figures["bag_of_tokens_accuracy"] == 0.5 and figures["versus_majority"]["clearly_better"]
    warning = baseline_warning(figures)
    assert warning.startswith(
        "the model is not clearly better than a bag of tokens (of 40 rows 0 are right by the model only"
    )
    assert "majority" not in warning
    assert baseline_warning({"eval_samples": 40} | baseline_figures(hits, np.ones(40, bool))) is None


def test_a_model_that_is_worse_than_a_baseline_is_called_worse():
    worse = {"only_model": 0, "only_baseline": 8, "p_value": 2 / 2**8, "clearly_better": False}
    even = {"only_model": 1, "only_baseline": 1, "p_value": 1.0, "clearly_better": False}
    warning = baseline_warning({"eval_samples": 13, "versus_bag_of_tokens": worse, "versus_majority": even})
    assert warning.startswith(
        "the model is clearly worse than a bag of tokens (of 13 rows 0 are right by the model only"
    )
    assert ", and not clearly better than the majority class (of 13 rows 1 are right" in warning
