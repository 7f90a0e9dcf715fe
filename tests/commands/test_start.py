"""What a command loads before its first step or its answer: nothing that only its end needs, or other input."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, run_anew

AT_THE_END = {"evaluate", "matplotlib", "rouge_score", "sacrebleu", "scipy", "skimage", "sklearn"}
FOR_SOME_RUNS = {"onnxruntime", "openvino", "tensorboard", "trackio", "vector_quantize_pytorch", "wandb"}
# Functions of a command that import what is needed up to the first step, or the answer.
TRAINING = ("main", "run", "train_and_report", "parse_launch", "make_model", "train", "make_trainer")
BEFORE = {"train": TRAINING, "infer": ("main",)}


@functools.cache
def tree(module: str) -> ast.Module | None:
    path = ROOT / module.replace(".", "/")
    file = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
    return None if file is None else ast.parse(file.read_text("utf-8"))


def imports(statements: list[ast.stmt]) -> Iterator[str]:
    """The modules that statements import when they run; neither functions nor conditions are looked into."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield str(statement.module)
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.With):
            yield from imports(statement.body)


def loaded(modules: Iterator[str]) -> set[str]:
    """These modules and all that they import in turn; other libraries' by name only."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        parts = module.split(".")
        for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
            if name not in found:
                found.add(name)
                if parts[0] == "imagelm" and (content := tree(name)):
                    waiting += imports(content.body)
    return found


@pytest.mark.parametrize(
    ("command", "unneeded", "needed"),
    [
        ("train", AT_THE_END | FOR_SOME_RUNS | {"imagelm.hub.push"}, {"torch", "datasets", "imagelm.training.trainer"}),
        ("infer", AT_THE_END | FOR_SOME_RUNS | {"datasets", "imagelm.training"}, {"torch", "imagelm.inference.tasks"}),
    ],
)
def test_a_command_starts_without_what_only_its_end_or_other_input_needs(command, unneeded, needed):
    content = tree(f"imagelm.commands.{command}")
    functions = [entry for entry in content.body if isinstance(entry, ast.FunctionDef)]
    before = [entry for entry in functions if entry.name in BEFORE[command]]
    assert len(before) == len(BEFORE[command])
    modules = loaded(name for body in (content.body, *(entry.body for entry in before)) for name in imports(body))
    assert not unneeded & modules
    assert needed <= modules  # or nothing was followed


def test_what_imports_make_is_left_to_stay_but_not_in_a_process_that_has_pytorch_already():
    code = (
        "import gc, sys\n"
        "from imagelm.utils.imports import imports_kept\n"
        "with imports_kept():\n"
        "    kept = [[] for _ in range(1000)]\n"
        "    assert not gc.isenabled()\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1000\n"
        "gc.unfreeze()\n"
        "sys.modules['torch'] = sys\n"
        "with imports_kept():\n"
        "    assert gc.isenabled()\n"
        "assert gc.get_freeze_count() == 0\n"
    )
    done = run_anew("-c", code)
    assert done.returncode == 0, done.stderr
