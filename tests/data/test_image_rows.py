"""`prepare_dataset.py --images`: form, split, variants, what the rows hold, and that both routes give the same ones."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans

from imagelm.data.arguments import PrepareArguments
from imagelm.data.disjoint import check_disjoint
from imagelm.data.load import load_prepared, load_stats
from imagelm.data.prepare import prepare
from imagelm.data.sources import local
from imagelm.data.sources import open as opening
from imagelm.data.sources.open import batches, open_images
from imagelm.data.stats import summary
from imagelm.remote_code.codec_imagelm import PatchCodec, load_codec
from imagelm.utils.errors import InputError
from tests.conftest import ROOT, SHARED, run
from tests.images import (
    cats_and_dogs,
    class_folder,
    entries_in,
    grey_levels_codec,
    prepare_images,
    random_images,
    restored,
    smooth_images,
    to_image,
)


@pytest.fixture(scope="module")
def lossless(tmp_path_factory) -> Path:
    """A codec that keeps grey images of 6×8 pixels as they are."""
    return grey_levels_codec(tmp_path_factory.mktemp("codec") / "codec", (6, 8))


def few_levels(count: int, levels: int = 4, seed: int = 0, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    """Grey images of a few brightnesses: a codebook of as many entries and patches of 1 keeps them as they are."""
    return (random_images(count, size, seed=seed) % levels * (255 // levels)).astype(np.uint8)


def keys(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in np.asarray(images)}


def number_of(source: str) -> int:
    """The number in a name such as `…/12.png`."""
    return int(re.search(r"(\d+)\.\w+$", source).group(1))


def rows_of(data: datasets.DatasetDict) -> list[dict]:
    return [row for split in data.values() for row in split]


# Rows and split


def test_rows_hold_their_images_and_the_split_is_stratified(tmp_path, lossless):
    images = random_images(60, (6, 8))
    class_folder(tmp_path / "in", {"cat": images[:40], "dog": images[40:]})
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", codec=str(lossless))
    # A fifth of 60, and of the other 48, which are 32 and 16, a tenth, rounded up.
    assert stats["num_rows"] == {"train": 43, "validation": 5, "test": 12}
    assert stats["classes"] == {"train": [29, 14], "validation": [3, 2], "test": [8, 4]}
    assert "stratified, seed 42" in stats["split"]
    for rows in data.values():
        for image, label, source in zip(restored(rows, tmp_path / "out"), rows["label"], rows["source"], strict=True):
            assert (image == images[number_of(source) + 40 * label]).all()
    assert not (tmp_path / "out/bad_rows.jsonl").exists()
    assert len({row["source"] for row in rows_of(data)}) == 60


def test_the_same_seed_gives_the_same_folder_and_another_seed_another(tmp_path):
    cats_and_dogs(tmp_path / "in")
    options = {"augment": "shift=1,rotate=9", "variants": 2}
    found = [
        prepare_images(tmp_path / name, tmp_path / "in", seed=seed, **options)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (stats["fingerprint"] for _, stats in found)
    assert a == b != c
    assert rows_of(found[0][0]) == rows_of(found[1][0])
    for file in ("codec/codec.json", "codec/codec.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert {row["source"] for row in found[0][0]["test"]} != {row["source"] for row in found[2][0]["test"]}


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


# Variants


def shifted(image: np.ndarray, limit: int, background: int) -> set[bytes]:
    height, width, _ = image.shape
    framed = np.pad(image, ((limit, limit), (limit, limit), (0, 0)), constant_values=background)
    places = [(y, x) for y in range(2 * limit + 1) for x in range(2 * limit + 1)]
    return {framed[y : y + height, x : x + width].tobytes() for y, x in places}


def test_each_training_image_gets_its_variants_and_no_other_image_does(tmp_path):
    originals = few_levels(20)
    class_folder(tmp_path / "in", {"cat": originals[:10], "dog": originals[10:]})
    options = {"patch_size": 1, "codebook_size": 4, "augment": "shift=2", "variants": 3, "background": 0}
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", **options)
    assert (len(data["validation"]), len(data["test"])) == (2, 4)
    assert len(data["train"]) + stats["duplicates_dropped"] == 14 * 4
    sources = [set(rows["source"]) for rows in data.values()]
    assert list(map(len, sources)) == [14, 2, 4] and len(set.union(*sources)) == 20
    images = restored(data["train"], tmp_path / "out")
    for image, label, source in zip(images, data["train"]["label"], data["train"]["source"], strict=True):
        assert image.tobytes() in shifted(originals[number_of(source) + 10 * label], 2, 0)
    assert len(keys(images) - keys(originals)) > 25


@pytest.mark.parametrize("size", [1, 7])
def test_rows_do_not_depend_on_how_many_images_are_read_at_a_time(tmp_path, monkeypatch, size):
    cats_and_dogs(tmp_path / "in")
    options = {"augment": "shift=1,rotate=20,scale=0.2", "variants": 2, "keep_images": True}
    data, stats = prepare_images(tmp_path / "a", tmp_path / "in", **options)
    monkeypatch.setattr(opening, "batches", functools.partial(batches, size=size))
    again, stats_again = prepare_images(tmp_path / "b", tmp_path / "in", **options)
    assert stats["fingerprint"] == stats_again["fingerprint"]
    assert rows_of(again) == rows_of(data)


def test_kept_images_are_those_that_were_encoded(tmp_path, lossless):
    originals = random_images(12, (6, 8))
    class_folder(tmp_path / "in", {"cat": originals[:6], "dog": originals[6:]})
    options = {"augment": "shift=1,rotate=30", "variants": 2, "keep_images": True, "codec": str(lossless)}
    data, _ = prepare_images(tmp_path / "out", tmp_path / "in", **options)
    assert isinstance(data["train"].features["image"], datasets.Image)
    for rows in data.values():
        images = np.stack([np.asarray(image) for image in rows["image"]])[..., None]
        assert (images == restored(rows, tmp_path / "out")).all()
    without, _ = prepare_images(tmp_path / "without", tmp_path / "in", codec=str(lossless))
    assert set(without["train"].features) == {"input_ids", "label", "source"}


# The codec sees the training side alone


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


def test_t_is_the_index_within_the_class_without_a_column_t(tmp_path):
    images, labels = smooth_images(12, (4, 4)), np.array([1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0])
    t = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    np.savez(tmp_path / "x.npz", image=images, label=labels)
    options = {"codebook": "unified", "features": "x,t,R,G,B", "codebook_size": 10}
    data, _ = prepare_images(tmp_path / "out", tmp_path / "x.npz", **options)
    expected = load_codec(tmp_path / "out/codec").encode(images, t=t)
    for rows in data.values():
        numbers = [int(source.split(":")[-1]) for source in rows["source"]]
        assert (entries_in(rows, tmp_path / "out") == expected[numbers]).all()


# The format of the images


def form_of(folder: Path) -> dict:
    return json.loads((folder / "codec/codec.json").read_text())


def test_the_commonest_size_is_taken_and_the_others_are_counted(tmp_path):
    originals = {"cat": random_images(5, (8, 12)), "dog": random_images(5, (8, 12), seed=1)}
    class_folder(tmp_path / "in", originals)
    to_image(random_images(1, (30, 30), seed=2)[0]).save(tmp_path / "in/cat/large.png")
    to_image(random_images(1, (3, 5), seed=3)[0]).save(tmp_path / "in/dog/small.png")
    for fit, done in (("resize", "resized"), ("pad", "padded (larger ones are shrunk first)")):
        _, stats = prepare_images(tmp_path / fit, tmp_path / "in", fit=fit, codebook_size=16)
        assert form_of(tmp_path / fit)["image_size"] == [8, 12]
        assert stats["images"]["notes"] == [f"2 of 12 images aren't 8×12 pixels and are {done}"]
        assert stats["codec"]["grid"] == [2, 3]


def test_a_size_that_cant_be_cut_is_rounded_and_noted_or_refused_if_it_was_given(tmp_path):
    class_folder(tmp_path / "in", {"cat": random_images(5, (10, 15)), "dog": random_images(5, (10, 15), seed=1)})
    _, stats = prepare_images(tmp_path / "out", tmp_path / "in", codebook_size=4)
    assert form_of(tmp_path / "out")["image_size"] == [8, 16]
    assert stats["images"]["notes"][0] == "10×15 pixels can't be cut into patches of 4×4: images are fitted to 8×16"
    said = "--image_size: 10×15 pixels can't be cut into patches of 4×4; give 8x16, or another --patch_size"
    with pytest.raises(InputError, match=said):
        prepare_images(tmp_path / "no", tmp_path / "in", codebook_size=4, image_size="10x15")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    prepare_images(tmp_path / "five", tmp_path / "in", codebook_size=4, patch_size=5)
    assert form_of(tmp_path / "five")["image_size"] == [10, 15]
    prepare_images(tmp_path / "asked", tmp_path / "in", codebook_size=4, image_size="12x4")
    assert form_of(tmp_path / "asked")["image_size"] == [12, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": "100000"}, "100000×100000 pixels would take 625,000,000 tokens"),
        ({"image_size": "16000", "patch_size": 1000}, "16000×16000 pixels would take 256 tokens"),
        ({"image_size": "300", "codebook": "unified"}, "would take 90,000 tokens; .* give a smaller --image_size$"),
    ],
)
def test_images_that_would_fill_the_memory_are_refused_before_they_are_encoded(tmp_path, options, said):
    cats_and_dogs(tmp_path / "in", per_class=5)
    with pytest.raises(InputError, match=said):
        prepare_images(tmp_path / "out", tmp_path / "in", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_padded_images_are_centred_on_the_background(tmp_path):
    images = few_levels(12)
    class_folder(tmp_path / "in", {"cat": images[:6], "dog": images[6:]})
    options = {"fit": "pad", "background": 200, "image_size": "8x12", "patch_size": 1, "codebook_size": 5}
    data, _ = prepare_images(tmp_path / "out", tmp_path / "in", **options)
    found = np.concatenate([restored(rows, tmp_path / "out") for rows in data.values()])
    assert keys(found) == keys(np.pad(images, ((0, 0), (1, 1), (2, 2), (0, 0)), constant_values=200))
    assert (form_of(tmp_path / "out")["fit"], form_of(tmp_path / "out")["background"]) == ("pad", 200)


def test_channels_are_grey_unless_an_image_is_coloured(tmp_path):
    grey = cats_and_dogs(tmp_path / "grey", per_class=5)
    for file in grey.rglob("*.png"):
        Image.open(file).convert("RGBA").save(file)
    mixed = cats_and_dogs(tmp_path / "mixed", per_class=5)
    to_image(random_images(1, channels=3, seed=9)[0]).save(mixed / "cat/colour.png")
    cases = [(grey, "auto", 1), (grey, "rgb", 3), (mixed, "auto", 3), (mixed, "grey", 1)]
    for i, (folder, channels, expected) in enumerate(cases):
        _, stats = prepare_images(tmp_path / f"out{i}", folder, channels=channels, codebook_size=16)
        assert form_of(tmp_path / f"out{i}")["channels"] == expected
        said = {
            (mixed, "grey"): ["1 coloured images are converted to grey"],
            (mixed, "auto"): [
                "1 of 8 training images are coloured, so all are read as RGB; --channels grey converts them to grey"
            ],
        }
        assert stats["images"]["notes"] == said.get((folder, channels), [])


def test_transparent_images_are_drawn_over_the_given_background(tmp_path):
    clear = np.zeros((10, 4, 4, 4), dtype=np.uint8)
    clear[..., 3] = random_images(10, (4, 4))[..., 0] // 128 * 255
    class_folder(tmp_path / "in", {"cat": clear[:5], "dog": clear[5:]})
    options = {"background": 255, "patch_size": 1, "codebook_size": 2}
    data, _ = prepare_images(tmp_path / "out", tmp_path / "in", **options)
    found = np.concatenate([restored(rows, tmp_path / "out") for rows in data.values()])
    assert keys(found) == keys(255 - clear[..., 3:])


def test_a_codec_of_other_images_decides_the_form(tmp_path):
    cats_and_dogs(tmp_path / "a")
    prepare_images(tmp_path / "first", tmp_path / "a", fit="pad", background=7)
    cats_and_dogs(tmp_path / "b", per_class=6, size=(12, 10), channels=3, seed=5)
    data, stats = prepare_images(tmp_path / "second", tmp_path / "b", codec=str(tmp_path / "first/codec"))
    assert (tmp_path / "first/codec/codec.safetensors").read_bytes() == (
        tmp_path / "second/codec/codec.safetensors"
    ).read_bytes()
    assert form_of(tmp_path / "first") == form_of(tmp_path / "second")
    assert stats["images"]["notes"][:2] == [
        "12 of 12 images aren't 8×8 pixels and are padded (larger ones are shrunk first)",
        "12 coloured images are converted to grey",
    ]
    assert len(data["train"][0]["input_ids"]) == 4 + 5
    for name in ("nowhere", "a"):
        with pytest.raises(InputError, match=rf"--codec: .*{name} holds no codec\.json"):
            prepare_images(tmp_path / "no", tmp_path / "b", codec=str(tmp_path / name))


def test_a_codec_that_is_a_file_or_nowhere_is_refused_with_what_it_was_taken_for(tmp_path, lossless):
    cats_and_dogs(tmp_path / "in", per_class=4)
    nowhere = f"--codec: {tmp_path}/none isn't a folder, and as a Hub id: {tmp_path}/none holds no codec.json"
    file = lossless / "codec.json"
    for codec, said in ((tmp_path / "none", nowhere), (file, f"--codec {file} is a file; name its folder")):
        with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
            prepare_images(tmp_path / "out", tmp_path / "in", codec=str(codec))


@pytest.mark.parametrize("features", ["x,y,Gx,Gy", "x,y,R"])
def test_a_unified_codebook_that_cannot_be_drawn_is_refused_or_made_without_images(tmp_path, features):
    cats_and_dogs(tmp_path / "in", per_class=5)
    try:
        data, _ = prepare_images(tmp_path / "out", tmp_path / "in", codebook="unified", features=features)
        assert len(data["train"]) == 8
    except InputError as error:
        assert "--features" in str(error)


def test_gradients_of_images_one_pixel_wide_are_refused(tmp_path):
    cats_and_dogs(tmp_path / "in", per_class=5)
    with pytest.raises(InputError):
        prepare_images(tmp_path / "out", tmp_path / "in", codebook="unified", codebook_size=4, image_size="1x8")


def test_images_have_no_split_field_and_need_two_classes(tmp_path):
    cats_and_dogs(tmp_path / "in", per_class=5)
    with pytest.raises(InputError, match="--split_by field: images have no such field"):
        prepare_images(tmp_path / "out", tmp_path / "in", split_by="field")
    class_folder(tmp_path / "one", {"cat": random_images(4)})
    with pytest.raises(InputError, match=r"all images are of one class \(cat\)"):
        prepare_images(tmp_path / "out", tmp_path / "one")
    with pytest.raises(InputError, match="different patches of 4×4 pixels, fewer than --codebook_size 999"):
        prepare_images(tmp_path / "out", tmp_path / "in", codebook_size=999)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "one"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"augment": "shift=1"}, "--augment and --variants belong together"),
        ({"variants": 2}, "--augment and --variants belong together"),
        ({"patch_size": 0}, "--patch_size 0"),
        ({"codebook_size": 1}, "--codebook_size 1"),
        ({"background": 256}, "--background 256"),
        ({"features": "x,brightness"}, "'brightness' is unknown"),
        ({"centroids": "c.csv"}, "--centroids needs --codebook unified"),
        ({"image_size": "wide"}, "--image_size wide"),
        ({"fit": "crop"}, "--fit crop"),
        ({"codebook": "cubist"}, "--codebook cubist"),
    ],
)
def test_options_for_images_that_cannot_work_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        PrepareArguments(images=["x"], output_dir="o", **options)


def test_options_of_the_other_route_are_refused():
    rows = {"data_files": ["a"], "vocab_file": "v", "output_dir": "o"}
    for name, value in {"keep_images": True, "patch_size": 8, "augment": "hflip", "test_images": ["x"]}.items():
        with pytest.raises(InputError, match=f"--{name} goes with --images"):
            PrepareArguments(**rows, **{name: value})
    for name, value in {"vocab_file": "v", "class_names": "c", "max_length": 99}.items():
        with pytest.raises(InputError, match=f"--{name} goes with --data_files"):
            PrepareArguments(output_dir="o", images=["x"], **{name: value})
    for given in ({}, {"data_files": ["a"], "vocab_file": "v", "images": ["x"]}):
        with pytest.raises(InputError, match="one of the two"):
            PrepareArguments(output_dir="o", **given)


def test_what_a_codec_or_a_file_of_centroids_decides_is_refused_beside_it():
    for name, value in {"patch_size": 8, "fit": "pad", "image_size": "8", "codec_steps": 1}.items():
        with pytest.raises(InputError, match=f"--{name} and --codec contradict each other"):
            PrepareArguments(output_dir="o", images=["x"], codec="c", **{name: value})
    with pytest.raises(InputError, match="--codebook_size and --centroids contradict each other"):
        PrepareArguments(output_dir="o", images=["x"], codebook="unified", centroids="c.csv", codebook_size=9)


# Both routes


def test_rows_written_as_jsonl_and_read_again_are_the_same(tmp_path):
    """With variants, a duplicate, a conflict, an unreadable image, an empty class and names with odd characters."""
    images = smooth_images(24)
    class_folder(tmp_path / "in", {"cat & co": images[:12], "dög": images[11:], "10": images[:0]})
    to_image(images[3]).save(tmp_path / "in/cat & co/again.bmp")
    (tmp_path / "in/dög/bad.png").touch()
    options = {"augment": "shift=1,hflip", "variants": 2, "write_jsonl": True, "codebook_size": 12}
    data, stats = prepare_images(tmp_path / "images", tmp_path / "in", **options)
    raw = tmp_path / "images/raw"
    for codec in (str(tmp_path / "images/codec"), None):
        rows = PrepareArguments(
            data_files=[str(raw / "rows.jsonl")],
            vocab_file=str(raw / "vocab.json"),
            output_dir=str(tmp_path / "rows"),
            **{"class_names": str(raw / "class_names.json"), "split_by": "field", "codec": codec, "overwrite": True},
        )
        stats_again = prepare(rows, command="test")
        again = load_prepared(tmp_path / "rows")
        for split in ("train", "test"):
            assert again[split].features == data[split].features
            assert again[split][:] == data[split][:]
        for name in (
            "fingerprint",
            "class_names",
            "num_rows",
            "classes",
            "codebook",
            "duplicates_dropped",
            "max_length",
        ):
            assert stats_again[name] == stats[name]
        assert stats_again["label_conflicts"]["total"] == stats["label_conflicts"]["total"] >= 1
        tokenizers = [(tmp_path / name / "tokenizer/tokenizer.json").read_bytes() for name in ("images", "rows")]
        assert tokenizers[0] == tokenizers[1]
        assert (tmp_path / "rows/codec").is_dir() == (codec is not None)
    assert stats["class_names"] == ["cat & co", "dög"]


def test_rows_that_do_not_fit_the_codec_are_refused(tmp_path):
    cats_and_dogs(tmp_path / "in")
    prepare_images(tmp_path / "a", tmp_path / "in", write_jsonl=True)
    prepare_images(tmp_path / "b", tmp_path / "in", patch_size=2)
    prepare_images(tmp_path / "c", tmp_path / "in", codebook_size=9)
    raw = {
        "data_files": [str(tmp_path / "a/raw/rows.jsonl")],
        "vocab_file": str(tmp_path / "a/raw/vocab.json"),
        "output_dir": str(tmp_path / "out"),
    }
    for name, said in (
        ("b", r"rows\.jsonl:1: 4 image tokens, but an image of the codec has 4×4"),
        ("c", "has 9 entries"),
    ):
        with pytest.raises(InputError, match=said):
            prepare(PrepareArguments(**raw, codec=str(tmp_path / name / "codec")), command="test")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [('["a"]', "holds 1 names"), ('["a", "a"]', "2 different"), ('{"a": 0}', "a list of names"), ("[", "isn't JSON")],
)
def test_invalid_class_names_are_refused(tmp_path, content, said):
    cats_and_dogs(tmp_path / "in")
    prepare_images(tmp_path / "a", tmp_path / "in", write_jsonl=True)
    (tmp_path / "names.json").write_text(content)
    raw = {
        "data_files": [str(tmp_path / "a/raw/rows.jsonl")],
        "vocab_file": str(tmp_path / "a/raw/vocab.json"),
        "output_dir": str(tmp_path / "out"),
    }
    with pytest.raises(InputError, match=said):
        prepare(PrepareArguments(**raw, class_names=str(tmp_path / "names.json")), command="test")


# The summary and the folder


def test_the_command_says_what_it_did_and_its_folder_holds_names_figures_and_images(tmp_path):
    originals = smooth_images(40, channels=3)
    class_folder(tmp_path / "in", {"10": originals[:13], "9": originals[13:26], "owl": originals[26:]})
    out = tmp_path / "out"
    done = run(
        *("prepare_dataset.py", "--images", tmp_path / "in", "--output_dir", out, "--codebook_size", 16),
        *("--augment", "shift=1", "--variants", 2, "--keep_images", "--device", "cpu", "--write_jsonl"),
    )
    assert done.returncode == 0, done.stderr
    data, stats = load_prepared(out), load_stats(out)
    assert stats["class_names"] == data["train"].features["label"].names == ["9", "10", "owl"]
    test = data["test"]
    assert len(test) == 8

    # Figures of the reconstruction, from the kept images and the rows.
    images = np.stack([np.asarray(image) for image in test["image"]]).astype(float)
    error = ((images - restored(test, out)) ** 2).mean()
    found = stats["codec"]["reconstruction"]
    assert found["num_images"] == 8 and found["mse"] == pytest.approx(error)
    assert found["psnr"] == pytest.approx(20 * np.log10(255) - 10 * np.log10(error))
    assert f"MSE {error:.1f}" in done.stdout and f"SSIM {found['ssim']:.4f}" in done.stdout

    # Use of the codebook, over all rows that were read.
    counts = Counter(re.findall(r"<Z_\d+>", (out / "raw/rows.jsonl").read_text()))
    # 8 test images, and 4 of the other 32 are validation images.
    assert counts.total() == 4 * (8 + 4 + 28 * 3)
    share = np.array(list(counts.values())) / counts.total()
    assert stats["codebook"]["used"] == len(counts)
    assert stats["codebook"]["dead"] == 16 - len(counts)
    assert stats["codebook"]["usage_perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert stats["codec"]["images_encoded"] == 8 + 4 + 28 * 3 == stats["num_rows_read"]
    assert "patch codebook of 16 entries; images of 8×8 pixels, RGB, become 2×2 tokens" in done.stdout
    for name in ("codebook.png", "reconstructions.png"):
        with Image.open(out / name) as original:
            original.load()
            assert original.format == "PNG" and min(original.size) > 50
        assert name in (out / "README.md").read_text()
    assert "| `<CLS_2>` | owl |" in (out / "README.md").read_text()


MNIST = SHARED / "mnist"


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST isn't here")
def test_mnist_is_prepared_within_a_minute_and_two_gigabytes(tmp_path):
    """Peak memory is that of the process with all it imports."""
    code = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    words = ["--images", MNIST / "train.parquet", "--test_images", MNIST / "test.parquet", "--device", "cpu"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare_dataset.py", *map(str, words), "--output_dir", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout).group(1)) / 2**20
    stats = load_stats(tmp_path / "out")
    codec = load_codec(tmp_path / "out/codec")
    data = datasets.load_dataset("parquet", data_files=str(MNIST / "test.parquet"), split="train")
    images = np.stack([np.asarray(image) for image in data["image"]])[..., None]
    patches = images.reshape(-1, 7, 4, 7, 4).swapaxes(2, 3).reshape(-1, 16).astype(np.float32)
    centroids = codec.tensors["codebook"].numpy().astype(np.float32)
    kmeans = KMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(centroids)
    kmeans.cluster_centers_ = centroids
    times = {}
    for name, encode in (("imagelm", lambda: codec.encode(images)), ("scikit-learn", lambda: kmeans.predict(patches))):
        started = time.perf_counter()
        entries = encode().reshape(len(images), -1)
        times[name] = len(images) / (time.perf_counter() - started)
    kmeans.cluster_centers_ = centroids.astype(np.float64)
    assert (codec.encode(images).reshape(-1) == kmeans.predict(patches.astype(np.float64))).all()
    assert entries.shape == (10_000, 49)
    print(
        f"MNIST: {seconds:.1f} s, peak {peak:.2f} GiB; in the run {stats['codec']['images_per_second']:.0f} images/s; "
        + "; ".join(f"{name} {rate:.0f} images/s" for name, rate in times.items())
    )
    assert stats["num_rows_read"] == 70_000
    assert seconds < 60
    assert peak < 2


def test_an_existing_codec_is_not_described_as_fitted_on_training_images_only(tmp_path):
    cats_and_dogs(tmp_path / "in")
    prepare_images(tmp_path / "first", tmp_path / "in")
    prepare_images(tmp_path / "second", tmp_path / "in", codec=str(tmp_path / "first/codec"), seed=1)
    fitted, taken = ((tmp_path / name / "README.md").read_text() for name in ("first", "second"))
    assert "Fitted on training images only." in fitted
    assert "training images" not in taken and "the images it was fitted on aren't known here" in taken


def test_padding_never_shrinks_what_only_lacks_a_few_pixels(tmp_path):
    cats_and_dogs(tmp_path / "in", size=(9, 9))
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", fit="pad", keep_images=True)
    assert stats["codec"]["image_size"] == [12, 12]
    kept = {row["source"].split(":")[1]: np.asarray(row["image"]) for rows in data.values() for row in rows}
    for name, pixels in kept.items():
        assert (pixels[1:10, 1:10] == np.asarray(Image.open(tmp_path / "in" / name))).all()
        assert pixels.sum() == pixels[1:10, 1:10].sum()


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    cats_and_dogs(tmp_path / "in")
    (tmp_path / "in/cat/zz.png").symlink_to(tmp_path / "nothing")
    _, stats = prepare_images(tmp_path / "out", tmp_path / "in")
    (place,) = stats["bad_rows"]["first"]
    assert place.startswith(f"{tmp_path}/in/cat/zz.png: ") and "link" in place


@pytest.mark.parametrize("t", [np.full(20, np.nan), np.zeros((20, 2)), np.array(["a"] * 20)])
def test_a_column_t_that_is_not_a_finite_number_per_image_is_refused(tmp_path, t):
    np.savez(tmp_path / "x.npz", image=random_images(20), label=np.arange(20) % 2, t=t)
    with pytest.raises(InputError, match="isn't a finite number for each image"):
        prepare_images(tmp_path / "out", tmp_path / "x.npz", codebook="unified", features="R,G,B,t")
    assert not (tmp_path / "out").exists()


def test_images_are_decoded_one_at_a_time_as_they_are_asked_for(tmp_path, monkeypatch):
    cats_and_dogs(tmp_path / "in")
    decoded = []
    monkeypatch.setattr(local, "read_image", lambda file: decoded.append(file) or Image.open(file))
    images = open_images([str(tmp_path / "in")]).load(0, 20)
    assert len(images) == 20 and decoded == []
    images[3]
    assert [file.name for file in decoded] == ["3.png"]
    assert [len(decoded) for _ in images[5:8]] == [2, 3, 4]


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


def test_a_class_whose_images_cannot_be_read_is_noted(tmp_path):
    cats_and_dogs(tmp_path / "in", per_class=5)
    (tmp_path / "in/bird").mkdir()
    (tmp_path / "in/bird/0.png").write_text("no image")
    _, stats = prepare_images(tmp_path / "out", tmp_path / "in", codebook_size=8)
    assert "classes without a readable image: bird" in stats["images"]["notes"]


def test_a_class_folder_without_images_is_not_a_class(tmp_path):
    cats_and_dogs(tmp_path / "in")
    (tmp_path / "in/empty").mkdir()
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in")
    assert stats["class_names"] == data["train"].features["label"].names == ["cat", "dog"]
    assert f"{tmp_path}/in: not used as a class, because the folder holds no images: empty" in stats["images"]["notes"]
