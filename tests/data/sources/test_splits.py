"""Splits of folders and saved datasets: known by every usual name, used as they are, or refused."""

from __future__ import annotations

import json

import datasets
import pytest

from imagelm.data.arguments import PrepareArguments
from imagelm.data.sources.open import open_images, open_labelled_images
from imagelm.utils.errors import InputError
from tests.data.sources.common import FEATURES, labelled, table
from tests.images import cats_and_dogs, class_folder, prepare_images, random_images


def test_train_and_test_folders_inside_are_taken_as_they_are(tmp_path):
    for side in ("train", "test"):
        cats_and_dogs(tmp_path / "pets" / side, per_class=3, seed=len(side))
    assert [source.origin for source in labelled(tmp_path / "pets").sources] == [
        str(tmp_path / "pets" / side) for side in ("train", "test")
    ]
    data, stats = prepare_images(tmp_path / "out", tmp_path / "pets", codebook_size=8)
    assert (len(data["train"]), len(data["test"])) == (6, 6)
    assert stats["class_names"] == ["cat", "dog"]
    assert any("has a train and a test split" in note for note in stats["images"]["notes"])
    assert len(labelled(tmp_path / "pets/train").sources) == 1


@pytest.mark.parametrize(
    ("offered", "used"),
    [
        (["train", "val"], ["train", "val"]),
        (["Training", "TESTING", "dev"], ["Training", "dev", "TESTING"]),
        (["train", "valid", "extra"], ["train", "valid"]),
        (["train", "evaluation", "val", "validation"], ["train", "evaluation"]),
    ],
)
def test_splits_are_known_by_every_usual_name_and_the_others_are_noted(tmp_path, offered, used):
    for i, name in enumerate(offered):
        cats_and_dogs(tmp_path / "pets" / name, per_class=3 + i, seed=i)
        table(8 + 2 * i, seed=i)[0].save_to_disk(tmp_path / "saved" / name)
    (tmp_path / "saved/dataset_dict.json").write_text(json.dumps({"splits": offered}))
    places = [offered.index(name) for name in used]
    for name, counts in (("pets", [6 + 2 * i for i in places]), ("saved", [8 + 2 * i for i in places])):
        images = open_labelled_images(PrepareArguments(images=[str(tmp_path / name)], output_dir=str(tmp_path / "out")))
        assert list(map(len, images.sources)) == counts
        assert images.splits == (("train", "validation", "test") if len(used) == 3 else ("train", "test"))
        note = next(note for note in images.notes if "are used as they are" in note)
        assert f"has a {', a '.join(used[:-1])} and a {used[-1]} split" in note
        unused = note.partition("; not used: ")[2]
        assert set(filter(None, unused.split(", "))) == set(offered) - set(used)


def test_a_test_split_without_labels_is_not_held_out(tmp_path):
    splits = {split: table(count, seed=count)[0] for split, count in (("train", 6), ("test", 4), ("val", 8))}
    hidden = {"image": splits["test"]["image"][:], "label": [-1] * 4}
    splits["test"] = datasets.Dataset.from_dict(hidden, features=FEATURES)
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "in")
    images = open_labelled_images(PrepareArguments(images=[str(tmp_path / "in")], output_dir=str(tmp_path / "out")))
    assert list(map(len, images.sources)) == [6, 8]
    assert any("train and a val split" in note and "not used: test (it has no labels)" in note for note in images.notes)


def test_splits_that_could_be_mistaken_are_refused(tmp_path):
    cases = {
        ("train", "Training", "test"): "has 2 train splits",
        ("train", "test", "eval"): r"has 2 test splits \(eval, test\)",
        ("train", "dev", "val"): r"has 2 validation splits \(dev, val\)",
        ("test", "val"): "holds the splits test, val; name one of them, such as ",
    }
    for number, (offered, said) in enumerate(cases.items()):
        for name in offered:
            cats_and_dogs(tmp_path / str(number) / name, per_class=3)
        with pytest.raises(InputError, match=said):
            prepare_images(tmp_path / "out", tmp_path / str(number))
    with pytest.raises(InputError, match="holds the splits eval, test, train"):
        open_images([str(tmp_path / "1")])
    cats_and_dogs(tmp_path / "things", per_class=2)
    class_folder(tmp_path / "things", {"train": random_images(2, seed=5)})  # a vehicle
    assert open_images([str(tmp_path / "things")]).class_names == ["cat", "dog", "train"]
