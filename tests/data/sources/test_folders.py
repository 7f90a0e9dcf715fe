"""Folders as people keep them: a folder a class, a metadata file, and names that lead nowhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelm.data.sources import local
from imagelm.data.sources.decode import BadImage, natural_key
from imagelm.data.sources.open import open_images
from imagelm.utils.errors import InputError
from tests.data.sources.common import check_source, pixels_of, png, table
from tests.images import cats_and_dogs, class_folder, prepare_images, random_images


def test_a_folder_a_class_is_read_in_natural_order(tmp_path):
    images = random_images(12)
    class_folder(tmp_path, {"10": images[:11], "2": images[11:]})
    source = open_images([str(tmp_path)])
    assert source.class_names == ["2", "10"]
    assert source.labels.tolist() == [0] + [1] * 11
    assert [Path(source.place(i)).relative_to(tmp_path).as_posix() for i in range(4)] == [
        *("2/0.png", "10/0.png", "10/1.png", "10/2.png")
    ]
    assert Path(source.place(11)).name == "10.png"
    expected = [images[11], *images[:11]]
    assert all((found == one[..., 0]).all() for found, one in zip(pixels_of(source), expected, strict=True))


def test_people_count_2_before_10_and_equal_numbers_still_have_an_order():
    names = ["img10", "img9b", "img9a", "a", "3", "21", "img"]
    assert sorted(names, key=natural_key) == ["3", "21", "a", "img", "img9a", "img9b", "img10"]
    assert sorted(["1", "01"], key=natural_key) == sorted(["01", "1"], key=natural_key)


def test_nested_files_count_and_what_systems_leave_behind_does_not(tmp_path):
    cats_and_dogs(tmp_path, per_class=3)
    (tmp_path / "cat/2024/may").mkdir(parents=True)
    image = png(random_images(1, seed=9)[0])
    (tmp_path / "cat/2024/may/x.png").write_bytes(image)
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", "dog/._0.png", ".git/x.png", "__MACOSX/cat.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image)
    source = open_images([str(tmp_path)])
    assert source.class_names == ["cat", "dog"]
    names = [Path(source.place(i)).relative_to(tmp_path).as_posix() for i in range(len(source))]
    assert sorted(names) == sorted(
        [*(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)), "cat/2024/may/x.png"]
    )
    assert source.notes == []


def test_a_folder_whose_name_begins_with_underscores_is_a_class(tmp_path):
    class_folder(tmp_path, {name: random_images(2, seed=i) for i, name in enumerate(["__background__", "_x", "a"])})
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX/0.png").write_bytes(png(random_images(1)[0]))
    source = open_images([str(tmp_path)])
    assert source.class_names == ["__background__", "_x", "a"] and source.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_hidden_folders_inside_a_class_are_passed_over(tmp_path):
    cats_and_dogs(tmp_path, per_class=3)
    for name in ("cat/.ipynb_checkpoints", "dog/2024/.thumbnails", "dog/__MACOSX"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").write_bytes(png(random_images(1, seed=9)[0]))
    assert len(open_images([str(tmp_path)])) == 6


def test_an_empty_class_and_loose_files_are_noted(tmp_path):
    cats_and_dogs(tmp_path, per_class=2)
    (tmp_path / "bird").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    source = open_images([str(tmp_path)])
    assert source.class_names == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.notes == [
        f"{tmp_path}: not used, because it is outside the class folders: notes.txt",
        f"{tmp_path}: not used as a class, because the folder holds no images: bird",
    ]


def test_a_link_to_a_folder_inside_a_class_is_named_and_not_followed(tmp_path):
    cats_and_dogs(tmp_path, per_class=2)
    (tmp_path / "cat/all").symlink_to("..")  # its dogs would become cats
    (tmp_path / "cat/more").symlink_to("../dog")
    (tmp_path / "dog/.cache").symlink_to("../cat")
    source = open_images([str(tmp_path)])
    assert len(source) == 4
    assert source.notes == [f"{tmp_path}: not followed, because it is a link to a folder: cat/all and 1 more"]


def test_a_pipe_among_images_is_named_and_not_waited_for(tmp_path):
    cats_and_dogs(tmp_path, per_class=2)
    os.mkfifo(tmp_path / "cat/camera.png")
    source = open_images([str(tmp_path)])
    places = [source.place(i) for i in range(len(source))]
    number = places.index(f"{tmp_path}/cat/camera.png")
    assert source.load(number, number + 1)[0] == BadImage("not a regular file")


def test_images_without_class_folders_and_single_files_have_no_labels(tmp_path):
    cats_and_dogs(tmp_path, per_class=2)
    for name in (tmp_path / "cat", tmp_path / "cat/1.png"):
        source = open_images([str(name)])
        assert source.labels is None and source.class_names is None
        with pytest.raises(InputError, match=r"cat/\d\.png has no label; expected a folder for each class"):
            prepare_images(tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_folder_with_a_metadata_file_is_read(tmp_path, form):
    images, folder = random_images(4), tmp_path / "in [1]"
    (folder / "pics").mkdir(parents=True)
    for i, image in enumerate(images):
        (folder / f"pics/test_{i}.png").write_bytes(png(image))
    rows = [(f"pics/test_{i}.png", "ba"[i % 2]) for i in (2, 0, 3, 1)]
    lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
    if form == "csv":
        lines = ["file_name,label", *map(",".join, rows)]
    (folder / f"metadata.{form}").write_text("\n".join(lines))
    source = open_images([str(folder)])
    check_source(source, images[[2, 0, 3, 1]], ["a", "b"], [1, 1, 0, 0])
    assert source.columns[-1] == f"{folder}: the images are in image, the labels in label"


def test_a_metadata_file_reads_no_file_outside_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/0.png", "secret.png"):
        (tmp_path / name).write_bytes(png(random_images(1)[0]))
    (tmp_path / "in/link.png").symlink_to("../secret.png")
    listed = tmp_path / "in/metadata.jsonl"
    listed.write_text("\n".join(json.dumps({"file_name": name, "label": "a"}) for name in ("0.png", "link.png")))
    found = open_images([str(tmp_path / "in")]).load(0, 2)
    assert isinstance(found[0], Image.Image)
    assert isinstance(found[1], BadImage) and "leads out of" in found[1].reason
    listed.write_text(json.dumps({"file_name": "../secret.png", "label": "a"}))
    with pytest.raises(InputError, match="in can't be read"):
        open_images([str(tmp_path / "in")])


def test_class_folders_come_before_a_metadata_file(tmp_path):
    cats_and_dogs(tmp_path, per_class=2)
    (tmp_path / "metadata.csv").write_text("file_name,width\ncat/0.png,8\n")
    source = open_images([str(tmp_path)])
    assert source.class_names == ["cat", "dog"]
    assert source.notes == [f"{tmp_path}: not used, because it is outside the class folders: metadata.csv"]


def test_endings_may_be_in_capitals(tmp_path):
    data, images = table()
    data.to_parquet(str(tmp_path / "A.PARQUET"))
    np.savez(tmp_path / "a.npz", image=images, label=np.array(["owl", "ant"] * 4))
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    check_source(open_images([str(tmp_path / "A.PARQUET")]), images, ["owl", "ant"], [0, 1] * 4)
    check_source(open_images([str(tmp_path / "A.NPZ")]), images, ["ant", "owl"], [1, 0] * 4)


def test_names_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow/cat").mkdir(parents=True)
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    cases = {
        "none": "no such file or folder",
        "none.png": "none.png: no ",
        "none/deep/er": "none/deep/er: no ",
        "none.npz": "none.npz: no ",
        "none.parquet": "none.parquet: no such file",
        "empty": "holds no files",
        "hollow": "holds no files",
        "broken.npz": "broken.npz can't be read: it isn't an NPZ file",
        "text.npz": "text.npz can't be read: it isn't an NPZ file",
        "broken.parquet": "broken.parquet can't be read: ",
    }
    for name, said in cases.items():
        with pytest.raises(InputError, match=f"--images .*{said}"):
            prepare_images(tmp_path / "out", tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_an_empty_name_is_refused_even_where_the_working_folder_could_be_meant(tmp_path, monkeypatch):
    for side in ("train", "test"):
        cats_and_dogs(tmp_path / side, per_class=3, seed=len(side))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="empty name"):
        prepare_images(tmp_path / "out", "")


def test_images_are_decoded_one_at_a_time_as_they_are_asked_for(tmp_path, monkeypatch):
    cats_and_dogs(tmp_path / "in")
    decoded = []
    monkeypatch.setattr(local, "read_image", lambda file: decoded.append(file) or Image.open(file))
    images = open_images([str(tmp_path / "in")]).load(0, 20)
    assert len(images) == 20 and decoded == []
    images[3]
    assert [file.name for file in decoded] == ["3.png"]
    assert [len(decoded) for _ in images[5:8]] == [2, 3, 4]
