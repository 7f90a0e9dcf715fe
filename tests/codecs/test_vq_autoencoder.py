"""Learned codebooks: shapes, steps, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from imagelm.remote_code.codec_imagelm import LearnedCodec, load_codec
from imagelm.utils.errors import InputError
from tests.codecs.common import fit_learned, fitted
from tests.images import random_images, smooth_images


def test_a_learned_codec_draws_images_of_the_right_shape_and_gets_better_with_training():
    images = smooth_images(16, (8, 12), 3)
    errors = []
    for steps in (1, 150):
        codec = fit_learned(images, 4, 8, seed=0, steps=steps, fit="pad", background=9)
        assert codec.grid == (2, 3) and codec.num_tokens == 6 and codec.codebook_size == 8
        entries = codec.encode(images)
        assert entries.shape == (16, 6) and 0 <= entries.min() <= entries.max() < 8
        drawn = codec.decode(entries)
        assert drawn.shape == images.shape and drawn.dtype == np.uint8
        errors.append(((drawn.astype(float) - images) ** 2).mean())
    assert errors[1] < 0.95 * errors[0]  # the first one stands at the principal components already
    assert (codec.config["fit"], codec.config["background"]) == ("pad", 9)


def test_a_learned_codebook_of_more_entries_than_patches_is_refused():
    with pytest.raises(InputError, match="have 12 patches of 4×4 pixels, fewer than --codebook_size 13"):
        fit_learned(random_images(3), 4, 13, seed=0, steps=1)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_a_learned_codec_refuses_a_patch_size_that_is_no_power_of_two(size):
    with pytest.raises(InputError, match=f"--patch_size {size}: a learned codebook needs a power of 2"):
        fit_learned(random_images(4, (6, 6)), size, 4, seed=0, steps=1)


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 40])
def test_a_learned_codec_may_have_any_number_of_steps(steps):
    assert fit_learned(random_images(4), 4, 4, seed=0, steps=steps).codebook_size == 4


def test_a_learned_codec_made_of_config_and_tensors_alone_draws_the_same():
    codec = fitted("learned", 1)
    again = LearnedCodec(codec.config, codec.tensors)
    uniform = np.repeat(np.arange(8)[:, None], codec.num_tokens, axis=1)
    assert (again.decode(uniform) == codec.decode(uniform)).all()


def test_a_learned_codec_with_weights_of_another_size_is_refused(tmp_path):
    fitted("learned", 1).save(tmp_path)
    tensors = load_file(tmp_path / "codec.safetensors")
    name = next(name for name in tensors if name != "codebook")
    save_file({**tensors, name: tensors[name][:1].contiguous()}, tmp_path / "codec.safetensors")
    with pytest.raises(ValueError, match="aren't a codec"):
        load_codec(tmp_path)


def test_fitting_and_loading_leave_the_random_numbers_of_the_caller_alone(tmp_path):
    expected = torch.rand(3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    codec = fitted("learned", 1)
    assert torch.equal(torch.rand(3), expected)
    codec.save(tmp_path)
    torch.manual_seed(1)
    load_codec(tmp_path)
    assert torch.equal(torch.rand(3), expected)
