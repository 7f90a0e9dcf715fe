"""Images on either side of a split: no image is on both, and the codec sees the training side alone."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from imagelm.data.disjoint import check_disjoint
from imagelm.data.load import load_stats
from imagelm.data.stats import summary
from imagelm.remote_code.codec_imagelm import PatchCodec
from tests.data.common import keys
from tests.images import class_folder, prepare_images, random_images, restored, smooth_images, to_image


def test_a_side_by_hash_stays_as_images_are_added_and_renamed(tmp_path, lossless):
    images = random_images(80, (6, 8))
    class_folder(tmp_path / "few", {"cat": images[:20], "dog": images[20:40]})
    class_folder(tmp_path / "many", {"cat": images[60::-1], "dog": images[61:]}, suffix=".bmp")
    sides = []
    for name in ("few", "many"):
        options = {"split_by": "hash", "test_size": 0.4, "codec": str(lossless)}
        data, _ = prepare_images(tmp_path / f"out_{name}", tmp_path / name, **options)
        sides.append({split: keys(restored(data[split], tmp_path / f"out_{name}")) for split in data})
    for split in ("train", "test"):
        assert sides[0][split] <= sides[1][split]
    assert 0.2 < len(sides[1]["test"]) / 80 < 0.6


@pytest.mark.parametrize("split_by", ["stratified", "hash"])
def test_the_same_pixels_in_another_file_format_are_never_on_the_other_side(tmp_path, lossless, split_by):
    images = random_images(24, (6, 8))
    class_folder(tmp_path / "in", {"cat": images[:12], "dog": images[12:]})
    for i, pixels in enumerate(images):
        folder = tmp_path / "in" / ("cat" if i < 12 else "dog")
        image = to_image(pixels)
        image.save(folder / f"copy{i}.bmp")
        image.convert("RGB").save(folder / f"copy{i}.tif")
        image.convert("LA").save(folder / f"copy{i}.webp", lossless=True, exact=True)
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / f"deep{i}.png")
    options = {"augment": "shift=1", "variants": 2, "split_by": split_by, "test_size": 0.3, "codec": str(lossless)}
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", **options)
    check_disjoint(data)
    splits = {name: keys(restored(rows, tmp_path / "out")) for name, rows in data.items()}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values()))
    assert keys(images) <= set.union(*splits.values())
    held_out = set.union(*(found for name, found in splits.items() if name != "train"))
    assert sum(len(rows) for name, rows in data.items() if name != "train") == len(held_out)
    # The files that training rows come from show no such image, so no variant of one is trained on.
    for row in data["train"]:
        name = re.search(r"(cat|dog)/.*", row["source"]).group()
        pixels = np.asarray(Image.open(tmp_path / "in" / name).convert("RGB"))[..., :1]
        if not name.split("/")[1].startswith("deep"):
            assert pixels.tobytes() not in held_out
    assert stats["num_rows_read"] == 120 + 2 * 5 * (24 - len(held_out))


def test_training_copies_of_test_images_are_dropped_and_noted(tmp_path, lossless):
    originals = random_images(20, (6, 8))
    class_folder(tmp_path / "train", {"cat": originals[:6], "dog": originals[6:12]})
    class_folder(tmp_path / "test", {"cat": originals[4:8:2], "dog": originals[10:14]}, suffix=".bmp")
    options = {"augment": "shift=1", "variants": 3, "codec": str(lossless)}
    data, stats = prepare_images(tmp_path / "out", tmp_path / "train", test_images=[str(tmp_path / "test")], **options)
    said = "4 training images are test images too and were dropped"
    assert any(note.startswith(said) for note in stats["images"]["notes"])
    assert any(said in line for line in summary(stats))
    assert stats["images"]["left_out"] == 4
    assert keys(restored(data["test"], tmp_path / "out")) == keys(originals[[4, 6, 10, 11, 12, 13]])
    assert len(data["train"]) + stats["duplicates_dropped"] == 4 * 8
    train_images = keys(originals[[0, 1, 2, 3, 5, 7, 8, 9]])
    assert train_images <= keys(restored(data["train"], tmp_path / "out"))
    assert stats["split"] == "test images given by the user"


def test_a_variant_that_looks_like_a_test_image_leaves_the_training_rows(tmp_path, lossless):
    """Mirrored, each training image is one of the test images."""
    images = random_images(16, (6, 8))
    class_folder(tmp_path / "train", {"cat": images[:8], "dog": images[8:]})
    class_folder(tmp_path / "test", {"cat": images[:8, :, ::-1], "dog": images[8:, :, ::-1]})
    data, stats = prepare_images(
        *(tmp_path / "out", tmp_path / "train"),
        **{"test_images": [str(tmp_path / "test")], "augment": "hflip", "variants": 4, "codec": str(lossless)},
    )
    assert keys(restored(data["test"], tmp_path / "out")) == keys(images[:, :, ::-1])
    train, validation = (keys(restored(data[name], tmp_path / "out")) for name in ("train", "validation"))
    assert train | validation == keys(images) and len(validation) == 2  # a tenth of 16, rounded up
    assert stats["duplicates_dropped"] == 4 * 14


def test_the_same_image_in_two_classes_is_a_conflict_that_names_both(tmp_path, lossless):
    images = random_images(12, (6, 8))
    class_folder(tmp_path / "in", {"cat": images[:6], "dog": images[5:]})
    _, stats = prepare_images(tmp_path / "out", tmp_path / "in", codec=str(lossless))
    assert stats["duplicates_dropped"] == 1
    (said,) = stats["label_conflicts"]["first"]
    assert said == f"{tmp_path}/in/dog/0.png: label 1, but the same image is in {tmp_path}/in/cat/5.png with label 0"


def test_variants_of_a_repeated_image_are_dropped_with_it(tmp_path, lossless):
    images = random_images(12, (6, 8))
    class_folder(tmp_path / "in", {"cat": images[:6], "dog": images[6:]})
    to_image(images[0]).save(tmp_path / "in/dog/again.png")  # a cat's image among the dogs
    options = {"codec": str(lossless), "augment": "rotate=40,shift=2", "variants": 3, "split_by": "hash"}
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", test_size=0.3, **options)
    sources = Counter(source.split(":")[1] for source in data["train"]["source"])
    assert "dog/again.png" not in sources and "dog/again.png" not in {s.split(":")[1] for s in data["test"]["source"]}
    assert set(sources.values()) == {4}
    assert stats["label_conflicts"]["total"] == 1


def test_different_images_that_the_codebook_makes_equal_are_counted(tmp_path):
    black = np.zeros((8, 8, 8, 1), np.uint8)
    black[:, 0] = np.diag(np.full(8, 40))[..., None]  # a grey pixel each, which no entry keeps
    folder = class_folder(tmp_path / "in", {"cat": black[:4], "dog": black[4:], "cow": random_images(8)})
    entries = torch.tensor([0, 85, 170, 255], dtype=torch.uint8)[:, None].repeat(1, 4)
    PatchCodec({"image_size": [8, 8], "channels": 1, "patch_size": 2}, {"codebook": entries}).save(tmp_path / "codec")
    _, stats = prepare_images(tmp_path / "out", folder, codec=str(tmp_path / "codec"), split_by="hash")
    assert stats["duplicates_dropped"] == 7
    assert any(note.startswith("7 of 16 different images were dropped") for note in stats["images"]["notes"])


def test_images_with_equal_pixels_are_not_counted_as_merged_by_the_codebook(tmp_path):
    images = random_images(6)
    folder = class_folder(tmp_path / "in", {"cat": images[[0, 1, 2, 0]], "dog": images[3:]})
    _, stats = prepare_images(tmp_path / "out", folder, codebook_size=8)
    assert stats["duplicates_dropped"] == 1
    assert not any("different images" in note for note in stats["images"]["notes"])


# The codec


@pytest.mark.parametrize("codebook", ["patch", "unified", "learned"])
def test_other_test_images_leave_the_codec_as_it_was(tmp_path, codebook):
    train = smooth_images(12)
    np.savez(tmp_path / "train.npz", image=train, label=np.arange(12) % 2)
    for i in range(2):
        test = random_images(8, seed=i)
        np.savez(tmp_path / f"test{i}.npz", image=test, label=np.arange(8) % 2)
        options = {"codebook": codebook, "codebook_size": 8, "codec_steps": 10}
        prepare_images(
            tmp_path / f"out{i}", tmp_path / "train.npz", test_images=[str(tmp_path / f"test{i}.npz")], **options
        )
    for file in ("codec.json", "codec.safetensors"):
        assert (tmp_path / "out0/codec" / file).read_bytes() == (tmp_path / "out1/codec" / file).read_bytes()


def test_neither_size_nor_colour_of_test_images_changes_the_codec(tmp_path):
    class_folder(tmp_path / "train", {"cat": smooth_images(6), "dog": smooth_images(6, seed=1)})
    class_folder(tmp_path / "a", {"cat": smooth_images(2, seed=2), "dog": smooth_images(2, seed=3)})
    large = {name: random_images(9, (16, 16), 3, seed) for seed, name in enumerate(("cat", "dog"))}
    class_folder(tmp_path / "b", large)
    for name in ("a", "b"):
        prepare_images(tmp_path / f"out_{name}", tmp_path / "train", test_images=[str(tmp_path / name)])
    for file in ("codec.json", "codec.safetensors"):
        assert (tmp_path / "out_a/codec" / file).read_bytes() == (tmp_path / "out_b/codec" / file).read_bytes()
    notes = load_stats(tmp_path / "out_b")["images"]["notes"]
    assert "18 of 30 images aren't 8×8 pixels and are resized" in notes
    assert "18 coloured images are converted to grey" in notes


def test_other_pixels_in_the_images_that_are_split_off_leave_the_codec_as_it_was(tmp_path):
    images, labels = smooth_images(30), np.arange(30) % 3
    files = []
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", image=images, label=labels)
        data, _ = prepare_images(tmp_path / name, tmp_path / f"{name}.npz")
        files.append((tmp_path / name / "codec/codec.safetensors").read_bytes())
        held_out = [int(source.split(":")[-1]) for source in data["test"]["source"]]
        images[held_out] = random_images(len(held_out), seed=3)
    assert files[0] == files[1]
    assert len(held_out) == 6
    images[np.setdiff1d(np.arange(30), held_out)] //= 2
    np.savez(tmp_path / "c.npz", image=images, label=labels)
    prepare_images(tmp_path / "c", tmp_path / "c.npz")
    assert (tmp_path / "c/codec/codec.safetensors").read_bytes() != files[0]
