"""Folders that nobody prepared: odd formats, damaged files and odd names; nothing is lost but what is named."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelm.data.load import load_prepared
from imagelm.utils.errors import InputError
from tests.conftest import run
from tests.data.sources.common import png
from tests.images import cats_and_dogs, entries_in, grey_levels_codec, prepare_images, random_images, to_image


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


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    cats_and_dogs(tmp_path / "in")
    (tmp_path / "in/cat/zz.png").symlink_to(tmp_path / "nothing")
    _, stats = prepare_images(tmp_path / "out", tmp_path / "in")
    (place,) = stats["bad_rows"]["first"]
    assert place.startswith(f"{tmp_path}/in/cat/zz.png: ") and "link" in place
