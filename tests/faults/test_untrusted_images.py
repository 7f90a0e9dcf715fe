"""Images and tables of other people: no program is run, nothing fills the memory, no file outside is read."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.config import HF_DATASETS_CACHE
from PIL import Image

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.sources.decode import BadImage, read_image
from imagelm.data.sources.open import open_images
from imagelm.inference.arguments import InputArguments
from imagelm.utils.errors import InputError
from tests.data.sources.common import png
from tests.faults.common import mounted
from tests.images import smooth_images


def bomb(side: int) -> bytes:
    """A PNG of side² white pixels, in some kilobytes."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def test_an_image_of_too_many_pixels_is_not_unpacked(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb(20_000))
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    found = read_image(tmp_path / "bomb.png")
    assert isinstance(found, BadImage)
    assert "decompression bomb" in found.reason


def test_an_image_format_that_would_start_a_program_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert read_image(tmp_path / "x.png") == BadImage("not an image of a known format, or damaged")


def test_an_array_without_room_to_unpack_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """Ten kilobytes that unpack to ten megabytes, where there is room for one."""
    file = tmp_path / "x.npz"
    np.savez_compressed(file, image=np.zeros((10_000, 32, 32), dtype=np.uint8), label=np.zeros(10_000, dtype=int))
    assert file.stat().st_size < 50_000
    with mounted(tmp_path / "small", "size=1m") as small:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        with pytest.raises(InputError, match=r"array 'image' unpacks to 10,240,128 bytes, .* has room for"):
            open_images([str(file)])
        assert list(small.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert len(open_images([str(file)])) == 10_000


def test_an_array_that_claims_terabytes_is_refused(tmp_path):
    file = tmp_path / "x.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 1000, 1000)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header.getvalue() + bytes(1000))
    with pytest.raises(InputError, match=r"x\.npz"):
        open_images([str(file)])


def test_an_npz_of_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", image=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="pickle"):
        open_images([str(tmp_path / "x.npz")])


# Tables that name files


@pytest.fixture
def stranger(tmp_path) -> Path:
    """A folder with images of other people, one of them behind a link out of it, and a file beside the folder."""
    inside = tmp_path / "downloads"
    (inside / "pics").mkdir(parents=True)
    for file in (tmp_path / "private.png", inside / "passport.png", inside / "pics/0.png"):
        file.write_bytes(png(smooth_images(1, channels=3)[0]))
    (inside / "link.png").symlink_to(tmp_path / "private.png")
    os.mkfifo(inside / "pipe.png")
    return inside


def write_paths(file: Path, paths: list, **columns: list) -> Path:
    """A Parquet or Arrow file of rows with a path and no bytes."""
    cells = [{"bytes": None, "path": path} for path in paths]
    column = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": column, "label": [i % 2 for i in range(len(paths))], **columns})
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return file


def reasons(source) -> list[str | None]:
    """Why each image can't be read; None for one that can."""
    return [getattr(image, "reason", None) for image in source.load(0, len(source))]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_reads_no_file_beside_it(stranger, suffix, monkeypatch):
    monkeypatch.chdir(stranger)
    paths = [str(stranger / "passport.png"), "passport.png", "pics/0.png", "../private.png", "link.png", "/dev/zero"]
    paths += [str(Path(HF_DATASETS_CACHE) / "downloads/x.png"), "\0", "x" * 5000]
    source = open_images([str(write_paths(stranger / f"x.{suffix}", paths))])
    assert all("--image_root" in reason for reason in reasons(source)) and source.notes == []


def test_a_table_that_lists_images_in_its_subfolders_is_read_from_anywhere(stranger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (stranger / "pics/1.png").write_bytes((stranger / "pics/0.png").read_bytes())
    (stranger / "pics/link.png").symlink_to(tmp_path / "private.png")
    listed = ["pics/0.png", "pics/1.png"]
    source = open_images([str(write_paths(stranger / "x.parquet", listed))])
    assert reasons(source) == [None, None]
    assert source.notes == [f"2 of 2 rows of {stranger / 'x.parquet'} name a file, which is read from {stranger}"]
    # One row that names anything else, and nothing is read.
    others = [
        "passport.png",
        "pics/../../private.png",
        "pics/link.png",
        str(stranger / "pics/0.png"),
        "pics/2.png",
        None,
    ]
    for other in others:
        source = open_images([str(write_paths(stranger / "x.parquet", [*listed, other]))])
        assert None not in reasons(source) and source.notes == []


def test_a_table_reads_files_inside_image_root_only(stranger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = ["passport.png", "pics/0.png", "pics/../passport.png", str(stranger / "pics/0.png")]
    outside = ["../private.png", str(tmp_path / "private.png"), "link.png", "/dev/zero", "\0", "pics/../../private.png"]
    bad = {"pipe.png": "not a regular file", "none.png": "no longer exists", "x" * 5000: "can't be decoded"}
    table = write_paths(stranger / "x.parquet", [*good, *outside, *bad, None])
    source = open_images([str(table)], image_root=str(stranger))
    found = reasons(source)
    assert found[: len(good)] == [None] * len(good)
    assert all("leads out of" in reason for reason in found[len(good) : len(good) + len(outside)])
    assert all(said in reason for said, reason in zip(bad.values(), found[len(good) + len(outside) :], strict=False))
    assert found[-1] == "there is no image in this row"
    assert source.notes == [f"13 of 14 rows of {table} name a file, which is read from {stranger}"]


def test_urls_in_a_table_are_never_opened(stranger):
    urls = ["http://127.0.0.1:9/x.png", "hf://datasets/a/b/x.png", f"zip://x.png::{stranger}/x.zip"]
    urls += [f"file://{stranger}/passport.png"]
    name = str(write_paths(stranger / "x.parquet", urls))
    for root in (None, str(stranger)):
        assert all("URLs aren't opened" in reason for reason in reasons(open_images([name], image_root=root)))


def test_columns_that_only_the_library_would_open_are_not_decoded(stranger):
    """Images inside lists and structures, and an image column called t, whose numbers the codec could use."""
    path = {"bytes": None, "path": str(stranger / "passport.png")}
    image = datasets.Image()
    features = {"image": image, "t": image, "many": [image], "deep": {"bytes": image, "path": datasets.Value("string")}}
    row = {"image": path, "t": path, "many": [path], "deep": {"bytes": path, "path": "x.png"}}
    schema = datasets.Features(features).arrow_schema
    pq.write_table(pa.Table.from_pylist([row], schema=schema), stranger / "x.parquet")
    name = str(stranger / "x.parquet")
    source = open_images([name])
    assert source.extra("t") is None and "--image_root" in str(reasons(source)[0])
    for column in ("many", "deep"):
        with pytest.raises(InputError, match="holds no images"):
            open_images([name], image_column=column)


def test_a_saved_dataset_reads_files_inside_its_folder_only(stranger, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": b"x", "path": None}] * 4, "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(stranger / "saved")
    (file,) = (stranger / "saved").glob("*.arrow")
    write_paths(file, ["own.png", str(stranger / "saved/own.png"), "../passport.png", str(tmp_path / "private.png")])
    (stranger / "saved/own.png").write_bytes((stranger / "passport.png").read_bytes())
    source = open_images([str(stranger / "saved")])
    found = reasons(source)
    assert found[:2] == [None, None] and all("leads out of" in reason for reason in found[2:])
    assert source.notes == [f"4 of 4 rows of {stranger}/saved name a file, which is read from {stranger}/saved"]


def test_an_image_root_without_effect_is_refused(stranger):
    for images, root, said in (("pics", stranger, "has no effect"), ("x.arrow", stranger / "none", "no such folder")):
        with pytest.raises(InputError, match=said):
            PrepareArguments(images=[images], output_dir="o", image_root=str(root))
        with pytest.raises(InputError, match=said):
            InputArguments(images=[images], image_root=str(root))
    with pytest.raises(InputError, match="--image_root needs --images"):
        InputArguments(image_root=str(stranger))


def test_a_saved_dataset_may_not_name_files_outside_of_it(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    shutil.copy(next((prepared / "train").glob("*.arrow")), tmp_path / "outside.arrow")
    state = tmp_path / "data/train/state.json"
    content = json.loads(state.read_text())
    for name in ("../../outside.arrow", str(tmp_path / "outside.arrow")):
        state.write_text(json.dumps(content | {"_data_files": [{"filename": name}]}))
        with pytest.raises(InputError, match="outside the folder"):
            load_prepared(tmp_path / "data")
        with pytest.raises(InputError, match="outside the folder"):
            open_images([str(tmp_path / "data")])
    state.write_text("[" * 10_000)
    with pytest.raises(InputError, match="damaged"):
        load_prepared(tmp_path / "data")
