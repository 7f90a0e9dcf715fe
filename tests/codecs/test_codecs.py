"""Codecs: the nearest entry by brute force and by scikit-learn, fitting, features, files; what is lost, by hand."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity
from sklearn.cluster import KMeans

from imagelm.codecs.kmeans import fit_patch_codec, fit_unified_codec, read_unified_codebook
from imagelm.codecs.reconstruction import draw_codec, measure_reconstruction
from imagelm.data.arguments import PrepareArguments
from imagelm.remote_code.codec_imagelm import Codec, LearnedCodec, PatchCodec, UnifiedCodec, load_codec, nearest_patches
from imagelm.utils.errors import InputError
from tests.conftest import SHARED, run
from tests.images import random_images, smooth_images

FEATURES = ("x", "y", "R", "G", "B", "Gx", "Gy")  # the default of prepare
PREDECESSOR = SHARED / "predecessor1000"


def patches_by_hand(images: np.ndarray, size: int) -> np.ndarray:
    """Patch after patch, row by row, each flattened; int64, shape (images × patches, size² × channels)."""
    _, height, width, _ = images.shape
    return np.array(
        [
            image[top : top + size, left : left + size].reshape(-1)
            for image in images.astype(np.int64)
            for top in range(0, height, size)
            for left in range(0, width, size)
        ]
    )


def nearest_by_hand(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The first of the entries with the smallest squared distance."""
    return np.array([((centroids - vector) ** 2).sum(1).argmin() for vector in vectors])


def patch_codec(codebook: np.ndarray, size: int, image_size: tuple[int, int], channels: int) -> PatchCodec:
    config = {"image_size": list(image_size), "channels": channels, "patch_size": size}
    return PatchCodec(config, {"codebook": torch.from_numpy(codebook.astype(np.uint8))})


def different_entries(count: int, values: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.unique(rng.integers(0, 256, (3 * count, values)), axis=0)[rng.permutation(count)]


def fitted(kind: str, channels: int, seed: int = 0) -> Codec:
    images = smooth_images(12, (8, 12), channels)
    if kind == "patch":
        return fit_patch_codec(images, 2, 12, seed)
    if kind == "unified":
        return fit_unified_codec(images, 12, seed, FEATURES, "standardize")
    from imagelm.codecs.vq_autoencoder import fit_learned_codec

    return fit_learned_codec(images, 4, 8, seed, steps=4)


# Nearest entries


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


# Fitting


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


def test_a_learned_codec_draws_images_of_the_right_shape_and_gets_better_with_training():
    from imagelm.codecs.vq_autoencoder import fit_learned_codec

    images = smooth_images(16, (8, 12), 3)
    errors = []
    for steps in (1, 150):
        codec = fit_learned_codec(images, 4, 8, seed=0, steps=steps, fit="pad", background=9)
        assert codec.grid == (2, 3) and codec.num_tokens == 6 and codec.codebook_size == 8
        entries = codec.encode(images)
        assert entries.shape == (16, 6) and 0 <= entries.min() <= entries.max() < 8
        drawn = codec.decode(entries)
        assert drawn.shape == images.shape and drawn.dtype == np.uint8
        errors.append(((drawn.astype(float) - images) ** 2).mean())
    assert errors[1] < 0.95 * errors[0]  # the first one stands at the principal components already
    assert (codec.config["fit"], codec.config["background"]) == ("pad", 9)


def test_a_learned_codebook_of_more_entries_than_patches_is_refused():
    from imagelm.codecs.vq_autoencoder import fit_learned_codec

    with pytest.raises(InputError, match="have 12 patches of 4×4 pixels, fewer than --codebook_size 13"):
        fit_learned_codec(random_images(3), 4, 13, seed=0, steps=1)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_a_learned_codec_refuses_a_patch_size_that_is_no_power_of_two(size):
    from imagelm.codecs.vq_autoencoder import fit_learned_codec

    with pytest.raises(InputError, match=f"--patch_size {size}: a learned codebook needs a power of 2"):
        fit_learned_codec(random_images(4, (6, 6)), size, 4, seed=0, steps=1)


def test_fitting_and_loading_leave_the_random_numbers_of_the_caller_alone(tmp_path):
    expected = torch.rand(3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    codec = fitted("learned", 1)
    assert torch.equal(torch.rand(3), expected)
    codec.save(tmp_path)
    torch.manual_seed(1)
    load_codec(tmp_path)
    assert torch.equal(torch.rand(3), expected)


# Files


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


def test_a_learned_codec_with_weights_of_another_size_is_refused(tmp_path):
    fitted("learned", 1).save(tmp_path)
    tensors = load_file(tmp_path / "codec.safetensors")
    name = next(name for name in tensors if name != "codebook")
    save_file({**tensors, name: tensors[name][:1].contiguous()}, tmp_path / "codec.safetensors")
    with pytest.raises(ValueError, match="aren't a codec"):
        load_codec(tmp_path)


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


# The predecessor's data


@pytest.fixture(scope="module")
def predecessor() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Images, labels, the numbers of their files, and the published rows up to `</IMG>`."""
    if not PREDECESSOR.is_dir():
        pytest.skip("the predecessor's data aren't here")
    with np.load(PREDECESSOR / "images.npz") as arrays:
        images, labels = arrays["image"], arrays["label"]
    # The index within the class; class 9 lacks its image 58.
    t = np.concatenate([np.tile(np.arange(100), 9), np.delete(np.arange(100), 58)])
    with gzip.open(PREDECESSOR / "sequences_labels_fixed.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert [row["label"] for row in rows] == labels.tolist()
    return images, labels, t, [row["tokens"].split(" </IMG>")[0] for row in rows]


def as_text(entries: np.ndarray) -> list[str]:
    return [" ".join(["<IMG>", *(f"<Z_{entry:03d}>" for entry in row)]) for row in entries.tolist()]


def test_the_predecessors_codebook_gives_exactly_the_predecessors_tokens(predecessor):
    images, _, t, rows = predecessor
    codec = read_unified_codebook(PREDECESSOR / "unified_codebook.csv", (28, 28), 1)
    assert as_text(codec.encode(images[..., None], t=t)) == rows


def test_the_command_gives_exactly_the_predecessors_tokens(predecessor, tmp_path):
    images, labels, t, rows = predecessor
    np.savez(tmp_path / "with_t.npz", image=images, label=labels, t=t)
    done = run(
        *("prepare_dataset.py", "--images", tmp_path / "with_t.npz", "--output_dir", tmp_path / "out"),
        *("--codebook", "unified", "--centroids", PREDECESSOR / "unified_codebook.csv", "--write_jsonl"),
        *("--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in (tmp_path / "out/raw/rows.jsonl").read_text().splitlines()]
    assert [row["label"] for row in written] == labels.tolist()
    assert [row["tokens"].split(" </IMG>")[0] for row in written] == rows
    vocabulary = json.loads((PREDECESSOR / "vocab.json").read_text())
    assert json.loads((tmp_path / "out/raw/vocab.json").read_text()) == vocabulary


# What is lost


def test_error_and_noise_ratio_are_those_worked_out_by_hand():
    images = np.zeros((2, 3, 4, 1), dtype=np.uint8)
    restored = images.copy()
    restored[0, 0, 0], restored[1, 2, 3] = 6, 250
    # (6² + 250²) / 24 = 2605.67; 10 log10(65025 / 2605.67) = 13.97 dB
    found = measure_reconstruction(images, restored)
    assert found["num_images"] == 2
    assert found["mse"] == pytest.approx(62536 / 24)
    assert found["psnr"] == pytest.approx(13.9715, abs=1e-3)
    same = measure_reconstruction(images, images)
    assert (same["mse"], same["psnr"], same["ssim"]) == (0, None, 1)
    assert measure_reconstruction(images[:, :2], restored[:, :2])["ssim"] is None


def ssim_by_hand(a: np.ndarray, b: np.ndarray, window: int) -> float:
    """Wang et al. (2004) with a square window and sample (co)variances, over one channel."""
    a, b = a.astype(float), b.astype(float)
    count = window**2

    def mean(values: np.ndarray) -> np.ndarray:
        edge = window // 2
        return uniform_filter(values, window)[edge : -edge or None, edge : -edge or None]

    mean_a, mean_b = mean(a), mean(b)
    spread = [count / (count - 1) * (mean(x * y) - mean(x) * mean(y)) for x, y in ((a, a), (b, b), (a, b))]
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * spread[2] + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (spread[0] + spread[1] + c2)
    return float((above / below).mean())


@pytest.mark.parametrize(
    ("size", "channels", "window"), [((12, 9), 1, 7), ((9, 12), 3, 7), ((6, 5), 1, 5), ((4, 9), 3, 3)]
)
def test_similarity_is_scikit_images_and_that_worked_out_by_hand(size, channels, window):
    images = smooth_images(3, size, channels)
    restored = (images // 32 * 32).astype(np.uint8)
    found = measure_reconstruction(images, restored)["ssim"]
    pairs = [(a[..., i], b[..., i]) for a, b in zip(images, restored, strict=True) for i in range(channels)]
    assert found == pytest.approx(np.mean([ssim_by_hand(a, b, window) for a, b in pairs]))
    assert found == pytest.approx(np.mean([structural_similarity(a, b, win_size=window) for a, b in pairs]))


@pytest.mark.parametrize("kind", ["patch", "unified", "learned"])
def test_codebook_and_reconstructions_are_drawn_as_png_files_that_open(kind, tmp_path):
    from PIL import Image

    codec, images = fitted(kind, 3), smooth_images(12, (8, 12), 3)
    draw_codec(codec, images, codec.decode(codec.encode(images)), tmp_path)
    for name in ("codebook.png", "reconstructions.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            image.load()
            assert len(np.unique(np.asarray(image))) > 2


def test_a_learned_codec_made_of_config_and_tensors_alone_draws_the_same():
    codec = fitted("learned", 1)
    again = LearnedCodec(codec.config, codec.tensors)
    uniform = np.repeat(np.arange(8)[:, None], codec.num_tokens, axis=1)
    assert (again.decode(uniform) == codec.decode(uniform)).all()


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


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 40])
def test_a_learned_codec_may_have_any_number_of_steps(steps):
    from imagelm.codecs.vq_autoencoder import fit_learned_codec

    assert fit_learned_codec(random_images(4), 4, 4, seed=0, steps=steps).codebook_size == 4


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
