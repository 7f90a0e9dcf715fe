"""Pixels of more than 8 bits: the range in use is noticed, recorded in the codec, and scales new images too."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelm.remote_code.codec_imagelm import load_codec
from imagelm.utils.errors import InputError
from tests.images import cats_and_dogs, grey_levels_codec, prepare_images, restored


def deep_folder(root: Path, peak: int, seed: int = 0) -> Path:
    """Two classes of five grey images with 16-bit pixels, random ones up to `peak`, which each of them has."""
    for label, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            pixels = np.random.default_rng([seed, label, i]).integers(0, peak, (8, 8), endpoint=True, dtype=np.uint16)
            pixels[0, 0] = peak
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(("peak", "white"), [(200, 255), (1023, 1023), (3000, 4095), (16384, 65535)])
def test_the_range_of_16_bit_images_is_recorded_and_scales_new_images(tmp_path, peak, white):
    _, stats = prepare_images(tmp_path / "out", deep_folder(tmp_path / "in", peak), codebook_size=8)
    codec = load_codec(tmp_path / "out/codec")
    assert stats["codec"]["max_value"] == codec.config["max_value"] == white
    notes = [note for note in stats["images"]["notes"] if "16-bit" in note]
    assert [f"up to {peak}: {white} becomes white" in note for note in notes] == [True] * (white < 65535)
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)  # a darker image, whose own range is smaller
    expected = [round(255 * value / white) for value in range(64)]
    assert codec.pixels(Image.fromarray(values)).reshape(-1).tolist() == expected


def test_16_bit_images_beyond_the_range_of_the_codec_or_far_below_it_are_noted(tmp_path):
    prepare_images(tmp_path / "first", deep_folder(tmp_path / "in", 4000), patch_size=2, codebook_size=64)
    options = {"codec": str(tmp_path / "first/codec")}
    for peak, said in ((4095, None), (4096, "10 of 10 images with 16-bit"), (1000, "up to 1000, but white is 4095")):
        folder = deep_folder(tmp_path / f"in{peak}", peak, seed=1)
        _, stats = prepare_images(tmp_path / f"out{peak}", folder, **options)
        notes = [note for note in stats["images"]["notes"] if "16-bit" in note]
        assert [said in note for note in notes] == [True] * (said is not None)
        assert stats["codec"]["max_value"] == 4095
    bright = deep_folder(tmp_path / "bright", 60000, seed=2)
    options = {"test_images": [str(bright)], "patch_size": 2, "codebook_size": 64}
    _, stats = prepare_images(tmp_path / "out", tmp_path / "in", **options)
    assert stats["codec"]["max_value"] == 4095  # the training images alone decide
    assert any(note.startswith("10 of 20 images with 16-bit pixels have values above 4095") for note in notes_of(stats))


def notes_of(stats: dict) -> list[str]:
    return stats["images"]["notes"]


def test_16_bit_images_that_8_bits_make_equal_are_counted(tmp_path):
    folder = deep_folder(tmp_path / "in", 60000)
    pixels = np.asarray(Image.open(folder / "a/0.png")).astype(int)
    brighter = np.where(np.rint(pixels / 257) == np.rint((pixels + 1) / 257), pixels + 1, pixels - 1)
    Image.fromarray(brighter.astype(np.uint16)).save(folder / "a/twin.png")
    Image.open(folder / "a/1.png").save(folder / "a/copy.tif")  # the same pixels
    _, stats = prepare_images(tmp_path / "out", folder, codebook_size=8)
    assert "1 images with 16-bit pixels equal another one in 8 bits, and count as the same image" in notes_of(stats)
    assert stats["duplicates_dropped"] == 2


def test_colours_of_16_bits_are_noted(tmp_path):
    folder = cats_and_dogs(tmp_path / "in", channels=3)
    rows = b"".join(b"\0" + bytes(8 * 3 * 2) for _ in range(8))  # 8 × 8 pixels of 3 × 16 bits, all 0
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    (folder / "cat/deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    _, stats = prepare_images(tmp_path / "out", folder, codebook_size=8)
    assert any(note.startswith("1 images have colours of 16 bits") for note in notes_of(stats))


def test_arrays_of_16_bits_and_of_floats_are_read_like_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 4096, (12, 8, 8), dtype=np.uint16)
    images[:, 0, 0] = 4095
    labels = np.arange(12) % 2
    expected = np.rint(images / 4095 * 255).astype(int).reshape(12, -1).tolist()
    lossless = grey_levels_codec(tmp_path / "codec", (8, 8))
    config = json.loads((lossless / "codec.json").read_text())
    assert config.pop("max_value") == 65535  # a codec of earlier versions names none
    (lossless / "codec.json").write_text(json.dumps(config | {"max_value": 4095}))
    for name, array in (("deep", images), ("float", images[..., None] / 4095)):
        np.savez(tmp_path / f"{name}.npz", image=array, label=labels)
        data, _ = prepare_images(tmp_path / name, tmp_path / f"{name}.npz", codec=str(lossless))
        found = np.concatenate([restored(data[split], tmp_path / name) for split in data])
        assert sorted(found.reshape(12, -1).tolist()) == sorted(expected)
    np.savez(tmp_path / "wide.npz", image=images.astype(np.float32), label=labels)
    with pytest.raises(InputError, match="floats outside 0 to 1 have no known range"):
        prepare_images(tmp_path / "wide", tmp_path / "wide.npz")


@pytest.mark.parametrize("max_value", [254, 65536, 4095.0, True, "4095", None])
def test_a_codec_with_an_impossible_range_is_refused(tmp_path, max_value):
    folder = grey_levels_codec(tmp_path / "codec", (8, 8))
    config = json.loads((folder / "codec.json").read_text())
    (folder / "codec.json").write_text(json.dumps(config | {"max_value": max_value}))
    with pytest.raises(ValueError, match="max_value is"):
        load_codec(folder)
    del config["max_value"]  # as versions before 0.2 wrote it
    (folder / "codec.json").write_text(json.dumps(config))
    assert load_codec(folder).config["max_value"] == 65535
