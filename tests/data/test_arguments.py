"""Options of `prepare` that contradict each other or can't work, found before anything is read."""

from __future__ import annotations

import pytest

from imagelm.data.arguments import PrepareArguments
from imagelm.data.image_options import parse_size
from imagelm.utils.errors import InputError


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


def test_sizes_are_height_and_width():
    assert (parse_size(None), parse_size("28"), parse_size("28x32"), parse_size("3×4")) == (
        None,
        (28, 28),
        (28, 32),
        (3, 4),
    )
    for text in ("0", "-3", "28x", "x", "1x2x3", "2.5", "abc"):
        with pytest.raises(InputError, match="--image_size"):
            parse_size(text)
