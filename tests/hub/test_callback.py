"""`train.py --push_to_hub`: the same push from within a run; a failed push never loses the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from testing.local_hub import ALICE, ALICE_READS, LocalHub
from tests.conftest import TINY, run

MODEL = "alice/rows-model"


@pytest.fixture(scope="module")
def module_hub(tmp_path_factory: pytest.TempPathFactory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def words(prepared: Path, output: Path, *more: str) -> list[object]:
    return ["train.py", "--dataset_dir", prepared, "--output_dir", output, *TINY, "--push_to_hub", *more]


def environment(hub: LocalHub, home: Path, token: object = ALICE) -> dict[str, str]:
    return hub.environment(home, token) | {"HF_HUB_OFFLINE": "0"}


def test_each_save_is_pushed_and_the_last_push_has_the_figures(module_hub: LocalHub, prepared: Path, tmp_path: Path):
    output = tmp_path / "rows-model"  # its name becomes the repository's
    more = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps"]
    more += ["--eval_steps", "3", "--hub_strategy", "every_save", "--hub_token", ALICE.secret]
    done = run(*words(prepared, output, *more), **environment(module_hub, tmp_path / "home", None))
    assert done.returncode == 0, done.stderr
    assert "Hub: logged in as alice; the model goes to rows-model at each save and at the end" in done.stdout
    history = module_hub.repo(MODEL).history()
    titles = [commit.title for commit in history]
    assert titles == ["Push model with imagelm", "Weights of step 6 of 6", "Weights of step 3 of 6", "initial commit"]
    assert ["eval_results.json" in commit.files for commit in history] == [True, False, False, False]
    for commit in history:
        assert not [path for path in commit.files if path.endswith((".bin", ".pt", ".pth")) or "optimizer" in path]
    card = module_hub.repo(MODEL).read("README.md").decode()
    figures = json.loads((output / "best_model/eval_results.json").read_text())
    assert f"| **{figures['eval_cls_accuracy']:.4f}** |" in card
    for file in output.rglob("*.json"):
        assert ALICE.secret not in file.read_text(), file
    assert ALICE.secret not in done.stdout + done.stderr


def test_missing_write_access_is_reported_before_training(module_hub: LocalHub, prepared: Path, tmp_path: Path):
    done = run(*words(prepared, tmp_path / "out"), **environment(module_hub, tmp_path / "home", ALICE_READS))
    assert done.returncode == 2 and "may only read" in done.stderr
    assert not (tmp_path / "out/best_model").exists()


def test_a_foreign_repository_is_reported_before_training(
    module_hub: LocalHub, online: None, prepared: Path, tmp_path: Path
):
    api = HfApi(endpoint=module_hub.endpoint, token=ALICE.secret)
    api.create_repo("alice/theirs")
    module_hub.commit("alice/theirs", {"README.md": b"# Not ours\n", "config.json": b"{}"})
    more = ["--hub_model_id", "theirs"]
    done = run(*words(prepared, tmp_path / "out", *more), **environment(module_hub, tmp_path / "home"))
    assert done.returncode == 2 and "model alice/theirs isn't the work of an earlier push" in done.stderr
    assert "baselines" not in done.stdout and not (tmp_path / "out/best_model").exists()


def test_a_failed_push_loses_no_run_and_can_be_repeated(module_hub: LocalHub, prepared: Path, tmp_path: Path):
    more = ["--max_steps", "2", "--hub_model_id", "alice/late"]
    module_hub.faults.answer(500, "/commit/")
    done = run(*words(prepared, tmp_path / "out", *more), **environment(module_hub, tmp_path / "home"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    command = f"imagelm push --model_dir {tmp_path / 'out/best_model'} --repo_id alice/late"
    assert f"The run is complete; push it later with: {command}" in done.stderr
    assert (tmp_path / "out/report/training_report.md").is_file()
    module_hub.faults.clear()
    again = run(*words(prepared, tmp_path / "out", *more), **environment(module_hub, tmp_path / "home"))
    assert again.returncode == 0, again.stderr
    assert "is already complete" in again.stdout and "model.safetensors" in module_hub.repo("alice/late").files()


def test_checkpoints_with_pickles_are_refused(prepared: Path, tmp_path: Path):
    done = run(*words(prepared, tmp_path / "out", "--hub_strategy", "all_checkpoints"))
    assert done.returncode == 2 and "holds pickles, which aren't published" in done.stderr
