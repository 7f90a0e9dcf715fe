"""Steps for which no host waits: rows on the device, and figures that are read some updates later."""

from __future__ import annotations

import json
import logging
import re
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from torch.overrides import TorchFunctionMode
from transformers import GPT2LMHeadModel, TrainerCallback

from imagelm.accel.attention import CAUSAL_SDPA, use_attention
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model, load_model
from imagelm.training.arguments import RunArguments
from imagelm.training.device_rows import DeviceRows
from imagelm.training.loss import RowCollator
from imagelm.training.trainer import ImageTrainer, rows_only
from imagelm.utils.errors import DivergedError
from tests.conftest import random_rows
from tests.training.test_safety import PoisonAt, infinite_gradient, infinite_loss
from tests.training.test_trainer import arguments, tiny_model, weights_after

# The ways in which a value of a tensor reaches the host, and for which a GPU's queue must run empty.
ASKING = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "nonzero")


class Forbidden(TorchFunctionMode):
    """Refuses every question to the device while it is armed."""

    armed = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if self.armed and getattr(function, "__name__", "") in ASKING:
            raise AssertionError(f"Tensor.{function.__name__} asks the device for a value")
        return function(*args, **(kwargs or {}))


class ArmedInSteps(TrainerCallback):
    """Arms it during each update; before a log, which reads the figures, only up to the optimizer's step."""

    def __init__(self, forbidden: Forbidden) -> None:
        self.forbidden, self.steps = forbidden, 0

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.forbidden.armed, self.steps = True, self.steps + 1

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.forbidden.armed = (state.global_step + 1) % args.logging_steps > 0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.forbidden.armed = False


def waitless(folder, tokenizer, data, optimizer="trainer", unchecked=100, **changes) -> ImageTrainer:
    run = RunArguments(optimizer=optimizer, rows_on_device=True, max_unchecked_steps=unchecked)
    device = torch.device("cpu" if changes.get("use_cpu", True) else "cuda")
    rows = DeviceRows(data["train"], device, tokenizer.pad_token_id)
    model = tiny_model(tokenizer)
    use_attention(model, CAUSAL_SDPA)
    changes["logging_nan_inf_filter"] = False  # as `resolve_launch` sets it
    return ImageTrainer(model, arguments(folder, **changes), run, tokenizer, rows, data["test"])


def plain(folder, tokenizer, data, optimizer="trainer", **changes) -> ImageTrainer:
    run = RunArguments(optimizer=optimizer)
    return ImageTrainer(
        tiny_model(tokenizer), arguments(folder, **changes), run, tokenizer, data["train"], data["test"]
    )


@pytest.mark.parametrize("indices", [[0], [5, 3, 5], list(range(72))])
def test_batches_on_the_device_are_those_of_the_collator(tokenizer, data, indices):
    rows = DeviceRows(data["train"], torch.device("cpu"), tokenizer.pad_token_id)
    collate = RowCollator(tokenizer)
    expected = collate(rows_only(data["train"]).__getitems__(indices))
    batch = collate(rows.__getitems__(indices))
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) and batch[name].dtype == torch.int64 for name in batch)


@pytest.mark.parametrize("optimizer", ["trainer", "muon"])
def test_the_run_is_bitwise_the_same_without_waits(tmp_path, tokenizer, data, optimizer):
    """In the second run the checkpoint after step 4 is resumed in the middle of an epoch."""
    changes = {"max_steps": 12, "logging_steps": 5, "seed": 3}
    expected = weights_after(plain(tmp_path / "plain", tokenizer, data, optimizer, **changes))
    saving = changes | {"save_strategy": "steps", "save_steps": 4}
    without = waitless(tmp_path / "a", tokenizer, data, optimizer, **saving)
    weights = weights_after(without)
    assert all(torch.equal(expected[name], weight) for name, weight in weights.items())
    resumed = waitless(tmp_path / "a", tokenizer, data, optimizer, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-4"))
    assert all(torch.equal(expected[name], weight) for name, weight in resumed.model.named_parameters())


@pytest.mark.parametrize("optimizer", ["trainer", "muon"])
@pytest.mark.parametrize(
    ("poison", "message"), [(infinite_loss, "the loss is nan"), (infinite_gradient, "the gradient's")]
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_named_later(
    tmp_path, tokenizer, data, poison, message, optimizer
):
    changes = {"max_steps": 12, "logging_steps": 9, "save_strategy": "steps", "save_steps": 4}
    trainer = waitless(tmp_path, tokenizer, data, optimizer, 2, per_device_train_batch_size=4, **changes)
    poisoned = PoisonAt(trainer, 6, poison)
    trainer.add_callback(poisoned)
    with pytest.raises(DivergedError, match=rf"{message}.* at step 6 \(learning rate 0\.000583\)") as error:
        trainer.train()
    assert trainer.state.global_step == 7  # the figures of step 6 are read before the update of step 8
    weights = dict(trainer.model.named_parameters())
    untouched = [name for name in weights if "ln_f" not in name]
    assert all(torch.equal(weights[name], poisoned.before[name]) for name in untouched)
    rows = json.loads((tmp_path / "diverged.json").read_text())["training_rows"]
    assert re.search(r"training rows ([\d, ]+) \(", str(error.value))[1] == ", ".join(map(str, rows))
    trainer.accelerator.free_memory()
    batch = list(plain(tmp_path / "b", tokenizer, data, per_device_train_batch_size=4).get_train_dataloader())[5]
    kept = [data["train"][number]["input_ids"] for number in rows]
    assert kept == [row[: len(ids)].tolist() for row, ids in zip(batch["input_ids"], kept, strict=True)]
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_nothing_is_saved_after_a_step_that_was_not_finite(tmp_path, tokenizer, data):
    changes = {"max_steps": 12, "logging_steps": 50, "save_strategy": "steps", "save_steps": 7}
    trainer = waitless(tmp_path, tokenizer, data, per_device_train_batch_size=4, **changes)
    trainer.add_callback(PoisonAt(trainer, 6, infinite_gradient))
    with pytest.raises(DivergedError, match="at step 6 "):
        trainer.train()
    assert trainer.state.global_step == 7 and not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("optimizer", ["trainer", "muon"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_no_step_asks_the_device_for_a_value(tmp_path, tokenizer, data, optimizer, accumulation):
    changes = {"max_steps": 6, "logging_steps": 3, "gradient_accumulation_steps": accumulation, "max_grad_norm": 1.0}
    trainer = waitless(tmp_path, tokenizer, data, optimizer, **changes)
    with Forbidden() as forbidden:
        armed = ArmedInSteps(forbidden)
        trainer.add_callback(armed)
        trainer.train()
    assert armed.steps == 6 and trainer.state.log_history


def test_neither_a_built_nor_a_loaded_model_looks_for_padding(tmp_path, tokenizer):
    """The stock class does, in each forward pass without a mask; a CUDA graph can't be captured then."""
    sizes = ModelArguments(config_overrides="num_hidden_layers=1,hidden_size=32,num_attention_heads=2")
    built = build_model(sizes, tokenizer, 16, CAUSAL_SDPA)
    built.save_pretrained(tmp_path)
    loaded, stock = load_model(tmp_path), GPT2LMHeadModel.from_pretrained(tmp_path)
    padded = torch.tensor([[tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]])
    with Forbidden() as forbidden:
        for model in (built, loaded, stock):
            use_attention(model, CAUSAL_SDPA)
            forbidden.armed = True
            with pytest.raises(AssertionError, match="__contains__ asks") if model is stock else nullcontext():
                model(input_ids=padded)
            forbidden.armed = False


def test_a_step_that_is_checked_at_once_does_ask(tmp_path, tokenizer, data):
    """The test above would otherwise prove nothing."""
    trainer = waitless(tmp_path, tokenizer, data, unchecked=0)
    with Forbidden() as forbidden, pytest.raises(AssertionError, match="tolist asks the device"):
        trainer.add_callback(ArmedInSteps(forbidden))
        trainer.train()


def of_one_length(data, tokenizer):
    """The same splits, with 76 training rows of 10 tokens."""
    rows = [tokenizer(row["tokens"])["input_ids"] for row in random_rows(76, 7, low=5, high=5)]
    return {"train": Dataset.from_dict({"input_ids": rows}), "test": data["test"]}


@pytest.mark.parametrize("optimizer", ["trainer", "muon"])
def test_the_update_that_a_gpu_captures_is_the_one_that_trainer_takes(tmp_path, tokenizer, data, optimizer, caplog):
    """Here it warms up only: without a GPU the capture fails at the fifth update, and Trainer takes over."""
    changes = {"max_steps": 6, "logging_steps": 3, "max_grad_norm": 0.5, "seed": 3, "lr_scheduler_type": "cosine"}
    data = of_one_length(data, tokenizer)
    expected = plain(tmp_path / "plain", tokenizer, data, optimizer, **changes)
    trainer = waitless(tmp_path / "graph", tokenizer, data, optimizer, 2, **changes)
    trainer.graph_batch = (8, 10)
    with caplog.at_level(logging.WARNING):
        weights = weights_after(trainer)
    assert "--cuda_graph: updates run uncaptured; the capture failed" in caplog.text
    assert trainer.step_graph.num_updates == 4
    for name, weight in weights_after(expected).items():
        torch.testing.assert_close(weights[name], weight)
    for log, other in zip(trainer.state.log_history[:2], expected.state.log_history[:2], strict=True):
        names = ("loss", "grad_norm", "learning_rate", "token_loss", "cls_loss", "perplexity")
        assert [log[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-5)


@pytest.mark.parametrize("poison", [infinite_loss, infinite_gradient])
def test_the_update_that_a_gpu_captures_takes_no_step_that_is_not_finite(tmp_path, tokenizer, data, poison):
    changes = {"max_steps": 12, "logging_steps": 9, "per_device_train_batch_size": 4}
    trainer = waitless(tmp_path, tokenizer, of_one_length(data, tokenizer), "muon", 2, **changes)
    trainer.graph_batch = (4, 10)
    poisoned = PoisonAt(trainer, 3, poison)
    trainer.add_callback(poisoned)
    with pytest.raises(DivergedError, match="at step 3 "):
        trainer.train()
    assert trainer.step_graph.num_updates == 4 and trainer.state.global_step == 4
    weights = dict(trainer.model.named_parameters())
    assert all(torch.equal(weights[name], poisoned.before[name]) for name in weights if "ln_f" not in name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("optimizer", ["trainer", "muon"])
def test_captured_updates_train_as_trainer_does_and_no_step_waits(tmp_path, tokenizer, data, optimizer):
    changes = {"max_steps": 40, "logging_steps": 40, "max_grad_norm": 0.5, "use_cpu": False, "bf16": True}
    data = of_one_length(data, tokenizer)  # 76 rows: every tenth batch is a partial one
    expected = weights_after(plain(tmp_path / "plain", tokenizer, data, optimizer, **changes))
    trainer = waitless(tmp_path / "graph", tokenizer, data, optimizer, **changes)
    trainer.graph_batch = (8, 10)
    trainer.add_callback(NoSynchronization())
    for name, weight in weights_after(trainer).items():
        torch.testing.assert_close(weight, expected[name], rtol=0.02, atol=2e-3)
    assert trainer.step_graph.graph is not None


class NoSynchronization(TrainerCallback):
    """Makes CUDA refuse to be waited for, from the sixth update to the last but one."""

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        torch.cuda.set_sync_debug_mode("error" if 5 <= state.global_step < args.max_steps - 1 else "default")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        torch.cuda.set_sync_debug_mode("default")
