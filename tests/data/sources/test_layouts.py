"""Splits by every usual name, in every layout that people have; what is used, what isn't, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest
from datasets.config import DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME
from datasets.data_files import SPLIT_KEYWORDS

from imagelm.data.sources.loading import STATE_FILES
from imagelm.data.sources.names import SPLIT_KINDS, split_word, without_split_word
from imagelm.data.sources.open import open_images
from imagelm.utils.errors import InputError
from tests.data.sources.common import FEATURES, labelled, sizes
from tests.images import cats_and_dogs, class_folder, random_images, to_image


def test_the_words_for_splits_and_the_files_of_saved_datasets_are_those_of_the_library():
    assert {word: split for split, words in SPLIT_KEYWORDS.items() for word in words} == SPLIT_KINDS
    assert STATE_FILES == (DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME)


def parquet(file: Path, count: int, hidden: bool = False) -> Path:
    """A Parquet file of images of two classes; `hidden` labels are −1."""
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = [-1 if hidden else i % 2 for i in range(count)]
    rows = {"image": list(map(to_image, random_images(count, seed=count))), "label": labels}
    datasets.Dataset.from_dict(rows, features=FEATURES).to_parquet(str(file))
    return file


@pytest.mark.parametrize(
    ("name", "word", "rest"),
    [
        ("train-00000-of-00002", "train", "*-00000-of-00002"),
        ("x_train", "train", "x_*"),
        ("Fashion-MNIST_Test", "test", "fashion-mnist_*"),
        ("val_images", "val", "*_images"),
        ("dev.2024", "dev", "*.2024"),
        ("train2017", "train", "*2017"),
        ("constraint", None, "constraint"),
        ("latest", None, "latest"),
        ("train_val", None, "*_*"),
        ("test_testing", "test", "*_*"),
    ],
)
def test_the_word_in_a_name_that_says_the_split_stands_between_separators(name, word, rest):
    assert (split_word(name), without_split_word(name)) == (word, rest)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Path:
    """What a download of a dataset from the Hub leaves: README.md and data/."""
    root = tmp_path_factory.mktemp("hub") / "owls"
    for name, count in (("train-00000-of-00002", 6), ("train-00001-of-00002", 4), ("test-00000-of-00001", 2)):
        parquet(root / "data" / f"{name}.parquet", count)
    (root / "README.md").write_text("---\nlicense: mit\n---\n# Owls\n")
    return root


def test_a_snapshot_of_a_hub_dataset_is_read_by_the_names_of_its_files(snapshot):
    images = labelled(snapshot)
    assert sizes(images) == [10, 2] and images.class_names == ["owl", "ant"]
    first, second = (f"{snapshot}/data/train-0000{i}-of-00002.parquet" for i in (0, 1))
    assert images.notes[:2] == [
        f"{snapshot} has a train and a test split, which are used as they are",
        f"{first}, {second}: the images are in image, the labels in label",
    ]
    assert images.sources[0].place(6) == f"{second}:0"
    assert len(open_images([str(snapshot)], split="TEST")) == 2
    assert len(open_images([str(snapshot)])) == 2  # what prepare holds out


def test_patterns_and_lists_of_files_are_split_by_their_names_too(snapshot):
    pattern = f"{snapshot}/data/*.parquet"
    images = labelled(pattern)
    assert sizes(images) == [10, 2] and "have a train and a test split" in images.notes[0]
    assert sizes(labelled(f"{snapshot}/data/train-*.parquet")) == [10]
    assert sizes(labelled(f"{snapshot}/data/train-*.parquet", test_images=[f"{snapshot}/data/test*"])) == [10, 2]
    assert len(open_images([pattern])) == 12  # inference reads what is named
    with pytest.raises(InputError, match=r"none\*\.parquet matches no file"):
        labelled(f"{snapshot}/none*.parquet")


def test_an_incomplete_download_is_refused(snapshot, tmp_path):
    shutil.copytree(snapshot, tmp_path / "in")
    (tmp_path / "in/data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"is incomplete: .*train-00001-of-00002 is missing \(1 of 2 files\)"):
        labelled(tmp_path / "in")


def test_several_configurations_are_told_and_one_is_named(snapshot, tmp_path):
    test, train = snapshot / "data/test-00000-of-00001.parquet", snapshot / "data/train-00000-of-00002.parquet"
    for name, file in (("big/train.parquet", train), ("big/val.parquet", test), ("small/train.parquet", test)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "in" / name)
    with pytest.raises(InputError, match="holds several datasets: big, small; name one of the folders, or --config_"):
        labelled(tmp_path / "in")
    assert sizes(labelled(tmp_path / "in", config_name="big")) == [6, 2]
    with pytest.raises(InputError, match=r"--config_name none: .* has big, small"):
        labelled(tmp_path / "in", config_name="none")
    # The README's own list comes first, as on the Hub.
    config = "---\nconfigs:\n- config_name: mine\n  data_files:\n"
    config += "  - {{split: {}, path: {}}}\n" * 2 + "---\n"
    readme = tmp_path / "in/README.md"
    readme.write_text(config.format("train", "big/train.parquet", "dev", "small/*"))
    assert sizes(labelled(tmp_path / "in")) == sizes(labelled(tmp_path / "in", config_name="mine")) == [6, 2]
    for outside in ("../other/*", str(tmp_path), "hf://datasets/a/b/x.parquet", "https://127.0.0.1:9/x.parquet"):
        readme.write_text(config.format("train", outside, "dev", "small/*"))
        with pytest.raises(InputError, match=r"README\.md names .* outside the folder; nothing was read"):
            labelled(tmp_path / "in")


def test_files_of_a_split_in_any_case_and_form(snapshot, tmp_path):
    train, test = (snapshot / f"data/{name}.parquet" for name in ("train-00000-of-00002", "test-00000-of-00001"))
    for files in (
        ("Train.PARQUET", "TEST.Parquet"),
        ("Training/0.parquet", "eval/0.parquet"),
        ("pets_train.parquet", "dev.parquet"),
    ):
        for source, name in zip((train, test), files, strict=True):
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / "in" / name)
        assert sizes(labelled(tmp_path / "in")) == sizes(labelled(f"{tmp_path}/in/**/*.[pP]*")) == [6, 2]
        shutil.rmtree(tmp_path / "in")


def test_a_file_that_names_no_split_is_told_or_asked_for(snapshot, tmp_path):
    test = snapshot / "data/test-00000-of-00001.parquet"
    for name in ("birds.parquet", "test.parquet"):
        shutil.copy(test, tmp_path / name)
    with pytest.raises(InputError, match="holds the splits birds, test; name one of them, such as --split birds"):
        labelled(tmp_path)
    assert len(open_images([str(tmp_path)], split="birds")) == 2
    shutil.copy(snapshot / "data/train-00000-of-00002.parquet", tmp_path / "train.parquet")
    images = labelled(tmp_path)
    assert sizes(images) == [6, 2] and images.notes[0].endswith("; not used: birds")


def test_splits_that_could_be_mistaken_are_refused_by_both_names(snapshot, tmp_path):
    for name in ("train", "val", "validation"):
        shutil.copy(snapshot / "data/test-00000-of-00001.parquet", tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"has 2 validation splits \(val, validation\); rename or remove"):
        labelled(tmp_path)
    with pytest.raises(InputError, match="2 validation splits"):
        open_images([str(tmp_path)], split="dev")
    assert len(open_images([str(tmp_path)], split="val")) == 2


def test_hidden_test_labels_leave_the_validation_split_or_none(tmp_path):
    parquet(tmp_path / "train.parquet", 6)
    parquet(tmp_path / "test.parquet", 4, hidden=True)
    images = labelled(tmp_path)
    assert sizes(images) == [6]
    assert images.notes[0] == f"{tmp_path} has a train split, which is used; not used: test (it has no labels)"
    parquet(tmp_path / "valid.parquet", 2)
    images = labelled(tmp_path)
    assert sizes(images) == [6, 2] and images.notes[0].endswith("; not used: test (it has no labels)")


def test_a_folder_of_test_images_without_classes_is_not_held_out(tmp_path):
    cats_and_dogs(tmp_path / "train", per_class=3)
    class_folder(tmp_path, {"test": random_images(4, seed=2)})
    images = labelled(tmp_path)
    assert sizes(images) == [6] and "not used: test (it has no labels)" in images.notes[0]
    assert len(open_images([str(tmp_path)], split="test")) == 4
    (tmp_path / "test/images").mkdir()
    for file in (tmp_path / "test").glob("*.png"):
        file.rename(tmp_path / "test/images" / file.name)  # as in Tiny ImageNet
    assert sizes(labelled(tmp_path)) == [6]
    class_folder(tmp_path / "dev", {"cat": random_images(1, seed=3), "dog": random_images(2, seed=4)})
    assert sizes(labelled(tmp_path)) == [6, 3]


def test_folders_that_are_called_as_one_dataset_are_its_splits(tmp_path):
    for name, count in (("seg_train/seg_train", 3), ("seg_test/seg_test", 2)):
        cats_and_dogs(tmp_path / "in" / name, per_class=count, seed=count)
    class_folder(tmp_path / "in/seg_pred", {"seg_pred": random_images(2, seed=9)})
    images = labelled(tmp_path / "in")
    assert sizes(images) == [6, 4] and images.class_names == ["cat", "dog"]
    assert "has a seg_train and a seg_test split" in images.notes[0]
    assert images.notes[0].endswith("; not used: seg_pred")
    class_folder(tmp_path / "things", {name: random_images(2, seed=len(name)) for name in ("train_car", "test_tube")})
    assert labelled(tmp_path / "things").class_names == ["test_tube", "train_car"]


def test_splits_inside_the_class_folders_are_splits(tmp_path):
    for name, seed in (("cat", 1), ("dog", 2)):
        class_folder(tmp_path / name, {"Train": random_images(3, seed=seed), "val": random_images(1, seed=9 + seed)})
    images = labelled(tmp_path)
    assert sizes(images) == [6, 2] and images.class_names == ["cat", "dog"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert images.sources[1].place(1) == f"{tmp_path}/dog/val/0.png"


def test_one_folder_around_the_data_is_looked_into(tmp_path):
    cats_and_dogs(tmp_path / "a/archive/pets", per_class=2)
    assert labelled(tmp_path / "a").class_names == ["cat", "dog"]
    for side in ("train", "test"):
        shutil.copytree(tmp_path / "a/archive/pets", tmp_path / "b/download/pets" / side)
    assert sizes(labelled(tmp_path / "b")) == [4, 4]
    class_folder(tmp_path / "c", {"cat": random_images(2)})
    with pytest.raises(InputError, match=r"all images are of one class \(cat\)"):
        labelled(tmp_path / "c")


def test_a_split_that_is_asked_for_is_the_only_one_used(tmp_path):
    for i, side in enumerate(("train", "valid", "test"), start=1):
        cats_and_dogs(tmp_path / "in" / side, per_class=i, seed=i)
    assert sizes(labelled(tmp_path / "in", split="valid")) == sizes(labelled(tmp_path / "in", split="dev")) == [4]
    images = labelled(tmp_path / "in", test_images=[str(tmp_path / "in")])  # each side takes its own split
    assert sizes(images) == [2, 6]
    with pytest.raises(InputError, match="has no split 'none'; it has test, train, valid"):
        open_images([str(tmp_path / "in")], split="none")
    with pytest.raises(InputError, match=r"--split cat has no effect on .* which has no splits; give --images .*/cat"):
        open_images([str(tmp_path / "in/train")], split="cat")


@pytest.mark.parametrize("option", ["revision", "config_name"])
def test_options_of_the_hub_are_refused_elsewhere(tmp_path, option):
    cats_and_dogs(tmp_path / "in", per_class=2)
    for name in ("in", "in/cat/0.png"):
        with pytest.raises(InputError, match=r"'main'|--config_name main"):
            open_images([str(tmp_path / name)], **{option: "main"})
