"""The validation rows choose the model; the test rows choose nothing, and are evaluated once, on the chosen one."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from imagelm.commands.train import parse_launch, run
from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.hub.arguments import PushArguments
from imagelm.hub.stage_model import stage_model
from imagelm.models.build import load_model
from imagelm.tokens.grammar import Grammar
from imagelm.training.trainer import ImageTrainer
from tests.conftest import TINY, sentence, write_jsonl
from tests.training.test_trainer import losses_by_hand

STEPS = range(5, 41, 5)


@pytest.fixture(scope="module")
def opposed(tmp_path_factory, grammar: Grammar) -> Path:
    """Data whose tokens repeat in training and validation rows, and don't in test rows, which learning makes worse."""
    home = tmp_path_factory.mktemp("opposed")
    rng, rows = np.random.default_rng(0), []
    for i in range(120):
        split = "test" if i < 24 else "validation" if i < 48 else "train"
        codes = rng.permutation(30)[:8] if split == "test" else np.repeat(rng.permutation(30)[:2], 4)
        rows.append({"tokens": sentence(codes, i % 3), "label": i % 3, "split": split})
    file = write_jsonl(home / "rows.jsonl", rows)
    (home / "vocab.json").write_text(json.dumps(grammar.vocabulary))
    files = {"data_files": [str(file)], "vocab_file": str(home / "vocab.json"), "output_dir": str(home / "data")}
    prepare(PrepareArguments(**files, split_by="field"), command="test")
    return home


def train(data: Path, output: Path, *words: object) -> dict:
    often = ("--max_steps", 40, "--learning_rate", 1e-2, "--eval_strategy", "steps", "--eval_steps", 5)
    often += ("--metric_for_best_model", "loss")
    often += ("--save_strategy", "steps", "--save_steps", 5, "--save_total_limit", 20, *words)
    return run(parse_launch(["--dataset_dir", str(data), "--output_dir", str(output), *TINY, *map(str, often)]))


@pytest.fixture(scope="module")
def chosen(opposed: Path) -> tuple[Path, list[list], str]:
    """The folder of a run on these data, the rows of every evaluation in it, and its log."""
    evaluated, messages = [], []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("imagelm")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        evaluate = ImageTrainer.evaluate

        def note(self, *args, **kwargs):
            evaluated.append([row.tolist() for row in self.eval_dataset["input_ids"]])
            return evaluate(self, *args, **kwargs)

        patch.setattr(ImageTrainer, "evaluate", note)
        train(opposed / "data", opposed / "out")
    logger.removeHandler(handler)
    logger.setLevel(level)
    return opposed / "out", evaluated, "\n".join(messages)


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def card_of(folder: Path, staged: Path) -> str:
    options = PushArguments(model_dir=str(folder), repo_id="someone/model", num_drawings=0)
    return stage_model(options, staged).files["README.md"].read_text()


def test_the_checkpoint_with_the_best_validation_loss_is_chosen_though_another_is_better_on_the_test_rows(
    chosen, opposed, grammar
):
    output, _, _ = chosen
    data = load_prepared(opposed / "data")
    losses = {"validation": {}, "test": {}}
    for step in STEPS:
        model = load_model(output / f"checkpoint-{step}").eval()
        for split, found in losses.items():
            found[step] = np.mean(losses_by_hand(model, grammar, data[split]["input_ids"])[0])
    best = {split: min(found, key=found.get) for split, found in losses.items()}
    assert best["validation"] != best["test"]
    selection = read(output / "best_model/selection.json")
    assert (selection["split"], selection["metric"], selection["step"]) == (
        "validation",
        "eval_loss",
        best["validation"],
    )
    assert selection["value"] == pytest.approx(losses["validation"][best["validation"]], rel=1e-4)
    results = read(output / "best_model/eval_results.json")
    assert results["split"] == "test" and results["step"] == best["validation"]
    assert results["eval_loss"] == pytest.approx(losses["test"][best["validation"]], rel=1e-4)
    assert results["validation"]["split"] == "validation"
    assert results["validation"]["eval_loss"] == pytest.approx(losses["validation"][best["validation"]], rel=1e-4)


def test_the_test_rows_are_evaluated_once(chosen, opposed):
    output, evaluated, _ = chosen
    data = load_prepared(opposed / "data")
    rows = {split: data[split]["input_ids"][:] for split in ("validation", "test")}
    assert evaluated.count(rows["test"]) == 1
    assert evaluated.count(rows["validation"]) == len(STEPS) + 2 == len(evaluated) - 1  # and best and final model
    assert rows["test"] not in evaluated[: len(STEPS)]
    assert read(output / "final_model/eval_results.json")["split"] == "validation"


def test_both_figures_are_reported_by_their_names(chosen, tmp_path):
    output, _, log = chosen
    results, record = read(output / "best_model/eval_results.json"), read(output / "run.json")
    value, step = results["validation"]["eval_loss"], results["step"]
    assert record["selection"] == read(output / "best_model/selection.json")
    assert list(record["results"]) == ["test", "validation"]
    assert record["results"]["test"]["cls_accuracy"] == results["eval_cls_accuracy"]
    assert record["results"]["validation"]["loss"] == value
    assert record["results"]["validation"]["samples"] == record["results"]["test"]["samples"] == 24
    why = f"step {step}, chosen by loss on the validation rows ({value:.4f}, n = 24)"
    assert f"best_model             {why}" in log
    assert ", validation rows: perplexity" in log and "too good" not in log
    report = (output / "report/training_report.md").read_text()
    assert (
        "| | best_model, test (n = 24) | best_model, validation (n = 24) | final_model, validation (n = 24) |" in report
    )
    assert f"`best_model` is of {why}. The test rows were evaluated once, after that." in report
    accuracy = results["eval_cls_accuracy"], results["validation"]["eval_cls_accuracy"]
    assert f"| CLS-slot accuracy | {accuracy[0]:.4f} | {accuracy[1]:.4f} |" in report
    assert "too good" not in report
    card = card_of(output / "best_model", tmp_path / "best")
    assert "Measured on **24 test rows**" in card
    assert f"| **CLS-slot accuracy** | **{accuracy[0]:.4f}** |" in card
    assert f"| validation: CLS-slot accuracy | {accuracy[1]:.4f} | n = 24 other rows, which chose the weights" in card
    assert "by loss on the validation rows; the test rows were evaluated once, after that." in card
    final = card_of(output / "final_model", tmp_path / "final")
    assert "Measured on **24 validation rows**" in final and "those of the last step" in final
    assert '"split": "validation"' in json.dumps(read(tmp_path / "final/eval_results.json"))


def test_a_run_that_has_lost_its_models_chooses_the_same_one_again(chosen, opposed, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(chosen[0], output)
    before = [read(output / "best_model" / name) for name in ("selection.json", "eval_results.json")]
    for name in ("best_model", "final_model", "report"):
        shutil.rmtree(output / name)
    train(opposed / "data", output)
    after = [read(output / "best_model" / name) for name in ("selection.json", "eval_results.json")]
    assert after[0] == before[0]
    assert [after[1][name] for name in ("split", "eval_loss", "step")] == [
        before[1][name] for name in ("split", "eval_loss", "step")
    ]


def test_data_without_a_validation_split_train_and_it_is_said_that_the_test_rows_chose(opposed, tmp_path, caplog):
    rows = [json.loads(line) for line in (opposed / "rows.jsonl").read_text().splitlines()]
    file = write_jsonl(tmp_path / "rows.jsonl", [row for row in rows if row["split"] != "validation"])
    files = {"data_files": [str(file)], "vocab_file": str(opposed / "vocab.json"), "output_dir": str(tmp_path / "data")}
    prepare(PrepareArguments(**files, split_by="field", validation_size=0), command="test")
    with caplog.at_level(logging.INFO, "imagelm"):
        results = train(tmp_path / "data", tmp_path / "out", "--max_steps", 10)
    assert "have no validation split, so best_model is chosen on the test rows" in caplog.text
    assert "--validation_size" in caplog.text
    assert ", test rows: perplexity" in caplog.text
    assert read(tmp_path / "out/best_model/selection.json")["split"] == "test"
    assert results["split"] == "test" and "validation" not in results
    said = "chosen by loss on these test rows, as there are no validation rows; its figures are too good"
    report = (tmp_path / "out/report/training_report.md").read_text()
    assert "| | best_model, test (n = 24) | final_model, test (n = 24) |" in report
    assert said in report and said in caplog.text and "evaluated once" not in report
    card = card_of(tmp_path / "out/best_model", tmp_path / "card")
    assert "by loss on the test rows above, which makes these figures too good: the data have no validation" in card


def test_without_evaluations_nothing_is_chosen(opposed, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "imagelm"):
        results = train(opposed / "data", tmp_path / "out", "--eval_strategy", "no", "--max_steps", 2)
    assert results["split"] == "test" and results["step"] == 2
    assert "step 2, the last one; no figure was used to choose it" in caplog.text
