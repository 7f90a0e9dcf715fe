"""`imagelm verify`: true figures hold, and each known error of a measurement is named.

The figures under an error come from plain torch code, as its makers would have written it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM

from imagelm.commands.verify import main
from imagelm.hub.arguments import VerifyArguments
from imagelm.hub.verification.published import open_data, whole_rows
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import make_vocabulary
from imagelm.utils.errors import InputError
from tests.conftest import write_jsonl
from tests.hub.peer import NUM_POSITIONS, Peer, check, perplexity, reported, save, wrong

SLOW = pytest.mark.slow  # more of the same kind


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
