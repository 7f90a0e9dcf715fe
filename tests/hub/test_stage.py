"""Staging a model and its demo: the listed files only, whole, and as they were measured."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import SpaceCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from imagelm.hub.arguments import PushArguments
from imagelm.hub.checks import check_staged
from imagelm.hub.stage_model import check_model_folder, stage_model
from imagelm.hub.stage_page import check_page_model, stage_page
from imagelm.hub.stage_space import stage_space
from imagelm.remote_code.codec_imagelm import LearnedCodec, UnifiedCodec
from imagelm.remote_code.vectors_imagelm import Autoencoder
from imagelm.utils.errors import InputError
from testing.local_hub import ALICE
from tests.hub.common import MODEL, stage


def test_pickles_and_unknown_files_are_not_uploaded_and_the_notes_give_reasons(folder: Path, tmp_path: Path):
    torch.save({"hub_token": ALICE.secret}, folder / "training_args.bin")
    torch.save({}, folder / "optimizer.pt")
    (folder / "evil.py").write_text("import os")
    (folder / ".env").write_text(f"HF_TOKEN={ALICE.secret}")
    (folder / "notes").mkdir()
    staged = stage(folder, tmp_path)
    check_staged([staged], ALICE.secret)
    assert not {"training_args.bin", "optimizer.pt", "evil.py", ".env", "notes"} & set(staged.files)
    notes = "\n".join(staged.notes)
    assert "not uploaded: best_model/training_args.bin (may hold a pickle, which runs code when it is loaded)" in notes
    assert all(f"not uploaded: best_model/{name}" in notes for name in ("optimizer.pt", "evil.py", ".env", "notes/"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "codec.safetensors"])
def test_a_file_that_is_cut_off_is_refused(folder: Path, tmp_path: Path, name: str):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) - 20])
    with pytest.raises(InputError, match=f"is damaged: {re.escape(name)}: damaged or incomplete"):
        stage(folder, tmp_path)


def test_weights_that_are_not_finite_are_refused(folder: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.transformer.ln_f.weight.data[0] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"transformer\.ln_f\.weight holds values that aren't finite"):
        stage(folder, tmp_path)


def test_figures_of_other_weights_are_refused(folder: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.transformer.ln_f.weight.data += 0.1
    model.save_pretrained(folder)
    with pytest.raises(InputError, match="measured on other weights"):
        stage(folder, tmp_path)


def test_all_shards_are_uploaded_and_stray_ones_are_not(folder: Path, tmp_path: Path):
    (folder / "eval_results.json").unlink()
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    shutil.copyfile(folder / shards[0], folder / "model-00009-of-00009.safetensors")
    staged = stage(folder, tmp_path)
    check_staged([staged], None)
    assert [name for name in staged.files if name.endswith(".safetensors") and "model-" in name] == shards
    assert "model.safetensors.index.json" in staged.files and len(shards) > 1
    assert "not uploaded: best_model/model-00009-of-00009.safetensors (not a model file)" in staged.notes
    (folder / shards[0]).unlink()
    with pytest.raises(InputError, match=f"names {shards[0]}, which isn't there"):
        stage_model(PushArguments(model_dir=str(folder), repo_id=MODEL, num_drawings=0), tmp_path / "again")


def test_a_resaved_tokenizer_gets_its_portable_class_back(folder: Path, tmp_path: Path):
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert "TokenizersBackend" in (folder / "tokenizer_config.json").read_text()
    config = json.loads((stage(folder, tmp_path).folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_folder_that_is_not_as_it_was_written_is_refused(pictured, tmp_path):
    folder = Path(shutil.copytree(pictured / "out/best_model", tmp_path / "best_model"))
    check_model_folder(folder)
    for name in ("config.json", "model.safetensors", "eval_results.json", "codec.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])
        with pytest.raises(InputError, match=f"is damaged: {name} has"):
            check_model_folder(folder)
        (folder / name).write_bytes(content)
    check_model_folder(folder)


# The demo


def test_a_space_requires_versions_that_a_package_index_has(folder: Path, tmp_path: Path):
    options = PushArguments(model_dir=str(folder), repo_id="me/x", space_repo_id="me/2024", license="mit", private=True)
    staged = stage_space(options, tmp_path / "space")
    check_staged([staged], None)
    assert "+" not in (staged.folder / "requirements.txt").read_text()
    card = SpaceCard.load(staged.folder / "README.md")
    assert (card.data.title, card.data.models, card.data.license) == ("2024", ["me/x"], "mit")
    assert {"emoji", "colorFrom", "colorTo"} <= card.data.to_dict().keys() and len(card.data.short_description) <= 60
    assert "secret HF_TOKEN" in staged.notes[0]


def test_a_page_without_a_server_is_staged_and_its_card_says_so(folder: Path, tmp_path: Path):
    options = {"model_dir": str(folder), "repo_id": "me/x", "space_sdk": "static"}
    staged = stage_page(PushArguments(space_repo_id="me/2024", **options), tmp_path / "space")
    check_staged([staged], None)
    content = {name: file.read_text() for name, file in staged.files.items()}
    assert content.keys() == {
        *("README.md", "index.html", "style.css", "app.js", "codec.js", "model.js", "model_id.txt")
    }
    assert content["model_id.txt"] == "me/x\n"
    card = SpaceCard(content["README.md"])
    assert (card.data.title, card.data.sdk, card.data.models) == ("2024", "static", ["me/x"])
    for more, message in (
        ({}, "needs --space_repo_id"),
        ({"space_repo_id": "me/y", "private": True}, "remove --private"),
    ):
        with pytest.raises(InputError, match=message):
            PushArguments(**options, **more)


def test_a_model_that_a_page_cant_run_is_refused_with_the_remedy(folder: Path):
    options = PushArguments(model_dir=str(folder), repo_id="me/x", space_repo_id="me/y", space_sdk="static")
    learned = Autoencoder(3, 2, 4, 0, 2).state_dict() | {"codebook": torch.rand(8, 2)}
    features = {"image_size": [8, 8], "channels": 3, "features": ["x", "y", "t", "R", "G", "B"]}
    codecs = (
        UnifiedCodec(features, {"codebook": torch.rand(8, 6).double(), "scale": torch.rand(6).double()}),
        LearnedCodec({"image_size": [8, 8], "channels": 3, "patch_size": 2, "hidden": 4, "num_blocks": 0}, learned),
    )
    messages = [
        f"holds no export.*imagelm export --model {folder} --format onnx",
        "number of an image's file",
        "learned",
    ]
    for codec, message in zip((None, *codecs), messages, strict=True):
        if codec is not None:
            codec.save(folder)
        with pytest.raises(InputError, match=message):
            check_page_model(options)
    (folder / "codec.json").unlink()
    with pytest.raises(InputError, match="holds no codec"):
        check_page_model(options)
