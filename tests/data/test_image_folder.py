"""The folder of prepared images and the command's summary: names, figures, pictures and notes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans

from imagelm.data.load import load_prepared, load_stats
from imagelm.remote_code.codec_imagelm import load_codec
from tests.conftest import ROOT, SHARED, run
from tests.images import cats_and_dogs, class_folder, prepare_images, restored, smooth_images


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


def test_an_existing_codec_is_not_described_as_fitted_on_training_images_only(tmp_path):
    cats_and_dogs(tmp_path / "in")
    prepare_images(tmp_path / "first", tmp_path / "in")
    prepare_images(tmp_path / "second", tmp_path / "in", codec=str(tmp_path / "first/codec"), seed=1)
    fitted, taken = ((tmp_path / name / "README.md").read_text() for name in ("first", "second"))
    assert "Fitted on training images only." in fitted
    assert "training images" not in taken and "the images it was fitted on aren't known here" in taken


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
