"""The grammar: valid vocabularies, composed rows, and one answer to what a row is, however it is asked."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import torch

from imagelm.inference.generation import GrammarMask
from imagelm.tokens.grammar import BadRow, Grammar
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
        (changed(**{"<CLS_1>": None}), "numbered 0;"),
        ({t: i for i, t in enumerate(t for t in GOOD if t != "<EOS>")}, "lacks <EOS>"),
        ({t: i for i, t in enumerate(t for t in GOOD if "Z_" not in t)}, "no codebook token"),
        (changed(**{"<Z_003>": -1}), "has id -1"),
        (changed(**{"<Z_003>": True}), "has id True"),
        (changed(**{"<Z 5>": 12}), "white space"),
        (changed(**{"<Z_3>": 12}), "have the number 3"),
        (changed(**{"<CLS_01>": 12}), "numbered 0, 1, 1;"),
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


# The format once more, as patterns over text, which share nothing with the table.
TINY = Grammar(make_vocabulary(1, 2))
CUT = re.compile(r"(<IMG>|(<IMG> )?<Z_000>)( <Z_000>)*|(<IMG> )?(<Z_000> )+</IMG>( <CLS>( <CLS_[01]>( <EOS>)?)?)?")
WHOLE = re.compile(r"<IMG> (<Z_000> )+</IMG> <CLS> <CLS_([01])> <EOS>")
REPAIRED = re.compile(r"(<IMG> )?(<Z_000> )+</IMG> <CLS> <CLS> <EOS>")
# Every string of up to 4 tokens, and every end of 4 tokens after an image that has begun.
STRINGS = [
    [*begin, *end]
    for begin, lengths in (([], range(1, 5)), (["<IMG>", "<Z_000>"], [4]), (["<IMG>", *["<Z_000>"] * 3], [4]))
    for length in lengths
    for end in itertools.product([token for token in TINY.tokens if token != "<UNK>"], repeat=length)
]


def is_read(tokens: list[str]) -> bool:
    try:
        row = TINY.parse(tokens, None, "")
    except BadRow:
        return False
    assert TINY.tokens[row.body[0]] == "<Z_000>" if len(row.body) else tokens == ["<IMG>"]
    return True


def test_the_parser_accepts_exactly_the_rows_of_the_format_cut_anywhere():
    for tokens in STRINGS:
        text = " ".join(tokens)
        assert is_read(tokens) == bool(CUT.fullmatch(text) or REPAIRED.fullmatch(text)), text


def test_the_check_of_many_rows_accepts_exactly_the_whole_ones_and_the_explainer_faults_the_others():
    label = 1
    ids = np.array([TINY.id(token) for row in STRINGS for token in row])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in STRINGS])])
    good, repaired = TINY.check(ids, offsets, np.full(len(STRINGS), label))
    num_good = 0
    for row, is_good, is_repaired in zip(STRINGS, good, repaired, strict=True):
        text = " ".join(row)
        match, broken = WHOLE.fullmatch(text), text.startswith("<IMG>") and REPAIRED.fullmatch(text)
        assert is_good == bool(broken or (match and int(match[2]) == label)), text
        assert not is_good or is_repaired == bool(broken), text
        assert (TINY.explain(row, label) is None) == is_good, text
        num_good += is_good
    assert num_good == 4  # one code and three codes, each with its own tail and the predecessor's


def test_the_mask_allows_exactly_the_tokens_with_which_the_parser_still_reads_the_row():
    mask, rows, num_whole = GrammarMask(TINY, TINY.size, None, max_length=50), [["<IMG>"]], 0
    while rows:
        row = rows.pop()
        followers = {token for token in TINY.tokens if is_read([*row, token])}
        allowed: set[str] = set()
        for favourite in range(TINY.size):  # of the classes, the mask leaves only the most probable one
            scores = torch.zeros(1, TINY.size)
            scores[0, favourite] = 1.0
            ids = torch.tensor([[TINY.id(token) for token in row]])
            allowed |= {TINY.tokens[i] for i in mask(ids, scores)[0].isfinite().nonzero()[:, 0].tolist()}
        if row[-1] == "<EOS>":
            num_whole += 1
            assert followers == set() and allowed == {"<EOS>"}  # the batch waits for its other rows
            assert [TINY.explain(row, label) is None for label in (0, 1)].count(True) == 1
        else:
            assert allowed == followers, row
            assert TINY.explain(row, 0) is not None
            rows += [[*row, token] for token in followers if len(row) < 8]
    assert num_whole == 6  # 1 to 3 codes, 2 classes


def test_a_row_is_the_same_as_ids_as_text_and_read_again(grammar: Grammar):
    rng = np.random.default_rng(0)
    lengths, labels = rng.integers(1, 6, 20), rng.integers(0, grammar.num_classes, 20)
    bodies = rng.choice(grammar.code_ids, lengths.sum())
    ids, offsets = grammar.compose(bodies, lengths, labels)
    good, repaired = grammar.check(ids, offsets, labels)
    assert good.all() and not repaired.any()
    for i, text in enumerate(grammar.sentences(bodies, lengths, labels)):
        part = ids[offsets[i] : offsets[i + 1]]
        assert text.split() == [grammar.tokens[token] for token in part]
        row = grammar.parse(text.split(), None, "")
        assert row.label == labels[i] and row.prefix(grammar).tolist() == part.tolist()
        assert row.question(grammar).tolist() == part[:-2].tolist()
