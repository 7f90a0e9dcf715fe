"""Model folders of strangers: one message, nothing of theirs run, no file of ours read, no memory filled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoConfig, PreTrainedTokenizerBase

from imagelm.inference.arguments import LoadArguments
from imagelm.inference.loading import load_for_inference
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.models.foreign import check_size
from imagelm.remote_code.codec_imagelm import load_codec
from imagelm.tokens.tokenizer import load_tokenizer
from imagelm.utils.errors import InputError

BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "best_model", tmp_path / "model"))


@pytest.fixture
def tokenizer(trained: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(trained / "best_model")


def refusals(model: Path | str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What inference says about the folder, and what training on top of it says."""
    said = []
    arguments = ModelArguments(model_name_or_path=str(model))
    for load in (
        lambda: load_for_inference(LoadArguments(model=str(model), device="cpu")),
        lambda: build_model(arguments, tokenizer, 9, None),
    ):
        with pytest.raises(InputError) as refused:
            load()
        said.append(str(refused.value))
    assert all(len(text.splitlines()) == 1 for text in said)
    return said


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"attn_implementation": "evil/kernel"}, "attn_implementation is code on the Hub, 'evil/kernel'"),
        ({"text_config": {"_attn_implementation": "evil/kernel@main"}}, "code on the Hub"),
        ({"experts_implementation": {"": "evil/kernel"}}, "code on the Hub"),
        ({"quantization_config": BITS}, "the weights are quantized"),
        ({"n_layer": 10**9}, "n_layer is 1000000000, expected at most 10000"),
        ({"num_labels": 10**12}, "num_labels is 1000000000000"),
        ({"n_embd": 2000, "n_head": 1}, "weights, which the files of"),
        ({"n_embd": 10**6, "n_head": 1}, "GiB"),
        ({"n_positions": 10**9, "n_ctx": 10**9}, "GiB"),
        ({"n_head": 0}, "can't be loaded"),
        ({"n_embd": "wide"}, "can't be loaded"),
        ({"attn_implementation": ["x"]}, "can't be loaded"),
    ],
)
def test_a_hostile_config_is_refused_in_one_line(
    model: Path, tokenizer: PreTrainedTokenizerBase, entries: dict, reason: str
):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | entries))
    assert all(reason in text for text in refusals(model, tokenizer))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "other", ["../../../../etc/passwd", "/etc/passwd", "../other/model.safetensors", "config.json"]
)
def test_an_index_names_files_of_weights_in_its_own_folder_only(
    model: Path, tokenizer: PreTrainedTokenizerBase, kind: str, other: str
):
    (model / "model.safetensors").rename(model.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": other}}
    (model / f"{kind}.index.json").write_text(json.dumps(index))
    assert all(f"{other!r} isn't a file of weights in the same folder" in text for text in refusals(model, tokenizer))


def test_an_adapter_brings_no_other_model(model: Path, tokenizer: PreTrainedTokenizerBase):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert all("merge it into that model first" in text for text in refusals(model, tokenizer))


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"model_type": 3}', '{"model_type": "nothing"}', "[" * 100_000])
def test_a_config_that_is_none_is_refused_in_one_line(model: Path, tokenizer: PreTrainedTokenizerBase, content: str):
    (model / "config.json").write_text(content)
    refusals(model, tokenizer)


def test_a_codec_of_images_beyond_bound_is_refused(pictured: Path, tmp_path: Path):
    folder = Path(shutil.copytree(pictured / "out/best_model", tmp_path / "model"))
    config = json.loads((folder / "codec.json").read_text())
    size = config["patch_size"] * 10**8
    (folder / "codec.json").write_text(json.dumps(config | {"image_size": [size, size]}))
    with pytest.raises(ValueError, match=f"images of \\({size}, {size}\\) pixels, expected at most 16777216"):
        load_codec(folder)


def test_a_size_beyond_the_memory_is_refused_before_the_model_is_built(tokenizer: PreTrainedTokenizerBase):
    for overrides in ("n_embd=10000000,n_head=1", "n_layer=1000000"):
        with pytest.raises(InputError, match=r"no gpt2 model can be built like this: .*(GiB|at most)"):
            build_model(ModelArguments(config_overrides=overrides), tokenizer, 9, None)


def test_the_sizes_of_a_model_on_the_hub_are_checked_as_those_of_a_folder(
    model: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    cache = tmp_path / "hub/models--someone--hostile"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))  # as after a download
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"n_embd": 2000, "n_head": 1}))
    model.rename(cache / "snapshots/abc")
    name = "someone/hostile"
    assert all("weights, which the files of" in text for text in refusals(name, tokenizer))
    (cache / "snapshots/abc/config.json").write_text(json.dumps(config))
    build_model(ModelArguments(model_name_or_path=name), tokenizer, 9, None)


def test_the_check_counts_the_weights_and_leaves_random_numbers_alone(trained: Path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    count = check_size(AutoConfig.from_pretrained(trained / "best_model"))
    assert torch.equal(torch.rand(4), expected)
    loaded = load_for_inference(LoadArguments(model=str(trained / "best_model"), device="cpu")).model
    assert count == sum(weights.numel() for weights in loaded.parameters())
