"""datasets and transformers in processes of their own: their Hub is this one, their caches are cold."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from testing.local_hub import LocalHub
from testing.local_hub.pushing import push

DATASET = """
from datasets import Dataset, DatasetDict, load_dataset
splits = {"train": [f"<A_{i}>" for i in range(50)], "test": ["x"]}
data = DatasetDict({name: Dataset.from_dict({"tokens": rows}) for name, rows in splits.items()})
data.push_to_hub("alice/data", private=True)
data.push_to_hub("alice/data", config_name="other", revision="dev")
assert load_dataset("alice/data")["train"]["tokens"][:] == splits["train"]
assert load_dataset("alice/data", "other", revision="dev", split="train[:3]")["tokens"][:] == splits["train"][:3]
assert list(load_dataset("alice/data", split="test", streaming=True)) == [{"tokens": "x"}]
"""

PHOTOS = """
from datasets import Dataset, DatasetDict
from PIL import Image
from imagelm.data.sources.open import open_images
photos = Dataset.from_dict({"image": [Image.new("L", (8, 8), i) for i in range(6)], "label": [0, 1] * 3})
splits = {"train": photos, "validation": photos.select([4, 5])}
DatasetDict(splits).push_to_hub("alice/photos", config_name="small", revision="dev")
named = {"config_name": "small", "revision": "dev"}
cases = {None: (4, 5), "training": range(6), "val": (4, 5), "train[:3]": range(3), "train[5:]+validation": (5, 4, 5)}
for split, expected in cases.items():
    source = open_images(["alice/photos"], split=split, **named)
    assert [image.getpixel((0, 0)) for image in source.load(0, len(source))] == list(expected), split
    assert source.labels.tolist() == [i % 2 for i in expected]
"""

CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from .part import SIZE
class Config(PretrainedConfig):
    model_type = "own"
class Own(PreTrainedModel):
    config_class = Config
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(SIZE, SIZE)
        self.post_init()
"""
OWN = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Own"}}

LOAD = """
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
model, tokenizer = AutoModelForCausalLM.from_pretrained("alice/model"), AutoTokenizer.from_pretrained("alice/model")
assert tokenizer("a b c")["input_ids"] == [0, 1, 2]
proposed = AutoModelForCausalLM.from_pretrained("alice/model", revision="refs/pr/1")
for seed, loaded in enumerate((model, proposed)):
    torch.manual_seed(seed)
    again = type(model)(model.config)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters()))
assert pipeline("text-generation", "alice/model")("a b", max_new_tokens=2)
own = AutoModel.from_pretrained("alice/own", trust_remote_code=True)
assert torch.equal(own.layer.weight, torch.eye(3))
"""


def test_a_dataset_is_pushed_loaded_and_streamed(hub: LocalHub, tmp_path: Path):
    done = hub.client(DATASET + PHOTOS, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert hub.repo("alice/data", "dataset").meta["private"]


def test_a_model_and_its_code_are_loaded_from_a_cold_cache(hub: LocalHub, api: HfApi, tmp_path: Path):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "<unk>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=16, bos_token_id=0, eos_token_id=1)
    api.create_repo("alice/model")
    for seed in range(2):
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / f"{seed}")
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path / f"{seed}")
        api.upload_folder(repo_id="alice/model", folder_path=tmp_path / f"{seed}", create_pr=seed == 1)
    weights = save({"layer.weight": torch.eye(3), "layer.bias": torch.zeros(3)}, {"format": "pt"})
    files = {"own.py": CODE, "part.py": "SIZE = 3", "config.json": json.dumps(OWN)}
    api.create_repo("alice/own")
    push(api, {path: text.encode() for path, text in files.items()} | {"model.safetensors": weights}, "alice/own")
    done = hub.client(LOAD, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
