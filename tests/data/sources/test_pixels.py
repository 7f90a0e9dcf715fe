"""The pixels of an image: every mode becomes grey or colour, upright, and of the size that is asked for."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from imagelm.data.sources.decode import read_image, upright_size
from imagelm.remote_code.pixels_imagelm import flatten, read_pixels
from tests.images import random_images, to_image


def flat(image: Image.Image, background: int = 0) -> list:
    return np.asarray(flatten(image, background)).tolist()


def test_pixels_of_every_mode_become_grey_or_colour():
    grey = np.array([[0, 7, 255]], dtype=np.uint8)
    colour = np.array([[[10, 20, 30], [0, 0, 255]]], dtype=np.uint8)
    assert flat(Image.fromarray(grey)) == grey.tolist()
    assert flat(Image.fromarray(colour)) == colour.tolist()
    assert flat(Image.fromarray(np.array([[True, False]]))) == [[255, 0]]
    # 65535 / 257 = 255; 128 / 257 = 0.498; 129 / 257 = 0.502
    assert flat(Image.fromarray(np.array([[65535, 128, 129, 257, 32896]], dtype=np.uint16))) == [[255, 0, 1, 1, 128]]
    big_endian = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 65535, 514))
    assert flat(big_endian) == [[255, 2]]
    # Ink c, m, y, k leaves (255−c)(255−k)/255.
    assert flat(Image.fromarray(np.array([[[255, 0, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8), mode="CMYK")) == [
        [[0, 255, 255], [0, 0, 0]]
    ]
    palette = Image.frombytes("P", (2, 1), b"\1\0")
    palette.putpalette([1, 2, 3, 200, 100, 50])
    assert flat(palette) == [[[200, 100, 50], [1, 2, 3]]]


@pytest.mark.parametrize(("background", "expected"), [(0, 51), (255, 204), (100, 111)])
def test_transparent_pixels_lie_over_the_background(background, expected):
    """Alpha 102/255 = 0.4 of 128 (51.2), and 0.6 of the background: 51, 204, 111."""
    grey_alpha = Image.fromarray(np.array([[[128, 102], [128, 255], [128, 0]]], dtype=np.uint8), mode="LA")
    values = np.array([expected, 128, background])
    assert np.abs(np.array(flat(grey_alpha, background)) - values[None, :, None]).max() <= 1
    colour = np.array([[[128, 0, 255, 102], [1, 2, 3, 255], [9, 9, 9, 0]]], dtype=np.uint8)
    found = np.array(flat(Image.fromarray(colour), background))[0]
    mixed = 0.4 * np.array([128, 0, 255]) + 0.6 * background
    assert np.abs(found[0] - mixed).max() <= 1
    assert found[1:].tolist() == [[1, 2, 3], [background] * 3]


def test_transparent_entries_of_a_palette_lie_over_the_background(tmp_path):
    image = Image.frombytes("P", (3, 1), b"\0\1\2")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "one.png", transparency=1)
    image.save(tmp_path / "each.png", transparency=bytes([255, 255, 0]))
    image.save(tmp_path / "one.gif", transparency=0)
    assert flat(read_image(tmp_path / "one.png"), 7) == [[[10, 20, 30], [7, 7, 7], [70, 80, 90]]]
    assert flat(read_image(tmp_path / "each.png"), 7) == [[[10, 20, 30], [40, 50, 60], [7, 7, 7]]]
    assert flat(read_image(tmp_path / "one.gif"), 7)[0][0] == [7, 7, 7]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_image_with_an_exif_orientation_is_set_upright(tmp_path, orientation, upright, suffix):
    pixels = np.zeros((16, 24), dtype=np.uint8)
    pixels[:8, :8], pixels[8:, 16:] = 255, 130
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / f"x{suffix}", exif=exif)
    found = np.array(flat(read_image(tmp_path / f"x{suffix}")))
    expected = upright(pixels)
    assert found.shape == expected.shape
    assert np.abs(found - expected.astype(int)).max() <= 2


@pytest.mark.parametrize(("orientation", "size"), [(1, (3, 5)), (3, (3, 5)), (6, (5, 3)), (8, (5, 3))])
def test_the_size_of_an_image_is_that_of_the_upright_one(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("L", (5, 3)).save(tmp_path / "x.jpg", exif=exif)
    image = read_image(tmp_path / "x.jpg")
    assert upright_size(image) == size == flatten(image, 0).size[::-1]


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (40, 90, 200)]
    for suffix in (".gif", ".webp", ".png"):
        file = tmp_path / f"x{suffix}"
        frames[0].save(
            file, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == ".webp" else {})
        )
        assert np.unique(flat(read_image(file))).tolist() == [40]


def test_32_bit_pixels_have_no_known_range():
    for mode in "IF":
        with pytest.raises(ValueError, match=rf"32-bit pixels \(mode {mode}\) have no known range"):
            flatten(Image.new(mode, (2, 2)), 0)


# Size and colour


def test_padding_keeps_the_pixels_of_a_small_image_in_the_middle_of_the_background():
    pixels = random_images(1, (2, 4), 3)[0]
    found = read_pixels(to_image(pixels), (6, 8), 3, "pad", 77)
    expected = np.full((6, 8, 3), 77, dtype=np.uint8)
    expected[2:4, 2:6] = pixels
    assert (found == expected).all()


def test_padding_shrinks_a_large_image_by_one_factor_for_both_sides():
    """16×32 into 8×8: half of the width is a quarter of it, so the image takes 4×8, on rows 2 to 5."""
    found = read_pixels(Image.new("L", (32, 16), 200), (8, 8), 1, "pad", 10)[..., 0]
    assert (found[2:6] == 200).all()
    assert (found[:2] == 10).all() and (found[6:] == 10).all()


def test_resizing_is_pillows_bicubic_and_fills_the_whole_image():
    image = to_image(random_images(1, (5, 9), 1)[0])
    expected = np.asarray(image.resize((12, 7), Image.Resampling.BICUBIC))
    assert (read_pixels(image, (7, 12), 1, "resize", 99)[..., 0] == expected).all()
    assert (read_pixels(image, (5, 9), 1, "resize", 99)[..., 0] == np.asarray(image)).all()


def test_colour_becomes_grey_by_luma_and_grey_becomes_equal_channels():
    pixels = random_images(1, (6, 7), 3)[0]
    found = read_pixels(to_image(pixels), (6, 7), 1, "resize", 0)[..., 0]
    assert np.abs(found - pixels @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    grey = random_images(1, (6, 7))[0]
    assert (read_pixels(to_image(grey), (6, 7), 3, "resize", 0) == grey).all()
