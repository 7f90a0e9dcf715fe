"""What is decided before the first step."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, TrainingArguments
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import imagelm.training.launch as launch_module
from imagelm.accel.attention import register_attention
from imagelm.commands.train import make_model, parse_launch, run
from imagelm.training.defaults import share_global_batch, sized_defaults
from imagelm.training.inputs import load_inputs
from imagelm.training.launch import OneDeviceArguments
from imagelm.training.rehearsal import choose_computing, rehearse
from imagelm.utils.errors import InputError, LeakError
from tests.conftest import TINY, run_anew, train
from tests.damage import edit_column, with_token


def test_a_process_uses_one_gpu_however_many_are_visible(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    args = OneDeviceArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    assert (args.n_gpu, args.train_batch_size, args.eval_batch_size) == (1, 8, 8)


def test_changed_rows_are_refused_before_anything_is_written(prepared, tmp_path):
    data = shutil.copytree(prepared, tmp_path / "data")
    edit_column(data, "train", "input_ids", with_token(2, 999))
    words = ["--dataset_dir", str(data), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    with pytest.raises(InputError, match="train: row 4: token 3 has id 999"):
        run(parse_launch(words))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--report_to", "comet_ml"], "--report_to comet_ml: CometCallback requires"),
        (["--optim", "adamw_bnb_8bit"], "--optim adamw_bnb_8bit: You need to install `bitsandbytes`"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_type cosine_with_min_lr: One of min_lr"),
        (["--lr_scheduler_kwargs", '{"power": 2}'], "an unexpected keyword argument 'power'"),
        (["--fsdp", "full_shard"], "--fsdp True .* only works in distributed training"),
        (["--deepspeed", "nowhere.json"], "training arguments: "),
        (["--dataloader_drop_last", "true", "--per_device_train_batch_size", "73"], "72 training rows don't fill one"),
        (["--learning_rate", "-1"], "--learning_rate -1.0: give 0 or more"),
        (["--data_seed", "-1"], "--data_seed -1: give 0 to 4294967295"),
    ],
)
def test_options_that_can_t_work_are_refused_before_an_earlier_run_is_touched(prepared, tmp_path, words, found):
    out = tmp_path / "out"
    (out / "best_model").mkdir(parents=True)
    (out / "run.json").write_text("{}")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    common = ["--dataset_dir", str(prepared), "--output_dir", str(out), "--overwrite", *TINY]
    with pytest.raises(InputError, match=found):
        run(parse_launch([*common, *words]))
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_what_is_not_given_is_chosen_by_the_size_of_the_data_and_recorded(prepared, tmp_path):
    """72 rows: the smallest batch; 1,500 updates would be 167 epochs, more than the most."""
    words = ["--dataset_dir", str(prepared), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    launch = parse_launch(words)
    found = (launch.args.per_device_train_batch_size, launch.args.num_train_epochs, launch.args.warmup_steps)
    assert found == (8, 30, 0.05)
    assert launch.args.learning_rate == launch.chosen["learning_rate"] == 4e-4  # 1e-3 times the root of 8 / 64
    given = ["--learning_rate", "2e-3", "--num_train_epochs", "2", "--per_device_train_batch_size", "3"]
    launch = parse_launch([*words, *given])
    args = launch.args
    assert (args.learning_rate, args.num_train_epochs, args.per_device_train_batch_size) == (2e-3, 2, 3)
    assert args.warmup_steps == 0 and launch.chosen == {"warmup_steps": 0}
    tuned = parse_launch([*words, "--model_name_or_path", "x"]).args.learning_rate
    assert tuned == pytest.approx(4e-5)


def test_more_rows_are_read_less_often_in_larger_batches_at_no_lower_rate():
    sizes = [sized_defaults(rows, muon=False, fine_tuning=False) for rows in (10, 1000, 10_000, 60_000, 10**6)]
    batches, epochs, rates = (
        [values[name] for values in sizes]
        for name in ("per_device_train_batch_size", "num_train_epochs", "learning_rate")
    )
    assert batches == sorted(batches) and epochs == sorted(epochs, reverse=True) and rates == sorted(rates)
    assert (batches[0], batches[-1], epochs[0], epochs[-1], rates[-1]) == (8, 128, 30, 3, 1e-3)
    assert sized_defaults(60_000, False, False, num_processes=4)["per_device_train_batch_size"] * 4 == batches[3]


def test_bfloat16_is_used_without_a_launcher_where_the_device_computes_it_fast(prepared, tmp_path, monkeypatch):
    words = ["--dataset_dir", str(prepared), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    for fast in (True, False):
        monkeypatch.setattr(launch_module, "has_fast_bfloat16", lambda device, fast=fast: fast)
        assert parse_launch(words).args.bf16 is fast
        assert parse_launch([*words, "--bf16", "false"]).args.bf16 is False
        assert parse_launch([*words, "--fp16", "true"]).args.bf16 is False
    monkeypatch.setattr(launch_module, "has_fast_bfloat16", lambda device: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # of a launcher, which decides
    assert parse_launch(words).args.bf16 is False


def test_a_launcher_that_starts_one_process_of_several_is_refused(prepared, tmp_path, monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` sets."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match=r"asked for several processes, but started one; .* --multi_gpu --num_proc"):
        parse_launch(["--dataset_dir", str(prepared), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"])


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_writes_one_run_into_the_run_s_folder(prepared, tmp_path, tracker):
    pytest.importorskip(tracker)
    words = ("--max_steps", 4, "--logging_steps", 1, "--report_to", tracker)
    done = train(prepared, tmp_path / "mine", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "mine/tracking"
    one_run = {"tensorboard": "tensorboard/events.*", "trackio": "trackio/imagelm.db", "wandb": "wandb/offline-run-*"}
    assert len(list(folder.glob(one_run[tracker]))) == 1
    assert f"tracked by {tracker}, in {tmp_path}/mine/tracking" in done.stdout


def test_a_resumed_run_computes_as_it_began_and_no_clock_decides_when_all_must_be_equal(prepared, tmp_path):
    words = ["--dataset_dir", str(prepared), "--output_dir", str(tmp_path), *TINY]
    launch = parse_launch(words)
    data = load_inputs(launch)
    data.stats["lengths"]["min"] = data.stats["lengths"]["max"]  # as if all rows had one length

    def compiled(seconds: float, checkpoint: str | None = None) -> bool:
        launch.estimate = {"seconds": seconds}
        plan = choose_computing(launch, data, make_model(launch, data), checkpoint)
        assert launch.computing["compiled"] == plan.compiled
        return plan.compiled

    assert compiled(1e4) and not compiled(1.0)
    for began in (True, False):
        (tmp_path / "run.json").write_text(json.dumps({"computing": {"compiled": began}}))
        assert [compiled(seconds, "checkpoint-1") for seconds in (1.0, 1e4)] == [began, began]
    launch.args.full_determinism = True
    assert not compiled(1e4)
    assert compiled(1.0, "checkpoint-1") is False


def test_a_long_run_that_is_not_compiled_takes_the_attention_that_a_trial_found_faster(prepared, tmp_path, monkeypatch):
    """Rows of several lengths; the run that goes on takes the same, whatever a trial would say now."""
    used = []

    def noted(way, name, *inputs, **more):
        used.append(name)
        return way(*inputs, **more)

    register_attention()
    for name in ("causal_product", "sdpa"):
        way = functools.partial(noted, AttentionInterface()[name], name)
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, way)
    launch = parse_launch(["--dataset_dir", str(prepared), "--output_dir", str(tmp_path), *TINY])
    data = load_inputs(launch)

    def computing(seconds: float, checkpoint: str | None = None) -> tuple[str, dict[str, float]]:
        launch.estimate = {"seconds": seconds}
        model = make_model(launch, data)
        plan = choose_computing(launch, data, model, checkpoint)
        used.clear()
        model(input_ids=torch.zeros(2, 5, dtype=torch.long))
        assert set(used) == {plan.attention} == {launch.computing["attention"]}
        return plan.attention, plan.attention_ms

    attention, times = computing(1e4)
    assert set(times) == {"causal_product", "sdpa"}
    assert (attention == "sdpa") == (times["sdpa"] < 0.9 * times["causal_product"])
    assert computing(60) == ("causal_product", {})
    for sdpa, expected in ((1.0, "sdpa"), (3.0, "causal_product")):
        began = {"compiled": False, "attention_ms": {"causal_product": 2.0, "sdpa": sdpa}}
        (tmp_path / "run.json").write_text(json.dumps({"computing": began}))
        assert computing(1e4, "checkpoint-1") == (expected, began["attention_ms"])
    launch.args.full_determinism = True
    assert computing(1e4) == ("causal_product", {})
    launch.run.attention = "sdpa"
    assert computing(1e4) == ("sdpa", {})


@pytest.mark.slow
def test_the_estimate_is_right_within_the_factors_that_the_guide_names(prepared, tmp_path):
    """Memory: how much the process grew while two updates were tried. Time: what the training took."""
    code = (
        "import json, resource, sys\n"
        "from imagelm.commands.train import make_model, parse_launch, run\n"
        "from imagelm.training.inputs import load_inputs\n"
        "from imagelm.training.rehearsal import rehearse\n"
        "def peak(): return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "def grown(words):\n"
        "    launch = parse_launch(words); data = load_inputs(launch); model = make_model(launch, data)\n"
        "    before = peak(); rehearse(launch, data, model); return peak() - before, launch.estimate['bytes']\n"
        "words = sys.argv[1:]\n"
        "small = ['--config_overrides', 'num_hidden_layers=1,hidden_size=64,num_attention_heads=1', '--optim', 'sgd']\n"
        "grown([*words, *small])  # loads what is loaded at the first step\n"
        "print(json.dumps(grown(words)))\n"
    )
    words = ["--dataset_dir", prepared, "--use_cpu", "true", "--bf16", "false", "--num_threads", 1]
    large = ["--output_dir", tmp_path / "a", "--per_device_train_batch_size", 72, "--num_train_epochs", 30]
    done = run_anew("-c", code, *words, *large)
    assert done.returncode == 0, done.stderr
    grown, estimated = json.loads(done.stdout.splitlines()[-1])
    assert grown / 2 < estimated < grown * 2
    small = [
        "--config_overrides",
        "num_hidden_layers=3,hidden_size=128,num_attention_heads=4",
        "--disable_tqdm",
        "true",
    ]
    lengths = ["--num_train_epochs", "40", "--per_device_train_batch_size", "8", "--save_strategy", "no"]
    run(parse_launch([*map(str, words), "--output_dir", str(tmp_path / "b"), *small, *lengths]))
    record = json.loads((tmp_path / "b/run.json").read_text())
    assert 1 / 3 < record["estimate"]["seconds"] / record["durations"]["train"] < 3


@pytest.mark.slow
def test_every_architecture_of_transformers_trains_or_is_refused_in_one_line(prepared, tmp_path):
    words = ["--dataset_dir", str(prepared), "--output_dir", str(tmp_path / "out"), *TINY, "--max_steps", "1"]
    trained, refused = [], []
    for name, config in CONFIG_MAPPING.items():
        if config not in MODEL_FOR_CAUSAL_LM_MAPPING or name == "falcon_h1":  # whose step takes a minute
            continue
        launch = parse_launch([*words, "--model_type", name])
        data = load_inputs(launch)
        try:
            rehearse(launch, data, make_model(launch, data))
            trained.append(name)
        except (InputError, LeakError) as error:
            assert len(str(error).splitlines()) == 1, name
            refused.append(name)
    assert {"gpt2", "llama", "qwen3", "gpt_neox", "opt"} <= set(trained)
    assert {"bert", "bart", "gemma4_assistant"} <= set(refused)
    assert len(trained) > 90


@pytest.mark.parametrize(
    ("processes", "rows", "steps", "expected"),
    [(1, None, 1, (96, 1)), (4, None, 1, (24, 1)), (4, None, 3, (8, 3)), (2, 8, 1, (8, 6)), (3, 8, 4, (8, 4))],
)
def test_the_global_batch_is_shared_by_processes_and_accumulation_steps(processes, rows, steps, expected):
    values = {"global_batch_size": 96, "per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
    share_global_batch(values, processes)
    assert (values["per_device_train_batch_size"], values["gradient_accumulation_steps"]) == expected


@pytest.mark.parametrize(
    ("processes", "rows", "steps"), [(5, None, 1), (1, 7, 1), (1, 128, 1), (2, 8, 5), (128, None, 1)]
)
def test_a_global_batch_that_can_t_be_shared_is_refused(processes, rows, steps):
    values = {"global_batch_size": 96, "per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
    with pytest.raises(InputError, match=rf"^--global_batch_size 96: {processes} processes .* choose a multiple"):
        share_global_batch(values, processes)
