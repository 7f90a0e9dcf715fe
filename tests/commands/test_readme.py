"""README's snippet runs as it stands, its commands parse, its files exist."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

from imagelm.commands.train import parse_launch
from tests.conftest import CLASSES, ROOT, run

SCRIPTS = ("prepare_dataset.py", "train.py", "inference.py", "push_to_hub.py")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def indented(start: str) -> str:
    """The indented block of README.md that begins with `start`."""
    lines = README.splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().startswith(start))
    indent = len(lines[first]) - len(lines[first].lstrip())
    block = []
    for line in lines[first:]:
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            break
        block.append(line[indent:])
    return "\n".join(block)


def inference_commands() -> list[str]:
    """The commands of README.md that ask a model; not the prompt, nor the one that needs MNIST."""
    lines = README.replace("\\\n", " ").splitlines()
    commands = [line.strip() for line in lines if line.strip().startswith("python inference.py")]
    return [command for command in commands if "interactive" not in command and "mnist" not in command]


def test_the_loading_snippet_prints_a_class(trained, tmp_path):
    (tmp_path / "outputs/mine").mkdir(parents=True)
    (tmp_path / "outputs/mine/best_model").symlink_to(trained / "best_model")
    done = run("-I", "-c", indented("from transformers import AutoModelForCausalLM"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {"<CLS_0>", "<CLS_1>", "<CLS_2>"}


def test_the_pipeline_snippet_prints_classes_of_a_picture(pictured, tmp_path):
    (tmp_path / "outputs/photos").mkdir(parents=True)
    (tmp_path / "outputs/photos/best_model").symlink_to(pictured / "out/best_model")
    (tmp_path / "cat.png").symlink_to(next((pictured / "in/cat").iterdir()))
    done = run("-I", "-c", indented("from transformers import pipeline"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = ast.literal_eval(done.stdout)
    assert {answer["label"] for answer in answers} == set(CLASSES)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)


@pytest.mark.parametrize("command", inference_commands())
def test_every_inference_command_runs(pictured, tmp_path, command):
    (tmp_path / "outputs").mkdir()
    for name in ("mine", "photos", "mnist"):
        (tmp_path / "outputs" / name).symlink_to(pictured / "out")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine").symlink_to(pictured / "data")
    for name in ("photos", "new_photos"):
        (tmp_path / name).symlink_to(pictured / "in")
    words = shlex.split(command)
    words = [
        str(tmp_path / word) if word.startswith(("outputs/", "data/", "photos", "new_")) else word for word in words
    ]
    words = [str(tmp_path / word) if word.endswith((".png", ".jsonl")) else word for word in words]
    done = run(*words[1:])
    assert done.returncode == 0, done.stderr


def test_both_commands_to_publish_put_the_repositories_together(pictured, tmp_path):
    lines = [line.strip() for line in README.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("python push_to_hub.py")]
    paths = {"outputs/photos/best_model": pictured / "out/best_model", "data/photos": pictured / "data"}
    assert ["--dry_run" in words for words in commands] == [True, False]
    for words in commands:
        words = [str(paths.get(word, word)) for word in words if word != "--dry_run"]
        done = run(*words[1:], "--num_drawings", "0", "--dry_run", tmp_path / "preview")
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "preview").iterdir()} == {"model", "dataset", "space", "uploads.json"}


def test_the_training_command_parses():
    command = "accelerate launch --config_file accelerate_config.yaml train.py --dataset_dir data/mine"
    words = shlex.split(indented(command).splitlines()[0])
    launch = parse_launch([*words[words.index("train.py") + 1 :], "--use_cpu"])
    assert (launch.data.dataset_dir, launch.args.output_dir) == ("data/mine", "outputs/mine")


def test_every_option_that_is_named_exists():
    helps = "".join(run(script, "--help").stdout for script in SCRIPTS)
    helps += run("train.py", "--help_all").stdout + run("-m", "imagelm", "export", "--help").stdout
    accelerates = {"--multi_gpu", "--num_processes", "--config_file"}
    named = set(re.findall(r"--[a-z_0-9]+", README)) - accelerates
    assert len(named) > 10
    assert [name for name in sorted(named) if name not in helps] == []


def test_the_file_tree_and_the_pictures_are_there():
    tree = indented("prepare_dataset.py       images or raw").splitlines()
    folder, count = "", 0
    for line in filter(str.strip, tree):
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        inside = line.startswith(" ")
        for name in names:
            assert (ROOT / (folder if inside else "") / name).exists(), name
            count += 1
        if not inside:
            folder = names[0]
    assert count > 25
    for picture in re.findall(r"\]\((\S+\.png)\)", README):
        assert (ROOT / picture).is_file()
