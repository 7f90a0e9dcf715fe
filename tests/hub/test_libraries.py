"""datasets and transformers in processes of their own: their Hub is this one, their caches are cold."""

from __future__ import annotations

from pathlib import Path

from tests.hub import LocalHub

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

PUSH = """
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "<unk>": 3}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").push_to_hub("alice/model")
config = GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=16, bos_token_id=0, eos_token_id=1)
torch.manual_seed(0)
GPT2LMHeadModel(config).push_to_hub("alice/model")
torch.manual_seed(1)
GPT2LMHeadModel(config).push_to_hub("alice/model", create_pr=True)

from huggingface_hub import HfApi
code = '''
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
'''
config = '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Own"}}'
api = HfApi()
api.create_repo("alice/own")
for path, text in {"own.py": code, "part.py": "SIZE = 3", "config.json": config}.items():
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id="alice/own")
from safetensors.torch import save
weights = save({"layer.weight": torch.eye(3), "layer.bias": torch.zeros(3)}, {"format": "pt"})
api.upload_file(path_or_fileobj=weights, path_in_repo="model.safetensors", repo_id="alice/own")
"""

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
    done = hub.client(DATASET, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert hub.repo("alice/data", "dataset").meta["private"]


def test_a_model_and_its_code_are_pushed_and_loaded_from_a_cold_cache(hub: LocalHub, tmp_path: Path):
    for name, code in (("push", PUSH), ("load", LOAD)):
        done = hub.client(code, home=tmp_path / name)
        assert done.returncode == 0, done.stderr
