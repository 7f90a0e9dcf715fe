"""A codec's two files, bit for bit; files and arrays that are none are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from imagelm.remote_code.codec_imagelm import load_codec
from tests.codecs.common import different_entries, fitted, patch_codec
from tests.images import random_images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["patch", "unified", "learned"])
def test_a_saved_codec_is_the_loaded_one_bit_for_bit(kind, channels, tmp_path):
    codec = fitted(kind, channels)
    codec.save(tmp_path / "a")
    loaded = load_codec(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert type(loaded) is type(codec) and loaded.config == codec.config
    for name in ("codec.json", "codec.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    images = random_images(5, (8, 12), channels, seed=8)
    entries = codec.encode(images)
    assert (loaded.encode(images) == entries).all()
    assert (loaded.decode(entries) == codec.decode(entries)).all()


def test_a_folder_without_a_codec_and_files_that_are_none_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no codec\.json"):
        load_codec(tmp_path)
    codec = fitted("patch", 1)
    codec.save(tmp_path)
    config, weights = tmp_path / "codec.json", tmp_path / "codec.safetensors"
    whole = {file: file.read_bytes() for file in (config, weights)}
    broken = [
        (config, b"{"),
        (config, b"[]"),
        (config, whole[config].replace(b'"patch"', b'"cubist"')),
        (config, whole[config].replace(b'"channels": 1', b'"channels": 2')),
        (config, whole[config].replace(b'"patch_size": 2', b'"patch_size": 5')),
        (config, b"\xff\xfe"),
        (weights, whole[weights][:-5]),
        (weights, b""),
    ]
    for file, content in broken:
        file.write_bytes(content)
        with pytest.raises(ValueError, match="aren't a codec"):
            load_codec(tmp_path)
        file.write_bytes(whole[file])
    load_codec(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"patch_size": 0}, "positive whole numbers"),
        ({"patch_size": -2}, "positive whole numbers"),
        ({"patch_size": 4}, "can't be cut into patches"),
        ({"image_size": [4.0, 6.0]}, "positive whole numbers"),
        ({"image_size": [4]}, "positive whole numbers"),
        ({"channels": 3}, "tensor 'codebook'"),
        ({"channels": 2}, "expected 1 or 3"),
        ({"fit": "crop"}, "fit 'crop'"),
        ({"background": 300}, "background is 300"),
        ({"background": "x"}, "background is 'x'"),
        ({"kind": "unified", "features": ["R"]}, "tensor 'codebook'"),
        ({"kind": "magic"}, "magic"),
    ],
)
def test_a_config_that_does_not_fit_its_tensors_is_refused(tmp_path, changed, said):
    patch_codec(different_entries(6, 4), 2, (4, 6), 1).save(tmp_path)
    config = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps(config | changed))
    with pytest.raises(ValueError, match="aren't a codec") as caught:
        load_codec(tmp_path)
    assert said in str(caught.value) and len(str(caught.value)) < 600


def test_arrays_that_are_no_images_or_no_entries_of_the_codec_are_refused():
    codec = patch_codec(different_entries(6, 4), 2, (4, 6), 1)
    for images in (np.zeros((2, 4, 6), np.uint8), np.zeros((2, 4, 6, 1)), np.zeros((2, 6, 4, 1), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            codec.encode(images)
    for entries, said in (([[0] * 5], "shape"), ([[0] * 5 + [6]], "0 to 5"), ([[0] * 5 + [-1]], "0 to 5")):
        with pytest.raises(ValueError, match=said):
            codec.decode(np.array(entries))
    assert codec.describe() == "patch codebook of 6 entries; images of 4×6 pixels, grey, become 2×3 tokens"


def test_no_images_are_no_entries():
    codec = patch_codec(different_entries(6, 4), 2, (4, 6), 1)
    assert codec.decode(np.zeros((0, 6), np.int64)).shape == (0, 4, 6, 1)
    assert codec.encode(np.zeros((0, 4, 6, 1), np.uint8)).shape == (0, 6)
