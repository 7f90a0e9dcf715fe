"""The loss, resuming, best_model and the leak check, on tiny real runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from imagelm.evaluation.leakage import prove_no_leak
from imagelm.evaluation.plots import write_plots
from imagelm.models.build import fix_loss_scale, load_model, skip_padding_check
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import grammar_of
from imagelm.training.arguments import RunArguments
from imagelm.training.loss import RowCollator, TokenAndSlotLoss
from imagelm.training.muon import MuonWithAdamW, hidden_matrices, orthogonalize
from imagelm.training.resume import ResumePlan, plan_resume
from imagelm.training.trainer import ImageTrainer, rows_only
from imagelm.utils.errors import DivergedError, InputError, LeakError
from imagelm.utils.text import table_cell
from tests.conftest import train


def tiny_model(tokenizer) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=32, n_layer=2, n_head=2, **ids)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model = GPT2LMHeadModel(config)
    fix_loss_scale(model)
    skip_padding_check(model)
    return model


def arguments(folder: Path, **changes) -> TrainingArguments:
    options = {"per_device_train_batch_size": 8, "max_steps": 3, "use_cpu": True, "disable_tqdm": True}
    options |= {"dataloader_pin_memory": False, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-3}
    return TrainingArguments(output_dir=str(folder), **{**options, **changes})


def make_trainer(folder, tokenizer, data, cls_loss_weight=0.0, model=None, **changes) -> ImageTrainer:
    run = RunArguments(cls_loss_weight=cls_loss_weight)
    model = tiny_model(tokenizer) if model is None else model
    return ImageTrainer(model, arguments(folder, **changes), run, tokenizer, data["train"], data["test"])


def losses_by_hand(model, grammar: Grammar, rows) -> tuple[list[float], list[float]]:
    """NLL of every scored token, and of every slot, a row at a time."""
    tokens, slots = [], []
    for row in rows:
        row = torch.tensor(np.asarray(row, dtype=np.int64))
        nll = functional.cross_entropy(model(input_ids=row[None]).logits[0, :-1], row[1:], reduction="none").tolist()
        tokens += nll
        slots.append(nll[row.tolist().index(grammar.vocabulary["<CLS>"])])
    return tokens, slots


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_the_weighted_sum_of_both_means(tokenizer, data, weight):
    model, grammar = tiny_model(tokenizer).eval(), grammar_of(tokenizer)
    rows = rows_only(data["train"])[:13]["input_ids"]
    tokens, slots = losses_by_hand(model, grammar, rows)
    batch = RowCollator(tokenizer)([{"input_ids": row} for row in rows])
    loss = TokenAndSlotLoss(grammar, weight)(model(input_ids=batch["input_ids"]), batch["labels"])
    assert loss.item() == pytest.approx((1 - weight) * np.mean(tokens) + weight * np.mean(slots), rel=1e-5)


def test_without_weight_the_loss_is_the_models_own(tokenizer, data):
    model = tiny_model(tokenizer).eval()
    batch = RowCollator(tokenizer)([{"input_ids": row} for row in rows_only(data["train"])[:13]["input_ids"]])
    own = model(**batch).loss
    loss = TokenAndSlotLoss(grammar_of(tokenizer), 0.0)(model(input_ids=batch["input_ids"]), batch["labels"])
    assert loss.item() == pytest.approx(own.item(), rel=1e-6)


def weights_after(trainer: ImageTrainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_accumulated_small_batches_train_as_one_large_batch_does(tmp_path, tokenizer, data, weight):
    """Ragged rows: a mean of batch means would differ in the third digit."""
    shared = {"seed": 3, "optim": "sgd", "learning_rate": 0.5}
    large = make_trainer(tmp_path / "a", tokenizer, data, weight, per_device_train_batch_size=8, **shared)
    small = make_trainer(
        *(tmp_path / "b", tokenizer, data, weight),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        **shared,
    )
    for (name, one), two in zip(weights_after(large).items(), weights_after(small).values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6, msg=name)
    logs = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (large, small)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def test_the_logged_training_loss_counts_only_predicted_tokens(tmp_path, tokenizer, data):
    """Stock Trainer divides GPT-2's loss by one token too many a row; ours doesn't."""
    one_batch = {"per_device_train_batch_size": len(data["train"]), "max_steps": 1}
    trainer = make_trainer(tmp_path / "ours", tokenizer, data, **one_batch)
    tokens, slots = losses_by_hand(trainer.model.eval(), grammar_of(tokenizer), data["train"]["input_ids"])
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(np.mean(tokens), rel=1e-4)
    assert log["token_loss"] == pytest.approx(np.mean(tokens), rel=1e-4)
    assert log["perplexity"] == pytest.approx(math.exp(np.mean(tokens)), rel=1e-4)
    assert log["cls_loss"] == pytest.approx(np.mean(slots), rel=1e-4)

    stock_model = tiny_model(tokenizer)
    del stock_model.loss_type
    stock = Trainer(
        stock_model,
        arguments(tmp_path / "stock", **one_batch),
        data_collator=RowCollator(tokenizer),
        train_dataset=rows_only(data["train"]),
    )
    stock.train()
    num_rows, num_tokens = len(data["train"]), len(tokens)
    expected = np.sum(tokens) / (num_tokens + num_rows)
    # If this fails, the library was fixed, and fix_loss_scale can go.
    assert stock.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_eval_loss_is_weighted_by_tokens_not_by_batches(tmp_path, tokenizer, data):
    trainer = make_trainer(tmp_path, tokenizer, data, per_device_eval_batch_size=5)
    tokens, _ = losses_by_hand(trainer.model.eval(), grammar_of(tokenizer), data["test"]["input_ids"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.mean(tokens), rel=1e-5)


def test_evaluation_keeps_neither_logits_nor_labels_but_one_byte_a_row(tmp_path, tokenizer, data):
    trainer = make_trainer(tmp_path, tokenizer, data)
    found = trainer.predict(rows_only(data["test"]))
    assert found.predictions is None and found.label_ids is None
    assert trainer.metrics.correct.nbytes == len(data["test"]) == 18
    assert found.metrics["test_cls_accuracy"] == trainer.metrics.correct.mean()


def test_rows_are_shuffled_in_the_order_of_the_library(tmp_path, tokenizer, data):
    loader = make_trainer(tmp_path, tokenizer, data, seed=7).get_train_dataloader()
    sampler = loader.get_sampler()
    theirs = SeedableRandomSampler(data["train"], data_seed=sampler.initial_seed)
    for epoch in (0, 1, 5):
        for one in (sampler, theirs):
            one.set_epoch(epoch)
        order = list(sampler)
        assert order == list(theirs) and sorted(order) == list(range(len(data["train"])))
        assert sampler.epoch == theirs.epoch == epoch + 1
    assert loader.batch_sampler.sampler is sampler


def test_resuming_gives_bitwise_the_weights_of_an_uninterrupted_run(prepared, tmp_path):
    options = ("--max_steps", 14, "--save_strategy", "steps", "--save_steps", 5, "--save_total_limit", 9)
    options = (*options, "--optimizer", "muon")
    whole = train(prepared, tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoint-14", "checkpoint-10", "final_model"):
        shutil.rmtree(tmp_path / "cut" / name)
    resumed = train(prepared, tmp_path / "cut", *options)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from {tmp_path}/cut/checkpoint-5" in resumed.stdout
    assert "missing keys" not in resumed.stderr
    assert re.search(r"^step \d+/14: training loss \d\.\d+, validation rows: perplexity ", resumed.stdout, re.MULTILINE)
    expected = load_file(tmp_path / "whole/final_model/model.safetensors")
    found = load_file(tmp_path / "cut/final_model/model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_finished_run_is_not_trained_again_and_another_is_refused_with_the_difference(prepared, trained, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(trained, output)
    before = (output / "final_model/model.safetensors").read_bytes()
    again = train(prepared, output, "--num_train_epochs", "6")
    assert again.returncode == 0, again.stderr
    assert (output / "final_model/model.safetensors").read_bytes() == before
    other = train(prepared, output, "--num_train_epochs", "6", "--learning_rate", "1e-4")
    assert other.returncode == 2
    assert "learning_rate: 0.003 there, 0.0001 now" in other.stderr
    assert (output / "final_model/model.safetensors").read_bytes() == before
    again = train(prepared, output, "--num_train_epochs", "1", "--learning_rate", "1e-4", "--overwrite")
    assert again.returncode == 0, again.stderr
    assert (output / "final_model/model.safetensors").read_bytes() != before


def plan_of(folder: Path, overwrite: bool = False, identity: dict | None = None, **changes) -> ResumePlan:
    return plan_resume(arguments(folder, **changes), identity or {"seed": 1}, overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_neither_trained_into_nor_emptied(tmp_path, overwrite):
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500/theirs").touch()
    with pytest.raises(InputError, match="files that no training run wrote"):
        plan_of(tmp_path, overwrite)
    assert (tmp_path / "checkpoint-500/theirs").exists()


def test_work_is_discarded_only_when_asked_for(trained, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(trained, output)
    identity = json.loads((trained / "run.json").read_text())["identity"]
    assert plan_of(output, identity=identity).finished
    for checkpoint in output.glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(InputError, match="a new start was requested"):
        plan_of(output, identity=identity, resume_from_checkpoint="false")
    shutil.rmtree(output / "final_model")
    with pytest.raises(InputError, match="allow_partial_resume"):
        plan_of(output, identity=identity)
    assert (output / "best_model/model.safetensors").exists()
    assert plan_of(output, overwrite=True, identity=identity) == ResumePlan()
    assert not (output / "best_model").exists()


def test_the_leak_proof_does_not_pass_a_model_of_nans(tokenizer, data):
    model = tiny_model(tokenizer)
    for p in model.parameters():
        torch.nn.init.constant_(p, float("nan"))
    with pytest.raises(DivergedError):
        prove_no_leak(model, grammar_of(tokenizer), [torch.tensor(data["test"]["input_ids"][0])], seed=0)


ONE_BLOCK = ("--config_overrides", "num_hidden_layers=1,hidden_size=32,num_attention_heads=2")


@pytest.mark.parametrize(
    "words",
    [
        ("--bf16",),
        pytest.param(("--torch_compile", "--torch_compile_backend", "eager", *ONE_BLOCK), marks=pytest.mark.slow),
    ],
)
def test_reported_figures_are_those_of_the_saved_weights_in_fp32(prepared, tokenizer, data, tmp_path, words):
    done = train(prepared, tmp_path / "out", "--max_steps", 3, *words)
    assert done.returncode == 0, done.stderr
    model = load_model(tmp_path / "out/best_model").eval()
    tokens, _ = losses_by_hand(model, grammar_of(tokenizer), data["test"]["input_ids"])
    results = json.loads((tmp_path / "out/best_model/eval_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(np.mean(tokens), rel=1e-6)


def test_a_folder_with_weights_of_another_architecture_is_not_filled_up_at_random(trained, tmp_path):
    shutil.copytree(trained / "best_model", tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    save_file({f"_orig_mod.{name}": weight for name, weight in weights.items()}, tmp_path / "model/model.safetensors")
    with pytest.raises(RuntimeError, match="doesn't hold the weights"):
        load_model(tmp_path / "model")


def test_no_more_checkpoints_remain_than_are_asked_for(trained):
    assert len(list(trained.glob("checkpoint-*"))) == 2


def test_best_model_is_the_best_evaluation_with_ties_broken_by_loss(trained):
    """Among all evaluations of the run, worked out from Trainer's own history."""
    checkpoint = max(trained.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    evaluations = [log for log in history if "eval_loss" in log]
    assert len(evaluations) == 6
    best = min(evaluations, key=lambda log: (-log["eval_cls_accuracy"], log["eval_loss"], log["step"]))
    selection = json.loads((trained / "best_model/selection.json").read_text())
    assert selection["step"] == best["step"]
    assert selection["value"] == best["eval_cls_accuracy"]
    results = json.loads((trained / "best_model/eval_results.json").read_text())["validation"]
    assert results["eval_cls_accuracy"] == best["eval_cls_accuracy"]
    assert results["eval_loss"] == pytest.approx(best["eval_loss"], rel=1e-5)


def test_a_lower_is_better_metric_chooses_the_lowest(prepared, tmp_path):
    words = ("--metric_for_best_model", "perplexity", "--max_steps", 12, "--eval_strategy", "steps", "--eval_steps", 3)
    done = train(prepared, tmp_path / "out", *words, "--learning_rate", "0.05")
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "out/checkpoint-12/trainer_state.json").read_text())
    evaluations = {log["step"]: log["eval_perplexity"] for log in state["log_history"] if "eval_loss" in log}
    selection = json.loads((tmp_path / "out/best_model/selection.json").read_text())
    assert selection["step"] == min(evaluations, key=evaluations.get)


def test_early_stopping_ends_after_evaluations_without_a_better_one(prepared, tmp_path):
    words = ("--max_steps", 60, "--eval_strategy", "steps", "--eval_steps", 2, "--learning_rate", "0")
    done = train(prepared, tmp_path / "out", *words, "--early_stopping_patience", 3, "--save_strategy", "no")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/best_model/selection.json").read_text())["step"] == 2
    assert json.loads((tmp_path / "out/final_model/selection.json").read_text())["step"] == 8
    # 72 rows are 9 steps an epoch.
    length = "8 of 60 planned steps (0.889 of 6.67 epochs), stopped early: 3 evaluations without a better cls_accuracy"
    assert f"Trained for {length}.\n" in (tmp_path / "out/report/training_report.md").read_text()
    assert f"trained {length}\n" in done.stdout
    done = json.loads((tmp_path / "out/best_model/run.json").read_text())["trained"]
    assert (done["steps"], done["planned_steps"]) == (8, 60) and done["epochs"] == pytest.approx(8 / 9)


def test_the_answer_token_never_changes_the_prediction(tokenizer, data):
    model, grammar = tiny_model(tokenizer).eval(), grammar_of(tokenizer)
    for row in data["test"]["input_ids"]:
        row = torch.tensor(row)
        slot = row.tolist().index(grammar.vocabulary["<CLS>"])
        logits = []
        for answer in grammar.class_ids:
            row[slot + 1] = int(answer)
            logits.append(model(input_ids=row[None]).logits[0, slot])
        assert all(torch.equal(logits[0], other) for other in logits)
    rows = [torch.tensor(row) for row in data["test"]["input_ids"]]
    assert prove_no_leak(model, grammar, rows, seed=0) < 1e-5


def test_a_model_that_sees_the_answer_is_an_error(tokenizer, data):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    rows = [torch.tensor(row) for row in data["test"]["input_ids"]]
    with pytest.raises(LeakError, match="sees the answer"):
        prove_no_leak(BertLMHeadModel(config), grammar_of(tokenizer), rows, seed=0)


def test_training_with_a_model_that_sees_the_answer_ends_with_code_1(prepared, tmp_path):
    done = train(prepared, tmp_path / "out", "--model_type", "bert")
    assert done.returncode == 1
    assert "sees the answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_newton_schulz_gives_the_orthogonal_factor():
    """Against the factor U·Vᵀ of an exact singular value decomposition."""
    torch.manual_seed(0)
    for shape in ((3, 24, 48), (2, 48, 24)):
        matrices = torch.randn(shape)
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        found = orthogonalize(matrices)
        assert functional.cosine_similarity(found.flatten(1), (u @ vh).flatten(1)).min() > 0.97
        singular_values = torch.linalg.svdvals(found)
        assert 0.6 < singular_values.min() < singular_values.max() < 1.25


def test_muon_updates_hidden_matrices_and_leaves_the_rest_to_adamw(tokenizer):
    """AdamW's half equals torch's own AdamW, step by step."""
    model, twin = tiny_model(tokenizer), tiny_model(tokenizer)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {names[id(p)] for p in hidden_matrices(model)}
    assert matrices == {
        name for name in names.values() if ".h." in name and name.endswith("weight") and "ln" not in name
    }
    ours = MuonWithAdamW(model, lr=1e-2, muon_lr=0.02, betas=(0.9, 0.95))
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        torch.manual_seed(step)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        ours.step()
        theirs.step()
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            if name not in matrices:
                torch.testing.assert_close(p, q)
            else:
                scale = max(1, p.shape[1] / p.shape[0]) ** 0.5  # GPT-2 keeps its matrices as (in, out)
                spectral_norm = torch.linalg.matrix_norm(p.detach() - before[name], ord=2).item()
                assert 0.6 * 0.02 * scale < spectral_norm < 1.25 * 0.02 * scale


def test_any_class_name_may_stand_in_plots_and_tables(tmp_path):
    names = ["$x^$", "a|b\\c", "<b>", "two\nlines"]
    matrix = (np.eye(4) * 5).astype(int)
    write_plots(tmp_path, {"eval_confusion_matrix": matrix.tolist(), "class_names": names}, history=[])
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 5000
    assert [table_cell(name) for name in names] == ["$x^$", "a\\|b\\\\c", "&lt;b>", "two lines"]
    assert (
        table_cell("*b* _i_ `c` [l](u) snake_case a&lt;") == "\\*b\\* \\_i\\_ \\`c\\` \\[l\\](u) snake_case a&amp;lt;"
    )
