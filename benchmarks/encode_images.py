#!/usr/bin/env python
"""Speed of encoding images: `prepare_dataset.py --images` as a user runs it, and the codec against scikit-learn.

    python -m benchmarks.encode_images --images train.parquet --test_images test.parquet

The first part runs the command in a separate process and measures wall time, CPU time and peak resident memory. The
second encodes the same patches by turns with the codec that the command fitted and with scikit-learn's `KMeans.predict`
over the same centroids (A B A B …), one thread each, and compares medians; both must give the same entries.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before the libraries read it: such small products don't gain from a second thread

import numpy as np
import torch
from sklearn.cluster import KMeans

from imagelm.data.sources.open import open_images
from imagelm.remote_code.codec_imagelm import PatchCodec, load_codec
from imagelm.remote_code.vectors_imagelm import cut_patches
from imagelm.training.run_record import hardware
from imagelm.utils.atomic_io import write_json
from imagelm.utils.errors import run_script

ROOT = Path(__file__).parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--images", nargs="+", required=True, help="training images")
    parser.add_argument("--test_images", nargs="+", required=True, help="held-out images")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each contestant")
    parser.add_argument("--num_images", type=int, default=10_000, help="images per round")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/encode_images.json", help="JSON")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "data"
        command = prepare(arguments, output)
        codec = load_codec(output / "codec")
    rounds = compare(codec, arguments)
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(torch.device("cpu"), 1, 1)["device"],
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "pillow", "scikit-learn", "torch")},
        "command": command,
        "encode": rounds,
    }
    write_json(arguments.output, results)
    print(json.dumps(results, indent=2))


def prepare(arguments: argparse.Namespace, output: Path) -> dict:
    """Runs the command; wall and CPU seconds, peak resident MiB, and its own encoding figures."""
    words = ["--images", *arguments.images, "--test_images", *arguments.test_images]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["HF_HOME"] = str(output.parent / "cache")  # no dataset cached by an earlier run
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "prepare_dataset.py", *words, "--output_dir", str(output)],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    stats = json.loads((output / "stats.json").read_text())
    return {
        "options": "defaults: patch codebook, 4×4, 500 entries",
        "images": stats["codec"]["images_encoded"],
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_resident_mib": round(used.ru_maxrss / 1024),
        "encode_images_per_second": stats["codec"]["images_per_second"],
        "reconstruction": stats["codec"]["reconstruction"],
    }


def compare(codec: PatchCodec, arguments: argparse.Namespace) -> dict:
    """Images a second of the codec (from uint8 images) and of `KMeans.predict` (from float patches, already cut)."""
    source = open_images(arguments.test_images)
    images = np.stack([codec.pixels(image) for image in source.load(0, min(arguments.num_images, len(source)))])
    patches = cut_patches(torch.from_numpy(images), codec.config["patch_size"]).flatten(0, 1).numpy()
    patches = patches.astype(np.float32)
    centroids = codec.tensors["codebook"].numpy().astype(np.float32)
    kmeans = KMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(centroids)
    kmeans.cluster_centers_ = centroids
    contestants = {"codec": lambda: codec.encode(images), "kmeans_predict": lambda: kmeans.predict(patches)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    entries = {name: np.ravel(contest()) for name, contest in contestants.items()}
    for _ in range(arguments.rounds):
        for name, contest in contestants.items():
            started = time.perf_counter()
            contest()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: len(images) / statistics.median(values) for name, values in seconds.items()}
    return {
        "images": len(images),
        "threads": 1,
        "rounds": arguments.rounds,
        "images_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio_of_medians": round(rates["codec"] / rates["kmeans_predict"], 3),
        "share_of_equal_entries": float(np.mean(entries["codec"] == entries["kmeans_predict"])),
    }


if __name__ == "__main__":
    run_script(main)
