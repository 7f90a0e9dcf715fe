"""Several sources joined by the names of their classes; names that are alike, and names of strangers."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from imagelm.data.sources.open import open_images
from imagelm.data.stats import summary, warnings
from imagelm.utils.errors import InputError
from tests.data.sources.common import check_source, table
from tests.images import cats_and_dogs, class_folder, prepare_images, random_images, to_image


def test_several_sources_are_joined_by_class_name(tmp_path):
    images = random_images(9)
    class_folder(tmp_path / "a", {"cat": images[:2], "dog": images[2:4]})
    np.savez(tmp_path / "b.npz", image=images[4:7], label=np.array(["emu", "cat", "bee"]))
    class_folder(tmp_path / "c", {"dog": images[7:]})
    source = open_images([str(tmp_path / name) for name in ("a", "b.npz", "c")])
    names = ["cat", "cat", "dog", "dog", "emu", "cat", "bee", "dog", "dog"]
    order = ["bee", "cat", "dog", "emu"]
    check_source(source, images, order, [order.index(name) for name in names])
    assert source.place(5) == f"{tmp_path}/b.npz:1"
    assert Path(source.place(8)) == tmp_path / "c/dog/1.png"
    assert [np.asarray(one).tolist() for one in source.load(3, 8)] == images[3:8, ..., 0].tolist()


def test_the_order_of_class_names_that_all_sources_share_is_kept(tmp_path):
    for name in "ab":
        table()[0].to_parquet(str(tmp_path / f"{name}.parquet"))
    source = open_images([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")])
    assert source.class_names == ["owl", "ant"]
    assert source.labels.tolist() == [0, 1] * 8


def test_labelled_and_unlabelled_sources_dont_mix(tmp_path):
    cats_and_dogs(tmp_path / "a", per_class=2)
    np.savez(tmp_path / "b.npz", image=random_images(3))
    with pytest.raises(InputError, match=r"b\.npz:0 has no label, but other images have one"):
        open_images([str(tmp_path / "a"), str(tmp_path / "b.npz")])


def test_a_class_of_the_test_images_that_training_lacks_is_refused_with_an_example(tmp_path):
    cats_and_dogs(tmp_path / "a", per_class=3)
    class_folder(tmp_path / "b", {"cat": random_images(1, seed=5), "emu": random_images(2, seed=6)})
    with pytest.raises(InputError, match=r"b/emu/0\.png is of class 'emu', which isn't among cat, dog"):
        prepare_images(tmp_path / "out", tmp_path / "a", test_images=[str(tmp_path / "b")])


def test_a_class_is_the_same_in_either_unicode_form(tmp_path):
    for side, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        class_folder(tmp_path / side, {name: random_images(6, seed=len(side)), "the": random_images(6, seed=9)})
    np.savez(tmp_path / "x.npz", x=random_images(4), y=["caf\u00e9", "cafe\u0301", "the", "the"])
    source = open_images([str(tmp_path / name) for name in ("train", "test", "x.npz")])
    assert source.class_names == ["caf\u00e9", "the"]
    assert np.bincount(source.labels).tolist() == [6 + 6 + 2, 6 + 6 + 2]


@pytest.mark.parametrize("names", [["caf\u00e9", "cafe\u0301"], ["cat", "cat\u200b"], ["cat", "\u200b"], ["a", " "]])
def test_classes_that_people_cannot_tell_apart_are_refused(tmp_path, names):
    class_folder(tmp_path / "in", {name: random_images(4, seed=i) for i, name in enumerate(names)})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [to_image(image) for image in random_images(8)], "label": [0, 1] * 4}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "x.parquet"))
    for source in ("in", "x.parquet"):
        with pytest.raises(InputError, match=r"look the same|has a blank name"):
            prepare_images(tmp_path / "out", tmp_path / source)
    assert not (tmp_path / "out").exists()


def test_names_of_strangers_reach_summary_and_card_without_controls_and_the_data_unchanged(tmp_path):
    names = ["cat\x1b[2J", "d\u202eog"]
    class_folder(tmp_path / "in", {name: random_images(8, seed=i) for i, name in enumerate(names)})
    (tmp_path / "in" / names[0] / "a\x1b]0;x\x07\nwritten: b.png").write_bytes(b"no image")
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in")
    assert data["train"].features["label"].names == stats["class_names"] == names
    card = (tmp_path / "out/README.md").read_text()
    said = "\n".join([*summary(stats), *warnings(stats)])
    for text in (said, card):
        assert not set(text) & set("\x1b\x07\u202e")
    assert sum("a\\x1b]0;x\\x07\\nwritten: b.png: not an image" in line for line in said.splitlines()) == 1
    assert "| `<CLS_0>` | cat\\\\x1b\\[2J |" in card and "| `<CLS_1>` | d\\\\u202eog |" in card
