"""The grammar: which vocabularies serve, how rows are composed, what is said of wrong ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import load_vocabulary, make_vocabulary
from imagelm.utils.errors import InputError

GOOD = make_vocabulary(4, 2)


def changed(**changes: int | None) -> dict[str, int]:
    vocabulary = dict(GOOD)
    for token, i in changes.items():
        if i is None:
            del vocabulary[token]
        else:
            vocabulary[token] = i
    return vocabulary


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed(**{"<Z_003>": 99}), "no token has id 9"),
        (changed(**{"<Z_003>": 6}), "'<Z_000>' and '<Z_003>' share id 6"),
        (changed(**{"<CLS_1>": None}), "numbered [0]"),
        ({t: i for i, t in enumerate(t for t in GOOD if t != "<EOS>")}, "lacks <EOS>"),
        ({t: i for i, t in enumerate(t for t in GOOD if "Z_" not in t)}, "no codebook token"),
        (changed(**{"<Z_003>": -1}), "has id -1"),
        (changed(**{"<Z_003>": True}), "has id True"),
        (changed(**{"<Z 5>": 12}), "white space"),
        (changed(**{"<Z_3>": 12}), "have the number 3"),
        (changed(**{"<CLS_01>": 12}), "numbered [0, 1, 1]"),
        ([1, 2], "holds a JSON list"),
    ],
)
def test_a_wrong_vocabulary_is_refused_with_what_is_wrong(tmp_path, content, said):
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"vocab\.json") as error:
        load_vocabulary(file)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"<PAD>": 0, "<PAD>": 1}', "'<PAD>' occurs twice"),
        ("{", "isn't JSON"),
        (b"\xff\xfe{".decode("latin1"), "isn't"),
    ],
)
def test_a_broken_vocabulary_file_is_refused(tmp_path, text, said):
    file = tmp_path / "vocab.json"
    file.write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=said):
        load_vocabulary(file)
    with pytest.raises(InputError, match="No such file"):
        load_vocabulary(tmp_path / "absent.json")


def test_rows_are_composed_as_the_format_says(grammar: Grammar):
    codes = grammar.code_ids
    ids, offsets = grammar.compose(codes[[5, 6, 7]], np.array([1, 2]), np.array([2, 0]))
    words = [grammar.tokens[i] for i in ids]
    assert " ".join(words) == (
        "<IMG> <Z_005> </IMG> <CLS> <CLS_2> <EOS> <IMG> <Z_006> <Z_007> </IMG> <CLS> <CLS_0> <EOS>"
    )
    assert offsets.tolist() == [0, 6, 13]


def test_ids_need_two_bytes_up_to_65536_tokens_and_four_beyond():
    assert Grammar(make_vocabulary(500, 10)).id_dtype == np.uint16
    assert Grammar(make_vocabulary(70_000, 10)).id_dtype == np.uint32
