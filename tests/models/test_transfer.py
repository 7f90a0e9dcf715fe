"""A checkpoint that is fine-tuned on other classes: what it keeps, what starts anew, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from imagelm.data.load import image_bodies, load_prepared
from imagelm.data.training_images import image_digests
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model, name_classes
from imagelm.models.transfer import plan_transfer
from imagelm.remote_code.codec_imagelm import load_codec
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import build_tokenizer, save_tokenizer
from imagelm.tokens.vocabulary import make_vocabulary
from imagelm.utils.errors import InputError
from tests.conftest import TINY, run
from tests.images import class_folder, prepare_images, smooth_images

NUM_SPECIAL, NUM_CODES = 6, 7
OLD = ["cat", "dog", "cafe\u0301"]
SIZE = "num_hidden_layers=1,hidden_size=16,num_attention_heads=2"


def tokenizer_of(num_classes: int, num_codes: int = NUM_CODES):
    return build_tokenizer(Grammar(make_vocabulary(num_codes, num_classes)), 12)


def checkpoint(folder: Path, model_type: str = "gpt2", names: list[str] | None = None, sizes: str = SIZE) -> str:
    """A model of random weights, saved with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(len(names or OLD))
    model = build_model(ModelArguments(model_type=model_type, config_overrides=sizes), tokenizer, 12, "eager")
    for weights in model.parameters():
        torch.nn.init.normal_(weights)  # so that no two rows are alike, biases included
    model.tie_weights()
    name_classes(model, names or OLD)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return str(folder)


def adapted(name: str, names: list[str] | None, num_classes: int | None = None):
    tokenizer = tokenizer_of(num_classes or len(names))
    transfer = plan_transfer(name, tokenizer, names)
    return build_model(ModelArguments(model_name_or_path=name), tokenizer, 12, "eager", transfer), transfer


@pytest.mark.parametrize(
    ("model_type", "more"),
    [("gpt2", ""), ("llama", ",tie_word_embeddings=false"), ("phi", ",tie_word_embeddings=false")],
)
def test_codebook_and_classes_of_equal_name_keep_their_weights_and_others_start_anew(tmp_path, model_type, more):
    name = checkpoint(tmp_path / "base", model_type, sizes=SIZE + more)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation="eager").eval()
    model, transfer = adapted(name, ["caf\u00e9", "emu", "cat", "yak"])  # the first is spelled in another way
    assert (transfer.kept, transfer.new) == (["caf\u00e9", "cat"], ["emu", "yak"])
    first = NUM_SPECIAL + NUM_CODES
    assert model.config.vocab_size == first + 4
    row = torch.tensor([[2, 6, 9, 12, 7, 3, 4]])
    with torch.no_grad():
        before, after = base(input_ids=row).logits[0], model.eval()(input_ids=row).logits[0]
    torch.testing.assert_close(after[:, :first], before[:, :first])  # the same function of the same images
    torch.testing.assert_close(after[:, [first, first + 2]], before[:, [first + 2, first]])
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(one, get)().weight.detach() for one in (base, model))
        assert torch.equal(new[[first, first + 2]], old[[first + 2, first]])
        anew = new[[first + 1, first + 3]]
        assert 0 < anew.abs().max() < 0.2 < old.abs().mean()  # as the architecture starts: about 0.02
        assert not torch.equal(anew[0], anew[1])
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (model_type == "gpt2")
    assert (model.config.bos_token_id, model.config.pad_token_id) == (2, 0)


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (OLD, OLD, None),
        (OLD, ["dog", "cat", "caf\u00e9"], [1, 0, 2]),
        (OLD, ["emu", "yak", "dog"], [-1, -1, 1]),
        (OLD, ["0", "1", "2"], None),  # rows whose classes nobody named: as far as is known, the same ones
        (["0", "1", "2"], OLD, None),
        (["LABEL_0", "LABEL_1", "LABEL_2"], OLD, None),
        (["0", "1", "2"], ["0", "1"], [-1, -1]),  # a number is no name
        (OLD, ["dog", "cat"], [1, 0]),
    ],
)
def test_only_a_recorded_name_says_that_a_class_is_the_same(tmp_path, old, new, kept):
    name = checkpoint(tmp_path / "base", names=old)
    model, transfer = adapted(name, new)
    first = NUM_SPECIAL + NUM_CODES
    if kept is None:
        assert transfer.sources is None and transfer.note() is None and transfer.kept == new
    else:
        assert transfer.sources[:first].tolist() == list(range(first))
        assert transfer.sources[first:].tolist() == [-1 if label < 0 else first + label for label in kept]
        assert transfer.note().startswith(f"{name} keeps the {first} embeddings of special tokens and codebook")
    assert model.get_input_embeddings().weight.shape[0] == first + len(new)


def test_another_codebook_or_codec_is_refused_with_the_way_out(pictured, tmp_path):
    name = checkpoint(tmp_path / "base")
    with pytest.raises(InputError, match=r"a codebook of 7 entries, the data of 8.*--codec"):
        plan_transfer(name, tokenizer_of(3, num_codes=8), OLD)
    codec = load_codec(pictured / "data/codec")
    codec.save(name)
    assert plan_transfer(name, tokenizer_of(2), ["a", "b"], codec).new == ["a", "b"]
    other = load_codec(pictured / "data/codec")
    other.tensors["codebook"] = 255 - other.tensors["codebook"]
    for names in (["a", "b"], OLD):  # an equal vocabulary, too
        with pytest.raises(InputError, match=r"another codec \(its codebook has other values\).*--codec"):
            plan_transfer(name, tokenizer_of(len(names)), names, other)


@pytest.mark.parametrize("launches", [[1], pytest.param([1, 2], marks=pytest.mark.slow)])  # of so many steps
def test_a_model_learns_other_classes_on_its_own_codec(pictured, tmp_path, launches):
    base = Path(shutil.copytree(pictured / "out/best_model", tmp_path / "base"))
    pictures = smooth_images(24, channels=3, seed=9)
    pictures[0] = np.asarray(smooth_images(45, channels=3)[0])  # which the base may have seen
    class_folder(tmp_path / "in", {name: pictures[i::3] for i, name in enumerate(["emu", "dog", "yak"])})
    class_folder(tmp_path / "test", {"emu": smooth_images(45, channels=3)[:10]})
    options = {"codec": str(base), "test_images": [str(tmp_path / "test")]}
    prepare_images(tmp_path / "data", tmp_path / "in", **options)
    words = ("--dataset_dir", tmp_path / "data", "--output_dir", tmp_path / "out", *TINY[2:], "--disable_tqdm", "false")
    words += ("--model_name_or_path", base, "--lr_scheduler_type", "constant", "--save_steps", 1)
    for steps in launches:
        done = run("train.py", *words, "--max_steps", steps)
        assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr and "it/s" not in done.stderr  # bars are for terminals
    assert f"{base} keeps the 22 embeddings" in done.stderr + done.stdout
    assert "2 classes with new embeddings: emu, yak" in done.stderr + done.stdout
    seen = [
        load_file(folder / "training_images.safetensors")["digests"] for folder in (base, tmp_path / "out/best_model")
    ]
    data = load_prepared(tmp_path / "data")
    digests = {split: image_digests(image_bodies(data[split])) for split in data}
    assert seen[1].tolist() == sorted({*seen[0].tolist(), *digests["train"].tolist()})
    record = json.loads((tmp_path / "out/run.json").read_text())
    count = int(np.isin(digests["test"], seen[0]).sum())
    assert record["base"] == {"kept_classes": ["dog"], "new_classes": ["emu", "yak"], "test_rows_seen": count}
    report = (tmp_path / "out/report/training_report.md").read_text()
    assert count > 0 and f"**{count} test rows show images that base was trained on:**" in report
    assert "Classes matched by name: dog. Classes with new embeddings: emu, yak." in report.replace("\n", " ")
