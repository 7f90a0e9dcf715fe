"""Codebooks fitted by k-means or read from a file of centroids."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from imagelm.codecs.kmeans import fit_patch_codec, fit_unified_codec, read_unified_codebook
from imagelm.data.arguments import PrepareArguments
from imagelm.utils.errors import InputError
from tests.codecs.common import FEATURES, fitted, patches_by_hand
from tests.images import random_images, smooth_images


@pytest.mark.parametrize("kind", ["patch", "unified", "learned"])
def test_the_same_images_and_seed_give_the_same_codec_and_another_seed_another(kind, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        fitted(kind, 1, seed).save(tmp_path / name)
    a, b, c = ((tmp_path / name / "codec.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert (tmp_path / "a/codec.json").read_bytes() == (tmp_path / "b/codec.json").read_bytes()


def test_too_few_different_patches_are_named_with_their_number():
    images = np.repeat([0, 90, 200], 16 * 4).astype(np.uint8).reshape(12, 4, 4, 1)
    with pytest.raises(InputError, match=r"3 different patches of 2×2 pixels, fewer than --codebook_size 4"):
        fit_patch_codec(images, 2, 4, seed=0)
    codec = fit_patch_codec(images, 2, 3, seed=0)
    assert codec.tensors["codebook"].tolist() == [[0] * 4, [90] * 4, [200] * 4]
    flat = np.zeros((3, 2, 2, 1), dtype=np.uint8)
    with pytest.raises(InputError, match=r"4 different pixels, fewer than --codebook_size 5"):
        fit_unified_codec(flat, 5, 0, FEATURES, "standardize")


def test_centroids_that_rounding_makes_equal_are_replaced_so_that_all_entries_differ():
    images = np.arange(100, 110, dtype=np.uint8).repeat(50)[:, None, None, None]
    codec = fit_patch_codec(images, 1, 10, seed=0)
    assert codec.tensors["codebook"][:, 0].tolist() == list(range(100, 110))


def test_entries_are_sorted_from_dark_to_bright_and_are_about_as_good_as_full_k_means():
    images = smooth_images(40, (16, 16))
    codec = fit_patch_codec(images, 4, 24, seed=0)
    codebook = codec.tensors["codebook"].numpy().astype(float)
    assert (np.diff(codebook.mean(1)) >= 0).all()
    assert len(np.unique(codebook, axis=0)) == 24
    patches = patches_by_hand(images, 4)
    lost = ((images - codec.decode(codec.encode(images)).astype(float)) ** 2).sum()
    assert lost < 1.25 * KMeans(24, n_init=3, random_state=0).fit(patches).inertia_


def test_a_unified_codec_is_fitted_without_t_and_a_on_features_of_equal_spread():
    images = smooth_images(10, (8, 12))
    codec = fit_unified_codec(images, 12, 0, FEATURES, "standardize")
    assert tuple(codec.config["features"]) == FEATURES == tuple(PrepareArguments.features.split(","))
    planes = [np.broadcast_to(np.arange(12), images.shape[:3]), np.broadcast_to(np.arange(8)[:, None], (10, 8, 12))]
    planes += [images[..., 0] / 255] * 3
    planes += [np.gradient(images[..., 0].astype(float), axis=axis) for axis in (2, 1)]
    deviations = [plane.std() for plane in planes]
    assert codec.tensors["scale"].numpy() == pytest.approx(1 / np.array(deviations))
    unscaled = fit_unified_codec(images, 12, 0, FEATURES, "none")
    assert unscaled.tensors["scale"].tolist() == [1.0] * 7


def test_a_codebook_with_t_refuses_a_bare_image():
    images = random_images(4)
    codec = fit_unified_codec(images, 5, 0, ("x", "t", "R", "G", "B"), "standardize", t=np.arange(4))
    assert codec.encode(images, t=np.arange(4)).shape == (4, 64)
    with pytest.raises(ValueError, match="fitted with t, the number of an image's file, which an image alone doesn't"):
        codec.encode(images)


# Files of centroids


def test_centroids_come_from_a_csv_by_the_number_of_their_cluster(tmp_path):
    file = tmp_path / "centroids.csv"
    file.write_text("x,cluster_id,R\n5,1,0.5\n7,0,0.25\n")
    codec = read_unified_codebook(file, (2, 3), 1)
    assert codec.config["features"] == ["x", "R"]
    assert codec.tensors["codebook"].tolist() == [[7, 0.25], [5, 0.5]]
    assert codec.tensors["scale"].tolist() == [1, 1]
    file.write_text("x,R\n5,0.5\n7,0.25\n")
    assert read_unified_codebook(file, (2, 3), 1).tensors["codebook"].tolist() == [[5, 0.5], [7, 0.25]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x,brightness\n1,2\n", "columns x, brightness"),
        ("cluster_id,x\n0,1\n2,1\n", "cluster_id isn't 0 to 1"),
        ("cluster_id\n0\n", "columns cluster_id"),
        ("x,R\n1,nan\n", "aren't finite"),
        ("x,R\n1,two\n", "can't be read"),
        ("x,R\n1,2,3\n", "columns x, R"),
    ],
)
def test_a_csv_that_is_no_table_of_centroids_is_refused(tmp_path, text, said):
    file = tmp_path / "centroids.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        read_unified_codebook(file, (2, 2), 1)
    with pytest.raises(InputError, match="No such file"):
        read_unified_codebook(tmp_path / "none.csv", (2, 2), 1)
