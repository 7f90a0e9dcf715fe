"""The baselines: counted by hand, and never weaker than they can be."""

from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.linear_model import LogisticRegression

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.evaluation.baselines import bag_of_tokens, baseline_accuracies
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
    expected = np.mean([label == most for label in data["test"]["label"]])
    assert baseline_accuracies(data["train"], data["test"], grammar)["majority_accuracy"] == expected


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
    assert baseline_accuracies(data["train"], data["test"], grammar)["bag_of_tokens_accuracy"] == 1.0
