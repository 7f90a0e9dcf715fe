"""Continuations compared with the true ones, worked out by hand."""

from __future__ import annotations

import pytest

from imagelm.evaluation.similarity import bleu, rouge, similarity, token_accuracy


def test_continuations_are_compared_token_by_token():
    true, drawn = ["<Z_001>", "<Z_002>", "<Z_003>", "<Z_004>"], ["<Z_001>", "<Z_002>", "<Z_009>", "<Z_004>"]
    assert token_accuracy(drawn, true) == 0.75
    assert token_accuracy(drawn[:2], true) == 0.5
    # 3 of 4 words, 1 of 3 pairs, a common subsequence of 3; <Z_001> and <Z_009> share nothing
    assert rouge(drawn, true) == pytest.approx({"rouge1": 0.75, "rouge2": 1 / 3, "rougeL": 0.75})
    words, reference = ["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "f"]
    score, signature = bleu([words], [reference])
    assert score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert "tok:none" in signature
    both = similarity([drawn, words], [true, words])
    assert (both["num_continuations"], both["num_tokens"]) == (2, 9)
    assert both["token_accuracy"] == pytest.approx(8 / 9)
    assert both["rouge1"] == pytest.approx((0.75 + 1) / 2)
    assert bleu([["a", "b"]], [["a", "b"]])[0] == pytest.approx(100)  # shorter than four words
