"""The built wheel: what it holds, and that it works in an environment of its own, from an empty folder.

One idea: nothing of the repository is on the path, so a file that the wheel forgets is a command that fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.conftest import ROOT, random_rows, write_jsonl
from tests.separate import not_installed

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "model_card.md", "imagelm", "examples", "testing")
SUB_COMMANDS = ("prepare", "train", "infer", "push", "verify", "export", "serve")
ROOMS = (
    "commands",
    "hub",
    "export",
    "serving",
    "inference",
    "training",
    "evaluation",
    "metrics",
    "data",
    "models",
    "tokens",
)
ROOMS += ("codecs", "accel", "remote_code", "templates", "utils")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads: setuptools writes into the folder it builds in."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that IMAGELM_WHEEL names, or one built by this environment's setuptools without a network."""
    if given := os.environ.get("IMAGELM_WHEEL"):
        return Path(given)
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def build_wheel(source: Path, folder: Path) -> Path:
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    call(sys.executable, "-m", "pip", *words)
    (wheel,) = folder.glob("*.whl")
    return wheel


def call(*words: object, cwd: Path | None = None, **environment: str) -> str:
    """Runs a program and returns what it prints; fails with its error output."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pins(file: str) -> dict[str, Requirement]:
    """The requirements in a file by their normal names."""
    lines = (ROOT / file).read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def bounds(requirements: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, requirements)}


def version_of(pin: Requirement) -> str:
    match = re.fullmatch(r"==([\w.]+)", str(pin.specifier))
    assert match, f"{pin} is no exact pin"
    return match[1]


@pytest.mark.parametrize(
    ("file", "required"),
    [
        ("requirements.txt", PROJECT["dependencies"]),
        ("requirements-onnx.txt", PROJECT["optional-dependencies"]["onnx"]),
        ("requirements-openvino.txt", PROJECT["optional-dependencies"]["openvino"]),
        ("requirements-serve.txt", PROJECT["optional-dependencies"]["serve"]),
        ("requirements-oldest.txt", PROJECT["dependencies"]),
        (
            "requirements-dev.txt",
            [name for name in PROJECT["optional-dependencies"]["dev"] if name != "imagelm[onnx,openvino,serve]"],
        ),
    ],
)
def test_the_pins_name_the_declared_dependencies_and_satisfy_their_bounds(file, required):
    pinned, declared = pins(file), bounds(required)
    assert sorted(pinned) == sorted(declared)
    wrong = [name for name, pin in pinned.items() if version_of(pin) not in declared[name].specifier]
    assert wrong == []


def test_the_oldest_pins_are_the_lower_bounds():
    declared = bounds(PROJECT["dependencies"])
    oldest = {name: f">={version_of(pin)}" for name, pin in pins("requirements-oldest.txt").items()}
    assert oldest == {name: str(requirement.specifier) for name, requirement in declared.items()}


def test_the_wheel_holds_the_package_with_its_templates_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("imagelm/templates/model_card.md") == (ROOT / "model_card.md").read_bytes()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "imagelm = imagelm.__main__:run" in entry_points
    tracked = {str(file.relative_to(ROOT)) for file in (ROOT / "imagelm").rglob("*") if file.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == {name for name in tracked if ".pyc" not in name}
    assert {"imagelm/py.typed", "imagelm/templates/space/app.py"} <= names
    assert {f"imagelm/{room}" for room in ROOMS} <= {str(Path(name).parent) for name in names}
    for metric in (ROOT / "imagelm/metrics").glob("*/"):
        assert metric.name == "__pycache__" or f"imagelm/metrics/{metric.name}/{metric.name}.py" in names


def test_a_wheel_built_from_the_source_archive_holds_the_same_files(source, wheel, tmp_path):
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    call(sys.executable, "-c", code, tmp_path, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    again = build_wheel(folder, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        contents = [
            {name: packed.read(name) for name in packed.namelist() if not name.endswith("RECORD")}
            for packed in (first, second)
        ]
    assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.parametrize("requirements", ["requirements.txt", "requirements-oldest.txt"])
def test_the_installed_wheel_prepares_trains_classifies_and_previews_a_push(requirements, wheel, grammar, tmp_path):
    programs = tmp_path / "environment/bin"
    call(sys.executable, "-m", "venv", programs.parent)
    words = [programs / "python", "-m", "pip", "install", "--quiet", "-r", ROOT / requirements, wheel]
    installed = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=1800)
    if "Could not find a version" in installed.stderr or "NewConnectionError" in installed.stderr:
        not_installed(requirements, installed.stderr)
    assert installed.returncode == 0, installed.stderr
    assert "No broken requirements found" in call(programs / "python", "-m", "pip", "check")
    empty = tmp_path / "empty"
    empty.mkdir()
    work_through(programs, empty, grammar.vocabulary)


def work_through(programs: Path, home: Path, vocabulary: dict[str, int]) -> None:
    """Runs the commands of an installed wheel one after the other from the folder `home`."""
    imagelm = programs / "imagelm"

    def run(*words: object) -> str:
        return call(*words, cwd=home, OMP_NUM_THREADS="1", HF_HOME=str(home / "hf"), HF_HUB_OFFLINE="1")

    listing = run(imagelm, "--help")
    assert run(programs / "python", "-m", "imagelm", "--help") == listing
    assert all(name in listing for name in SUB_COMMANDS)
    for name in SUB_COMMANDS:
        assert "--" in run(imagelm, name, "--help")

    # Images: a folder a class, dark and bright.
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (home / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 100, (8, 8)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(home / "images" / name / f"{i}.png")
    run(imagelm, "prepare", "--images", "images", "--output_dir", "data", "--codebook_size", 8)
    tiny = ("--config_overrides", "num_hidden_layers=2,hidden_size=32,num_attention_heads=2", "--use_cpu")
    tiny += ("--max_steps", 2, "--save_strategy", "steps", "--save_steps", 2, "--eval_strategy", "steps")
    tiny += ("--eval_steps", 2, "--per_device_train_batch_size", 4)
    run(imagelm, "train", "--dataset_dir", "data", "--output_dir", "out", *tiny)
    answers = run(imagelm, "infer", "--model", "out/best_model", "--mode", "classify", "--images", "images")
    assert "accuracy" in answers
    run(imagelm, "push", "--model_dir", "out/best_model", "--repo_id", "me/tiny", "--dry_run", "preview")
    assert "imagelm" in (home / "preview/model/README.md").read_text("utf-8")

    # Rows of tokens, trained with the launcher.
    write_jsonl(home / "rows.jsonl", random_rows(40, seed=0))
    (home / "vocab.json").write_text(json.dumps(vocabulary))
    run(imagelm, "prepare", "--data_files", "rows.jsonl", "--vocab_file", "vocab.json", "--output_dir", "rows")
    launch = [programs / "accelerate", "launch", "--num_processes", 1, "--mixed_precision", "no"]
    run(*launch, "-m", "imagelm.commands.train", "--dataset_dir", "rows", "--output_dir", "launched", *tiny)
    assert (home / "launched/final_model/model.safetensors").is_file()
