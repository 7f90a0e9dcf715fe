"""Lists of images in a file: paths and classes in every usual form, and what no list can do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelm.data.sources.decode import BadImage
from imagelm.data.sources.open import open_images
from imagelm.utils.errors import InputError
from tests.data.sources.common import labelled, sizes


def listing(folder: Path, name: str, rows: list[tuple[str, str]], header: str = "file_name,label") -> Path:
    (folder / name).write_text("\n".join([header, *map(",".join, rows)]) + "\n", encoding="utf-8-sig")
    return folder / name


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Six images in a subfolder, each of one grey, and one beside the folder."""
    (tmp_path / "in/pics").mkdir(parents=True)
    for i in range(6):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / f"in/pics/{i}.JPG", "PNG")
    Image.new("L", (8, 8), 99).save(tmp_path / "private.png")
    return tmp_path / "in"


ROWS = [(f"pics/{i}.JPG", "NA" if i % 2 else "yes") for i in (3, 0, 2, 5)]


@pytest.mark.parametrize("form", ["csv", "semicolons", "tsv", "jsonl", "json", "CSV"])
def test_a_list_of_paths_and_classes_is_read(pictures, form):
    if form.startswith("json"):
        rows = [{"image": path, "kind": 3, "class": name} for path, name in ROWS]
        text = json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))
        file = pictures / f"list.{form}"
        file.write_text(text)
    else:
        file = listing(pictures, f"list.{form.replace('semicolons', 'csv')}", ROWS, "image,class")
        sign = {"semicolons": ";", "tsv": "\t"}.get(form, ",")
        file.write_text(file.read_text().replace(",", sign))
    source = open_images([str(file)])
    assert (source.class_names, source.labels.tolist()) == (["NA", "yes"], [0, 1, 1, 0])
    assert [int(np.asarray(image)[0, 0]) for image in source.load(0, 4)] == [30, 0, 20, 50]
    assert source.notes == [f"4 of 4 rows of {file} name a file, which is read from {pictures}"]
    assert source.columns == [f"{file}: the images are in image, the labels in class"]


def test_a_list_reads_no_file_beside_it_unless_its_folder_is_named(pictures):
    (pictures / "0.png").write_bytes((pictures / "pics/0.JPG").read_bytes())
    rows = [("0.png", "a"), ("pics/1.JPG", "b"), ("../private.png", "b"), ("http://127.0.0.1:9/x.png", "a")]
    file = str(
        listing(pictures.parent, "x.csv", [(f"in/{path}" if "://" not in path else path, k) for path, k in rows])
    )
    assert all(isinstance(image, BadImage) for image in open_images([file]).load(0, 4))  # not all are in subfolders
    file = str(listing(pictures, "y.csv", rows))
    assert all("--image_root" in image.reason for image in open_images([file]).load(0, 3))
    found = open_images([file], image_root=str(pictures)).load(0, 4)
    assert [isinstance(image, Image.Image) for image in found] == [True, True, False, False]
    assert "leads out of" in found[2].reason and "URLs aren't opened" in found[3].reason
    found = open_images([str(pictures)]).load(0, 4)  # the folder of the list is named
    assert [isinstance(image, Image.Image) for image in found] == [True, True, False, False]


def test_lists_of_the_splits_in_their_folder(pictures):
    listing(pictures, "train.csv", ROWS)
    listing(pictures, "test.csv", [("pics/1.JPG", "yes"), ("pics/4.JPG", "NA")])
    assert sizes(labelled(pictures)) == sizes(labelled(f"{pictures}/*.csv")) == [4, 2]
    listing(pictures, "test.csv", [("pics/1.JPG", ""), ("pics/4.JPG", "")])  # hidden labels
    images = labelled(pictures)
    assert sizes(images) == [4] and "not used: test (it has no labels)" in images.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "label," + ",".join(f"pixel{i}" for i in range(64)) + "\n" + "1," * 64 + "1\n", "pixels; save them"),
        ("x.csv", "a,b\n1,2\n", "holds a, b; choose one of them with --image_column"),
        ("x.csv", "", "can't be read: No columns"),
        ("x.json", '{"images": [], "annotations": []}', "holds images, annotations; choose one"),
        ("x.jsonl", "{", "can't be read: JSON parse error"),
    ],
)
def test_lists_without_paths_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        open_images([str(tmp_path / name)])
