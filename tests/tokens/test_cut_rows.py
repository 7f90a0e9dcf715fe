"""Rows that a user writes: cut anywhere, or refused with their first wrong token."""

from __future__ import annotations

import pytest

from imagelm.tokens.grammar import BadRow
from imagelm.tokens.vocabulary import IMG


@pytest.mark.parametrize(
    ("text", "num_tail", "label"),
    [
        ("<IMG> <Z_001> <Z_002>", 0, None),
        ("<Z_001> <Z_002>", 0, None),
        ("<IMG> <Z_001> <Z_002> </IMG>", 1, None),
        ("<IMG> <Z_001> <Z_002> </IMG> <CLS> <CLS_1>", 3, 1),
        ("<IMG> <Z_001> <Z_002> </IMG> <CLS> <CLS_1> <EOS>", 4, 1),
        ("<IMG> <Z_001> <Z_002> </IMG> <CLS> <CLS> <EOS>", 4, None),  # the predecessor's tail
    ],
)
def test_a_row_cut_anywhere_is_its_body_and_a_part_of_the_tail(grammar, text, num_tail, label):
    row = grammar.parse(text.split(), None, "here")
    assert row.body.tolist() == [grammar.id("<Z_001>"), grammar.id("<Z_002>")]
    assert (row.num_tail, row.label) == (num_tail, label)
    assert row.question(grammar).tolist() == [grammar.id(t) for t in ["<IMG>", "<Z_001>", "<Z_002>", "</IMG>", "<CLS>"]]
    if num_tail < 4:
        whole = text if text.startswith(IMG) else f"{IMG} {text}"
        assert row.prefix(grammar).tolist() == [grammar.id(token) for token in whole.split()]


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("", None, "no token at all"),
        ("<IMG> <Z_1>", None, "token 2 is '<Z_1>', which isn't among the model's 39 tokens"),
        ("<IMG> <Z_001> <CLS_1> </IMG>", None, "token 3 is <CLS_1>, expected a codebook token or </IMG>"),
        ("<IMG> <Z_001> </IMG> <Z_001>", None, "token 4 is <Z_001>, expected <CLS>"),
        ("<IMG> <Z_001> </IMG> <CLS> <EOS>", None, "token 5 is <EOS>, expected a class token"),
        ("<IMG> <Z_001> </IMG> <CLS> <CLS_0> <EOS> <EOS>", None, "token 7 is <EOS>, expected nothing more"),
        ("<IMG> <Z_001> </IMG> <CLS> <CLS_0> <EOS>", 2, "the class token is <CLS_0>, but the label is 2"),
        ("</IMG> <CLS>", None, "token 1 is </IMG>, expected <IMG>"),
        ("<IMG> </IMG> <CLS>", None, "token 2 is </IMG>, expected a codebook token"),
    ],
)
def test_an_invalid_row_is_refused_with_the_first_wrong_token(grammar, text, label, message):
    with pytest.raises(BadRow) as error:
        grammar.parse(text.split(), label, "here")
    assert str(error.value).startswith(message)
