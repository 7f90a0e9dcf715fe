"""Tables whose images and labels are lists, arrays or paths."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Features, LargeList, List, Value
from PIL import Image

from imagelm.data.sources.decode import BadImage
from imagelm.data.sources.open import open_images
from imagelm.utils.errors import InputError
from tests.images import random_images, to_image

IMAGES = random_images(4, (5, 7), 3)
GREY = IMAGES[..., 0]
TEXT = Value("string")


def write(path, rows: dict, **features) -> str:
    file = str(path / "x.parquet")
    datasets.Dataset.from_dict(rows, features=Features(features)).to_parquet(file)
    return file


@pytest.mark.parametrize(
    ("feature", "cells", "expected"),
    [
        (List(datasets.Image()), [[to_image(image)] for image in IMAGES], IMAGES),
        (LargeList(datasets.Image()), [[to_image(image)] for image in IMAGES], IMAGES),
        (Array2D(shape=(5, 7), dtype="uint8"), list(GREY), GREY),
        (datasets.Array3D(shape=(5, 7, 3), dtype="int32"), list(IMAGES.astype(np.int32)), IMAGES),
        (datasets.Array3D(shape=(3, 5, 7), dtype="uint8"), list(np.moveaxis(IMAGES, -1, 1)), IMAGES),
        (List(List(Value("int64"))), GREY.tolist(), GREY),
        (List(List(Value("float32"))), (GREY / 255).tolist(), GREY),
        (List(List(List(Value("uint8"), length=3))), IMAGES.tolist(), IMAGES),
    ],
)
def test_columns_of_lists_and_arrays_are_images(tmp_path, feature, cells, expected):
    file = write(tmp_path, {"image": cells, "label": list("abab")}, image=feature, label=TEXT)
    source = open_images([file])
    assert (source.class_names, source.labels.tolist()) == (["a", "b"], [0, 1, 0, 1])
    assert [np.asarray(image).tolist() for image in source.load(0, 4)] == expected.tolist()
    assert source.columns == [f"{file}: the images are in image, the labels in label"]


def test_a_row_with_several_images_or_none(tmp_path):
    image = to_image(IMAGES[0])
    file = write(tmp_path, {"images": [[image], [], None, [image]]}, images=List(datasets.Image()))
    found = open_images([file]).load(0, 4)
    assert [isinstance(one, Image.Image) for one in found] == [True, False, False, True]
    assert found[1] == found[2] == BadImage("there is no image in this row")
    file = write(tmp_path, {"images": [[image], [image, image]]}, images=List(datasets.Image()))
    with pytest.raises(InputError, match=r"x\.parquet:1 holds several images in 'images'; expected one in each row"):
        open_images([file])


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ([[0.5, 1.5], [0.0, 0.0]], "floats outside 0 to 1"),
        ([[1, 2], [3]], "its rows differ in length"),
        ([[1, 256]], "values from 1 to 256; expected 0 to 255"),
        ([[-1, 2]], "values from -1 to 2"),
        (None, "there is no image"),
    ],
)
def test_arrays_that_are_no_image_are_bad_images(tmp_path, cell, said):
    kind = Value("float32" if "float" in said else "int64")
    file = write(tmp_path, {"image": [cell, [[7, 8]]], "label": ["a", "b"]}, image=List(List(kind)), label=TEXT)
    (found,) = open_images([file]).load(0, 1)
    assert isinstance(found, BadImage) and said in found.reason


def test_other_columns_of_numbers_are_not_taken_for_images(tmp_path):
    rows = {
        "bbox": [[[1, 2]]] * 4,
        "photo": list(map(to_image, IMAGES)),
        "label": list("abab"),
        "caption": list("wxyz"),
    }
    features = {"bbox": List(List(Value("int64"))), "photo": datasets.Image(), "label": TEXT, "caption": TEXT}
    source = open_images([write(tmp_path, rows, **features)])
    assert source.columns[0].endswith("the images are in photo, the labels in label") and source.notes == []
    del rows["photo"], features["photo"]
    with pytest.raises(InputError, match="holds bbox, label, caption; choose one of them with --image_column"):
        open_images([write(tmp_path, rows, **features)])


@pytest.mark.parametrize(
    ("feature", "labels", "names", "expected"),
    [
        (List(Value("int64")), [[7], [3], [3], [7]], ["3", "7"], [1, 0, 0, 1]),
        (List(Value("int64"), length=1), [[7], [3], [3], [7]], ["3", "7"], [1, 0, 0, 1]),
        (List(ClassLabel(names=["z", "y"])), [[0], [1], [1], [0]], ["z", "y"], [0, 1, 1, 0]),
        (LargeList(TEXT), [["b"], ["a"], ["a"], ["b"]], ["a", "b"], [1, 0, 0, 1]),
        (List(Value("int8")), [[0, 1], [1, 0], [1, 0], [0, 1]], ["0", "1"], [1, 0, 0, 1]),  # one-hot
        (Value("float32"), [1.0, 0.0, 0.0, 1.0], ["0", "1"], [1, 0, 0, 1]),
    ],
)
def test_labels_in_lists_of_one_and_one_hot_labels_are_labels(tmp_path, feature, labels, names, expected):
    rows = {"image": list(map(to_image, IMAGES)), "label": labels}
    file = write(tmp_path, rows, image=datasets.Image(), label=feature)
    datasets.Dataset.from_parquet(file).save_to_disk(tmp_path / "saved")
    np.savez(tmp_path / "x.npz", image=IMAGES, label=np.array(labels))
    for source in map(open_images, ([file], [str(tmp_path / "saved")])):
        assert (source.class_names, source.labels.tolist()) == (names, expected)
    assert open_images([str(tmp_path / "x.npz")]).labels.tolist() == (expected if "z" not in names else [0, 1, 1, 0])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[0], [1], [], [0]], ":2 has no label"),
        ([[0], [1], None, [0]], ":2 has no label"),
        ([[0], [1, 0], [1], [0]], "lists of 1 to 2 entries; expected one label"),
        ([[0, 1], [1, 1], [1, 0], [0, 1]], "has 2 labels; expected one for each image"),
    ],
)
def test_rows_with_several_labels_or_none_are_refused(tmp_path, labels, said):
    rows = {"image": list(map(to_image, IMAGES)), "label": labels}
    with pytest.raises(InputError, match=said):
        open_images([write(tmp_path, rows, image=datasets.Image(), label=List(Value("int64")))])


def test_a_table_of_paths_follows_the_rule_of_all_tables(tmp_path):
    (tmp_path / "pics").mkdir()
    for i, image in enumerate(IMAGES):
        to_image(image).save(tmp_path / f"pics/{i}.png")
    rows = {"label": list("abab"), "file_name": [f"pics/{i}.png" for i in range(4)]}
    source = open_images([write(tmp_path, rows, label=TEXT, file_name=TEXT)])
    assert [np.asarray(image).tolist() for image in source.load(0, 4)] == IMAGES.tolist()
    rows["file_name"][3] = "../x.png"
    found = open_images([write(tmp_path, rows, label=TEXT, file_name=TEXT)]).load(0, 4)
    assert all("--image_root" in image.reason for image in found)
