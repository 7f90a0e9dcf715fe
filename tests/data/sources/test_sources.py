"""Where images come from, and what each becomes: folders as people keep them, tables, arrays, odd formats."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from imagelm.data.arguments import PrepareArguments, parse_size
from imagelm.data.load import load_prepared
from imagelm.data.sources.decode import BadImage, natural_key, read_image, upright_size
from imagelm.data.sources.open import LabelledImages, batches, open_images, open_labelled_images
from imagelm.data.stats import summary, warnings
from imagelm.remote_code.codec_imagelm import flatten, read_pixels
from imagelm.utils.errors import InputError
from tests.conftest import run
from tests.images import (
    cats_and_dogs,
    class_folder,
    entries_in,
    grey_levels_codec,
    prepare_images,
    random_images,
    to_image,
)


def pixels_of(source) -> list[np.ndarray]:
    """All images, read in slices of 3, as arrays."""
    return [np.asarray(image) for _, images in batches(source, 3) for image in images]


def labelled(*names: object, **options: object) -> LabelledImages:
    """The images that `prepare` would read."""
    return open_labelled_images(PrepareArguments(images=list(map(str, names)), output_dir="none", **options))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# Folders


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


# Tables


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "ant"])})


def table(count: int = 8, channels: int = 3, seed: int = 0) -> tuple[datasets.Dataset, np.ndarray]:
    images = random_images(count, channels=channels, seed=seed)
    columns = {"image": [to_image(image) for image in images], "label": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(columns, features=FEATURES), images


def check_source(source, images: np.ndarray, names: list[str], labels: list[int]) -> None:
    assert source.class_names == names
    assert source.labels.tolist() == labels
    found = pixels_of(source)
    assert len(source) == len(found) == len(images)
    assert all((one.reshape(other.shape) == other).all() for one, other in zip(found, images, strict=True))


def test_a_parquet_file_with_image_and_class_label_is_read(tmp_path):
    data, images = table()
    data.to_parquet(str(tmp_path / "x.parquet"))
    source = open_images([str(tmp_path / "x.parquet")])
    check_source(source, images, ["owl", "ant"], [0, 1] * 4)
    assert source.place(3) == f"{tmp_path}/x.parquet:3"


@pytest.mark.parametrize("form", ["struct", "bytes"])
def test_a_parquet_file_without_hugging_face_metadata_is_read(tmp_path, form):
    images = random_images(6, channels=3)
    files = [png(image) for image in images]
    column = pa.array([{"bytes": file, "path": None} for file in files] if form == "struct" else files)
    if form == "struct":
        column = column.cast(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    columns = {"photo": column, "target": ["b", "a", "b", "a", "b", "c"]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    check_source(open_images([str(tmp_path / "x.parquet")]), images, ["a", "b", "c"], [1, 0, 1, 0, 1, 2])


def test_saved_datasets_and_their_splits_are_read(tmp_path):
    data, images = table()
    data.save_to_disk(tmp_path / "one")
    check_source(open_images([str(tmp_path / "one")]), images, ["owl", "ant"], [0, 1] * 4)
    other, others = table(4, seed=1)
    datasets.DatasetDict({"train": data, "test": other}).save_to_disk(tmp_path / "two")
    name = str(tmp_path / "two")
    assert list(map(len, labelled(name).sources)) == [8, 4]
    check_source(open_images([name]), others, ["owl", "ant"], [0, 1] * 2)
    check_source(open_images([name], split="train"), images, ["owl", "ant"], [0, 1] * 4)
    with pytest.raises(InputError, match="has no split 'dev'; it has train, test"):
        open_images([name], split="dev")
    out, _ = prepare_images(tmp_path / "out", name, codebook_size=8)
    assert (len(out["train"]), len(out["test"])) == (8, 4)
    assert out["train"].features["label"].names == ["owl", "ant"]


def test_columns_are_found_by_type_and_can_be_named(tmp_path):
    first, second = random_images(4, seed=1), random_images(4, seed=2)
    features = datasets.Features(
        {
            "before": datasets.Image(),
            "after": datasets.Image(),
            "kind": datasets.Value("string"),
            "n": datasets.Value("int8"),
        }
    )
    columns = {"before": map(to_image, first), "after": map(to_image, second), "kind": list("yxyx"), "n": [7, 5, 5, 9]}
    data = datasets.Dataset.from_dict({name: list(column) for name, column in columns.items()}, features=features)
    name = str(tmp_path / "x.parquet")
    data.to_parquet(name)
    assert open_images([name]).labels is None
    check_source(open_images([name], "after", "kind"), second, ["x", "y"], [1, 0, 1, 0])
    check_source(open_images([name], label_column="n"), first, ["5", "7", "9"], [1, 0, 0, 2])
    for columns, said in ((("photo", None), "has no 'photo'; it has before, after"), ((None, "z"), "has no 'z'")):
        with pytest.raises(InputError, match=said):
            open_images([name], *columns)


def test_the_usual_names_of_columns_come_before_their_types(tmp_path):
    first, second = random_images(4, seed=1), random_images(4, seed=2)
    file, binary = datasets.Image(), datasets.Value("binary")
    kinds, text = datasets.ClassLabel(names=["A", "B"]), datasets.Value("string")
    cases = [
        ({"camera": kinds, "label": text}, "label", "camera"),
        ({"coarse_label": kinds, "fine_label": kinds}, "fine_label", "coarse_label"),
        ({"labels": datasets.Value("int64"), "kind": kinds}, "labels", "kind"),
        ({"Label": kinds, "note": text}, "Label", None),
    ]
    for number, (columns, label, other) in enumerate(cases):
        features = datasets.Features({"raw": binary, "photo": file, **columns})
        rows = {"raw": list(map(png, first)), "photo": list(map(to_image, second))}
        for name in columns:
            numbers = [1, 0, 0, 1] if name == label else [0, 1, 0, 1]
            rows[name] = [str(number) for number in numbers] if columns[name] == text else numbers
        name = str(tmp_path / f"{number}.parquet")
        datasets.Dataset.from_dict(rows, features=features).to_parquet(name)
        source = open_images([name])
        check_source(source, second, source.class_names, [1, 0, 0, 1])
        expected = [f"{name}: photo is used, not raw; see --image_column"]
        expected += [f"{name}: {label} is used, not {other}; see --label_column"] if other else []
        assert source.notes == expected
        assert source.columns == [f"{name}: the images are in photo, the labels in {label}"]
    check_source(open_images([name], "raw"), first, ["A", "B"], [1, 0, 0, 1])


def test_whole_numbers_that_became_floats_are_labels(tmp_path):
    images = random_images(4)
    files = pa.array(list(map(png, images)))
    for labels, problem in (
        ([2.0**24 + 1, 2.0**24, 2.0**24, 2.0**24 + 1], None),
        ([9.0, 2.5, 2, 1], "float64"),
        ([1.0, None, 0, 1], ":1 "),
    ):
        pyarrow.parquet.write_table(pa.table({"image": files, "label": labels}), tmp_path / "x.parquet")
        if problem:
            with pytest.raises(InputError, match=problem):
                open_images([str(tmp_path / "x.parquet")])
        else:
            check_source(open_images([str(tmp_path / "x.parquet")]), images, ["16777216", "16777217"], [1, 0, 0, 1])


def test_a_column_that_holds_no_images_is_refused_as_the_image_column(tmp_path):
    name = str(tmp_path / "x.parquet")
    table()[0].to_parquet(name)
    with pytest.raises(InputError, match="label"):
        prepare_images(tmp_path / "out", name, image_column="label")
    with pytest.raises(InputError, match="image"):
        prepare_images(tmp_path / "out", name, label_column="image")


def test_rows_without_a_label_are_refused_with_their_place(tmp_path):
    data, _ = table()
    data = data.cast_column("label", datasets.ClassLabel(names=["owl", "ant"]))
    rows = {"image": data["image"][:], "label": [0, 1, -1, 0, 1, 0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=FEATURES).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(InputError, match=r"a\.parquet:2 has no label"):
        open_images([str(tmp_path / "a.parquet")])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows["label"] = ["a", "b", None, "a", "b", "a", "b", None]
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "b.parquet"))
    with pytest.raises(InputError, match=r"b\.parquet:2 has no label"):
        open_images([str(tmp_path / "b.parquet")])


def test_an_empty_cell_and_a_damaged_one_are_bad_images_and_the_others_are_read(tmp_path):
    images = random_images(4)
    cells = [{"bytes": png(images[0]), "path": None}, {"bytes": None, "path": None}]
    cells += [{"bytes": b"", "path": None}, {"bytes": png(images[3])[:40], "path": None}]
    column = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pyarrow.parquet.write_table(pa.table({"image": column, "label": [0, 1, 0, 1]}), tmp_path / "x.parquet")
    found = open_images([str(tmp_path / "x.parquet")]).load(0, 4)
    assert (np.asarray(found[0]) == images[0][..., 0]).all()
    assert all(isinstance(one, BadImage) for one in found[1:])
    assert found[1].reason == "there is no image in this row"


# Arrays


@pytest.mark.parametrize(
    ("images", "labels"), [("image", "label"), ("x", "y"), ("data", "target"), ("images", "labels")]
)
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_an_npz_file_is_read_by_the_usual_names_of_its_arrays(tmp_path, images, labels, channels):
    originals = random_images(7, (4, 6), max(channels, 1))
    numbers = np.array([30, 4, 4, 100, 30, 4, 100])
    arrays = {images: originals if channels else originals[..., 0], labels: numbers, "other": np.zeros(3)}
    np.savez(tmp_path / "x.npz", **arrays)
    check_source(open_images([str(tmp_path / "x.npz")]), originals, ["4", "30", "100"], [1, 0, 0, 2, 1, 0, 2])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_images_of_an_npz_file_are_never_all_in_memory(tmp_path, save):
    images = np.zeros((64, 1024, 1024), np.uint8)
    images[:, 0, 0] = np.arange(64)
    save(tmp_path / "x.npz", image=images, label=np.arange(64) % 2)
    del images
    tracemalloc.start()
    try:
        source = open_images([str(tmp_path / "x.npz")])
        seen = [np.asarray(image)[0, 0] for _, part in batches(source) for image in part]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == list(range(64))
    assert peak < 16 << 20  # of 64 MiB


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["cat", "ant", "cat"], ["ant", "cat"]),
        ([b"cat", b"ant", b"cat"], ["ant", "cat"]),
        ([True, False, True], ["False", "True"]),
        (["10", "9", "10"], ["9", "10"]),
        ([3, -1, 3], None),
    ],
)
def test_labels_of_an_npz_file_may_be_words_or_any_whole_numbers(tmp_path, labels, names):
    np.savez(tmp_path / "x.npz", image=random_images(3), label=np.array(labels))
    source = open_images([str(tmp_path / "x.npz")])
    assert [source.class_names[label] for label in source.labels] == [
        label.decode() if isinstance(label, bytes) else str(label) for label in labels
    ]
    assert names is None or source.class_names == names


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": np.zeros((3, 4, 4), np.int32), "label": [0, 1, 0]}, "'image' is int32 of shape"),
        ({"image": np.zeros((3, 4, 4, 2), np.uint8), "label": [0, 1, 0]}, "expected uint8 of shape"),
        ({"image": np.zeros((3, 16), np.uint8), "label": [0, 1, 0]}, "expected uint8 of shape"),
        ({"image": np.zeros((3, 4, 4), np.uint8), "label": [0, 1]}, "3 images, but 'label' has shape"),
        ({"image": np.zeros((3, 4, 4), np.uint8), "label": [0.5, 1, 0]}, "the labels are of type float64"),
        ({"image": np.zeros((3, 4, 4), np.uint8)}, "x.npz: an array of images without their labels"),
        ({"pictures": np.zeros((3, 4, 4), np.uint8), "label": [0, 1, 0]}, "choose one of them with --image_column"),
        ({"image": np.zeros((3, 4, 4), np.uint8), "label": np.array([0, "a", None], object)}, "can't be read"),
        ({"image": np.zeros((0, 4, 4), np.uint8), "label": np.zeros(0, int)}, "x.npz"),
        ({"image": np.zeros((3, 4, 4), np.uint8), "label": [5, 5, 5]}, r"all images are of one class \(5\)"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "x.npz", **{name: np.asarray(values) for name, values in arrays.items()})
    with pytest.raises(InputError, match=said):
        prepare_images(tmp_path / "out", tmp_path / "x.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


MEDMNIST = [f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("images", "labels")]


@pytest.mark.parametrize(
    ("names", "used", "validation_size"),
    [
        (["x_train", "y_train", "x_test", "y_test"], ["train", "test"], 0.1),
        (["X_train", "y_train", "X_val", "y_val"], ["train", "val"], 0.1),
        (MEDMNIST, ["train", "val", "test"], 0.1),
        (MEDMNIST, ["train", "test"], 0),
    ],
)
def test_archives_with_arrays_for_each_split_are_read(tmp_path, names, used, validation_size):
    images, labels = random_images(12), np.arange(12)[:, None] % 3
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    arrays = {}
    for name in names:
        part = next(part for part in parts if part in name)
        arrays[name] = (labels if "label" in name or "y" in name else images)[parts[part]]
    path = str(tmp_path / "x.npz")
    np.savez(path, **arrays)
    found = labelled(path, validation_size=validation_size)
    for source, part in zip(found.sources, used, strict=True):
        check_source(source, images[parts[part]], ["0", "1", "2"], (np.arange(12) % 3)[parts[part]].tolist())
    note = f"{path} has a {', a '.join(used[:-1])} and a {used[-1]} split, which are used as they are"
    assert found.notes[0] == (note if validation_size else f"{note}; not used: val")
    # Every image is found by its number in the whole.
    numbers = np.concatenate([np.arange(12)[parts[part]] for part in used])
    for i, number in enumerate(numbers):
        assert (np.asarray(found.load(i)) == images[number, ..., 0]).all()
    alone = open_images([path])  # as inference opens it
    check_source(alone, images[parts[used[-1]]], ["0", "1", "2"], [0, 1, 2])
    assert alone.notes[0].startswith(f"{path}: split {used[-1]} is used; it also has train")
    image_key = next(name for name in names if "train" in name)
    check_source(open_images([path], image_key), images[:6], ["0", "1", "2"], [0, 1, 2] * 2)


def test_arrays_can_be_named(tmp_path):
    images = random_images(4)
    arrays = {"image": np.zeros(3), "pics": images, "label": np.zeros(4), "kind": np.array([2, 1, 2, 1])}
    np.savez(tmp_path / "x.npz", **arrays)
    check_source(open_images([str(tmp_path / "x.npz")], "pics", "kind"), images, ["1", "2"], [1, 0, 1, 0])
    with pytest.raises(InputError, match="has no 'pictures'; it has image, pics, label, kind; see --image_column"):
        open_images([str(tmp_path / "x.npz")], "pictures")


def test_a_pickled_object_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "x.npz", image=np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match="can't be read"):
        open_images([str(tmp_path / "x.npz")])
    assert not (tmp_path / "sprung").exists()


# Several sources


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


# Pixels of every mode


def flat(image: Image.Image, background: int = 0) -> list:
    return np.asarray(flatten(image, background)).tolist()


def test_pixels_of_every_mode_become_grey_or_colour():
    grey = np.array([[0, 7, 255]], dtype=np.uint8)
    colour = np.array([[[10, 20, 30], [0, 0, 255]]], dtype=np.uint8)
    assert flat(Image.fromarray(grey)) == grey.tolist()
    assert flat(Image.fromarray(colour)) == colour.tolist()
    assert flat(Image.fromarray(np.array([[True, False]]))) == [[255, 0]]
    # 65535 / 257 = 255; 128 / 257 = 0.498; 129 / 257 = 0.502
    assert flat(Image.fromarray(np.array([[65535, 128, 129, 257, 32896]], dtype=np.uint16))) == [[255, 0, 1, 1, 128]]
    big_endian = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 65535, 514))
    assert flat(big_endian) == [[255, 2]]
    # Ink c, m, y, k leaves (255−c)(255−k)/255.
    assert flat(Image.fromarray(np.array([[[255, 0, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8), mode="CMYK")) == [
        [[0, 255, 255], [0, 0, 0]]
    ]
    palette = Image.frombytes("P", (2, 1), b"\1\0")
    palette.putpalette([1, 2, 3, 200, 100, 50])
    assert flat(palette) == [[[200, 100, 50], [1, 2, 3]]]


@pytest.mark.parametrize(("background", "expected"), [(0, 51), (255, 204), (100, 111)])
def test_transparent_pixels_lie_over_the_background(background, expected):
    """Alpha 102/255 = 0.4 of 128 (51.2), and 0.6 of the background: 51, 204, 111."""
    grey_alpha = Image.fromarray(np.array([[[128, 102], [128, 255], [128, 0]]], dtype=np.uint8), mode="LA")
    values = np.array([expected, 128, background])
    assert np.abs(np.array(flat(grey_alpha, background)) - values[None, :, None]).max() <= 1
    colour = np.array([[[128, 0, 255, 102], [1, 2, 3, 255], [9, 9, 9, 0]]], dtype=np.uint8)
    found = np.array(flat(Image.fromarray(colour), background))[0]
    mixed = 0.4 * np.array([128, 0, 255]) + 0.6 * background
    assert np.abs(found[0] - mixed).max() <= 1
    assert found[1:].tolist() == [[1, 2, 3], [background] * 3]


def test_transparent_entries_of_a_palette_lie_over_the_background(tmp_path):
    image = Image.frombytes("P", (3, 1), b"\0\1\2")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "one.png", transparency=1)
    image.save(tmp_path / "each.png", transparency=bytes([255, 255, 0]))
    image.save(tmp_path / "one.gif", transparency=0)
    assert flat(read_image(tmp_path / "one.png"), 7) == [[[10, 20, 30], [7, 7, 7], [70, 80, 90]]]
    assert flat(read_image(tmp_path / "each.png"), 7) == [[[10, 20, 30], [40, 50, 60], [7, 7, 7]]]
    assert flat(read_image(tmp_path / "one.gif"), 7)[0][0] == [7, 7, 7]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_image_with_an_exif_orientation_is_set_upright(tmp_path, orientation, upright, suffix):
    pixels = np.zeros((16, 24), dtype=np.uint8)
    pixels[:8, :8], pixels[8:, 16:] = 255, 130
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / f"x{suffix}", exif=exif)
    found = np.array(flat(read_image(tmp_path / f"x{suffix}")))
    expected = upright(pixels)
    assert found.shape == expected.shape
    assert np.abs(found - expected.astype(int)).max() <= 2


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (40, 90, 200)]
    for suffix in (".gif", ".webp", ".png"):
        file = tmp_path / f"x{suffix}"
        frames[0].save(
            file, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == ".webp" else {})
        )
        assert np.unique(flat(read_image(file))).tolist() == [40]


def test_32_bit_pixels_have_no_known_range():
    for mode in "IF":
        with pytest.raises(ValueError, match=rf"32-bit pixels \(mode {mode}\) have no known range"):
            flatten(Image.new(mode, (2, 2)), 0)


# Form


def test_padding_keeps_the_pixels_of_a_small_image_in_the_middle_of_the_background():
    pixels = random_images(1, (2, 4), 3)[0]
    found = read_pixels(to_image(pixels), (6, 8), 3, "pad", 77)
    expected = np.full((6, 8, 3), 77, dtype=np.uint8)
    expected[2:4, 2:6] = pixels
    assert (found == expected).all()


def test_padding_shrinks_a_large_image_by_one_factor_for_both_sides():
    """16×32 into 8×8: half of the width is a quarter of it, so the image takes 4×8, on rows 2 to 5."""
    found = read_pixels(Image.new("L", (32, 16), 200), (8, 8), 1, "pad", 10)[..., 0]
    assert (found[2:6] == 200).all()
    assert (found[:2] == 10).all() and (found[6:] == 10).all()


def test_resizing_is_pillows_bicubic_and_fills_the_whole_image():
    image = to_image(random_images(1, (5, 9), 1)[0])
    expected = np.asarray(image.resize((12, 7), Image.Resampling.BICUBIC))
    assert (read_pixels(image, (7, 12), 1, "resize", 99)[..., 0] == expected).all()
    assert (read_pixels(image, (5, 9), 1, "resize", 99)[..., 0] == np.asarray(image)).all()


def test_colour_becomes_grey_by_luma_and_grey_becomes_equal_channels():
    pixels = random_images(1, (6, 7), 3)[0]
    found = read_pixels(to_image(pixels), (6, 7), 1, "resize", 0)[..., 0]
    assert np.abs(found - pixels @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    grey = random_images(1, (6, 7))[0]
    assert (read_pixels(to_image(grey), (6, 7), 3, "resize", 0) == grey).all()


def test_sizes_are_height_and_width():
    assert (parse_size(None), parse_size("28"), parse_size("28x32"), parse_size("3×4")) == (
        None,
        (28, 28),
        (28, 32),
        (3, 4),
    )
    for text in ("0", "-3", "28x", "x", "1x2x3", "2.5", "abc"):
        with pytest.raises(InputError, match="--image_size"):
            parse_size(text)


# A folder that nobody prepared


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a hundred bytes that declares any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def wild_folder(root: Path) -> tuple[dict[str, int], list[str]]:
    """Images of one grey each in many formats, and files that are none; the greys and the bad files by name."""
    greys, bad = {}, []
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)

    def keep(image: Image.Image, name: str, grey: int, **options) -> None:
        image.save(root / name, **options)
        greys[name] = grey

    keep(Image.new("L", (8, 8), 1), "cat/plain.png", 1)
    keep(Image.new("L", (8, 8), 11), "dog/plain.bmp", 11)
    keep(Image.new("L", (5, 13), 21), "cat/odd_size.png", 21)
    keep(Image.new("RGBA", (8, 8), (255, 255, 255, 0)), "dog/clear.png", 40)
    keep(Image.new("RGBA", (8, 8), (31, 31, 31, 255)), "cat/opaque.png", 31)
    keep(Image.new("LA", (8, 8), (51, 255)), "dog/grey_alpha.png", 51)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 61, 61, 61])
    keep(palette, "cat/palette.png", 61)
    keep(palette, "dog/clear_palette.gif", 40, transparency=1)
    greys.pop("dog/clear_palette.gif")  # the same pixels as clear.png: a duplicate
    keep(Image.fromarray(np.full((8, 8), 71 * 257, dtype=np.uint16)), "cat/sixteen_bits.png", 71)
    keep(Image.new("1", (8, 8), 1), "dog/one_bit.png", 255)
    keep(Image.new("CMYK", (8, 8), (0, 0, 0, 255 - 81)), "cat/ink.jpg", 81, quality=100)
    exif = Image.Exif()
    exif[274] = 6
    keep(Image.new("L", (8, 8), 91), "dog/turned.jpg", 91, exif=exif, quality=100)
    keep(Image.new("L", (8, 8), 101), "cat/moving.gif", 101, save_all=True, append_images=[Image.new("L", (8, 8), 3)])
    keep(Image.new("L", (8, 8), 111), "dog/plain.webp", 111, lossless=True)
    keep(Image.new("L", (8, 8), 121), "cat/wrong_suffix.jpg", 121, format="PNG")
    keep(Image.new("RGB", (8, 8), (131, 131, 131)), "dog/UPPER.JPEG", 131, quality=100)
    keep(Image.new("L", (8, 8), 141), "cat/name with, spaces & ümlauts.tiff", 141)

    def spoil(name: str, content: bytes) -> None:
        (root / name).write_bytes(content)
        bad.append(name)

    buffer = io.BytesIO()
    Image.new("F", (8, 8), 0.5).save(buffer, "TIFF")
    spoil("cat/float.tif", buffer.getvalue())
    spoil("dog/empty.png", b"")
    spoil("cat/cut.png", png(random_images(1, (32, 32))[0])[:400])
    spoil("dog/text.png", b"not an image")
    spoil("cat/bomb.png", bomb(60_000, 60_000))
    spoil("dog/half_bomb.png", bomb(10_000, 10_000))
    spoil("cat/video.mp4", b"\0\0\0\x18ftypmp42" + bytes(40))
    return greys, bad


@pytest.fixture(scope="module")
def wild(tmp_path_factory) -> tuple[Path, dict[str, int], list[str]]:
    root = tmp_path_factory.mktemp("wild") / "photos"
    return root, *wild_folder(root)


def test_a_folder_that_nobody_prepared_loses_nothing_but_what_it_names(wild, tmp_path):
    root, greys, bad = wild
    codec = grey_levels_codec(tmp_path / "codec", (8, 8))
    config = json.loads((codec / "codec.json").read_text())
    (codec / "codec.json").write_text(json.dumps(config | {"background": 40}))
    done = run(
        *("prepare_dataset.py", "--images", root, "--output_dir", tmp_path / "out", "--codec", codec),
        *("--write_jsonl", "--device", "cpu", "--split_by", "hash", "--test_size", "0.4"),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/raw/rows.jsonl").read_text().splitlines()]
    greys_found = {}
    for row in rows:
        codes = {int(token[3:-1]) for token in row["tokens"].split() if token.startswith("<Z_")}
        greys_found[next(name for name in [*greys, "dog/clear_palette.gif"] if name in row["source"])] = codes
    assert greys_found.pop("dog/clear_palette.gif") == {40}
    assert greys_found.keys() == greys.keys()
    for name, grey in greys.items():
        assert max(abs(code - grey) for code in greys_found[name]) <= (1 if "jpg" in name or "JPEG" in name else 0), (
            name
        )
    data = load_prepared(tmp_path / "out")
    assert sum(map(len, data.values())) == len(greys)
    kept = [json.loads(line) for line in (tmp_path / "out/bad_rows.jsonl").read_text().splitlines()]
    assert sorted(row["file"] for row in kept) == sorted(str(root / name) for name in bad)
    for row in kept:
        assert row["kind"] == "unreadable_image"
        lines = [line for line in done.stderr.splitlines() if row["file"] in line]
        assert lines == [f"  {row['file']}: {row['reason']}"]
    assert f"{len(greys) + 1 + len(bad)} read, {len(bad)} bad" in done.stdout
    assert f"1 of {len(greys) + 1} images aren't 8×8 pixels and are resized" in done.stdout


def test_bad_images_stop_the_command_with_code_2_where_asked(wild, tmp_path):
    root, _, bad = wild
    done = run(
        *("prepare_dataset.py", "--images", root, "--output_dir", tmp_path / "out", "--codebook_size", 4),
        *("--on_bad_rows", "stop", "--device", "cpu"),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(str(root / name) in done.stderr for name in bad)
    assert f"{len(bad)} bad rows (unreadable_image {len(bad)})" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("orientation", "size"), [(1, (3, 5)), (3, (3, 5)), (6, (5, 3)), (8, (5, 3))])
def test_the_size_of_an_image_is_that_of_the_upright_one(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("L", (5, 3)).save(tmp_path / "x.jpg", exif=exif)
    image = read_image(tmp_path / "x.jpg")
    assert upright_size(image) == size == flatten(image, 0).size[::-1]


def test_images_with_damaged_exif_data_are_read(tmp_path):
    cats_and_dogs(tmp_path / "in", per_class=4)
    for i, exif in enumerate(
        (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12")
    ):
        to_image(random_images(1, seed=20 + i)[0]).save(tmp_path / f"in/cat/broken{i}.jpg", exif=exif)
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in")
    assert sum(map(len, data.values())) == 11
    assert stats["bad_rows"]["total"] == 0


def test_a_file_name_that_is_no_unicode_text_does_no_harm(tmp_path):
    cats_and_dogs(tmp_path / "in", per_class=4)
    (tmp_path / "in/cat/0.png").rename(Path(str(tmp_path / "in/cat/\udcff.png")))
    data, _ = prepare_images(tmp_path / "out", tmp_path / "in", write_jsonl=True)
    assert sum(map(len, data.values())) == 8


def test_where_no_image_can_be_read_the_files_are_named(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "x.png").write_text("x")
    with pytest.raises(InputError, match=r"none of the 2 images can be read(.|\n)*dog/x\.png: not an image"):
        prepare_images(tmp_path / "out", tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_more_bad_images_than_are_shown_are_all_kept_in_the_file(tmp_path):
    cats_and_dogs(tmp_path / "in", per_class=4)
    for i in range(30):
        (tmp_path / f"in/cat/bad{i}.png").touch()
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in")
    assert stats["bad_rows"]["total"] == 30 and len(stats["bad_rows"]["first"]) == 20
    kept = [json.loads(line)["file"] for line in (tmp_path / "out/bad_rows.jsonl").read_text().splitlines()]
    assert kept == [str(tmp_path / f"in/cat/bad{i}.png") for i in range(30)]
    assert len(np.concatenate([entries_in(rows, tmp_path / "out") for rows in data.values()])) == 8


# Names


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


def test_a_class_is_the_same_in_either_unicode_form(tmp_path):
    for side, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        class_folder(tmp_path / side, {name: random_images(6, seed=len(side)), "the": random_images(6, seed=9)})
    np.savez(tmp_path / "x.npz", x=random_images(4), y=["caf\u00e9", "cafe\u0301", "the", "the"])
    source = open_images([str(tmp_path / name) for name in ("train", "test", "x.npz")])
    assert source.class_names == ["caf\u00e9", "the"]
    assert np.bincount(source.labels).tolist() == [6 + 6 + 2, 6 + 6 + 2]
