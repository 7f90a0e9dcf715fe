"""Several processes give the same figures and the same weights as one; launches that wouldn't are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from tests.conftest import ROOT, TINY, run, run_anew

LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml")


def launch(prepared: Path, output: Path, num_processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """In fp32: in bfloat16, which some CPUs have, batches of another size differ by 3 in 10,000 after a few steps."""
    several = ("--multi_gpu", "--num_processes", num_processes, "--main_process_port", 0) if num_processes > 1 else ()
    return run(
        *(*LAUNCH, "--mixed_precision", "no", *several, "train.py", "--dataset_dir", prepared, "--output_dir", output),
        *(*TINY, "--optim", "sgd", "--learning_rate", "0.5", "--max_steps", 8, *words),
        ACCELERATE_USE_CPU="true",
    )


def results(output: Path) -> dict:
    return json.loads(
        (output / "best_model/eval_results.json").read_text()
    )  # of the last step, as only that is evaluated


@pytest.fixture(scope="module")
def one_process(prepared, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("one") / "out"
    done = launch(prepared, output, 1, "--per_device_train_batch_size", 10, "--cls_loss_weight", "0.5")
    assert done.returncode == 0, done.stderr
    assert "computing in fp32" in done.stdout
    return output


def test_two_processes_train_and_measure_what_one_does(prepared, one_process, tmp_path):
    """Ragged rows, 72 to train in batches of 5 a process, 18 to test in batches of 4: none may count twice."""
    done = launch(
        *(prepared, tmp_path / "out", 2, "--per_device_train_batch_size", 5, "--cls_loss_weight", "0.5"),
        *("--per_device_eval_batch_size", 4),
    )
    assert done.returncode == 0, done.stderr
    one, two = results(one_process), results(tmp_path / "out")
    for name, value in one.items():
        if isinstance(value, float) and "second" not in name and "runtime" not in name and "leak" not in name:
            assert two[name] == pytest.approx(value, rel=1e-4), name
    assert two["eval_confusion_matrix"] == one["eval_confusion_matrix"]
    assert two["eval_samples"] == one["eval_samples"] == 18
    expected = load_file(one_process / "final_model/model.safetensors")
    found = load_file(tmp_path / "out/final_model/model.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5, msg=name)
    assert done.stdout.count("CLS-slot accuracy  ") == 1  # the main process alone speaks
    assert "find_unused_parameters" not in done.stderr


@pytest.mark.slow
def test_one_two_and_four_processes_have_the_same_figures_and_the_same_loss_curve(prepared, tmp_path):
    """32 rows an update of 72 to train, and 18 to test: neither 2 x 8 nor 4 x 8 divides them; almost three epochs."""
    figures, curves = {}, {}
    for count in (1, 2, 4):
        words = ("--global_batch_size", 32, "--logging_steps", 1, "--cls_loss_weight", "0.5")
        done = launch(prepared, tmp_path / str(count), count, *words)
        assert done.returncode == 0, done.stderr
        history = json.loads((tmp_path / str(count) / "best_model/log_history.json").read_text())
        names = ("loss", "token_loss", "cls_loss", "learning_rate")
        curves[count] = [[log[name] for name in names] for log in history if "loss" in log]
        found = results(tmp_path / str(count))
        figures[count] = {
            f"{split}.{name}": value
            for split, part in (("test", found), ("validation", found["validation"]))
            for name, value in part.items()
            if isinstance(value, float) and not name.endswith(("second", "runtime", "difference"))
        }
    assert len(curves[1]) == 8 and len(figures[1]) >= 20
    for count in (2, 4):
        assert np.asarray(curves[count]) == pytest.approx(np.asarray(curves[1]), rel=1e-5)
        assert figures[count] == pytest.approx(figures[1], rel=1e-6, abs=1e-6)


SHARDED = """
import torch
from torch.distributed import init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from imagelm.training.checkpoint import check_weights
from imagelm.training.safety import total_norm
init_process_group("gloo")
def gradient(shard):
    torch.manual_seed(0)
    model, rows = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.randn(5, 4)
    if shard:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    model(rows).sum().backward()
    return model, total_norm(model)
(_, expected), (model, norm) = gradient(False), gradient(True)
assert torch.stack([norm, expected]).std() < 1e-6
check_weights(model, 1)
with torch.no_grad():
    next(model.parameters()).to_local()[0, 0] = float("nan")
check_weights(model, 2)
"""


@pytest.mark.slow
def test_gradients_and_weights_that_fsdp2_shares_are_checked():
    """accelerate starts FSDP2 on GPUs only, so this is PyTorch's own, in one process."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    done = run_anew("-c", SHARDED, **where)
    assert "DivergedError: weight 0.weight isn't finite at step 2" in done.stderr, done.stderr


@pytest.mark.slow
def test_two_processes_continue_what_one_began_with_the_same_rows(prepared, tmp_path):
    saving = ("--save_strategy", "steps", "--save_steps", 5)
    whole = launch(prepared, tmp_path / "whole", 1, "--per_device_train_batch_size", 8, *saving)
    assert whole.returncode == 0, whole.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoint-8", "final_model"):
        shutil.rmtree(tmp_path / "cut" / name)
    halves = (prepared, tmp_path / "cut", 2, "--per_device_train_batch_size", 4, *saving)
    refused = launch(*halves)
    assert refused.returncode != 0 and "--change_processes" in refused.stderr
    done = launch(*halves, "--change_processes")
    assert done.returncode == 0, done.stderr
    assert f"resuming from {tmp_path}/cut/checkpoint-5" in done.stdout
    expected = load_file(tmp_path / "whole/final_model/model.safetensors")
    found = load_file(tmp_path / "cut/final_model/model.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5, msg=name)


def test_the_yaml_names_neither_devices_nor_processes_so_that_it_works_everywhere():
    config = yaml.safe_load((ROOT / "accelerate_config.yaml").read_text())
    assert config == {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "num_machines": 1,
        "mixed_precision": "bf16",
    }


@pytest.mark.parametrize("file", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_every_configuration(file):
    config = load_config_from_file(str(file)).to_dict()  # which refuses a key that it doesn't know
    assert config["compute_environment"] == "LOCAL_MACHINE" and config["num_processes"] >= 8
    sections = {"FSDP": "fsdp_config", "DEEPSPEED": "deepspeed_config"}
    assert config.get(sections.get(config["distributed_type"], "num_machines"))


def test_processes_that_would_each_train_alone_are_refused(prepared, tmp_path):
    done = run("train.py", "--dataset_dir", prepared, "--output_dir", tmp_path / "out", WORLD_SIZE="4", RANK="0")
    assert done.returncode == 2, done.stderr
    assert "the launcher started 4 processes" in done.stderr


def test_the_launcher_s_single_openmp_thread_is_undone():
    code = (
        "from imagelm.utils.device import set_num_threads; import torch, os; set_num_threads(0); "
        "print(torch.get_num_threads(), len(os.sched_getaffinity(0)))"
    )
    threads, cores = run("-c", code, OMP_NUM_THREADS="1").stdout.split()
    assert threads == cores
    shared = run("-c", code, OMP_NUM_THREADS="1", LOCAL_WORLD_SIZE=cores).stdout.split()[0]
    assert shared == "1"
    assert run_anew("-c", code, OMP_NUM_THREADS="3").stdout.split()[0] == "3"


def test_bfloat16_gives_way_where_the_device_only_emulates_it(monkeypatch):
    from imagelm.utils import device as precision

    monkeypatch.setenv(precision.MIXED_PRECISION_VARIABLE, "bf16")
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: True)
    assert precision.resolve_mixed_precision(use_cpu=True) is None
    assert precision.os.environ[precision.MIXED_PRECISION_VARIABLE] == "bf16"
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: False)
    assert "fp32" in precision.resolve_mixed_precision(use_cpu=True)
    assert precision.os.environ[precision.MIXED_PRECISION_VARIABLE] == "no"


def test_the_report_records_the_command_versions_and_durations(one_process):
    record = json.loads((one_process / "run.json").read_text())
    assert record["command"].startswith("accelerate launch --mixed_precision ")
    assert record["command"].endswith(" --per_device_train_batch_size 10 --cls_loss_weight 0.5")
    assert record["versions"]["torch"].startswith("2.13.0")
    assert record["durations"]["total"] > record["durations"]["train"] > 0
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
