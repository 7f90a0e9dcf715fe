"""The files about the project agree with each other: versions, workflows, hooks."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

import imagelm
from tests.conftest import ROOT

YAML_FILES = sorted(
    [*(ROOT / ".github").rglob("*.yml"), *ROOT.glob("*.yaml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
)
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def load(file: Path) -> dict:
    return yaml.safe_load(file.read_text("utf-8"))


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_yaml_file_is_a_mapping(file):
    assert isinstance(load(file), dict)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_every_workflow_has_steps_a_time_limit_and_ends_when_a_newer_push_arrives(file):
    workflow = load(file)
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert len({"uses", "run"} & set(step)) == 1


def test_the_tests_run_on_every_supported_python_and_on_the_oldest_and_newest_dependencies():
    matrix = load(ROOT / ".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == f">={matrix['python'][0]}"
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert {*matrix["dependencies"], *(entry["dependencies"] for entry in matrix["include"])} == {
        "pinned",
        "oldest",
        "newest",
    }


def test_the_hooks_run_the_commands_of_make_lint_without_a_download():
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    lines = (ROOT / "Makefile").read_text("utf-8").split("\nlint:")[1].split("\n\n")[0].splitlines()[1:]
    linted = {line.split()[0] for line in lines}
    assert linted == {hook["entry"].split()[0] for hook in repository["hooks"]}


def test_ci_runs_lint_and_then_the_tests():
    lines = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make lint", "make test"]


def test_the_version_is_the_same_everywhere():
    assert load(ROOT / "CITATION.cff")["version"] == imagelm.__version__
    versions = [line for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines() if line.startswith("## [")]
    assert versions[0].startswith(f"## [{imagelm.__version__}]")
