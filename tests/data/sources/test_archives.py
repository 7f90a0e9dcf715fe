"""Packed folders and WebDataset archives: what is read of them, and what no archive can do."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelm.data.sources import archives
from imagelm.data.sources.open import open_images
from imagelm.utils.errors import InputError
from tests.data.sources.common import labelled
from tests.images import cats_and_dogs, prepare_images, random_images, to_image


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), grey).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {f"{name}/{i}.png": png(10 * i + k) for k, name in enumerate(("cat", "dog")) for i in range(3)}


def greys(source) -> list[int]:
    return [int(np.asarray(image)[0, 0]) for image in source.load(0, len(source))]


def tar(file: Path, members: dict[str, bytes], *special: tarfile.TarInfo, mode: str = "w") -> Path:
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in special:
            archive.addfile(member)
    return file


def packed(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """The folder of temporary files, which has to be empty again at the end."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    yield tmp_path / "scratch"
    gc.collect()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("name", ["x.zip", "X.ZIP", "x.tar", "x.tar.gz", "x.tgz", "x.TAR.XZ", "x.tar.bz2"])
@pytest.mark.parametrize("top", ["", "pets/", "./"])
def test_a_packed_folder_of_classes_is_read_and_nothing_of_it_stays(tmp_path, scratch, name, top):
    members = {f"{top}{name}": content for name, content in IMAGES.items()} | {"__MACOSX/cat/._0.png": b"x"}
    kind = {"gz": "w:gz", "xz": "w:xz", "bz2": "w:bz2", "tgz": "w:gz"}.get(name.lower().rpartition(".")[2], "w")
    file = packed(tmp_path / name, members) if "zip" in name.lower() else tar(tmp_path / name, members, mode=kind)
    source = open_images([str(file)])
    assert (source.class_names, source.labels.tolist()) == (["cat", "dog"], [0, 0, 0, 1, 1, 1])
    assert greys(source) == [0, 10, 20, 1, 11, 21]
    assert source.name(4) == "dog/1.png" and source.place(4) == f"{file}/{top.replace('./', '')}dog/1.png"
    assert source.notes == [] and len(list(scratch.iterdir())) == 1


def test_splits_lists_tables_and_arrays_inside_an_archive(tmp_path, scratch):
    for side, count in (("train", 3), ("val", 1)):
        cats_and_dogs(tmp_path / "pets" / side, per_class=count, seed=count)
    file = shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "pets")
    images = labelled(file)
    assert list(map(len, images.sources)) == [6, 2]
    assert images.notes[0] == f"{file} has a train and a val split, which are used as they are"
    assert len(open_images([file], split="validation")) == 2
    rows = "file_name,label\n" + "".join(f"{name},{name[:3]}\n" for name in ("cat/1.png", "dog/0.png"))
    flat = {name.replace("/", "_"): content for name, content in IMAGES.items()}
    listed = packed(tmp_path / "list.zip", {**flat, "metadata.csv": rows.replace("/", "_").encode()})
    source = open_images([str(listed)])
    assert greys(source) == [10, 1] and source.place(1) == f"{listed}:1" and source.name(1) == "list.zip:1"
    buffer = io.BytesIO()
    np.savez(buffer, x_train=random_images(4), y_train=[0, 1, 0, 1], x_test=random_images(2), y_test=[0, 1])
    digits = packed(tmp_path / "arrays.zip", {"data/digits.npz": buffer.getvalue()})
    assert list(map(len, labelled(digits).sources)) == [4, 2]
    del images, source


def test_archives_of_the_splits_beside_each_other(tmp_path, scratch):
    (tmp_path / "data").mkdir()
    packed(tmp_path / "data/train.zip", IMAGES)
    tar(tmp_path / "data/test.tar", {name: content for name, content in IMAGES.items() if "0" in name})
    for name in (tmp_path / "data", f"{tmp_path}/data/*"):
        assert list(map(len, labelled(name).sources)) == [6, 2]


def test_a_dataset_of_an_archive_is_prepared_and_no_temporary_name_is_written(tmp_path, scratch):
    cats_and_dogs(tmp_path / "in/pets", per_class=5)
    file = shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "in")
    prepare_images(tmp_path / "out", file, write_jsonl=True)
    rows = [json.loads(line) for line in (tmp_path / "out/raw/rows.jsonl").read_text().splitlines()]
    assert sorted(row["source"].partition(":")[2] for row in rows) == sorted(
        f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)
    )
    assert not any(scratch.name in file.read_text(errors="ignore") for file in (tmp_path / "out").glob("*.*"))


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "cat/../../evil.png", "..\\evil.png", "C:\\evil.png"])
def test_a_name_that_leads_out_of_the_archive_refuses_it(tmp_path, scratch, name):
    for file in (packed(tmp_path / "x.zip", IMAGES | {name: b"x"}), tar(tmp_path / "x.tar", IMAGES | {name: b"x"})):
        with pytest.raises(InputError, match=r"names a file outside its folder .*evil.*, so nothing was unpacked"):
            open_images([str(file)])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["scratch", "x.tar", "x.zip"]
    assert not Path("/tmp/evil.png").exists()


def test_links_and_devices_of_an_archive_are_never_made(tmp_path, scratch):
    (tmp_path / "private.png").write_bytes(png(99))
    links = [
        special("cat/link.png", tarfile.SYMTYPE, str(tmp_path / "private.png")),
        special("cat/up", tarfile.SYMTYPE, "../.."),
        special("cat/hard.png", tarfile.LNKTYPE, "../private.png"),
        special("cat/null.png", tarfile.CHRTYPE),
        special("cat/pipe.png", tarfile.FIFOTYPE),
    ]
    source = open_images([str(tar(tmp_path / "x.tar", IMAGES, *links))])
    assert greys(source) == [0, 10, 20, 1, 11, 21]
    assert source.notes == [f"{tmp_path}/x.tar: not unpacked, because it is no regular file: cat/link.png and 4 more"]
    file = packed(tmp_path / "x.zip", IMAGES)
    with zipfile.ZipFile(file, "a") as archive:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / "private.png"))
    source = open_images([str(file)])
    assert len(source) == 6 and "no regular file: cat/link.png" in source.notes[0]
    # A folder that is a link, and then a file through it.
    member = tarfile.TarInfo("out/evil.png")
    through = tar(tmp_path / "y.tar", IMAGES, special("out", tarfile.SYMTYPE, str(tmp_path)), member)
    source = open_images([str(through)])
    assert not (tmp_path / "evil.png").exists() and len(source) == 7
    del source


def test_an_archive_that_unpacks_to_far_more_than_images_do_is_refused(tmp_path, scratch, monkeypatch):
    zeros = bytes(1 << 24)
    file = tmp_path / "bomb.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("cat/0.png", zeros)
    content = bytearray(file.read_bytes())
    entry = content.find(b"PK\1\2")
    content[entry + 24 : entry + 28] = (1 << 31).to_bytes(4, "little")  # as if it were 2 GiB
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"bomb\.zip of .* bytes unpacks to more than .* 1,073,741,824 bytes"):
        open_images([str(file)])
    monkeypatch.setattr(archives, "FREE_FILES", 100)
    many = packed(tmp_path / "many.zip", {f"{i:x}": b"" for i in range(1000)})  # less than 100 bytes each
    with pytest.raises(InputError, match=r"many\.zip of .* unpacks to more than \d+ files"):
        open_images([str(many)])
    huge = tarfile.TarInfo("cat/9.png")
    huge.size = 1 << 31
    with open(tmp_path / "huge.tar", "wb") as stream:
        stream.write(huge.tobuf())
    with pytest.raises(InputError, match=r"huge\.tar of .* unpacks to more than"):
        open_images([str(tmp_path / "huge.tar")])


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar"])
def test_damaged_archives_are_refused_and_leave_nothing(tmp_path, scratch, name):
    noise = os.urandom(4000)
    members = {f"cat/{i}.png": noise for i in range(3)}
    file = (
        packed(tmp_path / name, members)
        if name == "x.zip"
        else tar(tmp_path / name, members, mode="w:gz" if name.endswith("gz") else "w")
    )
    whole = file.read_bytes()
    for content in (b"", b"anything", whole[:3000]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"{name} can't be unpacked: .*; it may be damaged or incomplete"):
            open_images([str(file)])


def test_an_encrypted_archive_is_named(tmp_path, scratch):
    content = bytearray(packed(tmp_path / "x.zip", {"cat/0.png": b"x"}).read_bytes())
    content[content.find(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match="is encrypted; unpack it"):
        open_images([str(tmp_path / "x.zip")])


def test_an_archive_inside_an_archive_is_not_unpacked(tmp_path, scratch):
    inner = packed(tmp_path / "inner.zip", IMAGES).read_bytes()
    with pytest.raises(InputError, match=r"holds no images; .*inner\.zip is a data file"):
        open_images([str(packed(tmp_path / "x.zip", {"inner.zip": inner}))])


# WebDataset


def samples(numbers: range, field: str, value) -> dict[str, bytes]:
    return {f"{i:04}.{kind}": content for i in numbers for kind, content in (("png", png(i)), (field, value(i)))}


def test_webdataset_archives_are_read_with_their_classes(tmp_path):
    classes = {
        "cls": lambda i: str(i % 2).encode(),
        "json": lambda i: json.dumps({"label": "ba"[i % 2], "w": 8}).encode(),
    }
    for (field, value), names in zip(classes.items(), (["0", "1"], ["a", "b"]), strict=True):
        source = open_images([str(tar(tmp_path / f"{field}.tar", samples(range(4), field, value)))])
        expected = [0, 1, 0, 1] if field == "cls" else [1, 0, 1, 0]
        assert (source.class_names, source.labels.tolist(), greys(source)) == (names, expected, [0, 1, 2, 3])
        column = field if field == "cls" else "json.label"
        assert source.columns == [f"{tmp_path}/{field}.tar: the images are in png, the labels in {column}"]


def test_shards_of_a_webdataset_are_joined_and_split_by_their_names(tmp_path):
    for name, numbers in (("train-0000", range(3)), ("train-0001", range(3, 6)), ("val-0000", range(6, 8))):
        tar(tmp_path / "in" / f"{name}.tar", samples(numbers, "cls", lambda i: str(i % 2).encode()))
    for names in ([tmp_path / "in"], [f"{tmp_path}/in/*.tar"], sorted((tmp_path / "in").iterdir())):
        images = labelled(*names)
        assert list(map(greys, images.sources)) == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert greys(open_images([str(tmp_path / "in")], split="dev")) == [6, 7]


def test_a_webdataset_with_compressed_fields_is_refused(tmp_path):
    members = samples(range(2), "cls", lambda i: b"0") | {"0002.txt.gz": b"x"}
    with pytest.raises(InputError, match=r"0002\.txt\.gz is compressed inside the archive"):
        open_images([str(tar(tmp_path / "x.tar", members))])


def test_images_are_as_good_by_an_archive_as_by_their_folder(tmp_path):
    images = random_images(6, channels=3)
    for i, pixels in enumerate(images):
        path = tmp_path / "in" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_image(pixels).save(path)
    by_folder = open_images([str(tmp_path / "in")])
    by_archive = open_images([shutil.make_archive(str(tmp_path / "x"), "gztar", tmp_path / "in")])
    assert by_archive.labels.tolist() == by_folder.labels.tolist()
    for one, other in zip(by_folder.load(0, 6), by_archive.load(0, 6), strict=True):
        assert (np.asarray(one) == np.asarray(other)).all()
