"""The format that images are brought to: size, channels, background, or what a codec decides."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelm.utils.errors import InputError
from tests.data.common import few_levels, keys
from tests.images import cats_and_dogs, class_folder, prepare_images, random_images, restored, to_image


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


def test_padding_never_shrinks_what_only_lacks_a_few_pixels(tmp_path):
    cats_and_dogs(tmp_path / "in", size=(9, 9))
    data, stats = prepare_images(tmp_path / "out", tmp_path / "in", fit="pad", keep_images=True)
    assert stats["codec"]["image_size"] == [12, 12]
    kept = {row["source"].split(":")[1]: np.asarray(row["image"]) for rows in data.values() for row in rows}
    for name, pixels in kept.items():
        assert (pixels[1:10, 1:10] == np.asarray(Image.open(tmp_path / "in" / name))).all()
        assert pixels.sum() == pixels[1:10, 1:10].sum()


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
