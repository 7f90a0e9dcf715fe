"""`imagelm verify` on a published model: it holds, and every changed figure, weight or row is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from imagelm.hub.arguments import PushArguments
from imagelm.hub.stage_data import stage_dataset
from imagelm.hub.stage_model import stage_model
from imagelm.tokens.grammar import Grammar
from imagelm.utils.errors import InputError
from tests.hub.peer import check, wrong


@pytest.fixture(scope="module")
def published(trained: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a push of a trained folder and its data sends: `model` and `dataset`."""
    home = tmp_path_factory.mktemp("published")
    shutil.copytree(trained / "best_model", home / "best_model")
    for name in ("complete.json", "log_history.json"):  # plots of it take time
        (home / "best_model" / name).unlink()
    given = {"model_dir": str(home / "best_model"), "dataset_dir": str(prepared), "num_drawings": 0}
    options = PushArguments(repo_id="a/b", dataset_repo_id="a/rows", **given)
    stage_model(options, home / "model")
    stage_dataset(options, home / "dataset")
    return home


def test_a_published_model_holds_and_its_card_names_the_command(published: Path):
    result = check(published / "model", published / "dataset")
    assert result.holds and not result.findings
    sources = {verdict.source for verdict in result.verdicts}
    assert {"eval_results.json", "card", "card metadata", "README.md", "stats.json of the dataset"} <= sources
    assert "imagelm verify a/b --dataset a/rows" in (published / "model/README.md").read_text()


@pytest.fixture
def tampered(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def change_digit(text: str, pattern: str, digit: int) -> str:
    """The text with another digit at a place after the point, or its first one, in the number that the group holds."""
    found = re.search(pattern, text)
    place = found.start(1) + (found[1].index(".") + digit if digit else 0)
    return text[:place] + str((int(text[place]) + 3) % 10) + text[place + 1 :]


CHANGED = {  # file, pattern, digit after the point → what is named
    ("README.md", r"\*\*CLS-slot accuracy\*\* \| \*\*([\d.]+)", 3): ("card", "cls_accuracy"),
    ("README.md", r"\| perplexity of image tokens \| ([\d.]+)", 3): ("card", "image_perplexity"),
    ("README.md", r"\| baseline: bag of tokens \| ([\d.]+)", 3): ("card", "bag_of_tokens_accuracy"),
    ("README.md", r"\| 2 \| 6 \| ([\d.]+)", 3): ("card", "per_class_accuracy.2"),
    ("README.md", r"\| 1 \| (\d+) \|", 0): ("card", "rows_per_class.1"),
    ("README.md", r"\| rows \| [^|\n]*?(\d+) test \|", 0): ("card", "num_rows.test"),
    ("README.md", r"95 % interval ([\d.]+)", 3): ("card", "cls_accuracy_interval.0"),
    ("README.md", r"value: ([\d.]+)(?=\n\s+name: Next-token accuracy)", 3): ("card metadata", "next_token_accuracy"),
    ("eval_results.json", r'(?m)^  "eval_cls_macro_f1": ([\d.]+)', 3): ("eval_results.json", "cls_macro_f1"),
    ("eval_results.json", r'(?m)^  "eval_loss": ([\d.]+)', 4): ("eval_results.json", "loss"),
}
ALONE = ("loss", "rows_per_class.1", "num_rows.test")  # which one record alone has


def test_each_figure_that_was_changed_in_the_third_digit_is_named_with_its_place(tampered: Path):
    for file, pattern, digit in CHANGED:
        path = tampered / "model" / file
        text = path.read_text()
        assert len(re.findall(pattern, text)) == 1
        path.write_text(change_digit(text, pattern, digit))
    result = check(tampered / "model", tampered / "dataset")
    assert {(v.source, v.figure) for v in result.verdicts if v.holds is False} == set(CHANGED.values())
    for source, figure in CHANGED.values():
        assert figure in ALONE or any(
            text.startswith(f"{source} was changed") and figure in text for text in result.findings
        )
    unexplained = [text for text in result.findings if text.startswith("no known error")]
    assert len(unexplained) == 1 and all(figure in unexplained[0] for figure in ALONE)


def test_a_bag_that_was_fitted_on_the_first_rows_of_a_stream_is_not_judged(tampered: Path):
    file = tampered / "model/eval_results.json"
    results = json.loads(file.read_text())
    rows = {"fitted": 100_000, "of": 150_000, "drawn": "the first ones of the stream"}
    file.write_text(json.dumps(results | {"bag_of_tokens_rows": rows, "bag_of_tokens_accuracy": 0.01}))
    result = check(tampered / "model", tampered / "dataset")
    assert result.holds and not any("bag" in verdict.figure for verdict in result.verdicts)
    what = "the figures of the bag of tokens, fitted on 100,000 of 150,000 training rows, the first ones of the stream"
    assert f"not checked: {what}" in result.notes


def test_other_weights_and_other_test_rows_are_named(tampered: Path, grammar: Grammar):
    file = tampered / "model/model.safetensors"
    weights = load_file(file)
    weights["transformer.wte.weight"] *= 1.2
    save_file(weights, file, {"format": "pt"})
    file = next((tampered / "dataset/data").glob("test-*.parquet"))
    rows = pq.read_table(file)
    ids = rows["input_ids"].to_pylist()
    ids[0][1] = next(int(code) for code in grammar.code_ids if code != ids[0][1])
    place = rows.schema.get_field_index("input_ids")
    pq.write_table(rows.set_column(place, rows.schema.field(place), pa.array(ids, rows.schema.field(place).type)), file)
    result = check(tampered / "model", tampered / "dataset")
    assert {"SHA-256 of the weights", "fingerprint of the rows", "perplexity"} <= set(wrong(result))
    found = [verdict.recomputed for verdict in result.verdicts if verdict.figure == "fingerprint of the rows"]
    assert found and all(text.endswith(" test changed") for text in found)
    assert result.findings == [
        "other weights: these aren't the weights that the figures were measured on",
        "other rows: these aren't the rows that were prepared and measured",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda home: [(home / "model" / name).unlink() for name in ("eval_results.json", "README.md")],
            "reports no figure",
        ),
        (lambda home: next((home / "dataset/data").glob("test-*")).unlink(), "has no test split (it has train"),
        (lambda home: shutil.rmtree(home / "dataset/data"), "holds no Parquet, Arrow or JSONL file"),
        (lambda home: (home / "model/model.safetensors").write_bytes(b"x"), "can't be loaded"),
    ],
)
def test_what_can_not_be_verified_is_refused(tampered: Path, change, said: str):
    change(tampered)
    with pytest.raises(InputError) as error:
        check(tampered / "model", tampered / "dataset")
    assert said in str(error.value)
