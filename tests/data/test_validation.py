"""The validation split: taken out of the training rows, never out of the test rows, and of no image of the others."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from imagelm.data.arguments import PrepareArguments
from imagelm.data.disjoint import check_disjoint
from imagelm.data.load import load_prepared
from imagelm.data.rows import DIGEST_DTYPE
from imagelm.data.splits import TRAIN, VALIDATION, cut_validation
from imagelm.data.stats import warnings
from imagelm.utils.errors import InputError
from tests.conftest import random_rows
from tests.data.test_prepare import prepare_rows, texts
from tests.images import class_folder, grey_levels_codec, prepare_images, random_images, restored

ROWS = random_rows(90, seed=9)
SOURCES = [row | {"source": i // 6 * 3 + i % 3} for i, row in enumerate(ROWS)]  # two rows each
OWN_SPLIT = [row | {"split": "test" if i % 5 == 0 else "train"} for i, row in enumerate(ROWS)]
# Fingerprints that version 0.2 gave before it had a validation split.
BEFORE = [
    (ROWS, {"seed": 3}, "053c50e5814f5bc15ce3a8a163b1c316"),
    (ROWS, {"split_by": "hash"}, "7bc78a77b7e7c9e0ef436a00c0394e3b"),
    (SOURCES, {"seed": 3}, "588712bb606b22c7657792f3467546a1"),
    (OWN_SPLIT, {"split_by": "field"}, "61c28f77f29ac97d3d415852eb048a36"),
]


def cut(counts: list[int], share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The labels of different training images, how many a class, their sides after the cut, and the notes."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    groups = np.zeros(len(labels), DIGEST_DTYPE)
    groups["low"] = np.arange(len(labels))
    options = PrepareArguments(data_files=["a"], vocab_file="v", output_dir="o", validation_size=share, seed=seed)
    names = [f"class {label}" for label in range(len(counts))]
    sides, notes = cut_validation(np.full(len(labels), TRAIN), labels, groups, names, options)
    return labels, sides, notes


def in_validation(counts: list[int], share: float, seed: int = 0) -> list[int]:
    labels, sides, _ = cut(counts, share, seed)
    return np.bincount(labels[sides == VALIDATION], minlength=len(counts)).tolist()


def keys(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in np.asarray(images)}


@pytest.mark.parametrize(("rows", "options", "fingerprint"), BEFORE, ids=["stratified", "hash", "sources", "field"])
def test_the_test_rows_are_those_that_there_would_be_without_a_validation_split(
    tmp_path, grammar, vocab_file, rows, options, fingerprint
):
    old, stats = prepare_rows(tmp_path, rows, vocab_file, name="old", validation_size=0, **options)
    assert stats["fingerprint"] == fingerprint
    assert list(old) == list(stats["num_rows"]) == ["train", "test"]
    new, stats = prepare_rows(tmp_path, rows, vocab_file, name="new", **options)
    assert list(new) == list(stats["num_rows"]) == list(stats["classes"]) == ["train", "validation", "test"]
    assert texts(new["test"], grammar) == texts(old["test"], grammar)
    train = [text for text in texts(old["train"], grammar) if text not in texts(new["validation"], grammar)]
    assert texts(new["train"], grammar) == train
    assert len(train) + len(new["validation"]) == len(old["train"])
    check_disjoint(new)


def test_validation_rows_are_a_stratified_tenth_of_the_training_rows(tmp_path, vocab_file):
    # 90 rows: 18 are test rows; a tenth of the 72 others, rounded up, are 8: 2⅔ of each class.
    _, stats = prepare_rows(tmp_path, ROWS, vocab_file)
    assert stats["num_rows"] == {"train": 64, "validation": 8, "test": 18}
    assert sorted(stats["classes"]["validation"]) == [2, 3, 3]
    assert [sum(counts) for counts in zip(*stats["classes"].values(), strict=True)] == [30, 30, 30]
    assert stats["split_notes"] == []
    card = (tmp_path / "out/README.md").read_text()
    assert "| rows | 64 train, 8 validation, 18 test |" in card
    assert "| token | class | train | validation | test |\n|---|---|---|---|---|\n" in card
    first = " | ".join(str(counts[0]) for counts in stats["classes"].values())
    assert f"| `<CLS_0>` | 0 | {first} |" in card


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([48, 24, 8], 0.1, [5, 2, 1]),  # of 8: 4.8, 2.4, 0.8; 43.2, 21.6, 7.2 stay, the odd one goes to the second
        ([20, 20], 0.25, [5, 5]),
        ([96, 4], 0.05, [5, 0]),  # of 5: 4.8, 0.2
        ([19, 1], 0.9, [17, 0]),  # of 18: 17.1, 0.9; the only image of a class is trained on
        ([9, 9], 0.95, [8, 8]),  # all 18, but each class keeps one
    ],
)
def test_each_class_gives_its_share_and_keeps_an_image(counts, share, expected):
    found = [in_validation(counts, share, seed) for seed in range(5)]
    assert found == [expected] * 5


def test_a_class_without_a_validation_row_is_named(tmp_path, vocab_file):
    _, sides, notes = cut([96, 4], 0.05)
    assert notes == [
        "too few training images for a share of 0.05 in the validation split, which has none of these classes: class 1"
    ]
    assert (sides == VALIDATION).sum() == 5
    rows = [*ROWS[:60:3], *ROWS[1:60:3], *ROWS[2:6:3]]  # 20, 20 and 2
    _, stats = prepare_rows(tmp_path, rows, vocab_file)
    assert stats["classes"]["validation"][2] == 0
    assert [line for line in warnings(stats) if line.endswith("none of these classes: 2")]


def test_too_few_training_rows_give_no_validation_split_and_a_warning(tmp_path, vocab_file, caplog):
    # 15 rows: 3 test rows, and a tenth of the other 12 are 2 rows, fewer than the classes.
    with caplog.at_level(logging.WARNING, "imagelm"):
        data, stats = prepare_rows(tmp_path, ROWS[:15], vocab_file)
    assert list(data) == ["train", "test"]
    (note,) = stats["split_notes"]
    assert note.startswith("no validation split: 12 training images of 3 classes are too few for a share of 0.1")
    assert "chooses best_model on the test rows" in note and "--validation_size" in note
    assert note in caplog.text
    data, stats = prepare_rows(tmp_path, ROWS[:15], vocab_file, name="more", validation_size=0.3)
    assert stats["num_rows"] == {"train": 8, "validation": 4, "test": 3}
    prepare_rows(tmp_path, ROWS[:15], vocab_file, name="none", validation_size=0)
    assert caplog.text.count("no validation split") == 1


@pytest.mark.parametrize("split_by", ["stratified", "hash"])
def test_all_rows_of_a_source_are_in_one_split(tmp_path, vocab_file, split_by):
    rows = [row | {"source": i // 12 * 3 + i % 3} for i, row in enumerate(random_rows(360, seed=12))]
    data, _ = prepare_rows(tmp_path, rows, vocab_file, split_by=split_by, validation_size=0.2)
    sources = [set(split["source"]) for split in data.values()]
    assert len(sources) == 3 and all(sources)
    assert len(set.union(*sources)) == sum(map(len, sources)) == 90


def test_a_split_by_hash_never_changes_as_the_data_grow(tmp_path, grammar, vocab_file):
    rows = random_rows(400, seed=10)
    few, _ = prepare_rows(tmp_path, rows[:100], vocab_file, split_by="hash", name="few")
    many, _ = prepare_rows(tmp_path, rows[::-1], vocab_file, split_by="hash", name="many")
    for name in ("train", "validation", "test"):
        assert set(texts(few[name], grammar)) <= set(texts(many[name], grammar))
    assert 0.04 < len(many["validation"]) / 400 < 0.13  # a tenth of four fifths


def test_the_rows_own_validation_split_is_taken_and_a_repeated_image_stays_in_the_later_split(
    tmp_path, grammar, vocab_file
):
    splits = ["validation" if i % 5 == 1 else "test" if i % 5 == 0 else "train" for i in range(30)]
    rows = [row | {"split": split} for row, split in zip(ROWS, splits, strict=False)]
    repeated = [rows[10] | {"split": "validation"}, rows[11] | {"split": "train"}, rows[15] | {"split": "train"}]
    data, stats = prepare_rows(tmp_path, [*repeated, *rows], vocab_file, split_by="field")
    assert stats["duplicates_dropped"] == 3
    for name in ("train", "validation", "test"):
        assert texts(data[name], grammar) == [row["tokens"] for row in rows if row["split"] == name]
    torn = [row | {"source": "a"} for row in (rows[1], rows[2])]
    with pytest.raises(InputError, match="1 source images have rows in two splits, such as train and validation"):
        prepare_rows(tmp_path, [*rows[3:], *torn], vocab_file, split_by="field", name="torn")


@pytest.mark.parametrize("size", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(size):
    with pytest.raises(InputError, match=rf"--validation_size {size} isn't a share.*0 for no validation split"):
        PrepareArguments(data_files=["a"], vocab_file="v", output_dir="o", validation_size=size)


def test_data_without_their_recorded_validation_split_are_refused(tmp_path, vocab_file):
    prepare_rows(tmp_path, ROWS, vocab_file)
    file = tmp_path / "out/dataset_dict.json"
    file.write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(InputError, match="lacks one of the splits train, validation, test"):
        load_prepared(tmp_path / "out")


# Images


@pytest.fixture(scope="module")
def lossless(tmp_path_factory) -> str:
    return str(grey_levels_codec(tmp_path_factory.mktemp("codec") / "codec", (6, 8)))


def test_validation_images_have_no_variants_and_do_not_change_the_codec(tmp_path):
    images, labels = random_images(60, (8, 8)), np.arange(60) % 2
    found = []
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", image=images, label=labels)
        options = {"augment": "shift=1", "variants": 2, "patch_size": 2}
        data, stats = prepare_images(tmp_path / name, tmp_path / f"{name}.npz", **options)
        # 60 images: 12 test images, and a tenth of the other 48, rounded up, are 5.
        assert (len(data["validation"]), len(data["test"])) == (5, 12)
        assert len(data["train"]) + stats["duplicates_dropped"] == 43 * 3
        validation = [int(source.split(":")[-1]) for source in data["validation"]["source"]]
        found.append((validation, (tmp_path / name / "codec/codec.safetensors").read_bytes()))
        images[validation] = random_images(5, (8, 8), seed=3)
    assert found[0] == found[1]


def test_the_same_image_in_two_files_is_in_one_split(tmp_path, lossless):
    images = random_images(40, (6, 8))
    twice = np.repeat(images, 2, axis=0)
    class_folder(tmp_path / "in", {"cat": twice[:40], "dog": twice[40:]})
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", codec=lossless)
    # 40 different images: 8 test images, and a tenth of the other 32, rounded up, are 4.
    assert stats["num_rows"] == {"train": 28, "validation": 4, "test": 8}
    splits = [keys(restored(rows, tmp_path / "out")) for rows in data.values()]
    assert set.union(*splits) == keys(images) and sum(map(len, splits)) == 40


def test_the_images_own_validation_split_is_used_and_copies_leave_the_earlier_splits(tmp_path, lossless):
    images = random_images(40, (6, 8))
    # The second half of each class; of it, one image of the split before is repeated.
    parts = {"train": range(0, 12), "valid": range(11, 16), "test": range(15, 20)}
    for split, part in parts.items():
        class_folder(tmp_path / "in" / split, {"cat": images[part], "dog": images[[20 + i for i in part]]})
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", codec=lossless, augment="hflip", variants=2)
    assert stats["split"] == "validation and test images given by the user"
    notes = stats["images"]["notes"]
    assert "2 validation images are test images too and were dropped" in notes
    assert "2 training images are validation images too and were dropped" in notes
    for split, part in (("validation", range(11, 15)), ("test", range(15, 20))):
        numbers = [*part, *(20 + i for i in part)]
        assert keys(restored(data[split], tmp_path / "out")) == keys(images[numbers])
    with pytest.raises(InputError, match="--validation_size has no effect where validation images are given"):
        prepare_images(tmp_path / "new", tmp_path / "in", codec=lossless, validation_size=0.2)
    data, stats = prepare_images(tmp_path / "new", tmp_path / "in", codec=lossless, validation_size=0)
    assert stats["num_rows"] == {"train": 24, "test": 10}
    assert stats["split"] == "test images given by the user"


def test_without_a_test_split_the_validation_split_is_the_test_split(tmp_path, lossless):
    images = random_images(60, (6, 8))
    class_folder(tmp_path / "in/train", {"cat": images[:20], "dog": images[20:40]})
    class_folder(tmp_path / "in/val", {"cat": images[40:50], "dog": images[50:]})
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", codec=lossless)
    assert stats["num_rows"] == {"train": 36, "validation": 4, "test": 20}
    assert keys(restored(data["test"], tmp_path / "out")) == keys(images[40:])


def test_a_validation_split_of_test_images_alone_is_replaced_by_training_images(tmp_path, lossless):
    images = random_images(60, (6, 8))
    class_folder(tmp_path / "in/train", {"cat": images[:20], "dog": images[20:40]})
    for split in ("val", "test"):
        class_folder(tmp_path / "in" / split, {"cat": images[40:50], "dog": images[50:]})
    _, stats = prepare_images(tmp_path / "out", tmp_path / "in", codec=lossless)
    assert "20 validation images are test images too and were dropped" in stats["images"]["notes"]
    assert stats["num_rows"] == {"train": 36, "validation": 4, "test": 20}


def test_written_rows_name_their_split_and_give_the_same_data_again(tmp_path, lossless):
    class_folder(tmp_path / "in", {name: random_images(20, (6, 8), seed=i) for i, name in enumerate(("cat", "dog"))})
    data, _ = prepare_images(tmp_path / "out", tmp_path / "in", codec=lossless, write_jsonl=True)
    raw = tmp_path / "out/raw"
    rows = [json.loads(line) for line in (raw / "rows.jsonl").read_text().splitlines()]
    names = str(raw / "class_names.json")
    again, _ = prepare_rows(tmp_path, rows, raw / "vocab.json", name="again", split_by="field", class_names=names)
    for name in ("train", "validation", "test"):
        assert again[name]["input_ids"] == data[name]["input_ids"]
        assert again[name]["label"] == data[name]["label"]
