"""Reading: each kind of bad row is caught with its line; good rows come out whole, however they are packed."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard

from imagelm.data.jsonl import lines
from imagelm.data.jsonl.lines import expand_files
from imagelm.data.jsonl.parser import RowChecker, read_rows
from imagelm.data.rows import ProblemLog
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import make_vocabulary
from imagelm.utils.errors import InputError
from tests.conftest import random_rows, sentence, write_jsonl

GOOD = {"tokens": sentence([1, 2, 3], 1), "label": 1}


def read(file: Path, grammar: Grammar, need_split: bool = False) -> tuple[list[tuple[list[int], int]], ProblemLog]:
    """(body ids, label) of every good row, and the problems."""
    problems, rows = ProblemLog(), []
    for batch in read_rows([file], grammar, problems, need_split):
        bodies = np.split(batch.bodies, np.cumsum(batch.lengths))[:-1]
        rows += [(body.tolist(), int(label)) for body, label in zip(bodies, batch.labels, strict=True)]
    return rows, problems


BAD = [
    ("invalid_json", b'{"tokens": "<IMG>", "label": 1', "not JSON"),
    ("invalid_json", b'{"tokens": "\xff", "label": 1}', "not JSON"),
    ("invalid_json", b'{"tokens": "<IMG>", "label": NaN}', "not JSON"),
    ("not_an_object", b"[1, 2]", "[1,2], expected an object"),
    ("missing_key", b'{"tokens": "<IMG>"}', "no key 'label'"),
    ("missing_key", b'{"label": 1}', "no key 'tokens'"),
    ("wrong_type", b'{"tokens": 5, "label": 1}', "tokens is 5, expected a string or a list"),
    ("wrong_type", b'{"tokens": ["<IMG>", 5], "label": 1}', "tokens holds 5, expected strings"),
    ("wrong_type", {**GOOD, "label": True}, "label is true, expected a whole"),
    ("wrong_type", {**GOOD, "label": "1"}, 'label is "1", expected a whole'),
    ("wrong_type", {**GOOD, "label": 1.0}, "label is 1.0, expected a whole"),
    ("wrong_type", {**GOOD, "source": [1]}, "source is [1], expected"),
    (
        "wrong_type",
        {"tokens": [*GOOD["tokens"].split()[:-2], "<CLS_1> <EOS>"], "label": 1},
        "empty or contains a space",
    ),
    ("label_out_of_range", {**GOOD, "label": 3}, "label 3, expected 0 to 2"),
    ("label_out_of_range", {**GOOD, "label": -1}, "label -1, expected 0 to 2"),
    ("label_mismatch", {**GOOD, "label": 2}, "the class token is <CLS_1>, expected <CLS_2> because the label is 2"),
    ("unknown_token", {**GOOD, "tokens": GOOD["tokens"].replace("<Z_002>", "<Z_2>")}, "token 3 is '<Z_2>'"),
    ("unknown_token", {**GOOD, "tokens": GOOD["tokens"].replace("<Z_002>", "<Z_030>")}, "token 3 is '<Z_030>'"),
    ("image_markers", {**GOOD, "tokens": GOOD["tokens"].replace("<IMG> ", "")}, "<IMG> occurs 0 times"),
    ("image_markers", {**GOOD, "tokens": GOOD["tokens"].replace("<Z_002>", "<IMG>")}, "<IMG> occurs 2 times"),
    ("image_markers", {**GOOD, "tokens": GOOD["tokens"].replace("</IMG> ", "")}, "</IMG> occurs 0 times"),
    ("image_markers", {**GOOD, "tokens": "</IMG> <Z_001> <IMG> <CLS> <CLS_1> <EOS>"}, "begins with </IMG>"),
    ("image_markers", {**GOOD, "tokens": "<Z_001> " + GOOD["tokens"]}, "begins with <Z_001>"),
    ("class_token_in_image", {**GOOD, "tokens": GOOD["tokens"].replace("<Z_002>", "<CLS_1>")}, "inside the image"),
    ("not_a_code", {**GOOD, "tokens": GOOD["tokens"].replace("<Z_002>", "<PAD>")}, "token 3 is <PAD> inside the image"),
    ("not_a_code", {**GOOD, "tokens": GOOD["tokens"].replace("<Z_002>", "<UNK>")}, "token 3 is <UNK> inside the image"),
    ("empty_image", {**GOOD, "tokens": "<IMG> </IMG> <CLS> <CLS_1> <EOS>"}, "nothing between"),
    ("empty_row", {**GOOD, "tokens": "  "}, "no token at all"),
    ("empty_row", {**GOOD, "tokens": []}, "no token at all"),
    ("tail", {**GOOD, "tokens": GOOD["tokens"].replace(" <EOS>", "")}, "expected <CLS> <CLS_1> <EOS>"),
    ("tail", {**GOOD, "tokens": GOOD["tokens"] + " <EOS>"}, "<CLS> <CLS_1> <EOS> <EOS> after </IMG>, expected"),
    (
        "tail",
        {**GOOD, "tokens": GOOD["tokens"] + 7 * " <EOS>"},
        "<CLS> <CLS_1>" + 4 * " <EOS>" + " and 4 more after </IMG>",
    ),
    ("tail", {**GOOD, "tokens": GOOD["tokens"].replace("<CLS> <CLS_1>", "<CLS_1>")}, "expected <CLS> <CLS_1> <EOS>"),
    ("tail", {**GOOD, "tokens": GOOD["tokens"].replace("<CLS> ", "<CLS> <Z_001> ")}, "expected <CLS> <CLS_1> <EOS>"),
]


@pytest.mark.parametrize(("kind", "line", "said"), BAD)
def test_each_kind_of_bad_row_is_caught_with_its_line(tmp_path, grammar, kind, line, said):
    bad = line if isinstance(line, bytes) else json.dumps(line).encode()
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([json.dumps(GOOD).encode(), b"", bad, json.dumps(GOOD).encode()]))
    rows, problems = read(file, grammar)
    assert len(rows) == 2  # both neighbours stay
    assert problems.counts == {kind: 1}
    assert problems.shown[0].startswith(f"{file}:3: ")
    assert said in problems.shown[0]
    assert "expected" in problems.shown[0]


@pytest.mark.parametrize(
    ("split", "said"), [({}, "no key 'split'"), ({"split": "dev"}, 'split is "dev"'), ({"split": 1}, "split is 1")]
)
def test_a_row_without_a_usable_split_is_caught_only_where_the_split_is_asked_for(tmp_path, grammar, split, said):
    file = write_jsonl(tmp_path / "rows.jsonl", [GOOD | split])
    assert len(read(file, grammar)[0]) == 1
    rows, problems = read(file, grammar, need_split=True)
    assert rows == []
    assert said in problems.shown[0]


def test_the_fast_check_accepts_exactly_the_rows_that_the_slow_one_can_not_fault(tmp_path, grammar):
    """3,000 rows damaged at random: dropped, doubled, swapped and replaced tokens, wrong labels."""
    rng = random.Random(0)
    rows = []
    for row in random_rows(3000, seed=1, low=1, high=5):
        tokens, label = row["tokens"].split(), row["label"]
        for _ in range(rng.choice([0, 0, 1, 1, 2])):
            i, j = rng.randrange(len(tokens)), rng.randrange(len(tokens))
            action = rng.choice(["drop", "double", "swap", "replace", "tail"])
            if action == "drop" and len(tokens) > 1:
                del tokens[i]
            elif action == "double":
                tokens.insert(i, tokens[j])
            elif action == "swap":
                tokens[i], tokens[j] = tokens[j], tokens[i]
            elif action == "replace":
                tokens[i] = rng.choice([*grammar.tokens, "<Z_999>", "x"])
            else:
                tokens = [*tokens[:-2], "<CLS>", "<EOS>"]
        rows.append(
            {"tokens": tokens if rng.random() < 0.5 else " ".join(tokens), "label": rng.choice([label, label, 0])}
        )

    def words(row: dict) -> list[str]:
        return row["tokens"] if isinstance(row["tokens"], list) else row["tokens"].split()

    good = [row for row in rows if grammar.explain(words(row), row["label"]) is None]
    assert 300 < len(good) < 2700
    expected = [
        ([grammar.vocabulary[token] for token in words(row)[1 : words(row).index("</IMG>")]], row["label"])
        for row in good
    ]
    found, problems = read(write_jsonl(tmp_path / "rows.jsonl", rows), grammar)
    assert found == expected
    assert sum(problems.counts.values()) == len(rows) - len(good)


def test_the_broken_tail_is_repaired_and_counted(tmp_path, grammar):
    broken = {**GOOD, "tokens": GOOD["tokens"].replace("<CLS_1>", "<CLS>")}
    file = write_jsonl(tmp_path / "rows.jsonl", [GOOD, broken, broken])
    (batch,) = read_rows([file], grammar, ProblemLog(), need_split=False)
    assert batch.num_repaired == 2
    assert batch.labels.tolist() == [1, 1, 1]


def test_plain_gzip_zstd_list_and_bom_files_give_the_same_rows(tmp_path, grammar):
    rows = random_rows(50, seed=2)
    plain = write_jsonl(tmp_path / "a.jsonl", rows)
    data = plain.read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(data))
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    write_jsonl(tmp_path / "e.jsonl", [{**row, "tokens": row["tokens"].split()} for row in rows])
    expected, _ = read(plain, grammar)
    assert len(expected) == 50
    for file in expand_files([str(tmp_path / "[b-e].*")]):
        found, problems = read(file, grammar)
        assert found == expected, file
        assert not problems.counts


def test_chunks_of_any_size_give_the_same_rows_and_line_numbers(tmp_path, grammar, monkeypatch):
    rows = random_rows(40, seed=3)
    rows[25] = {"tokens": "x", "label": 0}
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    expected, _ = read(file, grammar)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 200)
    found, problems = read(file, grammar)
    assert found == expected
    assert problems.shown[0].startswith(f"{file}:26: ")


@pytest.mark.parametrize(("name", "content"), [("a.jsonl.gz", b"no gzip"), ("a.jsonl.zst", b"no zstd"), ("b.gz", b"")])
def test_a_damaged_archive_is_an_input_error(tmp_path, grammar, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    if not content:
        assert read(file, grammar)[0] == []
        return
    with pytest.raises(InputError, match="can't be read"):
        read(file, grammar)


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_an_archive_that_was_cut_off_is_an_input_error(tmp_path, grammar, ending, compress, share):
    file = tmp_path / f"a.jsonl.{ending}"
    whole = compress(write_jsonl(tmp_path / "a.jsonl", random_rows(500, seed=4)).read_bytes())
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="can't be read"):
        read(file, grammar)


def test_archives_of_several_frames_are_read_to_the_end(tmp_path, grammar):
    rows = random_rows(60, seed=5)
    for ending, compress in (("gz", gzip.compress), ("zst", zstandard.compress)):
        parts = [write_jsonl(tmp_path / "part", rows[start : start + 20]).read_bytes() for start in (0, 20, 40)]
        file = tmp_path / f"a.jsonl.{ending}"
        file.write_bytes(b"".join(map(compress, parts)))
        assert len(read(file, grammar)[0]) == 60


def test_files_are_found_by_name_and_pattern_each_once(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).touch()
    files = expand_files([str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl")])
    assert [file.name for file in files] == ["b.jsonl", "a.jsonl"]
    with pytest.raises(InputError, match="no such file"):
        expand_files([str(tmp_path / "*.parquet")])
    with pytest.raises(InputError, match="is a folder"):
        expand_files([str(tmp_path)])


def vocabulary(size: int) -> Grammar:
    tokens = list(make_vocabulary(size, 3))
    order = np.random.default_rng(3).permutation(len(tokens))
    return Grammar({token: int(i) for token, i in zip(tokens, order, strict=True)})


def same(first, second) -> bool:
    arrays = ("bodies", "lengths", "labels", "splits", "lines")
    equal = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)
    return equal and first.sources == second.sources and first.num_repaired == second.num_repaired


@pytest.mark.parametrize("size", [30, 1_200, 10_500])
def test_rows_decoded_as_bytes_are_those_split_into_words(size):
    grammar, rng = vocabulary(size), np.random.default_rng(0)
    width = max(3, len(str(size - 1)))
    chunk = []
    for i in range(300):
        codes = " ".join(f"<Z_{code:0{width}d}>" for code in rng.integers(0, size, rng.integers(1, 400)))
        tail = "<CLS>" if i % 7 == 0 else f"<CLS_{i % 3}>"
        row = {"tokens": f"<IMG> {codes} </IMG> <CLS> {tail} <EOS>", "label": i % 3, "split": "test"}
        chunk.append(json.dumps(row | ({"source": i} if i % 2 else {})).encode() + b"\n")
    checker = RowChecker(grammar, ProblemLog(), need_split=True)
    plain = checker.check_plain("f", 5, chunk)
    assert plain is not None and same(plain, checker.check_any("f", 5, chunk))
    assert not checker.problems.counts


def test_what_is_decoded_as_bytes_is_never_what_the_words_would_refuse():
    grammar, rng = vocabulary(30), random.Random(1)
    good = json.dumps({"tokens": sentence([3, 14, 29, 0], 1), "label": 1}).encode()
    checker, taken = RowChecker(grammar, ProblemLog(), need_split=False), 0
    for _ in range(20_000):
        line = bytearray(good)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(line))
            line[at : at + rng.randint(0, 1)] = rng.choice(
                [b"0", b"9", b":", b"<", b" ", b"Z", b"\xc3", b"p", b"\x13", b""]
            )
        plain = checker.check_plain("f", 1, [bytes(line)])
        if plain is not None:
            taken += 1
            assert same(plain, checker.check_any("f", 1, [bytes(line)])) and not checker.problems.counts, line
    assert taken > 100


def test_a_key_that_occurs_twice_is_left_to_the_slow_path():
    checker = RowChecker(vocabulary(30), ProblemLog(), need_split=False)
    text = sentence([1, 2], 1)
    for line in (
        f'{{"tokens": "{text}", "label": 0, "label": 1}}',
        f'{{"tokens": "x", "tokens": "{text}", "label": 1}}',
        f'{{"tokens": "{text}", "label": 1, "source": 1, "source": 2}}',
    ):
        assert checker.check_plain("f", 1, [line.encode()]) is None


def test_a_code_that_the_vocabulary_lacks_is_not_decoded():
    grammar = Grammar({t: i for i, t in enumerate(t for t in make_vocabulary(12, 2) if t != "<Z_005>")})
    checker = RowChecker(grammar, ProblemLog(), need_split=False)
    for code, known in ((4, True), (5, False), (12, False)):
        line = json.dumps({"tokens": sentence([code], 0), "label": 0}).encode()
        assert (checker.check_plain("f", 1, [line]) is not None) == known
