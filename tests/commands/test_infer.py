"""`inference.py` as a user types it: modes, inputs, outputs, pictures, the prompt, and what it says of wrong input.

Most tests call its `main` in this process, as importing torch anew takes seconds; some run it as a command.
"""

from __future__ import annotations

import builtins
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

import inference
from imagelm.codecs.kmeans import fit_patch_codec
from imagelm.commands.infer import COMMAND
from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.models.save import save_model
from imagelm.remote_code.codec_imagelm import load_codec
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import build_tokenizer, grammar_of, load_tokenizer, save_tokenizer
from imagelm.tokens.vocabulary import CLS, IMG, IMG_END
from imagelm.utils.command_line import options_of
from imagelm.utils.errors import InputError
from imagelm.utils.image_grid import hide_unknown
from tests.conftest import CLASSES, NUM_CODES, ROOT, random_rows, run, write_jsonl
from tests.images import class_folder, prepare_images, smooth_images

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def infer(monkeypatch, capsys):
    """Runs `inference.py` in this process; gives what it prints."""

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["inference.py", *map(str, words)])
        inference.main()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def best(trained: Path) -> Path:
    return trained / "best_model"


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """48 different grey images of 8×8 pixels, of 4 patches each."""
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (48, 4, 4, 1), dtype=np.uint8)
    return blocks.repeat(2, 1).repeat(2, 2)


@pytest.fixture(scope="module")
def artist(grammar: Grammar, pictures: np.ndarray, tmp_path_factory) -> Path:
    """A model with random weights for images of 2×2 tokens, with its codec and class names."""
    folder = tmp_path_factory.mktemp("artist")
    torch.manual_seed(1)
    tokenizer = build_tokenizer(grammar, 9)
    arguments = ModelArguments(config_overrides="num_hidden_layers=2,hidden_size=32,num_attention_heads=2")
    model = build_model(arguments, tokenizer, 9, "eager")
    model.get_output_embeddings().weight.data.mul_(20)
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: label for label, name in enumerate(NAMES)}
    save_model(model, folder, tokenizer, model.state_dict())
    save_tokenizer(tokenizer, folder)
    fit_patch_codec(pictures, 4, NUM_CODES, 0, fit="resize", background=0).save(folder)
    return folder


@pytest.fixture(scope="module")
def photos(pictures: np.ndarray, tmp_path_factory) -> Path:
    """Folders owl, cat and yak (which the model doesn't know) of PNG files."""
    root = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(pictures[:9]):
        folder = root / ["owl", "cat", "yak"][i % 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture[..., 0]).save(folder / f"{i}.png")
    return root


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_of(prepared: Path) -> list[str]:
    tokenizer = load_tokenizer(prepared / "tokenizer")
    return [tokenizer.decode(row) for row in load_prepared(prepared)["test"]["input_ids"]]


test_rows_of.__test__ = False  # a helper; its name is only like a test's


# classify


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_best_model_has_the_accuracy_that_training_reported(best, prepared, tmp_path, infer, batch_size):
    copy = tmp_path / "copy"  # saved and loaded once more
    AutoModelForCausalLM.from_pretrained(best).save_pretrained(copy)
    AutoTokenizer.from_pretrained(best).save_pretrained(copy)
    reported = json.loads((best / "eval_results.json").read_text())
    answers = []
    for model in (best, copy):
        file = tmp_path / f"{model.name}.jsonl"
        words = ("--dataset_dir", prepared, "--batch_size", batch_size, "--output", file)
        printed = infer("--mode", "classify", "--model", model, *words)
        rows = records(file)
        assert np.mean([row["prediction"] == row["label"] for row in rows]) == reported["eval_cls_accuracy"]
        low, high = reported["eval_cls_accuracy_interval"]
        assert f"accuracy {reported['eval_cls_accuracy']:.4f}" in printed
        assert f"of {len(rows)} labelled rows, 95 % interval {low:.3f} to {high:.3f}" in printed
        answers.append([row["prediction"] for row in rows])
    assert answers[0] == answers[1]


def test_probabilities_are_those_of_a_bare_forward_pass(best, prepared, tmp_path, infer):
    infer("--mode", "classify", "--model", best, "--dataset_dir", prepared, "--output", tmp_path / "o", "--top", 3)
    tokenizer, model = AutoTokenizer.from_pretrained(best), AutoModelForCausalLM.from_pretrained(best)
    class_ids = [tokenizer.convert_tokens_to_ids(f"<CLS_{label}>") for label in range(3)]
    for record in records(tmp_path / "o"):
        with torch.no_grad():
            logits = model(**tokenizer(record["tokens"], return_tensors="pt")).logits[0, -1]
        expected = logits[class_ids].softmax(-1)
        assert record["tokens"].endswith(f"{IMG_END} {CLS}")
        assert record["prediction"] == int(expected.argmax())
        assert {entry["label"]: entry["probability"] for entry in record["top"]} == pytest.approx(
            dict(enumerate(expected.tolist())), abs=1e-5
        )


def test_a_row_may_be_whole_or_cut_anywhere_and_its_answer_is_never_read(best, prepared, tmp_path, infer):
    whole = test_rows_of(prepared)
    images = [row[: row.index(IMG_END) + len(IMG_END)] for row in whole]
    variants = {
        "whole": whole,
        "wrong": [row.replace("<CLS_0>", "<CLS_1>").replace("<CLS_2>", "<CLS_1>") for row in whole],
        "asked": [f"{image} {CLS}" for image in images],
        "closed": images,
        "open": [image.removesuffix(IMG_END) for image in images],
        "codes": [image.removesuffix(IMG_END).removeprefix(IMG) for image in images],
    }
    found = {}
    for name, rows in variants.items():
        (tmp_path / name).write_text("\n\n".join(rows))
        infer(
            "--mode", "classify", "--model", best, "--data_files", tmp_path / name, "--output", tmp_path / f"{name}.o"
        )
        found[name] = [(row["prediction"], row["probability"]) for row in records(tmp_path / f"{name}.o")]
    assert len(found["whole"]) == len(whole)
    assert all(answers == found["whole"] for answers in found.values())


def test_scores_are_the_models_own_loss_over_the_image(best, prepared, tmp_path, infer):
    words = ("--mode", "classify", "--model", best, "--dataset_dir", prepared, "--score")
    scored = []
    for batch_size in (1, 64):
        infer(*words, "--batch_size", batch_size, "--output", tmp_path / f"{batch_size}")
        scored.append(records(tmp_path / f"{batch_size}"))
    tokenizer, model = AutoTokenizer.from_pretrained(best), AutoModelForCausalLM.from_pretrained(best)
    for one, many in zip(*scored, strict=True):
        ids = tokenizer(one["tokens"].removesuffix(CLS), return_tensors="pt").input_ids
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()  # the mean over all but <IMG>
        assert one["log_likelihood"] == pytest.approx(-loss * (ids.shape[1] - 1), abs=1e-3)
        assert one["bits_per_token"] == pytest.approx(loss / np.log(2), abs=1e-4)
        assert many["log_likelihood"] == pytest.approx(one["log_likelihood"], abs=1e-4)


def test_images_are_classified_as_their_tokens_and_labels_go_by_name(artist, photos, tmp_path, infer):
    words = ("--mode", "classify", "--model", artist, "--score")
    printed = infer(*words, "--images", photos, "--output", tmp_path / "images")
    by_image = records(tmp_path / "images")
    assert "1 of 3 classes of the input are unknown to the model (yak)" in printed
    assert "of 6 labelled rows" in printed
    assert {(Path(row["place"]).parent.name, row["label"]) for row in by_image} == {
        ("owl", 2),
        ("cat", 0),
        ("yak", None),
    }
    rows = write_jsonl(tmp_path / "rows", [{"tokens": row["tokens"].split(), "label": "owl"} for row in by_image])
    infer(*words, "--data_files", rows, "--output", tmp_path / "tokens")
    for image, row in zip(by_image, records(tmp_path / "tokens"), strict=True):
        assert row["class"] == NAMES[row["prediction"]] == image["class"]
        assert row["label"] == 2
        assert row["log_likelihood"] == pytest.approx(image["log_likelihood"], abs=1e-5)
        # 8 × 8 grey pixels share the bits of 4 codes and </IMG>
        assert row["bits_per_dim"] == pytest.approx(row["bits_per_token"] * 5 / 64)


def test_labels_of_a_dataset_go_by_class_name(artist, grammar, tmp_path, infer):
    rows = write_jsonl(tmp_path / "rows.jsonl", random_rows(30, seed=4, low=4, high=4))
    (tmp_path / "vocab.json").write_text(json.dumps(grammar.vocabulary))
    (tmp_path / "names.json").write_text(json.dumps(["owl", "yak", "cat"]))
    names = {"class_names": str(tmp_path / "names.json")}
    prepare(
        PrepareArguments(
            data_files=[str(rows)], vocab_file=str(tmp_path / "vocab.json"), output_dir=str(tmp_path / "data"), **names
        ),
        command="test",
    )
    words = ("--mode", "classify", "--model", artist, "--dataset_dir", tmp_path / "data")
    printed = infer(*words, "--output", tmp_path / "o")
    theirs = load_prepared(tmp_path / "data")["test"]["label"]
    assert set(theirs) == {0, 1, 2}
    found = records(tmp_path / "o")
    assert [row["label"] for row in found] == [{0: 2, 1: None, 2: 0}[label] for label in theirs]  # owl, yak, cat
    assert "1 of 3 classes of the input are unknown to the model (yak)" in printed
    hits = sum(row["class"] == ["owl", "yak", "cat"][label] for row, label in zip(found, theirs, strict=True))
    assert f"({hits} of {len(theirs) - theirs[:].count(1)} labelled rows" in printed


def test_numbers_are_the_class_names_of_data_and_models_without_names(best, prepared, tmp_path, infer):
    nameless = tmp_path / "nameless"
    shutil.copytree(best, nameless)
    config = json.loads((nameless / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "1", "2": "2"}
    (nameless / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "label" not in k}))
    for model in (best, nameless):
        words = ("--mode", "classify", "--model", model, "--dataset_dir", prepared)
        assert "unknown" not in infer(*words, "--output", tmp_path / f"{model.name}.o")
        assert [row["label"] for row in records(tmp_path / f"{model.name}.o")] == load_prepared(prepared)["test"][
            "label"
        ][:]


def test_numbers_as_class_names_are_names(artist, pictures, tmp_path, infer):
    class_folder(tmp_path / "photos", {str(i): pictures[2 * i : 2 * i + 2] for i in range(4)})
    words = ("--mode", "classify", "--images", tmp_path / "photos", "--output", tmp_path / "o", "--overwrite")
    printed = infer(*words, "--model", artist)  # its names are cat, dog, owl
    assert "4 of 4 classes of the input are unknown to the model (0, 1, 2, 3)" in printed
    assert {row["label"] for row in records(tmp_path / "o")} == {None}
    counting = tmp_path / "counting"
    shutil.copytree(artist, counting)
    config = json.loads((counting / "config.json").read_text())
    config |= {"id2label": {"0": "1", "1": "2", "2": "3"}, "label2id": {"1": 0, "2": 1, "3": 2}}
    (counting / "config.json").write_text(json.dumps(config))
    printed = infer(*words, "--model", counting)
    assert "1 of 4 classes of the input are unknown to the model (0)" in printed
    assert [row["label"] for row in records(tmp_path / "o")] == [None, None, 0, 0, 1, 1, 2, 2]


def test_a_label_of_a_row_is_a_name_if_its_a_string_and_a_number_if_its_one(artist, tmp_path, infer):
    row = {"tokens": "<IMG> <Z_001> <Z_002> <Z_003> <Z_004>"}
    words = ("--mode", "classify", "--model", artist, "--output", tmp_path / "o", "--data_files")
    infer(*words, write_jsonl(tmp_path / "good", [{**row, "label": label} for label in ("owl", 1, None)]))
    assert [record["label"] for record in records(tmp_path / "o")] == [2, 1, None]
    with pytest.raises(InputError, match="label '1', expected a number from 0 to 2 or a class name"):
        infer(*words[:4], "--data_files", write_jsonl(tmp_path / "bad", [{**row, "label": "1"}]))


def test_rows_of_another_codec_are_refused_though_the_vocabulary_is_the_same(pictured, tmp_path, infer):
    words = ("--mode", "classify", "--model", pictured / "out/best_model", "--dataset_dir")
    assert "labelled rows" in infer(*words, pictured / "data")
    own = smooth_images(30, channels=3, seed=9)
    class_folder(tmp_path / "in", {name: own[i::3] for i, name in enumerate(CLASSES)})
    prepare_images(tmp_path / "other", tmp_path / "in")
    vocabularies = [
        (folder / "tokenizer/tokenizer.json").read_text() for folder in (pictured / "data", tmp_path / "other")
    ]
    assert json.loads(vocabularies[0])["model"]["vocab"] == json.loads(vocabularies[1])["model"]["vocab"]
    with pytest.raises(
        InputError, match=r"made with another codec: its codebook has other values; .* --codec .*/best_m"
    ):
        infer(*words, tmp_path / "other")
    prepare_images(tmp_path / "white", tmp_path / "in", background=255)
    with pytest.raises(InputError, match="made with another codec: background is 255 there, 0 in the model"):
        infer(*words, tmp_path / "white")
    prepare_images(tmp_path / "same", tmp_path / "in", codec=str(pictured / "out/best_model"))
    assert "labelled rows" in infer(*words, tmp_path / "same")


def test_a_damaged_picture_is_named_and_the_others_are_answered_as_without_it(artist, photos, tmp_path, infer):
    words = ("--mode", "classify", "--model", artist)
    infer(*words, "--images", photos, "--output", tmp_path / "whole")
    shutil.copytree(photos, tmp_path / "photos")
    Image.new("F", (8, 8)).save(tmp_path / "photos/cat/0.tiff")
    (tmp_path / "photos/owl/1.png").write_bytes(b"no picture")
    printed = infer(*words, "--images", tmp_path / "photos", "--output", tmp_path / "damaged")
    assert f"skipped: {tmp_path}/photos/cat/0.tiff: 32-bit pixels (mode F) have no known range" in printed
    assert f"skipped: {tmp_path}/photos/owl/1.png: not an image" in printed
    found, expected = records(tmp_path / "damaged"), records(tmp_path / "whole")
    assert [row["tokens"] for row in found] == [row["tokens"] for row in expected]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
    with pytest.raises(InputError, match=r"1\.png: not an image"):
        infer(*words, "--images", tmp_path / "photos/owl/1.png")


def test_pictures_of_another_size_and_of_several_frames_are_counted(artist, photos, tmp_path, infer):
    shutil.copytree(photos, tmp_path / "photos")
    Image.new("L", (5, 9)).save(tmp_path / "photos/cat/long.png")
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    frames[0].save(tmp_path / "photos/owl/film.gif", save_all=True, append_images=frames[1:])
    printed = infer("--mode", "classify", "--model", artist, "--images", tmp_path / "photos")
    assert "1 of 11 images aren't 8×8 pixels and are resized" in printed
    assert "1 images have several frames; the first one is used" in printed
    assert "8×8 pixels" not in infer("--mode", "classify", "--model", artist, "--images", photos)


# next_token, continue, generate


def test_next_tokens_of_cut_images_are_measured_against_the_true_ones(best, prepared, tmp_path, infer):
    words = ("--mode", "next_token", "--model", best, "--keep_percent", 40, "--top", 4)
    printed = infer(*words, "--dataset_dir", prepared, "--output", tmp_path / "o")
    found, bodies = records(tmp_path / "o"), [row.split()[1:-4] for row in test_rows_of(prepared)]
    for record, body in zip(found, bodies, strict=True):
        kept = max(1, int(len(body) * 0.4))
        assert record["tokens"].split() == [IMG, *body[:kept]]
        assert record["true"] == body[kept]
    first = np.mean([record["next"][0]["token"] == record["true"] for record in found])
    any_of_4 = np.mean([record["true"] in [entry["token"] for entry in record["next"]] for record in found])
    assert f"true next token: first {first:.4f}, among the first 4 {any_of_4:.4f} (n = {len(found)} rows)" in printed


def test_continuations_keep_their_beginning_and_are_whole_rows(best, prepared, grammar, tmp_path, infer):
    words = ("--mode", "continue", "--model", best, "--num_return_sequences", 2, "--temperature", 1.5)
    printed = infer(*words, "--dataset_dir", prepared, "--output", tmp_path / "o")
    rows, found = test_rows_of(prepared), records(tmp_path / "o")
    assert len(found) == 2 * len(rows)
    hits = total = others = 0
    remainders = [body[max(1, len(body) // 2) :] for body in (row.split()[1:-4] for row in rows)]
    for other, true in zip([*remainders[1:], remainders[0]], remainders, strict=True):
        others += 2 * sum(a == b for a, b in zip(other, true, strict=False))
    for record, row in zip(found, [row for row in rows for _ in range(2)], strict=True):
        body = row.split()[1:-4]
        kept = max(1, len(body) // 2)
        assert record["prompt"].split() == [IMG, *body[:kept]]
        assert record["tokens"] == f"{record['prompt']} {record['completion']}"
        assert record["true_remainder"].split() == body[kept:]
        assert grammar.explain(record["tokens"].split(), record["label"]) is None
        drawn = record["completion"].split()[:-4]
        hits += sum(a == b for a, b in zip(drawn, body[kept:], strict=False))
        total += len(body) - kept
    assert f"completion            token accuracy {hits / total:.4f}" in printed
    assert f"another row's truth   token accuracy {others / total:.4f}" in printed


def test_a_cut_row_is_continued_as_given_and_has_no_truth(best, infer, tmp_path):
    words = ("--mode", "continue", "--model", best, "--tokens", "<IMG> <Z_001> <Z_002>", "<Z_003>", IMG)
    printed = infer(*words, "--output", tmp_path / "o")
    assert [record["prompt"] for record in records(tmp_path / "o")] == ["<IMG> <Z_001> <Z_002>", "<IMG> <Z_003>", IMG]
    assert "truth" not in printed
    again = infer(*words, "--output", tmp_path / "o", "--overwrite")
    assert again == printed  # greedy


def test_drawn_rows_are_rows_that_prepare_dataset_reads(artist, grammar, tmp_path, infer):
    words = ("--mode", "generate", "--model", artist, "--num_samples", 6, "--batch_size", 4)
    printed = infer(*words, "--output", tmp_path / "o")
    found = records(tmp_path / "o")
    assert len({record["tokens"] for record in found}) > 1
    for record in found:
        assert grammar.explain(record["tokens"].split(), record["label"]) is None
        assert len(record["tokens"].split()) == 4 + 5
        assert record["class"] == NAMES[record["label"]]
        assert f"{record['class']} (<CLS_{record['label']}>)" in printed
    assert "to see the images, add --output_image" in printed


@pytest.mark.parametrize("condition", ["rejection", "likelihood"])
def test_a_class_is_asked_for_by_name_number_or_token(artist, tmp_path, infer, condition):
    words = ("--mode", "generate", "--model", artist, "--num_samples")
    infer(*words, 20, "--output", tmp_path / "o")
    label = records(tmp_path / "o")[0]["label"]  # random weights may never draw some other class
    words = (*words, 2, "--condition", condition, "--class")
    printed = [infer(*words, name) for name in (NAMES[label], label, f"<CLS_{label}>")]
    assert printed[0] == printed[1] == printed[2]
    assert f"p({NAMES[label]})" in printed[0]
    way = {"rejection": "the first of the class", "likelihood": "the most probable"}[condition]
    assert f"2 kept ({way}); the model classifies 2 of them as {NAMES[label]} (<CLS_{label}>)" in printed[0]


def test_rejection_that_finds_too_few_says_so(artist, infer, tmp_path):
    words = ("--mode", "generate", "--model", artist, "--num_samples", 20)
    infer(*words, "--output", tmp_path / "all")
    labels = [record["label"] for record in records(tmp_path / "all")]
    label = min(range(3), key=labels.count)
    printed = infer(*words, "--class", label, "--max_draws", 1, "--output", tmp_path / "some")
    assert len(records(tmp_path / "some")) == labels.count(label)
    assert f"20 images generated, {labels.count(label)} kept" in printed
    assert "fewer than the 20 asked for" in printed


# Pictures


def test_a_completion_is_shown_beside_what_was_given_and_the_original(artist, photos, pictures, tmp_path, infer):
    words = ("--mode", "continue", "--model", artist, "--images", photos / "owl", "--num_rows", 2)
    infer(*words, "--output_image", tmp_path / "c.png", "--output", tmp_path / "o")
    picture = np.asarray(Image.open(tmp_path / "c.png"))
    vocabulary = grammar_of(AutoTokenizer.from_pretrained(artist))
    codec = load_codec(artist)
    for record, original in zip(records(tmp_path / "o"), pictures[[0, 3]], strict=True):
        entries = [[int(token[3:-1]) for token in record["tokens"].split()[1:5]]]
        assert [vocabulary.tokens[vocabulary.code_ids[entry]] for entry in entries[0]] == record["tokens"].split()[1:5]
        completed = codec.decode(np.array(entries))[0]
        # the given half, and the same half of the completion; the other halves of completion and original
        assert [count_of(picture, completed[:4]), count_of(picture, completed[4:])] == [2, 1]
        assert count_of(picture, original) == 1
        stripes = hide_unknown(completed, 2, (2, 2))[48:]
        assert count_of(picture, np.concatenate([enlarged(completed[:4]), stripes]), enlarge=False) == 1


def enlarged(image: np.ndarray) -> np.ndarray:
    return image.repeat(3, 2).repeat(12, 0).repeat(12, 1)


def count_of(picture: np.ndarray, image: np.ndarray, enlarge: bool = True) -> int:
    """How often an image of 8 pixels' width stands in a picture, enlarged 12 times."""
    large = enlarged(image) if enlarge else image
    height, width = large.shape[:2]
    places = np.argwhere((picture[: 1 - height, : 1 - width] == large[0, 0]).all(-1))
    return sum((picture[y : y + height, x : x + width] == large).all() for y, x in places)


def test_drawn_images_are_shown_as_the_codec_decodes_them(artist, tmp_path, infer):
    words = ("--mode", "generate", "--model", artist, "--num_samples", 3)
    infer(*words, "--output_image", tmp_path / "g.png", "--output", tmp_path / "o")
    picture, codec = np.asarray(Image.open(tmp_path / "g.png")), load_codec(artist)
    for record in records(tmp_path / "o"):
        entries = [int(token[3:-1]) for token in record["tokens"].split()[1:5]]
        assert count_of(picture, codec.decode(np.array([entries]))[0]) >= 1


# Input that is wrong


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mode", "classify"), "--model is missing; give it on the command line"),
        (("--mode", "draw"), "argument --mode: invalid choice: 'draw'"),
        (("--mode", "classify", "--model", "./absent"), "--model ./absent: no such folder"),
        (
            ("--mode", "classify", "--model", "absent/model"),
            "absent/model isn't a local folder, and as a Hub id",
        ),
        (("--mode", "classify", "--model", "{out}"), "holds no config.json; --model {out}/best_model does"),
        (("--mode", "classify", "--model", "{best}", "--revision", "v1"), "--revision v1 belongs to a Hub id"),
        (("--mode", "classify", "--model", "{best}", "--device", "tpu"), "--device tpu is unknown"),
        (("--mode", "classify", "--model", "{best}", "--device", "cuda:99"), "GPUs are visible"),
        (("--mode", "classify", "--model", "{best}", "--data_files", "absent"), "--data_files absent: no such file"),
        (("--mode", "classify", "--model", "{best}", "--tokens", ""), "row 1: no token at all"),
        (("--mode", "classify", "--model", "{best}", "--tokens", IMG), "nothing to classify"),
        (("--mode", "classify", "--model", "{best}", "--tokens", "<Z_001> <Z_77>"), "token 2 is '<Z_77>'"),
        (
            ("--mode", "classify", "--model", "{best}", "--tokens", " ".join(["<Z_001>"] * 12)),
            "the row takes 15 positions",
        ),
        (("--mode", "classify", "--model", "{artist}", "--tokens", "<Z_001>"), "the image has 1 tokens, the model's"),
        (("--mode", "next_token", "--model", "{best}", "--dataset_dir", "{data}"), "nothing follows; cut it, or"),
        (("--mode", "classify", "--model", "{best}", "--dataset_dir", "absent"), "--dataset_dir absent holds no"),
        (("--mode", "classify", "--model", "{best}", "--dataset_dir", "{data}", "--split", "x"), "has train and test"),
        (("--mode", "classify", "--model", "{best}", "--images", "absent.png"), "--images needs a codec"),
        (("--mode", "classify", "--model", "{artist}", "--images", "./absent.png"), "./absent.png: no such file"),
        (("--mode", "classify", "--model", "{artist}", "--images", __file__), "not an image of a known format"),
        (("--mode", "classify", "--model", "{artist}", "--images", "{long}"), "File name too long"),
        (("--mode", "classify", "--model", "{long}"), "--model {long}: File name too long"),
        (("--mode", "classify", "--model", "m", "--output", "{long}"), "--output {long}: File name too long"),
        (("--mode", "classify", "--model", "{best}", "--data_files", "{long}"), "no such file"),
        (("--mode", "classify", "--model", "{best}", "--dataset_dir", "{long}"), "can't be read: File name too long"),
        (
            ("--mode", "classify", "--model", "{artist}", "--images", "{photos}", "--split", "yak"),
            "--split yak has no effect on --images {photos}, which has no splits; give --images {photos}/yak",
        ),
        (
            ("--mode", "classify", "--model", "{artist}", "--images", __file__, "--split", "yak"),
            "which has no splits; remove --split",
        ),
        (("--mode", "classify", "--model", "{best}", "--tokens", "<IMG> \udcff"), "row 1: not UTF-8 text"),
        (("--mode", "classify", "--model", "m", "--tokens", "a", "--images", "b"), "--tokens and --images are given"),
        (("--mode", "classify", "--model", "m", "--top", "0"), "--top 0: give 1 or more"),
        (("--mode", "classify", "--model", "m", "--top_k", "3"), "--top_k has no effect in --mode classify"),
        (("--mode", "generate", "--model", "m", "--score"), "--score has no effect in --mode generate"),
        (("--mode", "generate", "--model", "m", "--temperature", "0"), "--temperature 0.0: give 0.001 or more"),
        (("--mode", "generate", "--model", "m", "--temperature", "1e-40"), "--greedy always takes the most probable"),
        (("--mode", "generate", "--model", "m", "--temperature", "nan"), "--temperature nan"),
        (
            ("--mode", "generate", "--model", "{best}", "--repetition_penalty", "1e-40"),
            "best_model can't generate with these options",
        ),
        (("--mode", "generate", "--model", "m", "--top_p", "1.5"), "--top_p 1.5 isn't a share"),
        (("--mode", "generate", "--model", "m", "--top_k", "-1"), "--top_k -1: give 0 or more"),
        (("--mode", "generate", "--model", "m", "--seed", "-1"), "--seed -1 is out of range"),
        (("--mode", "generate", "--model", "m", "--greedy", "--top_k", "2"), "--top_k without effect"),
        (("--mode", "generate", "--model", "m", "--greedy"), "gives at most 1 different images"),
        (("--mode", "generate", "--model", "m", "--greedy", "--class", "cat"), "--class needs many different images"),
        (
            ("--mode", "generate", "--model", "{artist}", "--class", "yak"),
            "'yak' is unknown to the model; it knows cat",
        ),
        (("--mode", "generate", "--model", "{artist}", "--num_image_tokens", "5"), "makes images of 4 tokens"),
        (("--mode", "generate", "--model", "{best}", "--num_image_tokens", "10"), "take 15 positions, and the model"),
        (("--mode", "generate", "--model", "{best}", "--output_image", "g.png"), "--output_image needs a codec"),
        (("--mode", "generate", "--model", "m", "--output_image", "g.jpg"), "give a name that ends in .png"),
        (("--mode", "generate", "--model", "m", "--output", "absent/o"), "there is no folder absent"),
        (("--mode", "generate", "--model", "m", "--output", __file__), "add --overwrite to replace it"),
        (("--mode", "continue", "--model", "m", "--keep_percent", "0"), "--keep_percent 0.0: give a number above 0"),
        (
            ("--mode", "continue", "--model", "m", "--num_beams", "2", "--num_return_sequences", "3"),
            "a beam gives one",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_wrong_input_is_told_and_leaves_nothing(
    words, said, trained, best, artist, prepared, photos, tmp_path, infer, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"out": trained, "best": best, "artist": artist, "data": prepared, "photos": photos}
    places["long"] = "x" * 300
    with pytest.raises(InputError) as error:
        infer(*(word.format(**places) for word in words))
    assert said.format(**places) in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_all_bad_lines_are_named_with_their_place_before_anything_is_computed(best, tmp_path, infer):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b'{"tokens": "<IMG> <Z_001> </IMG>", "label": 1}\n'
        b'{"tokens": "<IMG> <Z_001> </IMG>", "label": 3}\n\n'
        b'{"tokens": "<IMG> <Z_001>\n{"tokens": ["<IMG>", 3]}\n{"tokens": 5}\n{"label": 1}\n\xff\n'
        b"<IMG> <Z_001> <CLS_1>\n<IMG> <Z_1>\n"
    )
    with pytest.raises(InputError) as error:
        infer("--mode", "classify", "--model", best, "--data_files", file, "--output", tmp_path / "o")
    lines = str(error.value).split("\n")
    assert lines[0] == "8 bad rows"
    assert [line.partition(": ")[0] for line in lines[1:]] == [f"  {file}:{i}" for i in (2, 4, 5, 6, 7, 8, 9, 10)]
    for line, said in zip(
        lines[1:], ["label 3", "not JSON", "3", "5", "'tokens'", "UTF-8", "<CLS_1>", "<Z_1>"], strict=True
    ):
        assert said in line
    assert not (tmp_path / "o").exists()


def test_rows_of_another_vocabulary_are_refused(best, prepared, grammar, tmp_path, infer):
    other = tmp_path / "other"
    shutil.copytree(best, other)
    vocabulary = dict(grammar.vocabulary)
    vocabulary["<Z_000>"], vocabulary["<Z_001>"] = vocabulary["<Z_001>"], vocabulary["<Z_000>"]
    save_tokenizer(build_tokenizer(Grammar(vocabulary), 14), other)
    with pytest.raises(InputError, match="has another vocabulary than the model: <Z_000> has id"):
        infer("--mode", "classify", "--model", other, "--dataset_dir", prepared)


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "tokenizer.json", "codec.json"])
def test_a_damaged_model_folder_is_told(artist, tmp_path, infer, broken):
    copy = tmp_path / "copy"
    shutil.copytree(artist, copy)
    (copy / broken).write_text("{")
    with pytest.raises(InputError, match=f"--model {copy}"):
        infer("--mode", "generate", "--model", copy)


def test_a_file_is_replaced_only_when_asked_and_then_whole(best, tmp_path, infer):
    file = tmp_path / "o.jsonl"
    words = ("--mode", "classify", "--model", best, "--tokens", "<Z_001>", "--output", file)
    infer(*words)
    before = file.read_text()
    with pytest.raises(InputError, match="add --overwrite"):
        infer(*words)
    assert file.read_text() == before
    infer(*words[:-2], "<Z_002> <Z_003>", "--output", file, "--overwrite")
    assert len(records(file)) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["o.jsonl"]


@pytest.mark.parametrize("flag", ["--output", "--output_image"])
def test_only_regular_files_are_replaced(tmp_path, infer, flag):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link.png").symlink_to(tmp_path / "file")
    (tmp_path / "loose.png").symlink_to(tmp_path / "absent")
    for name in ("pipe.png", "link.png", "loose.png", "/dev/null"):
        with pytest.raises(InputError, match="is a link, a pipe or a device; name a regular file"):
            infer("--mode", "generate", "--model", "m", flag, tmp_path / name, "--overwrite")
    assert (tmp_path / "pipe.png").is_fifo()
    assert (tmp_path / "link.png").is_symlink()


# As a command


def test_help_names_every_option_without_loading_torch():
    code = (
        "import sys, runpy; sys.argv = ['inference.py', '--help']\n"
        "try: runpy.run_path('inference.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=5)
    assert done.returncode == 0, done.stderr
    options = [option.flag for option in options_of(*COMMAND.groups)]
    assert [option for option in options if f"{option} " not in done.stdout.replace("\n", " ")] == []


def test_rows_come_through_a_pipe_and_the_reader_may_leave_early(best, prepared, tmp_path):
    (tmp_path / "rows").write_text("\n".join(test_rows_of(prepared) * 40))
    command = f"{sys.executable} inference.py --mode classify --model {best} < {tmp_path}/rows"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -3"], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.split("\n")[0].split() == ["row", "class", "probability", "then", "label"]
    assert done.stdout.split("\n")[2].startswith("stdin:1 ")
    assert done.stderr == ""


def test_wrong_input_ends_with_code_2_and_no_traceback(best, tmp_path):
    words = ("--mode", "classify", "--model", best, "--tokens", "<Z_1>", "--output", tmp_path / "o")
    done = run("inference.py", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: row 1: token 1 is '<Z_1>', which isn't among the model's 39 tokens\n"
    assert list(tmp_path.iterdir()) == []


def test_names_that_arent_utf_8_are_printed_and_written_escaped(artist, photos, tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    shutil.copytree(photos / "owl", tmp_path / odd / "owl")
    (tmp_path / f"{odd}.txt").write_text("<Z_001> <Z_002> <Z_003> <Z_004>")
    for words in (("--images", tmp_path / odd), ("--data_files", tmp_path / f"{odd}.txt")):
        output = tmp_path / f"{odd}.jsonl"
        words = ("--mode", "classify", "--model", artist, *words, "--output", output, "--overwrite")
        done = run("inference.py", *words, PYTHONIOENCODING="utf-8:strict")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{tmp_path}/caf\\xe9" in done.stdout
        assert records(output)[0]["place"].startswith(f"{tmp_path}/caf\\xe9")


# The prompt


@pytest.fixture
def converse(infer, monkeypatch):
    """Types lines into the prompt, then Ctrl-D; a line of ^C is Ctrl-C."""

    def call(model: Path, *lines: str) -> str:
        typed = iter(lines)

        def read(prompt: str = "") -> str:
            line = next(typed, None)
            if line is None:
                raise EOFError
            if line == "^C":
                raise KeyboardInterrupt
            print(f"> {line}")
            return line

        monkeypatch.setattr(builtins, "input", read)
        return infer("--mode", "interactive", "--model", model)

    return call


def test_the_prompt_answers_survives_bad_input_and_ends_on_ctrl_d(artist, photos, tmp_path, converse):
    image = next((photos / "owl").iterdir())
    row = "<IMG> <Z_001> <Z_002> <Z_003> <Z_004>"
    bad = {
        "": None,
        "foo": "there is no command 'foo'; help lists them",
        "classify": "give a row of tokens or an image file after the command",
        "classify <IMG> <Z_1>": "row 1: token 2 is '<Z_1>'",
        "classify absent.png": "absent.png is neither a file nor a row of tokens",
        f"classify {__file__}": "not an image of a known format",
        "next </IMG>": "row 1: token 1 is </IMG>, expected <IMG>",
        "generate 1 yak": "'yak' is unknown to the model",
        "generate 0": "--num_samples 0: give 1 or more",
        'generate "': "close the quotes",
        "set temperature 0": "--temperature 0.0: give 0.001 or more",
        "set temperature 1e-40": "--temperature 1e-40: give 0.001 or more",
        "set top_k many": "set top_k many: invalid int value",
        "set foo 1": "set takes one of top",
        "set condition x": "set condition x: choose one of rejection, likelihood",
        "set greedy maybe": "neither true nor false",
        "image x.png": "nothing has been generated yet",
        "help foo": "there is no command 'foo'",
    }
    good = [f"classify {row}", f"classify {image}", f"next {row}", "generate 2", "set seed 42", "generate 2"]
    good += [f"continue {image}", f"image {tmp_path / 'p.png'}", "set top_k none", "help", "set"]
    printed = converse(artist, *bad, "^C", *good)
    answers = dict(zip([*bad, *good], printed.split("\n> ")[1:], strict=True))
    for line, said in bad.items():
        if said is not None:
            answer = answers[line].strip().split("\n")[1]
            assert answer.startswith("error: ")
            assert said in answer
            assert len(answers[line].strip().split("\n")) == 2 + ("^C" in answers[line])
    assert "Traceback" not in printed
    for name in NAMES:
        assert name in answers[f"classify {row}"]
    assert "top_k" in answers["set"]
    assert "written" in answers[f"image {tmp_path / 'p.png'}"]
    assert Image.open(tmp_path / "p.png").width > 3 * 96
    assert "classify TOKENS | FILE" in answers["help"]


def test_the_prompt_draws_other_images_each_time_and_the_same_for_the_same_seed(artist, converse):
    answers = converse(artist, "generate 3", "generate 3", "set seed 42", "generate 3").split("> ")
    drawn = [answer.partition("\n")[2] for answer in answers if answer.startswith("generate")]
    assert drawn[0] != drawn[1]
    assert drawn[0].replace("\n", "") == drawn[2].replace("\n", "")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_the_prompt_survives_bytes_that_arent_utf_8(best, errors):
    done = subprocess.run(
        [sys.executable, "inference.py", "--mode", "interactive", "--model", str(best)],
        input=b"classify <IMG> <Z_000> \xc3\nfoo\xff\nclassify <IMG> <Z_000>\n",
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": f"utf-8:{errors}"},
        capture_output=True,
        timeout=100,
    )
    answers = done.stdout.decode().split("imagelm> ")[1:]
    assert (done.returncode, done.stderr) == (0, b"")
    assert answers[0].startswith("error: row 1: token 3 is '\ufffd', which isn't among the model's 39 tokens")
    assert answers[1] == "error: there is no command 'foo\ufffd'; help lists them\n"
    assert "row 1" in answers[2]
    assert "<CLS_" in answers[2]


def test_a_setting_without_effect_in_a_mode_waits_for_another(artist, photos, tmp_path, converse):
    shutil.copytree(photos / "owl", tmp_path / "some")
    (tmp_path / "some/x.png").write_bytes(b"no picture")
    lines = (
        "set num_return_sequences 2",
        "set keep_percent 50",
        f"classify {tmp_path / 'some'}",
        "generate",
        "next <IMG>",
    )
    lines += (f"continue {tmp_path / 'some'}", f"image {tmp_path / 'p.png'}")
    answers = converse(artist, *lines).split("\n> ")[1:]
    assert not [answer for answer in answers if "error" in answer]
    assert f"skipped: {tmp_path}/some/x.png: not an image" in answers[2]  # as on the command line
    assert answers[5].count("some/") == 2 * 3 + 1
    # a line of four images each of 96 pixels for each of three pictures: the prompt's picture shows all rows
    assert Image.open(tmp_path / "p.png").height > 3 * 96


def test_a_piped_prompt_ends_with_code_0(best):
    done = subprocess.run(
        [sys.executable, "inference.py", "--mode", "interactive", "--model", str(best)],
        input="next <IMG>\nnonsense\n",
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "<Z_" in done.stdout
    assert "error: there is no command 'nonsense'" in done.stdout
