"""Two hosts, which are network namespaces here, train together; one that dies ends the run of the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from testing.two_hosts import train_together, why_impossible
from tests.conftest import TINY, train

pytestmark = pytest.mark.slow

LONG = ("--max_steps", "2000", "--save_strategy", "steps", "--save_steps", "20", "--eval_strategy", "no")


@pytest.fixture(autouse=True, scope="module")
def possible() -> None:
    if reason := why_impossible():
        pytest.skip(reason)


def words(prepared: Path, output: Path, *more: str) -> list[str]:
    tiny = [*TINY, "--per_device_train_batch_size", "4", "--global_batch_size", "8"]
    return ["--dataset_dir", str(prepared), "--output_dir", str(output), *tiny, *more]


def test_two_hosts_train_what_one_does(prepared, tmp_path):
    steps = ("--max_steps", "8", "--optim", "sgd", "--learning_rate", "0.5")
    for code, text in train_together(words(prepared, tmp_path / "two", *steps), tmp_path):
        assert code == 0, text
    alone = train(prepared, tmp_path / "one", "--global_batch_size", 8, *steps)
    assert alone.returncode == 0, alone.stderr
    assert json.loads((tmp_path / "two/run.json").read_text())["hardware"]["num_processes"] == 2
    expected, found = (load_file(tmp_path / name / "final_model/model.safetensors") for name in ("one", "two"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5, msg=name)


def test_a_host_that_dies_ends_the_run_which_goes_on_alone(prepared, tmp_path):
    (code, text), (other, _) = train_together(words(prepared, tmp_path / "out", *LONG), tmp_path, "kill")
    assert code != 0 and other != 0
    assert "error: process 0 of 2 can't reach another one, which has ended, or whose host or network is down" in text
    assert "is its newest checkpoint" in text and "--global_batch_size 8 and add --change_processes" in text
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["launches"][0]["ended"].startswith(("RuntimeError", "Dist"))
    alone = train(prepared, tmp_path / "out", "--global_batch_size", 8, "--change_processes", *LONG)
    assert alone.returncode == 0, alone.stderr
    assert f"resuming from {tmp_path}/out/checkpoint-" in alone.stdout


def test_a_cable_that_is_cut_ends_the_run_after_the_timeout(prepared, tmp_path):
    both = train_together(words(prepared, tmp_path / "out", *LONG, "--ddp_timeout", "20"), tmp_path, "cut")
    for code, text in both:
        assert code != 0
        assert "can't reach another one, which has ended, or whose host or network is down" in text
