"""Data that were changed after they were prepared: every change is named, and nothing is read on."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from datasets import ClassLabel, DatasetDict, load_from_disk

from imagelm.data.integrity import ColumnDigests, fingerprint
from imagelm.data.load import load_prepared, load_stats
from imagelm.utils.errors import InputError
from tests.damage import edit_column, edit_rows, with_token
from tests.images import cats_and_dogs, prepare_images


@pytest.fixture
def data(prepared, tmp_path) -> Path:
    """A copy of prepared data without their manifest, so that the content alone tells what was changed."""
    return shutil.copytree(prepared, tmp_path / "data", ignore=shutil.ignore_patterns("complete.json"))


@pytest.fixture(scope="module")
def with_images(tmp_path_factory) -> Path:
    """Data with kept images, and with sources because of the variants."""
    home = tmp_path_factory.mktemp("images")
    cats_and_dogs(home / "in")
    prepare_images(home / "data", home / "in", keep_images=True, augment="shift=1", variants=1)
    return home / "data"


def edit_stats(folder: Path, **changes: object) -> None:
    """Changes entries of `stats.json`; None removes one."""
    stats = json.loads((folder / "stats.json").read_text()) | changes
    kept = {name: value for name, value in stats.items() if value is not None}
    (folder / "stats.json").write_text(json.dumps(kept))


def problems(folder: Path, with_images: bool = False) -> list[str]:
    """The lines of the error about a changed folder."""
    with pytest.raises(InputError) as caught:
        load_prepared(folder, with_images=with_images)
    first, *lines, last = str(caught.value).splitlines()
    assert str(folder) in first
    assert "imagelm prepare" in last
    return [line.strip() for line in lines]


OTHER = "other values, or another order of rows, in column"


def test_digests_are_those_of_the_values_and_lengths_in_the_saved_rows(prepared):
    stats, rows = load_stats(prepared), load_from_disk(prepared)
    for split in ("train", "test"):
        ids, labels = rows[split]["input_ids"], np.array(rows[split]["label"])
        parts = {
            "input_ids": (np.array(list(map(len, ids))), np.concatenate([np.array(row, np.uint16) for row in ids])),
            "label": (np.ones_like(labels), labels),
        }
        assert stats["digests"][split] == {
            name: xxhash.xxh3_128_hexdigest(b"".join(xxhash.xxh3_128_digest(part.tobytes()) for part in both))
            for name, both in parts.items()
        }
    assert stats["fingerprint"] == fingerprint(stats["digests"])


def test_digests_do_not_depend_on_batches_but_on_every_length():
    table = pa.table(
        {
            "ids": pa.array([[1, 2], [3], [], None, [4, 5, 6]], pa.list_(pa.uint16())),
            "text": ["a", None, "bc", "", "d"],
            "image": pa.array([{"bytes": bytes([i] * i), "path": None} for i in range(5)]),
        }
    )

    def digests(*tables: pa.Table) -> dict[str, str]:
        found = ColumnDigests()
        for part in tables:
            found.add(part)
        return found.hexdigests()

    whole = digests(table)
    assert whole == digests(table[:2], table[2:2], table[2:]) == digests(*(table[i : i + 1] for i in range(5)))
    moved = {
        "ids": pa.array([[1], [2, 3], [], None, [4, 5, 6]], pa.list_(pa.uint16())),
        "text": ["a", None, "b", "c", "d"],
        "image": pa.array([{"bytes": bytes([i] * i), "path": None} for i in (0, 1, 3, 2, 4)]),
    }
    assert all(digests(pa.table({name: moved[name]}))[name] != whole[name] for name in moved)


def test_rows_in_another_order_or_of_another_image_are_refused(data):
    edit_column(data, "test", "input_ids", lambda rows: [[r[0], *reversed(r[1:-4]), *r[-4:]] for r in rows])
    assert problems(data) == [f"test: {OTHER} input_ids"]
    edit_rows(data, "train", lambda table: table.take([1, 0, *range(2, len(table))]))
    assert problems(data) == [f"train: {OTHER} input_ids, label", f"test: {OTHER} input_ids"]


def test_a_wrong_token_is_named_with_its_row(data, grammar):
    size, id_of = grammar.size, grammar.vocabulary
    edit_column(data, "train", "input_ids", with_token(2, 999))
    edit_column(data, "test", "input_ids", with_token(2, id_of["<CLS_1>"]))
    assert problems(data) == [
        f"train: row 4: token 3 has id 999, expected one of 0 to {size - 1}",
        f"train: {OTHER} input_ids",
        "test: row 4: token 3 is <CLS_1> inside the image, expected a codebook token",
        f"test: {OTHER} input_ids",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row, ids: [], "no token at all, expected <IMG> … <EOS>"),
        (lambda row, ids: row[:-1], "after </IMG>, expected <CLS> <CLS_"),
        (lambda row, ids: [*row[:-2], ids["<CLS>"], ids["<EOS>"]], "it ends with </IMG> <CLS> <CLS> <EOS>"),
        (lambda row, ids: [*row, ids["<PAD>"]], "expected <CLS>"),
    ],
    ids=["empty", "cut", "predecessor", "padded"],
)
def test_a_row_that_is_no_sentence_is_named(data, grammar, change, said):
    ids = grammar.vocabulary
    edit_column(data, "test", "input_ids", lambda rows: [*rows[:7], change(rows[7], ids), *rows[8:]])
    first, *_ = problems(data)
    assert first.startswith("test: row 7: ")
    assert said in first


def test_a_label_out_of_range_or_changed_is_named(data):
    other = (load_from_disk(data)["test"]["label"][2] + 1) % 3
    edit_column(data, "test", "label", lambda labels: [*labels[:2], 3, *labels[3:]])
    assert problems(data)[0] == "test: row 2: label 3, expected 0 to 2"
    edit_column(data, "test", "label", lambda labels: [*labels[:2], None, *labels[3:]])
    assert problems(data)[0] == "test: row 2: label -1, expected 0 to 2"
    edit_column(data, "test", "label", lambda labels: [*labels[:2], other, *labels[3:]])
    assert "the label is" in problems(data)[0]


def test_dropped_rows_and_exchanged_splits_are_refused(data):
    edit_rows(data, "test", lambda table: table[:-1])
    assert f"test: {OTHER} input_ids, label" in problems(data)
    assert "test: 17 rows, but stats.json records 18" in problems(data)
    (data / "train").rename(data / "kept")
    (data / "test").rename(data / "train")
    (data / "kept").rename(data / "test")
    assert "test: 72 rows, but stats.json records 18" in problems(data)


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("num_rows", {"train": 71, "validation": 8, "test": 18}, "train: 72 rows, but stats.json records 71"),
        ("max_length", 9, "train: a row has 14 tokens, but stats.json records at most 9"),
        ("class_names", ["0", "2", "1"], "the class names in stats.json changed"),
        ("fingerprint", "0" * 32, "the fingerprint in stats.json isn't that of its digests"),
        (
            "classes",
            {"train": [24, 24, 24], "validation": [3, 3, 2], "test": [7, 5, 6]},
            "test: [6, 6, 6] rows of the classes, but",
        ),
    ],
)
def test_edited_statistics_are_refused(data, entry, value, said):
    edit_stats(data, **{entry: value})
    assert any(line.startswith(said) for line in problems(data))


def test_another_vocabulary_is_refused(data, grammar):
    file = data / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = "<Z_003>", "<Z_004>"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    for token in content["added_tokens"]:
        token["content"] = {a: b, b: a}.get(token["content"], token["content"])
    file.write_text(json.dumps(content))
    assert problems(data) == ["the vocabulary changed"]
    file.write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json can't be read"):
        load_prepared(data)


@pytest.mark.parametrize(
    "name", ["stats.json", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json", "codec/codec.json"]
)
def test_a_changed_file_beside_the_rows_is_named(with_images, tmp_path, name):
    data = shutil.copytree(with_images, tmp_path / "data")
    (data / "README.md").write_text("My own words.")
    load_prepared(data)
    (data / name).write_text((data / name).read_text() + "\n")
    with pytest.raises(InputError, match=f"isn't what was prepared: {name} has [0-9,]+ bytes instead of"):
        load_prepared(data)


def test_the_codec_of_other_data_is_refused(with_images, tmp_path):
    cats_and_dogs(tmp_path / "in", seed=1)
    prepare_images(tmp_path / "other", tmp_path / "in")
    data = shutil.copytree(with_images, tmp_path / "data")
    shutil.rmtree(data / "codec")
    shutil.copytree(tmp_path / "other/codec", data / "codec")
    with pytest.raises(InputError, match=r"codec/codec\.safetensors isn't what was written"):
        load_prepared(data)


def test_files_that_cannot_be_read_are_an_input_error(data):
    (file,) = (data / "train").glob("*.arrow")
    whole = file.read_bytes()
    rng, intact = np.random.default_rng(0), load_prepared(data)["train"][:]
    for _ in range(60):
        damaged = bytearray(whole)
        start = int(rng.integers(len(whole)))
        damaged[start : start + 64] = rng.bytes(len(damaged[start : start + 64]))
        file.write_bytes(damaged)
        try:
            rows = load_prepared(data)["train"]
        except InputError as error:
            assert str(data) in str(error)
        else:
            assert rows[:] == intact
    for size in (0, 7, len(whole) // 2, len(whole) - 200):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match="data"):
            load_prepared(data)
    file.unlink()
    with pytest.raises(InputError, match="can't be read"):
        load_prepared(data)
    (data / "stats.json").write_text('{"num_rows"')
    with pytest.raises(InputError, match=r"stats\.json is damaged"):
        load_prepared(data)


def test_a_split_or_column_that_is_missing_or_new_is_named(prepared, tmp_path):
    rows, renamed = load_from_disk(prepared, keep_in_memory=True), ClassLabel(names=["a", "b", "c"])
    for name, changed, said in (
        ("column", rows | {"test": rows["test"].remove_columns("label")}, "test: column label is missing"),
        ("split", rows | {"new": rows["test"]}, "new: preparation didn't write this split"),
        ("classes", rows | {"test": rows["test"].cast_column("label", renamed)}, "test: its class"),
    ):
        DatasetDict(changed).save_to_disk(tmp_path / name)
        for entry in ("stats.json", "tokenizer"):
            (tmp_path / name / entry).symlink_to(prepared / entry)
        assert problems(tmp_path / name)[0].startswith(said)
    DatasetDict({"train": rows["train"]}).save_to_disk(tmp_path / "one")
    (tmp_path / "one/stats.json").symlink_to(prepared / "stats.json")
    with pytest.raises(InputError, match="lacks one of the splits train, "):
        load_prepared(tmp_path / "one")


def test_sources_and_images_are_covered_where_they_are_read(with_images, tmp_path):
    data = shutil.copytree(with_images, tmp_path / "data")
    load_prepared(data, with_images=True)
    edit_column(data, "train", "image", lambda images: [images[1], images[0], *images[2:]])
    load_prepared(data)
    assert problems(data, with_images=True) == [f"train: {OTHER} image"]
    edit_column(data, "train", "source", lambda sources: ["x", *sources[1:]])
    assert problems(data) == [f"train: {OTHER} source"]


def test_only_the_splits_that_are_read_are_checked(data):
    edit_column(data, "train", "input_ids", with_token(2, 999))
    assert len(load_prepared(data, ["test"])["test"]) == 18


def test_data_of_an_earlier_version_are_accepted_and_their_rows_are_still_checked(data, caplog):
    edit_stats(data, digests=None, fingerprint="3f" * 16)
    with caplog.at_level(logging.WARNING, "imagelm"):
        load_prepared(data)
    assert "recorded no digests" in caplog.text
    edit_column(data, "test", "input_ids", with_token(2, 999))
    assert problems(data)[0].startswith("test: row 4: token 3 has id 999")
