"""Preparing: truncation, duplicates, splits, statistics; an output is whole or absent."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
from sklearn.model_selection import train_test_split
from transformers import AutoTokenizer

from imagelm.data.arguments import PrepareArguments
from imagelm.data.disjoint import check_disjoint
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.data.rows import DIGEST_DTYPE, NO_SPLIT
from imagelm.data.splits import TEST, assign_splits
from imagelm.utils.errors import InputError
from tests.conftest import ROOT, SHARED, random_rows, run, run_anew, sentence, write_jsonl


def prepare_rows(folder: Path, rows: list[dict], vocab_file: Path, **options) -> tuple[datasets.DatasetDict, dict]:
    file = write_jsonl(folder / "rows.jsonl", rows)
    output = folder / options.pop("name", "out")
    stats = prepare(
        PrepareArguments(data_files=[str(file)], vocab_file=str(vocab_file), output_dir=str(output), **options),
        command="test",
    )
    return load_prepared(output), stats


def texts(dataset: datasets.Dataset, grammar) -> list[str]:
    return [" ".join(grammar.tokens[i] for i in row) for row in dataset["input_ids"]]


def test_rows_come_out_as_they_went_in(tmp_path, grammar, vocab_file):
    rows = random_rows(60, seed=0)
    data, stats = prepare_rows(tmp_path, rows, vocab_file)
    out = [text for split in data.values() for text in texts(split, grammar)]
    assert sorted(out) == sorted(row["tokens"] for row in rows)
    # A fifth of 60 rows, and a tenth of the other 48, rounded up.
    assert {name: len(split) for name, split in data.items()} == {"train": 43, "validation": 5, "test": 12}
    for split in data.values():
        assert [f"<CLS_{label}>" for label in split["label"]] == [text.split()[-2] for text in texts(split, grammar)]
        assert isinstance(split.features["label"], datasets.ClassLabel)
        assert split.features["input_ids"].feature.dtype == "uint16"
    assert stats["lengths"]["max"] == stats["max_length"] == max(len(row["tokens"].split()) for row in rows)
    assert AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer").model_max_length == stats["max_length"]


COUNTS = [(50, 50), (7, 13, 19), (2, 3, 2), (101, 3, 57, 8), (33, 33, 34)]
DRAWS = [  # both refuse fewer test rows than classes
    (counts, size) for counts in COUNTS for size in (0.2, 0.37, 0.5) if math.ceil(size * sum(counts)) >= len(counts)
]


@pytest.mark.parametrize(("counts", "test_size"), DRAWS)
def test_the_stratified_draw_is_scikit_learns(counts, test_size):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    groups, no_splits = np.zeros(len(labels), DIGEST_DTYPE), np.full(len(labels), NO_SPLIT)
    groups["low"] = np.random.default_rng(1).permutation(len(labels))
    for seed in range(5):
        _, test = train_test_split(np.arange(len(labels)), test_size=test_size, stratify=labels, random_state=seed)
        sides = assign_splits("stratified", test_size, seed, labels, groups, no_splits, list(map(str, counts)))
        assert np.array_equal(np.flatnonzero(sides == TEST), np.sort(test))


def test_preparing_rows_loads_no_torch(vocab_file, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", random_rows(30, seed=0))
    words = (
        f"'--data_files', {str(rows)!r}, '--vocab_file', {str(vocab_file)!r}, '--output_dir', {str(tmp_path / 'd')!r}"
    )
    code = f"import runpy, sys; sys.argv = ['prepare_dataset.py', {words}]; "
    code += "runpy.run_path('prepare_dataset.py', run_name='__main__')"
    done = run_anew("-X", "importtime", "-c", code)
    assert "written" in done.stdout
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "datasets" in loaded and not {"torch", "transformers", "sklearn"} & loaded


@pytest.mark.parametrize(("side", "body"), [("left", "<Z_004> <Z_005> <Z_006>"), ("right", "<Z_001> <Z_002> <Z_003>")])
def test_truncation_cuts_the_image_body_at_its_side_and_keeps_the_tail(tmp_path, grammar, vocab_file, side, body):
    rows = [{"tokens": sentence(range(1, 7), 2), "label": 2}, {"tokens": sentence([7, 8], 2), "label": 2}]
    rows += random_rows(12, seed=5, low=3, high=3)
    data, stats = prepare_rows(tmp_path, rows, vocab_file, max_length=8, truncation_side=side)
    out = texts(data["train"], grammar) + texts(data["test"], grammar)
    assert f"<IMG> {body} </IMG> <CLS> <CLS_2> <EOS>" in out
    assert "<IMG> <Z_007> <Z_008> </IMG> <CLS> <CLS_2> <EOS>" in out
    assert stats["truncation"]["rows_cut"] == 1
    assert stats["truncation"]["image_tokens_cut"] == 3
    assert stats["truncation"]["share_of_image_tokens_cut"] == pytest.approx(3 / (6 + 2 + 12 * 3))
    assert max(map(len, (text.split() for text in out))) == 8


def test_images_that_become_equal_by_truncation_count_as_duplicates(tmp_path, grammar, vocab_file):
    rows = [{"tokens": sentence([first, 7, 8, 9], 1), "label": 1} for first in range(6)] + random_rows(12, seed=6)
    data, stats = prepare_rows(tmp_path, rows, vocab_file, max_length=8)
    assert stats["duplicates_dropped"] == 5
    check_disjoint(data)


def test_no_image_stands_on_both_sides_and_conflicts_are_named(tmp_path, grammar, vocab_file):
    rows = random_rows(30, seed=8)
    twin = rows[0]["tokens"].replace("<CLS_0>", "<CLS_1>")
    file_rows = rows + rows[:10] * 3 + [{"tokens": twin, "label": 1}]
    data, stats = prepare_rows(tmp_path, file_rows, vocab_file)
    splits = [set(texts(split, grammar)) for split in data.values()]
    assert set.union(*splits) == {row["tokens"] for row in rows}
    assert len(splits) == 3 and sum(map(len, splits)) == 30
    assert stats["duplicates_dropped"] == 31
    assert stats["label_conflicts"]["total"] == 1
    assert stats["label_conflicts"]["first"] == [
        f"{tmp_path}/rows.jsonl:61: label 1, but the same image is in {tmp_path}/rows.jsonl:1 with label 0"
    ]


def test_a_tampered_dataset_with_one_image_on_both_sides_is_refused(prepared):
    data = load_prepared(prepared)
    data["test"] = datasets.concatenate_datasets([data["test"], data["train"].select([3])])
    with pytest.raises(InputError, match="1 images are in both"):
        check_disjoint(data)


def test_the_split_is_stratified_and_drawn_by_the_seed(tmp_path, grammar, vocab_file):
    rows = random_rows(90, seed=9)
    splits = {}
    for seed in (0, 0, 1):
        data, stats = prepare_rows(tmp_path, rows, vocab_file, seed=seed, overwrite=True)
        counts = stats["classes"]
        assert counts["test"] == [6, 6, 6] and sorted(counts["validation"]) == [2, 3, 3]
        assert np.add(counts["train"], counts["validation"]).tolist() == [24, 24, 24]
        splits.setdefault(seed, []).append(set(texts(data["test"], grammar)))
    assert splits[0][0] == splits[0][1] != splits[1][0]


def test_a_side_by_hash_never_changes_as_the_data_grow(tmp_path, grammar, vocab_file):
    rows = random_rows(400, seed=10)
    few, _ = prepare_rows(tmp_path, rows[:100], vocab_file, split_by="hash", name="few")
    many, _ = prepare_rows(tmp_path, rows[::-1], vocab_file, split_by="hash", name="many")
    for name in ("train", "test"):
        assert set(texts(few[name], grammar)) <= set(texts(many[name], grammar))
    assert 0.1 < len(many["test"]) / 400 < 0.3


def test_the_files_own_split_is_taken_and_a_shared_image_stays_in_test(tmp_path, grammar, vocab_file):
    rows = [row | {"split": "test" if i % 5 == 0 else "train"} for i, row in enumerate(random_rows(30, seed=11))]
    rows.insert(0, rows[10] | {"split": "train"})
    data, stats = prepare_rows(tmp_path, rows, vocab_file, split_by="field")
    assert texts(data["test"], grammar) == [row["tokens"] for row in rows if row["split"] == "test"]
    assert stats["duplicates_dropped"] == 1


@pytest.mark.parametrize("split_by", ["stratified", "hash"])
def test_variants_of_one_source_image_never_cross_the_split(tmp_path, grammar, vocab_file, split_by):
    rows = [row | {"source": i // 6 * 3 + i % 3} for i, row in enumerate(random_rows(120, seed=12))]
    data, _ = prepare_rows(tmp_path, rows, vocab_file, split_by=split_by)
    assert len(data["test"]) > 0
    assert not set(data["train"]["source"]) & set(data["test"]["source"])


def test_a_source_on_both_sides_of_the_files_split_is_refused(tmp_path, grammar, vocab_file):
    rows = [
        row | {"split": "test" if i == 0 else "train", "source": "a"} for i, row in enumerate(random_rows(9, seed=1))
    ]
    with pytest.raises(InputError, match="1 source images have rows in two splits, such as train and test"):
        prepare_rows(tmp_path, rows, vocab_file, split_by="field")


def test_a_class_too_small_to_be_stratified_is_named(tmp_path, grammar, vocab_file):
    rows = [row for row in random_rows(40, seed=13) if row["label"] != 2] + [{"tokens": sentence([1], 2), "label": 2}]
    with pytest.raises(InputError, match=r"class 2 has 1 image, .* needs 2"):
        prepare_rows(tmp_path, rows, vocab_file)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"test_size": 0.0}, "--test_size 0.0"),
        ({"test_size": 1.5}, "--test_size 1.5"),
        ({"max_length": 5}, "at least 6"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        PrepareArguments(data_files=["a"], vocab_file="v", output_dir="o", **options)


def command(tmp_path: Path, vocab_file: Path, *words: str) -> list[object]:
    files = ["--data_files", tmp_path / "rows.jsonl", "--vocab_file", vocab_file, "--output_dir", tmp_path / "out"]
    return ["prepare_dataset.py", *files, *words]


def test_bad_rows_stop_the_command_with_code_2_and_nothing_written(tmp_path, vocab_file):
    rows = random_rows(30, seed=14) + [{"tokens": "x", "label": 0}] * 25
    write_jsonl(tmp_path / "rows.jsonl", rows)
    before = sorted(tmp_path.iterdir())
    done = run(*command(tmp_path, vocab_file))
    assert done.returncode == 2
    assert f"{tmp_path}/rows.jsonl:31: token 1 is 'x', expected" in done.stderr
    assert done.stderr.count("rows.jsonl:") == 20
    assert "25 bad rows (unknown_token 25)" in done.stderr
    assert "and 5 more" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_no_folder_is_left_behind_and_problems_stand_in_the_order_of_lines(tmp_path, vocab_file):
    rows = [{"tokens": "x", "label": 0}, {"label": 0}, {"tokens": "y", "label": 0}]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    before = sorted(tmp_path.rglob("*"))
    options = PrepareArguments(
        data_files=[str(file)], vocab_file=str(vocab_file), output_dir=str(tmp_path / "new/deep/out")
    )
    with pytest.raises(InputError) as error:
        prepare(options, command="test")
    assert [line.split(":")[1] for line in str(error.value).splitlines()[1:4]] == ["1", "2", "3"]
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="is a file"):
        PrepareArguments(data_files=[str(file)], vocab_file=str(vocab_file), output_dir=str(file / "out"))


def test_skipped_rows_are_kept_in_a_file_with_their_reasons(tmp_path, vocab_file):
    rows = random_rows(30, seed=15)
    write_jsonl(tmp_path / "rows.jsonl", [*rows[:7], {"tokens": "x", "label": 0}, *rows[7:]])
    done = run(*command(tmp_path, vocab_file, "--on_bad_rows", "skip"))
    assert done.returncode == 0, done.stderr
    (kept,) = [json.loads(line) for line in (tmp_path / "out/bad_rows.jsonl").read_text().splitlines()]
    assert (kept["line"], kept["kind"], json.loads(kept["text"])) == (8, "unknown_token", {"tokens": "x", "label": 0})
    told = json.loads((tmp_path / "out/stats.json").read_text())["bad_rows"]
    (place,) = told.pop("first")
    assert told == {"total": 1, "by_kind": {"unknown_token": 1}}
    assert place.startswith(f"{tmp_path}/rows.jsonl:8: token 1 is 'x'") and place in done.stderr


def test_an_existing_output_is_replaced_only_with_overwrite_and_only_if_it_is_ours(tmp_path, vocab_file):
    write_jsonl(tmp_path / "rows.jsonl", random_rows(30, seed=16))
    assert run(*command(tmp_path, vocab_file)).returncode == 0
    stamp = (tmp_path / "out/stats.json").stat().st_mtime_ns
    refused = run(*command(tmp_path, vocab_file))
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert (tmp_path / "out/stats.json").stat().st_mtime_ns == stamp
    assert run(*command(tmp_path, vocab_file, "--overwrite")).returncode == 0
    assert (tmp_path / "out/stats.json").stat().st_mtime_ns != stamp
    (tmp_path / "out/dataset_dict.json").unlink()
    assert run(*command(tmp_path, vocab_file, "--overwrite")).returncode == 2
    assert not list(tmp_path.glob(".*partial*"))


def test_cutting_more_than_a_hundredth_of_the_image_tokens_is_warned_about(tmp_path, vocab_file):
    write_jsonl(tmp_path / "rows.jsonl", random_rows(30, seed=17))
    done = run(*command(tmp_path, vocab_file, "--max_length", "9"))
    assert "warning: truncation cut" in done.stderr


def test_the_dataset_card_states_what_the_statistics_hold(prepared):
    stats = json.loads((prepared / "stats.json").read_text())
    card = (prepared / "README.md").read_text()
    train, validation, test = (stats["num_rows"][name] for name in ("train", "validation", "test"))
    assert f"| rows | {train} train, {validation} validation, {test} test |" in card
    assert stats["fingerprint"] in card


def test_codebook_use_is_counted(tmp_path, grammar, vocab_file):
    rows = [
        {"tokens": sentence([a, b], label), "label": label} for label in range(3) for a, b in [(label, 5), (5, label)]
    ]
    _, stats = prepare_rows(tmp_path, rows, vocab_file, test_size=0.5)
    # Codes 0, 1, 2 twice each and code 5 six times: entropy = 3 · (1/6) ln 6 + (1/2) ln 2.
    assert stats["codebook"]["used"] == 4
    assert stats["codebook"]["dead"] == 26
    assert stats["codebook"]["usage_perplexity"] == pytest.approx(np.exp(0.5 * np.log(6) + 0.5 * np.log(2)))


@pytest.mark.skipif(not (SHARED / "predecessor1000").is_dir(), reason="the predecessor's data aren't here")
def test_all_999_tails_of_the_predecessor_are_repaired(tmp_path):
    folder = SHARED / "predecessor1000"
    done = run(
        *("prepare_dataset.py", "--data_files", folder / "sequences_labels_fixed.jsonl.gz"),
        *("--vocab_file", folder / "vocab.json", "--output_dir", tmp_path / "out"),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    data = load_prepared(tmp_path / "out")
    stats = json.loads((tmp_path / "out/stats.json").read_text())
    assert stats["repaired_tails"] == sum(map(len, data.values())) == 999
    vocabulary = json.loads((folder / "vocab.json").read_text())
    for split in data.values():
        ids = np.array(split["input_ids"])
        tail = [vocabulary[token] for token in ("</IMG>", "<CLS>", "<CLS_0>", "<EOS>")]
        expected = np.tile(tail, (len(ids), 1))
        expected[:, 2] += split["label"]
        assert ids.shape[1] == 789
        assert (ids[:, -4:] == expected).all()


def test_the_record_holds_the_options_that_have_an_effect():
    rows = PrepareArguments(data_files=["a"], vocab_file="v", output_dir="o").record()
    images = PrepareArguments(images=["a"], output_dir="o").record()
    assert {"data_files", "vocab_file", "max_length", "seed", "output_dir"} <= set(rows)
    assert not {"codebook", "patch_size", "variants", "test_images"} & set(rows)
    assert {"images", "codebook", "patch_size", "seed"} <= set(images)
    assert not {"vocab_file", "class_names", "max_length"} & set(images)
