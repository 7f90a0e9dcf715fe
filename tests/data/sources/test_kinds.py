"""Files that aren't images or aren't read: each is named for what it is, and no text counts as a damaged image."""

from __future__ import annotations

import io
import shutil

import pytest
from PIL import Image

from imagelm.data.sources.decode import BadImage, read_image
from imagelm.data.sources.open import open_images
from imagelm.utils.errors import InputError
from tests.images import cats_and_dogs

ARRAYS, ROWS = r"numpy\.savez", "as Parquet"
OTHERS = {
    "a.h5": ("an HDF5 file", ARRAYS),
    "a.HDF5": ("an HDF5 file", ARRAYS),
    "a.mat": ("a MATLAB file", ARRAYS),
    "a.pkl": ("a pickle", ARRAYS),
    "a.pt": ("a file of tensors", ARRAYS),
    "a.tfrecord": ("a TFRecord file", ROWS),
    "a.sqlite": ("a database", ROWS),
    "a.xlsx": ("a table", ROWS),
    "a.rar": ("an archive", "unpack it"),
    "a.7z": ("an archive", "unpack it"),
    "a.tar.zst": ("an archive", "unpack it"),
    "a.csv.gz": ("an archive or a compressed file", "unpack it"),
    "a.pdf": ("a PDF document", "export its images"),
    "a.mp4": ("a video", "export its images"),
    "a.svg": ("a picture of a kind", "export its images"),
    "train-images-idx3-ubyte": ("an IDX file", ARRAYS),
    "t10k-labels-idx1-ubyte.gz": ("an IDX file", ARRAYS),
}
FIRST_BYTES = {
    "an HDF5 file": b"\x89HDF\r\n\x1a\n",
    "a database": b"SQLite format 3\0",
    "a PDF document": b"%PDF-1.7",
    "an archive": b"7z\xbc\xaf\x27\x1c",
    "a pickle": b"\x80\x04\x95",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_not_read_is_named_for_what_it_is(tmp_path, name):
    (tmp_path / "in/cat").mkdir(parents=True)
    kind, remedy = OTHERS[name]
    for file in (tmp_path / name, tmp_path / "in/cat" / name):
        file.write_bytes(b"anything")
    with pytest.raises(InputError, match=f"--images .*{name} is {kind}.* that isn't read; .*{remedy}"):
        open_images([str(tmp_path / name)])
    if name != "a.mp4":  # an image that can't be read
        with pytest.raises(InputError, match=f"in holds no images; .*{name} is {kind}"):
            open_images([str(tmp_path / "in")])


@pytest.mark.parametrize("kind", FIRST_BYTES)
def test_a_file_without_a_telling_name_is_known_by_its_first_bytes(tmp_path, kind):
    (tmp_path / "data_batch_1").write_bytes(FIRST_BYTES[kind] + bytes(9))
    with pytest.raises(InputError, match=f"data_batch_1 is {kind}"):
        open_images([str(tmp_path / "data_batch_1")])
    shutil.copy(tmp_path / "data_batch_1", tmp_path / "x.png")
    for file in (tmp_path / "x.png", io.BytesIO(FIRST_BYTES[kind])):
        image = read_image(file)
        assert isinstance(image, BadImage) and image.reason.startswith(kind)


@pytest.mark.parametrize(
    ("brand", "said"),
    [(b"heic", "install pillow-heif"), (b"mif1", "install pillow-heif"), (b"avif", "AVIF"), (b"isom", "a video")],
)
def test_a_photo_that_pillow_has_no_plugin_for_is_named(tmp_path, brand, said):
    for name in ("x.HEIC", "y.jpg"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(20))
    found = open_images([str(tmp_path)]).load(0, 2)
    assert all(isinstance(image, BadImage) and said in image.reason for image in found)
    with pytest.raises(InputError, match=said):
        open_images([str(tmp_path / "x.HEIC")])


def test_avif_is_read_where_pillow_has_it(tmp_path):
    if "AVIF" not in Image.registered_extensions().values():
        pytest.skip("this Pillow was built without AVIF")
    Image.new("L", (16, 16), 70).save(tmp_path / "x.AVIF", "AVIF", quality=100)
    (image,) = open_images([str(tmp_path / "x.AVIF")]).load(0, 1)
    assert isinstance(image, Image.Image) and abs(image.convert("L").getpixel((3, 3)) - 70) <= 2


def test_texts_among_the_images_of_a_class_are_named_once_and_not_read(tmp_path):
    cats_and_dogs(tmp_path, per_class=2)
    for name in ("cat/notes.txt", "cat/.DS_Store", "cat/boxes.XML", "dog/Thumbs.db", "dog/THUMBS.DB", "dog/a.json"):
        (tmp_path / name).write_text("x")
    source = open_images([str(tmp_path)])
    assert len(source) == 4
    assert source.notes == [f"{tmp_path}: not used, because it is no image: cat/boxes.XML and 2 more"]
    source = open_images([str(tmp_path / "cat")])
    assert len(source) == 2 and source.notes == [
        f"{tmp_path}/cat: not used, because it is no image: boxes.XML and 1 more"
    ]


def test_images_by_a_pattern_have_no_labels_and_keep_their_order(tmp_path):
    cats_and_dogs(tmp_path, per_class=11)
    source = open_images([f"{tmp_path}/*/*.png"])
    assert len(source) == 22 and source.labels is None
    assert [source.name(i) for i in (0, 1, 2, 10, 11)] == [f"cat/{i}.png" for i in (0, 1, 2, 10)] + ["dog/0.png"]
    odd = tmp_path / "cat" / "[1].png"  # a name with the signs of a pattern is a name first
    shutil.copy(tmp_path / "dog/3.png", odd)
    assert open_images([str(odd)]).place(0) == str(odd)
