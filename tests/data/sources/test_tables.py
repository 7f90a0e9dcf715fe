"""Tables: Parquet files and saved datasets, and which of their columns hold the images and the labels."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from imagelm.data.sources.decode import BadImage
from imagelm.data.sources.open import open_images
from imagelm.utils.errors import InputError
from tests.data.sources.common import FEATURES, check_source, labelled, png, table
from tests.images import prepare_images, random_images, to_image


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
