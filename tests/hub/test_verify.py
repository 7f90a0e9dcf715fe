"""`imagelm verify`: a true model passes, every tampered or wrong figure is named, and so is each known error.

The figures under an error come from plain torch code, as its makers would have written it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from imagelm.commands.verify import main
from imagelm.hub.arguments import PushArguments, VerifyArguments
from imagelm.hub.stage_data import stage_dataset
from imagelm.hub.stage_model import stage_model
from imagelm.hub.verification.outcome import Verification, summary
from imagelm.hub.verification.published import open_data, whole_rows
from imagelm.hub.verification.verify import verify
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import build_tokenizer, save_tokenizer
from imagelm.tokens.vocabulary import make_vocabulary
from imagelm.utils.errors import InputError
from tests.conftest import random_rows, write_jsonl

NUM_POSITIONS = 24
NUM_TRAIN, NUM_TEST = 120, 61
SLOW = pytest.mark.slow  # more of the same kind


def check(model: Path, dataset: Path, **options: object) -> Verification:
    result = verify(VerifyArguments(model=str(model), dataset=str(dataset), device="cpu", **options))
    print("\n".join(summary(result)))
    return result


def wrong(result: Verification) -> list[str]:
    return [verdict.figure for verdict in result.verdicts if verdict.holds is False]


@dataclass
class Peer:
    """A stock GPT-2 with rows as JSONL, made without this project's training."""

    home: Path
    model: GPT2LMHeadModel
    ids: torch.Tensor  # of the test rows, padded on the right
    mask: torch.Tensor
    slots: torch.Tensor  # position of <CLS>
    class_ids: torch.Tensor
    labels: torch.Tensor

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask).logits

    def accuracy(self, logits: torch.Tensor, positions: torch.Tensor) -> float:
        chosen = logits[torch.arange(len(logits)), positions][:, self.class_ids]
        return (chosen.argmax(-1) == self.labels).float().mean().item()


def padded(rows: list[dict], grammar: Grammar, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [[grammar.vocabulary[token] for token in row["tokens"].split()] for row in rows]
    length = length or max(map(len, ids))
    pad = grammar.vocabulary["<PAD>"]
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    return torch.tensor([row + [pad] * (length - len(row)) for row in ids]), mask


def save(model: torch.nn.Module, grammar: Grammar, folder: Path) -> Path:
    model.save_pretrained(folder)
    save_tokenizer(build_tokenizer(grammar, NUM_POSITIONS), folder)
    return folder


@pytest.fixture(scope="module")
def peer(grammar: Grammar, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    home = tmp_path_factory.mktemp("peer")
    rows = random_rows(NUM_TRAIN + NUM_TEST, seed=3, low=4, high=12)
    (home / "rows").mkdir()
    write_jsonl(home / "rows/train.jsonl", rows[:NUM_TRAIN])
    write_jsonl(home / "rows/test.jsonl", rows[NUM_TRAIN:])
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": NUM_POSITIONS}
    special = {f"{name}_token_id": grammar.vocabulary[token] for name, token in (("bos", "<IMG>"), ("eos", "<EOS>"))}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=grammar.size, **sizes, **special))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids, mask = padded(rows[:NUM_TRAIN], grammar)
    for _ in range(30):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save(model.eval(), grammar, home / "model")
    ids, mask = padded(rows[NUM_TRAIN:], grammar)
    class_ids = torch.tensor([grammar.vocabulary[f"<CLS_{label}>"] for label in range(3)])
    labels = torch.tensor([row["label"] for row in rows[NUM_TRAIN:]])
    return Peer(home, model, ids, mask, mask.sum(1) - 3, class_ids, labels)


def perplexity(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return cross_entropy(logits.flatten(0, 1), targets.flatten()).exp().item()


def reported(**figures: float) -> list[str]:
    return [f"{name}={value:.4f}" for name, value in figures.items()]


def test_a_trained_model_holds_on_its_own_data_also_with_their_tokenizer(trained: Path, prepared: Path, tmp_path: Path):
    for name in ("config.json", "model.safetensors", "eval_results.json", "stats.json"):
        shutil.copy(trained / "best_model" / name, tmp_path)
    result = check(tmp_path, prepared)
    assert result.holds and not result.findings and not result.notes
    figures = {verdict.figure for verdict in result.verdicts if verdict.source == "eval_results.json"}
    assert {"perplexity", "cls_accuracy", "bag_of_tokens_accuracy", "confusion_matrix.0.0", "samples"} <= figures
    assert {"validation.perplexity", "validation.samples", "validation.bag_of_tokens_accuracy"} <= figures
    checks = {"SHA-256 of the weights", "fingerprint of the rows", "influence of the answer"}
    assert checks <= {verdict.figure for verdict in result.verdicts}
    final = check(trained / "final_model", prepared)  # whose figures are of the 8 validation rows
    assert final.holds and final.num_rows == 8


def test_true_figures_of_a_strangers_model_hold(peer: Peer):
    logits, labels = peer.logits(peer.ids, peer.mask), peer.ids.masked_fill(peer.mask == 0, -100)
    true = reported(
        perplexity=perplexity(logits[:, :-1], labels[:, 1:]), cls_accuracy=peer.accuracy(logits, peer.slots)
    )
    result = check(peer.home / "model", peer.home / "rows", reported=true)
    assert result.holds and not result.findings


def test_labels_shifted_twice_are_named_also_where_another_record_has_the_true_figure(peer: Peer, tmp_path: Path):
    logits, labels = peer.logits(peer.ids, peer.mask), peer.ids.masked_fill(peer.mask == 0, -100)
    figures = {
        "perplexity": perplexity(logits[:, :-2], labels[:, 2:]),
        "cls_accuracy": peer.accuracy(logits, peer.slots - 1),
    }
    shutil.copytree(peer.home / "model", tmp_path / "model")
    true = {"eval_perplexity": perplexity(logits[:, :-1], labels[:, 1:])}
    (tmp_path / "model/eval_results.json").write_text(json.dumps(true))
    result = check(tmp_path / "model", peer.home / "rows", reported=reported(**figures))
    assert len(result.findings) == 1 and result.findings[0].startswith("labels shifted twice")
    assert set(wrong(result)) == set(figures)


@pytest.mark.parametrize(
    ("length", "masked"),
    [
        (None, True),
        pytest.param(None, False, marks=SLOW),
        pytest.param(24, False, marks=SLOW),
        pytest.param(24, True, marks=SLOW),
    ],
)
def test_scored_padding_is_named(peer: Peer, grammar: Grammar, length: int | None, masked: bool):
    width = length or peer.ids.shape[1]
    pad = torch.full((len(peer.ids), width - peer.ids.shape[1]), grammar.vocabulary["<PAD>"])
    ids = torch.cat([peer.ids, pad], 1)
    mask = torch.cat([peer.mask, torch.zeros_like(pad)], 1) if masked else None
    with torch.no_grad():
        loss = peer.model(input_ids=ids, attention_mask=mask, labels=ids).loss
    result = check(peer.home / "model", peer.home / "rows", reported=reported(perplexity=loss.exp().item()))
    assert [finding.split(":")[0] for finding in result.findings] == [f"padding scored (rows padded to {width} tokens)"]


@pytest.mark.parametrize("length", [8, pytest.param(12, marks=SLOW)])
def test_an_answer_that_is_cut_off_is_named(peer: Peer, length: int):
    ids, mask = peer.ids[:, :length], peer.mask[:, :length]
    logits, labels = peer.logits(ids, mask), ids.masked_fill(mask == 0, -100)
    last = mask.sum(1) - 1
    lost = peer.slots + 1 >= length
    figures = {
        "perplexity": perplexity(logits[:, :-1], labels[:, 1:]),
        "cls_accuracy": peer.accuracy(logits, torch.where(lost, last, peer.slots)),
    }
    result = check(peer.home / "model", peer.home / "rows", reported=reported(**figures))
    assert len(result.findings) == 2
    assert all(text.startswith(f"answer cut off: rows cut to {length} tokens") for text in result.findings)


def test_equal_images_across_the_split_are_counted_with_the_figures_without_them(peer: Peer, tmp_path: Path):
    rows = [json.loads(line) for line in (peer.home / "rows/train.jsonl").read_text().splitlines()]
    test = (peer.home / "rows/test.jsonl").read_text()
    write_jsonl(tmp_path / "train.jsonl", rows)
    (tmp_path / "test.jsonl").write_text(test + "".join(json.dumps(row) + "\n" for row in rows[:20]))
    # The figures of the card are those of all rows, so they hold: the equal images are what is wrong.
    result = check(peer.home / "model", tmp_path, reported=["samples=81"])
    assert wrong(result) == ["test images in split train"]
    assert [verdict.recomputed for verdict in result.verdicts if verdict.holds is False] == ["20 of 81"]
    accuracy = peer.accuracy(peer.logits(peer.ids, peer.mask), peer.slots)
    assert result.findings[0].startswith("duplicates across the split: 20 images of 81 in test")
    assert f"becomes {accuracy:.6g}" in result.findings[0]


def test_figures_that_were_measured_without_the_duplicates_are_named(peer: Peer, tmp_path: Path):
    shutil.copy(peer.home / "rows/train.jsonl", tmp_path)
    train = (peer.home / "rows/train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "test.jsonl").write_text((peer.home / "rows/test.jsonl").read_text() + "".join(train[:20]))
    logits, labels = peer.logits(peer.ids, peer.mask), peer.ids.masked_fill(peer.mask == 0, -100)
    given = reported(perplexity=perplexity(logits[:, :-1], labels[:, 1:]))
    result = check(peer.home / "model", tmp_path, reported=given)
    assert any(text.startswith("duplicates: measured without 20 images") for text in result.findings)


def test_a_head_that_sees_the_answer_is_named_though_its_figures_hold(peer: Peer, grammar: Grammar, tmp_path: Path):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=grammar.size, max_position_embeddings=NUM_POSITIONS, **sizes, is_decoder=False)
    model = BertLMHeadModel(config).eval()
    save(model, grammar, tmp_path / "model")
    with torch.no_grad():
        seen = peer.accuracy(model(input_ids=peer.ids, attention_mask=peer.mask).logits, peer.slots)
        hidden = peer.mask * (torch.arange(peer.ids.shape[1]) <= peer.slots[:, None])
        honest = peer.accuracy(model(input_ids=peer.ids, attention_mask=hidden).logits, peer.slots)
    result = check(tmp_path / "model", peer.home / "rows", reported=reported(cls_accuracy=seen))
    assert wrong(result) == ["influence of the answer"]
    assert result.findings[0].startswith("a head that sees the answer")
    assert f"{seen:.6g} with the answer in the row, and {honest:.6g} when it is hidden" in result.findings[0]


def test_a_class_that_is_read_where_it_is_visible_is_named(peer: Peer):
    at_answer = peer.accuracy(peer.logits(peer.ids, peer.mask), peer.slots + 1)
    result = check(peer.home / "model", peer.home / "rows", reported=reported(cls_accuracy=at_answer))
    assert result.findings[0].startswith("a head that sees the answer: the class is read at the position of the class")


def test_both_errors_at_once_are_named_together(peer: Peer):
    logits = peer.logits(peer.ids, peer.mask)
    result = check(
        peer.home / "model",
        peer.home / "rows",
        reported=reported(perplexity=perplexity(logits[:, :-2], peer.ids[:, 2:])),
    )
    assert len(result.findings) == 1
    assert result.findings[0].startswith("padding scored") and "and labels shifted twice" in result.findings[0]


def test_figures_of_a_strangers_card_and_rows_as_padded_ids(peer: Peer, grammar: Grammar, tmp_path: Path):
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=grammar.size, max_position_embeddings=NUM_POSITIONS, **sizes)
    ).eval()
    save(model, grammar, tmp_path / "model")
    (tmp_path / "rows").mkdir()
    rows = {"input_ids": peer.ids.tolist(), "attention_mask": peer.mask.tolist()}
    Dataset.from_dict(rows).to_parquet(tmp_path / "rows/test-00000-of-00001.parquet")
    with torch.no_grad():
        logits = model(input_ids=peer.ids, attention_mask=peer.mask).logits
    labels = peer.ids.masked_fill(peer.mask == 0, -100)
    metrics = [
        {"type": "accuracy", "value": round(100 * peer.accuracy(logits, peer.slots), 2)},
        {"type": "perplexity", "name": "Perplexity", "value": round(perplexity(logits[:, :-1], labels[:, 1:]), 3)},
        {"type": "bleu", "value": 12.5},
    ]
    index = [
        {"name": "x", "results": [{"task": {"type": "t"}, "dataset": {"name": "d", "type": "d"}, "metrics": metrics}]}
    ]
    (tmp_path / "model/README.md").write_text(f"---\n{yaml.safe_dump({'model-index': index})}---\n# x\n")
    result = check(tmp_path / "model", tmp_path / "rows")
    assert result.holds
    assert [v.figure for v in result.verdicts if v.source == "card metadata"] == ["cls_accuracy", "perplexity"]
    assert result.notes == [
        "not checked: bleu 12.5 can't be recomputed here",
        "not checked without training rows: equal images across the split",
    ]


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reported": ["perplexty=3"]}, "unknown figure 'perplexty'; did you mean perplexity?"),
        ({"reported": ["perplexity=good"]}, "expected FIGURE=VALUE"),
        ({"split": "dev"}, "has no split 'dev' (it has test, train)"),
        ({"dataset_revision": "v1"}, "--dataset_revision belongs to a Hub id"),
        ({"revision": "v1"}, "belongs to a Hub id"),
    ],
)
def test_wrong_options_are_refused(peer: Peer, options: dict, said: str):
    with pytest.raises(InputError) as error:
        check(peer.home / "model", peer.home / "rows", **options)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"tokens": "<IMG> <Z_001> </IMG> <CLS> <CLS_1> <EOS>", "label": 2}',
            "the class token is <CLS_1>, expected <CLS_2>",
        ),
        ('{"tokens": "<IMG> <Z_999> </IMG> <CLS> <CLS_1> <EOS>"}', "expected one of the vocabulary's"),
        ('{"input_ids": [1, 2, 100000]}', "expected one of the vocabulary's"),
        ('{"words": "x"}', "expected an object with tokens or input_ids"),
        ('{"input_ids": [[1], [2]]}', "holds neither ids nor tokens"),
        ("[1, 2]", "expected an object"),
    ],
)
def test_bad_rows_are_named(grammar: Grammar, tmp_path: Path, line: str, said: str):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(InputError) as error:
        data = open_data(VerifyArguments(model="m", dataset=str(tmp_path / "rows.jsonl")))
        whole_rows(data.tables["test"], grammar, "test")
    assert said in str(error.value)


def test_another_vocabulary_is_refused(peer: Peer, prepared: Path, tmp_path: Path):
    vocabulary = make_vocabulary(30, 3)  # the same tokens, other ids
    save(peer.model, Grammar(vocabulary), tmp_path / "model")
    with pytest.raises(InputError) as error:
        check(tmp_path / "model", prepared, reported=["perplexity=1"])
    assert "has another vocabulary than --dataset" in str(error.value)


def test_the_exit_code_and_the_file_tell_the_outcome(peer: Peer, tmp_path: Path, monkeypatch, capsys):
    words = ["imagelm verify", str(peer.home / "model"), "--dataset", str(peer.home / "rows"), "--device", "cpu"]
    output = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", [*words, "--reported", "samples=61", "--output", str(output)])
    main()
    assert json.loads(output.read_text())["holds"] is True
    monkeypatch.setattr(
        sys, "argv", [*words, "--reported", "samples=61", "--reported", "perplexity=1.0123", "--output", str(output)]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    result = json.loads(output.read_text())
    assert result["holds"] is False
    assert [v["figure"] for v in result["verdicts"] if v["source"] == "--reported"] == ["samples", "perplexity"]
    assert result["findings"] == ["no known error reproduces perplexity"]
    assert "DOES NOT HOLD" in capsys.readouterr().out


def test_a_validation_split_is_measured_and_compared_too(peer: Peer, tmp_path: Path):
    shutil.copytree(peer.home / "model", tmp_path / "model")
    shutil.copytree(peer.home / "rows", tmp_path / "rows")
    lines = (tmp_path / "rows/test.jsonl").read_text().splitlines(keepends=True)
    train = (tmp_path / "rows/train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows/test.jsonl").write_text("".join(lines[30:]))
    (tmp_path / "rows/validation.jsonl").write_text("".join([*lines[:30], *train[:3]]))
    accuracy = peer.accuracy(peer.logits(peer.ids, peer.mask), peer.slots)
    (tmp_path / "model/eval_results.json").write_text(
        json.dumps({"eval_samples": 31, "validation": {"eval_samples": 33, "eval_cls_accuracy": accuracy + 0.5}})
    )
    result = check(tmp_path / "model", tmp_path / "rows")
    assert wrong(result) == ["validation.cls_accuracy", "train images in split validation"]
    assert "no known error reproduces validation.cls_accuracy" in result.findings
