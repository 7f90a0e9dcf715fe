"""A step that isn't finite is never taken; losses that jump are logged; the same seeds give the same run."""

from __future__ import annotations

import json
import os
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from imagelm.training.arguments import RunArguments
from imagelm.training.checkpoint import STAGING_FOLDER
from imagelm.training.manifest import inspect_checkpoint
from imagelm.training.safety import LossSpikes, find_rows
from imagelm.training.signals import StopOnSignal
from imagelm.training.trainer import ImageTrainer, rows_only
from imagelm.utils.errors import DivergedError
from tests.conftest import train
from tests.training.test_trainer import arguments, make_trainer, tiny_model


class PoisonAt(TrainerCallback):
    """Makes something not finite right before step `step`."""

    def __init__(self, trainer: ImageTrainer, step: int, poison) -> None:
        self.trainer, self.step, self.poison, self.before = trainer, step, poison, None

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step - 1:
            self.before = {name: p.detach().clone() for name, p in self.trainer.model.named_parameters()}
            self.poison(self.trainer.model)


def infinite_loss(model) -> None:
    """A weight that makes the logits overflow, though it's finite itself."""
    model.transformer.ln_f.weight.data.fill_(3e38)


def infinite_gradient(model) -> None:
    """As an overflow in the backward pass: the loss is finite, a gradient isn't."""
    model.transformer.wpe.weight.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize(
    ("poison", "message"), [(infinite_loss, "the loss is nan"), (infinite_gradient, "the gradient's")]
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_not_finite_is_not_taken_and_its_rows_are_named(
    tmp_path, tokenizer, data, poison, message, accumulation
):
    changes = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(tmp_path, tokenizer, data, per_device_train_batch_size=4, **changes)
    poisoned = PoisonAt(trainer, 6, poison)
    trainer.add_callback(poisoned)
    with pytest.raises(DivergedError) as error:
        trainer.train()
    text = str(error.value)
    assert message in text
    assert "at step 6 (learning rate 0.000375), so this step wasn't taken" in text  # linear from 0.001 over 8 steps
    weights = dict(trainer.model.named_parameters())
    untouched = [name for name in weights if "ln_f" not in name]
    assert all(torch.equal(weights[name], poisoned.before[name]) for name in untouched)
    rows = json.loads((tmp_path / "diverged.json").read_text())["training_rows"]
    assert re.search(r"training rows ([\d, ]+) \(", text)[1] == ", ".join(map(str, rows))
    # The loader's own order, read again.
    trainer.accelerator.free_memory()
    loader = trainer.get_train_dataloader()
    batches = [batch["input_ids"] for batch in loader][5 * accumulation : 6 * accumulation]
    expected = [row for batch in batches for row in batch]
    assert len(rows) == len(expected) == 4 * accumulation
    for number, row in zip(rows, expected, strict=True):
        ids = data["train"][number]["input_ids"]
        assert row[: len(ids)].tolist() == ids
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert inspect_checkpoint(tmp_path / "checkpoint-4").is_whole


def test_a_checkpoint_of_the_very_step_before_a_divergence_goes_and_the_last_good_one_stays(prepared, tmp_path):
    """With one kept checkpoint: it isn't deleted before the next one proved good."""
    words = ("--max_steps", 8, "--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 1, "--optim", "sgd")
    done = train(prepared, tmp_path / "out", *words, "--learning_rate", "1e20", "--warmup_steps", 3)
    assert done.returncode == 1, done.stderr
    assert "the run diverged and was stopped" in done.stderr
    assert "Traceback" not in done.stderr
    step = int(re.search(r"at step (\d+)", done.stderr)[1])
    kept = [folder.name for folder in (tmp_path / "out").glob("checkpoint-*")]
    assert kept == [f"checkpoint-{step - 2}"]
    assert f"checkpoint-{step - 1}, saved one step earlier, was removed" in done.stderr
    assert not (tmp_path / "out/final_model").exists()
    launch = json.loads((tmp_path / "out/run.json").read_text())["launches"][0]
    assert launch["ended"].startswith("DivergedError: ")
    assert launch["to_step"] == step - 1


def test_weights_that_are_not_finite_are_never_saved(tmp_path, tokenizer, data):
    trainer = make_trainer(tmp_path, tokenizer, data, max_steps=2, save_strategy="steps", save_steps=1, optim="sgd")
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": float("inf")})
    trainer.create_optimizer()
    with pytest.raises(DivergedError, match="isn't finite at step 1"):
        trainer.train()
    assert list(tmp_path.glob("*checkpoint*")) == []


def test_the_norm_that_is_checked_is_the_one_before_clipping_that_trainer_logs(tmp_path, tokenizer, data):
    trainer = make_trainer(tmp_path, tokenizer, data, max_steps=3, gradient_accumulation_steps=2, max_grad_norm=0.01)
    checked = []

    class Record(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs) -> None:
            checked.append(trainer.finite_steps.grad_norm.item())

    trainer.add_callback(Record())
    trainer.train()
    logged = [log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log]
    assert checked == logged
    assert min(checked) > 0.01


def test_while_training_output_dir_is_a_staging_folder_and_no_saved_file_names_it(tmp_path, tokenizer, data):
    trainer = make_trainer(tmp_path / "out", tokenizer, data, max_steps=4, save_strategy="steps", save_steps=2)
    seen = []

    class Record(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            seen.append(args.output_dir)
            trainer.save_folder(tmp_path / "model", {})

    trainer.add_callback(Record())
    trainer.train()
    assert set(seen) == {str(tmp_path / "out" / STAGING_FOLDER)}
    assert trainer.args.output_dir == str(tmp_path / "out")
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert all(inspect_checkpoint(folder).is_whole for folder in (tmp_path / "out").iterdir())
    for file in [*(tmp_path / "model").glob("*.json"), *(tmp_path / "out").glob("*/*.json")]:
        assert STAGING_FOLDER not in file.read_text(), file


def test_rows_of_a_batch_are_found_by_their_content(data):
    dataset = rows_only(data["train"])
    rows = [dataset[number]["input_ids"].astype(np.int64) for number in (70, 3, 3)]
    longest = max(map(len, rows)) + 1
    padded = [np.pad(row, (0, longest - len(row))) for row in rows]
    assert find_rows(dataset, [*padded, np.zeros(longest, dtype=np.int64)]) == [70, 3, 3, -1]


def test_loss_spikes_are_logged_once_and_noise_and_a_falling_loss_are_not(caplog):
    caplog.set_level("INFO")
    rng = np.random.default_rng(0)
    spikes = LossSpikes()
    losses = 2 + 3 * np.exp(-np.arange(400) / 50) + 0.1 * rng.standard_normal(400)
    losses[200:204] *= 3
    for step, loss in enumerate(losses, start=1):
        spikes.observe(step, float(loss), 1e-3)
    assert [spike["step"] for spike in spikes.found] == [201]
    assert [record.getMessage()[:24] for record in caplog.records] == ["loss spike at step 201: "]


def weights_of(folder, tokenizer, data, **changes) -> dict[str, torch.Tensor]:
    model = tiny_model(tokenizer)
    model.config.resid_pdrop = model.config.attn_pdrop = 0.1
    model = type(model)(model.config)
    model.loss_type = "ForCausalLM"
    trainer = ImageTrainer(
        model, arguments(folder, max_steps=12, **changes), RunArguments(), tokenizer, data["train"], data["test"]
    )
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def order_of(folder, tokenizer, data, **changes) -> list[int]:
    trainer = make_trainer(folder, tokenizer, data, **changes)
    batches = [batch["input_ids"].numpy() for batch in trainer.get_train_dataloader()]
    return find_rows(trainer.train_dataset, [row for batch in batches for row in batch])


def test_the_seeds_of_order_and_of_everything_else_are_separate(tmp_path, tokenizer, data):
    orders = [
        order_of(tmp_path, tokenizer, data, **seeds)
        for seeds in (
            {"seed": 1, "data_seed": 5},
            {"seed": 2, "data_seed": 5},
            {"seed": 1, "data_seed": 6},
            {"seed": 5},
        )
    ]
    assert sorted(orders[0]) == list(range(72))
    assert orders[0] == orders[1] == orders[3]
    assert orders[0] != orders[2]


def test_the_order_of_rows_is_another_in_each_epoch(tmp_path, tokenizer, data):
    loader = make_trainer(tmp_path, tokenizer, data).get_train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([tuple(row) for batch in loader for row in batch["input_ids"].tolist()])
    assert epochs[0] != epochs[1]


def test_full_determinism_gives_bitwise_the_same_run_and_says_so_to_torch(tmp_path, tokenizer, data):
    try:
        runs = [weights_of(tmp_path / str(i), tokenizer, data, full_determinism=True, seed=3) for i in range(2)]
        assert torch.are_deterministic_algorithms_enabled()
        assert all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())
        other = weights_of(tmp_path / "other", tokenizer, data, full_determinism=True, seed=4)
        assert not all(torch.equal(weight, other[name]) for name, weight in runs[0].items())
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_signal_that_arrives_while_processes_compare_their_marks_stops_the_next_step():
    def gather(mark: torch.Tensor) -> torch.Tensor:
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return mark

    sent: list[None] = []
    args = SimpleNamespace(world_size=2, device="cpu")
    accelerator, control = (
        SimpleNamespace(gather=gather),
        SimpleNamespace(should_training_stop=False, should_save=False),
    )
    steps = SimpleNamespace(max_unchecked=0)
    trainer = SimpleNamespace(
        args=args, accelerator=accelerator, finite_steps=steps, is_world_process_zero=lambda: False
    )
    with StopOnSignal(trainer) as stop:
        stop.on_step_end(args, SimpleNamespace(epoch=0.5, global_step=5), control)
        assert not control.should_training_stop  # the other process has seen no mark
        stop.on_step_end(args, SimpleNamespace(epoch=0.6, global_step=6), control)
    assert control.should_training_stop and control.should_save
