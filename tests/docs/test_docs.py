"""Every command of the documents parses, every snippet runs, every link and file exists."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import runpy
import shlex
import sys
import textwrap
import tomllib
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser
from transformers import TrainingArguments

import imagelm
from imagelm.__main__ import COMMANDS
from imagelm.commands.parser import fill, option_words
from imagelm.data.arguments import PrepareArguments
from imagelm.export.arguments import ExportArguments
from imagelm.hub.arguments import PushArguments, VerifyArguments
from imagelm.inference.arguments import GROUPS, InferenceArguments
from imagelm.models.arguments import ModelArguments
from imagelm.serving.arguments import ServeArguments
from imagelm.training.arguments import DataArguments, RunArguments
from imagelm.utils.command_line import options_of
from tests.conftest import CLASSES, ROOT, run, run_anew
from tests.docs.documents import DOCUMENTS, INDENTED, all_commands, all_snippets, read

SCRIPTS = {"prepare_dataset.py": "prepare", "train.py": "train", "inference.py": "infer", "push_to_hub.py": "push"}
ARGUMENTS = {"prepare": PrepareArguments, "push": PushArguments, "export": ExportArguments, "serve": ServeArguments}
ARGUMENTS |= {"verify": VerifyArguments}
PLAIN_PROGRAMS = ("hf", "curl", "docker", "transformers")  # which are not part of this project


class Parsed(Exception):
    """A program's own parser accepted its words."""


def command_module(name: str):
    return importlib.import_module(f"imagelm.commands.{name}")


def parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses a command line with the parser of its program."""
    words = shlex.split(line)
    while "=" in words[0]:  # a variable of the environment
        words = words[1:]
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(word for word in rest if "=" not in word) <= set(targets)
    elif program == "pip":
        parse_pip(rest)
    elif program == "accelerate":
        assert rest[0] == "launch"
        launch = launch_command_parser().parse_args(rest[1:])
        assert launch.module or launch.training_script in SCRIPTS
        assert launch.config_file is None or Path(launch.config_file).is_file()
        name = SCRIPTS.get(launch.training_script) or launch.training_script.removeprefix("imagelm.commands.")
        parse_own(name, launch.training_script_args)
    elif program == "imagelm":
        parse_own(rest[0], rest[1:])
    elif program == "python":
        parse_python(rest, monkeypatch)
    elif program == "torchrun":
        launch = get_args_parser().parse_args(rest)
        parse_own(SCRIPTS[launch.training_script], launch.training_script_args)
    else:
        assert program in PLAIN_PROGRAMS, line


def parse_own(name: str, words: list[str]) -> None:
    """Parses a command of imagelm and checks its values."""
    assert name in COMMANDS
    values = command_module(name).COMMAND.parse(words, **({"library": TrainingArguments} if name == "train" else {}))
    if name == "train":
        for group in (DataArguments, ModelArguments, RunArguments):
            fill(group, values)
    elif name == "infer":
        InferenceArguments(values["mode"], *(fill(group, values) for group in GROUPS))
    else:
        fill(ARGUMENTS[name], values)


def parse_python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] in SCRIPTS:
        parse_own(SCRIPTS[words[0]], words[1:])
    elif words[:2] == ["-m", "imagelm"]:
        parse_own(words[2], words[3:])
    elif words[0] == "-m":  # an example or a benchmark: it stops as soon as its parser accepted its words
        real = argparse.ArgumentParser.parse_args

        def parse_only(parser: argparse.ArgumentParser, *given: object) -> None:
            real(parser, *given)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        monkeypatch.setattr(sys, "argv", words[1:])
        with pytest.raises(Parsed):
            runpy.run_module(words[1], run_name="__main__")
    else:
        assert (ROOT / words[0]).is_file()


def parse_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    offered = {*extras.get("optional-dependencies", {}), "onnx", "openvino"}
    assert words[0] == "install"
    for before, word in pairwise(words):
        assert before != "-r" or (ROOT / word).is_file()
        if match := re.fullmatch(r"\.\[(.+)\]", word):
            assert set(match.group(1).split(",")) <= offered


@pytest.fixture
def workplace(pictured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents name, as links to tiny real ones."""
    for folder in ("outputs", "data"):
        (tmp_path / folder).mkdir()
    for name in ("mine", "photos", "digits", "mnist", "cifar10", "predecessor"):
        (tmp_path / "outputs" / name).symlink_to(pictured / "out")
        (tmp_path / "data" / name).symlink_to(pictured / "data")
    for name in ("photos", "new_photos"):
        (tmp_path / name).symlink_to(pictured / "in")
    (tmp_path / "cat.png").symlink_to(next((pictured / "in/cat").iterdir()))
    for name in ("imagelm", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", all_commands())
def test_every_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(command, monkeypatch)


def runnable(command: str) -> bool:
    """Whether a command asks a model and needs neither a terminal nor data that tests don't have."""
    asks = command.startswith(("python inference.py", "imagelm infer"))
    return asks and not re.search(r"interactive|mnist|cifar|predecessor|digits|--backend", command)


@pytest.mark.parametrize("command", list(filter(runnable, all_commands())))
def test_every_inference_command_runs(workplace, command, monkeypatch, capsys):
    words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", words[1:])
    command_module("infer").main()
    assert capsys.readouterr().out


@pytest.mark.parametrize("snippet", all_snippets(), ids=lambda snippet: snippet.strip().splitlines()[-1][:40])
def test_every_python_snippet_runs(workplace, snippet):
    if "imagelm.train" in snippet:  # which sets threads and seeds for its process
        assert float(run("-c", snippet, cwd=workplace).stdout.splitlines()[-1]) >= 0
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})
    is_test = "def test_" in snippet  # which is only defined
    assert ("print(" in snippet and not is_test) == bool(printed.getvalue())


def test_the_example_of_the_package_gives_options_of_the_commands():
    example = ast.parse(textwrap.dedent(INDENTED.findall(imagelm.__doc__)[1]))
    called = set()
    for call in (node for node in ast.walk(example) if isinstance(node, ast.Call)):
        name = call.func.attr
        values = {entry.arg: ast.literal_eval(entry.value) for entry in call.keywords}
        names = inspect.signature(getattr(imagelm, name)).parameters
        values |= {given: ast.literal_eval(value) for given, value in zip(names, call.args, strict=False)}
        more = {"mode": "classify"} if name == "load" else {}
        parse_own("infer" if name == "load" else name, option_words(values | more))
        called.add(name)
    assert called == {"prepare", "train", "load", "push"}


def test_loading_needs_no_code_of_this_project(workplace):
    starts = ("from transformers import pipeline", "from transformers import AutoModelForCausalLM")
    snippets = [next(snippet for snippet in all_snippets() if snippet.startswith(start)) for start in starts]
    (workplace / "imagelm").unlink()
    done = run_anew("-I", "-c", "\nprint('---')\n".join(snippets), cwd=workplace)
    assert done.returncode == 0, done.stderr
    by_name, by_token = done.stdout.split("---\n")
    assert any(name in by_name for name in CLASSES)
    assert any(f"<CLS_{label}>" in by_token for label in range(3))


def test_publishing_stages_every_repository(workplace, monkeypatch):
    commands = [shlex.split(line) for line in all_commands() if line.startswith("python push_to_hub.py")]
    assert {"--dry_run" in words for words in commands} == {True, False}
    whole = max(commands, key=len)
    words = [word for word in whole if word != "--dry_run"]
    monkeypatch.setattr(sys, "argv", [*words[1:], "--num_drawings", "0", "--dry_run", "preview"])
    command_module("push").main()
    assert {path.name for path in Path("preview").iterdir()} == {
        "model",
        "dataset",
        "space",
        "uploads.json",
        "complete.json",
    }


def known_options() -> set[str]:
    groups = (group for name in COMMANDS for group in command_module(name).COMMAND.groups)
    own = {option.flag for option in options_of(*groups)}
    theirs = {f"--{entry.name}" for entry in fields(TrainingArguments)}
    benchmarks = "".join(file.read_text() for file in ROOT.glob("benchmarks/*.py"))
    measured = set(re.findall(r'"(--[a-z_]+)"', benchmarks))
    launcher = {"--cpu", "--multi_gpu", "--num_processes", "--mixed_precision", "--config_file"}
    return own | theirs | measured | launcher | {"--help", "--help_all", "--config", "--no-deps"}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_option_in_the_text_exists(file):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_0-9-]*", read(file).prose))
    assert named - known_options() == set()


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_and_every_named_file_exists(file):
    document = read(file)
    for target in document.links():
        path, _, anchor = target.partition("#")
        linked = (file.parent / path).resolve() if path else file
        assert linked.exists(), target
        assert not anchor or anchor in read(linked).anchors(), target
    for name in re.findall(r"`((?:imagelm|docs|recipes|examples|benchmarks|tests|testing)/[\w./-]+)`", document.prose):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_json_example_is_json(file):
    for block in read(file).blocks("json"):
        for line in filter(None, block.splitlines()):
            json.loads(line)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_yaml_example_is_a_recipe(file, tmp_path):
    for block in read(file).blocks("yaml"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(block)
        parse_own("train", ["--config", str(recipe), "--dataset_dir", "data/mine", "--output_dir", "outputs/mine"])


def test_the_index_links_every_page():
    linked = {(ROOT / "docs" / target).resolve() for target in read(ROOT / "docs/README.md").links()}
    assert {file for file in DOCUMENTS if file.is_relative_to(ROOT / "docs")} - {ROOT / "docs/README.md"} <= linked
