"""The nearest entry by brute force and by scikit-learn, for patches and for features of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from imagelm.remote_code.codec_imagelm import UnifiedCodec
from imagelm.remote_code.vectors_imagelm import nearest_patches
from tests.codecs.common import different_entries, fitted, nearest_by_hand, patch_codec, patches_by_hand
from tests.images import random_images, smooth_images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_patch_becomes_its_nearest_entry_by_brute_force_and_by_scikit_learn(size, channels):
    images = random_images(3, (16, 24), channels)
    codebook = different_entries(40, size * size * channels)
    entries = patch_codec(codebook, size, (16, 24), channels).encode(images)
    patches = patches_by_hand(images, size)
    assert entries.shape == (3, 16 // size * 24 // size)
    assert (entries.reshape(-1) == nearest_by_hand(patches, codebook)).all()
    kmeans = KMeans(len(codebook), init=codebook.astype(float), n_init=1).fit(codebook.astype(float))
    kmeans.cluster_centers_ = codebook.astype(float)
    assert (entries.reshape(-1) == kmeans.predict(patches.astype(float))).all()


@pytest.mark.parametrize(("size", "channels"), [(18, 1), (10, 3), (19, 1), (32, 3)])
def test_large_patches_that_differ_by_one_step_in_one_value_are_told_apart(size, channels):
    """Below and above 341 values, where the comparison changes from float32 to float64; sums are at their largest."""
    values = size * size * channels
    codebook = np.zeros((60, values), dtype=np.int64)
    codebook[np.arange(60), np.arange(60)] = 1
    patches = codebook.copy()
    patches[:, 0] += 2
    codec = patch_codec(codebook, size, (size, size), channels)
    for vectors in (codebook, patches, np.random.default_rng(0).integers(0, 3, (60, values))):
        entries = codec.encode(vectors.reshape(-1, size, size, channels).astype(np.uint8))[:, 0]
        assert (entries == nearest_by_hand(vectors, codebook)).all()


@pytest.mark.parametrize("dimensions", [4, 12, 16, 48, 192])
def test_the_quick_search_is_brute_force_also_among_plain_patches_and_ties(dimensions):
    rng = np.random.default_rng(dimensions)
    codebook = rng.integers(0, 256, (70, dimensions), dtype=np.uint8)
    codebook[40:50] = codebook[:10]  # equal entries: the first one wins
    patches = rng.integers(0, 256, (900, dimensions), dtype=np.uint8)
    patches[300:] = rng.integers(0, 256, (600, 1), dtype=np.uint8)
    patches[500:600] = codebook[rng.integers(0, 70, 100)]
    distances = ((patches[:, None].astype(np.int64) - codebook[None].astype(np.int64)) ** 2).sum(-1)
    assert np.array_equal(nearest_patches(patches, codebook.astype(np.float64) - 128), distances.argmin(1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_an_image_made_of_entries_is_encoded_to_exactly_these_entries(size, channels):
    codec = patch_codec(different_entries(50, size * size * channels), size, (16, 32), channels)
    entries = np.random.default_rng(1).integers(0, 50, (20, codec.num_tokens))
    images = codec.decode(entries)
    assert images.shape == (20, 16, 32, channels) and images.dtype == np.uint8
    assert (codec.encode(images) == entries).all()
    assert (patches_by_hand(images, size) == codec.tensors["codebook"].numpy()[entries.reshape(-1)]).all()


@pytest.mark.parametrize("kind", ["patch", "unified", "learned"])
def test_entries_do_not_depend_on_the_batch_size(kind):
    codec = fitted(kind, 3)
    images = smooth_images(130, (8, 12), 3, seed=5)
    whole = codec.encode(images)
    for size in (1, 7, 64):
        parts = [codec.encode(images[start : start + size]) for start in range(0, len(images), size)]
        assert (np.concatenate(parts) == whole).all()


@pytest.mark.parametrize(("channels", "scale"), [(1, None), (3, [0.5, 2, 1, 3, 0.01, 1, 1, 1, 0.1])])
def test_a_pixel_becomes_its_nearest_centroid_in_scaled_features(channels, scale):
    images = random_images(4, (6, 9), channels)
    names = ["x", "y", "t", "R", "G", "B", "A", "Gx", "Gy"]
    t = np.array([3, 1, 4, 1])
    columns = []
    for image, number in zip(images.astype(float), t, strict=True):
        red, green, blue = (image[..., i % channels] for i in range(3))
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        along_y, along_x = np.gradient(grey)
        y, x = np.mgrid[:6, :9]
        ones = np.ones((6, 9))
        planes = [x, y, number * ones, red / 255, green / 255, blue / 255, ones, along_x, along_y]
        columns.append(np.stack(planes, -1).reshape(-1, 9))
    features = np.concatenate(columns)
    rng = np.random.default_rng(2)
    centroids = features[rng.permutation(len(features))[:20]] + rng.normal(size=(20, 9))
    scale = np.ones(9) if scale is None else np.array(scale)
    config = {"image_size": [6, 9], "channels": channels, "features": names}
    codec = UnifiedCodec(config, {"codebook": torch.from_numpy(centroids), "scale": torch.from_numpy(scale)})
    expected = nearest_by_hand(features * scale, centroids * scale)
    assert (codec.encode(images, t=t).reshape(-1) == expected).all()
    # And with another order of the columns, which is the config's to say.
    order = rng.permutation(9)
    config |= {"features": [names[i] for i in order]}
    tensors = {"codebook": torch.from_numpy(centroids[:, order]), "scale": torch.from_numpy(scale[order])}
    assert (UnifiedCodec(config, tensors).encode(images, t=t).reshape(-1) == expected).all()


def test_a_unified_entry_is_drawn_in_its_colour():
    features = ["R", "x", "G", "B"]
    centroids = torch.tensor([[0.2, 5, 0.4, 0.6], [1.2, 0, -0.1, 0.999]], dtype=torch.float64)
    tensors = {"codebook": centroids, "scale": torch.ones(4, dtype=torch.float64)}
    coloured = UnifiedCodec({"image_size": [1, 2], "channels": 3, "features": features}, tensors)
    assert coloured.decode(np.array([[0, 1]])).tolist() == [[[[51, 102, 153], [255, 0, 255]]]]
    grey = UnifiedCodec({"image_size": [1, 2], "channels": 1, "features": features}, tensors)
    # 0.299·0.2 + 0.587·0.4 + 0.114·0.6 = 0.363 of 255 is 92.6; 0.299·1.2 − 0.0587 + 0.114·0.999 = 0.414 is 105.6.
    assert grey.decode(np.array([[0, 1]])).reshape(-1).tolist() == [93, 106]
