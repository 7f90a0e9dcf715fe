"""`--mode classify`: classes, probabilities, scores and labels, for rows, prepared datasets and images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.tokens.vocabulary import CLS, IMG, IMG_END
from imagelm.utils.errors import InputError
from tests.conftest import CLASSES, random_rows, write_jsonl
from tests.damage import edit_column, with_token
from tests.images import class_folder, prepare_images, smooth_images
from tests.inference.fixtures import NAMES, records, rows_of_test


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
    whole = rows_of_test(prepared)
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


def test_rows_that_were_changed_are_refused(best, prepared, tmp_path, infer):
    data = shutil.copytree(prepared, tmp_path / "data")
    edit_column(data, "train", "input_ids", with_token(2, 999))
    words = ("--mode", "classify", "--model", best, "--dataset_dir", data)
    assert "labelled rows" in infer(*words)  # only the test split is read
    with pytest.raises(InputError, match="train: row 4: token 3 has id 999"):
        infer(*words, "--split", "train")


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


def test_numbers_as_class_names_are_names(artist, grey_images, tmp_path, infer):
    class_folder(tmp_path / "photos", {str(i): grey_images[2 * i : 2 * i + 2] for i in range(4)})
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


def test_a_rows_label_may_be_a_class_name_or_a_number(artist, tmp_path, infer):
    row = {"tokens": "<IMG> <Z_001> <Z_002> <Z_003> <Z_004>"}
    words = ("--mode", "classify", "--model", artist, "--output", tmp_path / "o", "--data_files")
    infer(*words, write_jsonl(tmp_path / "good", [{**row, "label": label} for label in ("owl", 1, None)]))
    assert [record["label"] for record in records(tmp_path / "o")] == [2, 1, None]
    with pytest.raises(InputError, match="label '1', expected a number from 0 to 2 or a class name"):
        infer(*words[:4], "--data_files", write_jsonl(tmp_path / "bad", [{**row, "label": "1"}]))


def test_rows_of_another_codec_are_refused_even_with_the_same_vocabulary(pictured, tmp_path, infer):
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


def test_a_damaged_image_is_reported_and_the_others_are_classified_as_without_it(artist, photos, tmp_path, infer):
    words = ("--mode", "classify", "--model", artist)
    infer(*words, "--images", photos, "--output", tmp_path / "whole")
    shutil.copytree(photos, tmp_path / "photos")
    Image.new("F", (8, 8)).save(tmp_path / "photos/cat/0.tiff")
    (tmp_path / "photos/owl/1.png").write_bytes(b"no image")
    printed = infer(*words, "--images", tmp_path / "photos", "--output", tmp_path / "damaged")
    assert f"skipped: {tmp_path}/photos/cat/0.tiff: 32-bit pixels (mode F) have no known range" in printed
    assert f"skipped: {tmp_path}/photos/owl/1.png: not an image" in printed
    found, expected = records(tmp_path / "damaged"), records(tmp_path / "whole")
    assert [row["tokens"] for row in found] == [row["tokens"] for row in expected]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
    with pytest.raises(InputError, match=r"1\.png: not an image"):
        infer(*words, "--images", tmp_path / "photos/owl/1.png")


def test_images_of_another_size_and_of_several_frames_are_counted(artist, photos, tmp_path, infer):
    shutil.copytree(photos, tmp_path / "photos")
    Image.new("L", (5, 9)).save(tmp_path / "photos/cat/long.png")
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    frames[0].save(tmp_path / "photos/owl/film.gif", save_all=True, append_images=frames[1:])
    printed = infer("--mode", "classify", "--model", artist, "--images", tmp_path / "photos")
    assert "1 of 11 images aren't 8×8 pixels and are resized" in printed
    assert "1 images have several frames; the first one is used" in printed
    assert "8×8 pixels" not in infer("--mode", "classify", "--model", artist, "--images", photos)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["\r\x1b[2Kcat 99.9 %", "d\u202eog", "owl"], ["\\r\\x1b[2Kcat 99.9 % (<CLS_0>)", "d\\u202eog (<CLS_1>)"]),
        (["cat", "cat", ""], ["cat (0) (<CLS_0>)", "cat (1) (<CLS_1>)", "(2) (<CLS_2>)"]),
        (["x" * 500, "dog", "owl"], ["x" * 39 + "… (<CLS_0>)"]),
    ],
)
def test_names_of_a_strangers_model_are_printable_and_told_apart_and_true_in_json(
    artist, photos, tmp_path, infer, names, shown
):
    folder = shutil.copytree(artist, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    images = shutil.copytree(photos, tmp_path / "photos")
    (images / "owl" / "a\x1b[2J\nb.png").write_bytes(next((photos / "owl").glob("*.png")).read_bytes())
    out = infer("--model", folder, "--mode", "classify", "--images", images, "--top", 3, "--output", tmp_path / "o")
    assert not set(out) & set("\x1b\r\u202e") and "a\\x1b[2J\\nb.png" in out
    found = records(tmp_path / "o")
    assert {entry["class"] for entry in found[0]["top"]} == set(names)
    for record in found:
        text = f"{names[record['prediction']]}"
        assert record["class"] == text
    answers = {record["prediction"] for record in found}
    assert all((cell in out) == (label in answers) for label, cell in enumerate(shown))


def test_rows_that_were_in_the_training_data_are_counted_beside_every_figure(best, prepared, tmp_path, infer):
    model = ("--model", best, "--dataset_dir", prepared)
    for more in (["classify"], ["continue", "--num_rows", 9], ["next_token", "--keep_percent", 50, "--num_rows", 9]):
        n = 9 if "--num_rows" in more else 72
        assert f"{n} of {n} rows were in the training data" in infer("--mode", *more, *model, "--split", "train")
        assert "in the training data" not in infer("--mode", *more, *model, "--split", "test")
    data, tokenizer = load_prepared(prepared), AutoTokenizer.from_pretrained(best)
    chosen = [data[name][i] for name in ("train", "test") for i in range(5)]
    rows = [{"tokens": tokenizer.decode(row["input_ids"]), "label": row["label"]} for row in chosen]
    unlabelled = {"tokens": tokenizer.decode(data["train"][7]["input_ids"][:-3])}
    file = write_jsonl(tmp_path / "rows.jsonl", [*rows, unlabelled])
    printed = infer("--mode", "classify", "--model", best, "--data_files", file)
    assert "5 of 10 rows were in the training data: these figures say nothing about new images" in printed


def test_images_that_were_in_the_training_data_are_counted(pictured, infer):
    count = json.loads((pictured / "data/stats.json").read_text())["num_rows"]["train"]
    printed = infer("--mode", "classify", "--model", pictured / "out/best_model", "--images", pictured / "in")
    assert 0 < count < 45 and f"{count} of 45 rows were in the training data" in printed


@pytest.mark.parametrize("damage", ["cut", "of another kind", "without its table", "large"])
def test_a_damaged_record_of_the_training_images_is_named(best, prepared, tmp_path, infer, damage):
    model = Path(shutil.copytree(best, tmp_path / "model"))
    file = model / "training_images.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "large":
        os.truncate(file, 2**40)
    else:
        key = "digests" if damage == "of another kind" else "other"
        save_file({key: np.zeros((2, 2), np.float32)}, file)
    with pytest.raises(InputError, match=r"training_images\.safetensors is damaged: .*; restore the file or remove it"):
        infer("--mode", "classify", "--model", model, "--dataset_dir", prepared)
