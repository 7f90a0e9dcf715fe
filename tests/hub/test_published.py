"""Loading what was pushed with a cold cache: the trained model arrives, with its data, card and demo."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from transformers import AutoModelForCausalLM

from imagelm.data.load import load_prepared
from testing.local_hub import LocalHub
from tests.conftest import CLASSES, ROOT, run
from tests.hub.common import DEMO, MODEL, ROWS, online_environment, push_words, stored

CLIENT = """
import contextlib, hashlib, io, json, re, sys
from pathlib import Path
from huggingface_hub import hf_hub_download, snapshot_download
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedTokenizerFast
from transformers import pipeline
from datasets import load_dataset

repo, rows, revision, image_file = sys.argv[1:]
found = {}
card = Path(hf_hub_download(repo, "README.md")).read_text(encoding="utf-8")
found["card"], found["snippets"] = card, []
for code in re.findall(r"```python\\n(.*?)```", card, flags=re.DOTALL):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "card", "exec"), {})
    found["snippets"].append([code, printed.getvalue()])
data = load_dataset(rows)
found["rows"] = {name: [split[i] for i in range(len(split))] for name, split in data.items()}
found["features"] = str(data["train"].features)
model = AutoModelForCausalLM.from_pretrained(repo)
texts = [AutoTokenizer.from_pretrained(repo).decode(row["input_ids"]) for row in data["test"]]
found["ids"] = {}
for kind in (AutoTokenizer, PreTrainedTokenizerFast, GPT2Tokenizer):
    found["ids"][kind.__name__] = kind.from_pretrained(repo, revision=revision)(texts)["input_ids"]
ids = torch.tensor(found["ids"]["GPT2Tokenizer"][0])[None]
with torch.no_grad():
    found["logits"] = model(ids).logits.tolist()
    found["same_class"] = GPT2LMHeadModel.from_pretrained(repo, revision=revision)(ids).logits.tolist()
found["pipeline"] = pipeline("image-classification", model=repo, trust_remote_code=True)(image_file)
found["task"] = pipeline(model=repo, trust_remote_code=True).task
folder = Path(snapshot_download(repo))
found["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

# The whole evaluation, as training does it, of what was downloaded.
from imagelm.data.load import load_prepared
from imagelm.training.evaluate import evaluate_folder
from imagelm.commands.train import parse_launch
from imagelm.tokens.tokenizer import load_tokenizer

words = ["--dataset_dir", "x", "--output_dir", "x", "--use_cpu", "--metric_for_best_model", "cls_accuracy"]
launch = parse_launch([*words, "--disable_tqdm", "true"])
found["evaluation"] = {
    split: evaluate_folder(folder, launch.args, launch.run, load_tokenizer(folder), data[split], split=split)
    for split in ("test", "validation")
}
print(json.dumps(found))
"""


@dataclass
class Published:
    """What `push_to_hub.py` made of `pictured`."""

    hub: LocalHub
    home: Path
    output: str
    words: list[str]
    cold: dict


@pytest.fixture(scope="module")
def published(pictured: Path, tmp_path_factory: pytest.TempPathFactory):
    """Model, data and demo on a Hub, and what a client with a cold cache found there."""
    home = tmp_path_factory.mktemp("published")
    words = push_words(pictured, "--dataset_dir", str(pictured / "data"), "--dataset_repo_id", ROWS)
    words += ["--space_repo_id", DEMO, "--license", "apache-2.0", "--num_drawings", "4"]
    with LocalHub(home / "hub") as hub:
        done = run(*words, "--tag", "v1", **online_environment(hub, home / "home"))
        assert done.returncode == 0, done.stderr
        Image.new("RGB", (40, 30), (200, 30, 90)).save(home / "picture.png")
        client = subprocess.run(
            [sys.executable, "-c", CLIENT, MODEL, ROWS, "v1", "picture.png"],
            env=hub.environment(home / "cold") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert client.returncode == 0, client.stderr
        yield Published(hub, home, done.stdout, words, json.loads(client.stdout.splitlines()[-1]))


def test_a_cold_cache_gives_the_weights_that_were_trained(published: Published, pictured: Path):
    weights = (pictured / "out/best_model/model.safetensors").read_bytes()
    assert published.cold["sha256"] == hashlib.sha256(weights).hexdigest()


def test_a_full_evaluation_of_the_download_gives_every_figure_that_training_reported(published, pictured: Path):
    test = json.loads((pictured / "out/best_model/eval_results.json").read_text())
    validation = test.pop("validation")
    later = {"step", "class_names", "majority_accuracy", "bag_of_tokens_accuracy"}
    later |= {"versus_majority", "versus_bag_of_tokens"}  # not of the evaluation
    for split, reported in (("test", test), ("validation", validation)):
        found = published.cold["evaluation"][split]
        timing = {name for name in reported if name.endswith(("runtime", "per_second"))}
        assert reported.keys() - timing - later == found.keys() - timing
        for name in reported.keys() - timing - later:
            assert found[name] == reported[name], name


def test_all_tokenizer_classes_give_the_ids_of_the_data(published: Published, pictured: Path):
    test = load_prepared(pictured / "data")["test"]
    for name, ids in published.cold["ids"].items():
        assert ids == test["input_ids"][:], name
    assert set(published.cold["ids"]) == {"AutoTokenizer", "TokenizersBackend", "GPT2Tokenizer"}


def test_logits_of_the_download_are_those_of_the_folder(published: Published, pictured: Path):
    model = AutoModelForCausalLM.from_pretrained(pictured / "out/best_model")
    ids = torch.tensor(load_prepared(pictured / "data")["test"][0]["input_ids"])[None]
    with torch.no_grad():
        logits = model(ids).logits
    assert published.cold["logits"] == published.cold["same_class"]
    # Another process may sum in another order.
    torch.testing.assert_close(torch.tensor(published.cold["logits"]), logits)


def test_load_dataset_gives_the_rows_that_trained_the_model(published: Published, pictured: Path):
    trained_on = load_prepared(pictured / "data")
    for name in ("train", "validation", "test"):
        assert published.cold["rows"][name] == list(trained_on[name])
    assert published.cold["features"] == str(trained_on["train"].features)


def test_the_cards_snippets_run_and_print_the_documented_answer(published: Published):
    (from_image, printed), (from_tokens, answer), (decide, decided), (write, row) = published.cold["snippets"]
    assert "pipeline(" in from_image and eval(printed)[0]["label"] in CLASSES
    assert len(from_tokens.strip().splitlines()) <= 6  # five lines and a blank one
    assert answer.strip() == re.search(r"# (<CLS_\d>)$", from_tokens.strip()).group(1)
    # The same row without trust, by transformers' own pipelines.
    assert decided.startswith(CLASSES[int(answer.strip()[5:-1])]) and "trust" not in decide
    assert row.startswith(re.search(r'write\("(.*?)"', write).group(1))
    assert 4 <= len(row.split()) <= 9 and re.fullmatch(r"(<[A-Z_/\d]+>\s+)+", row)


def test_the_cards_figures_are_read_back_by_the_library(published: Published, pictured: Path):
    data = ModelCard(published.cold["card"]).data
    results = json.loads((pictured / "out/best_model/eval_results.json").read_text())
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values["CLS-slot accuracy"] == pytest.approx(results["eval_cls_accuracy"], abs=1e-6)
    assert values["Perplexity, image tokens"] == pytest.approx(results["eval_image_perplexity"], abs=1e-6)
    assert {result.dataset_type for result in data.eval_results} == {ROWS} and data.model_name == "animals"
    entries = parse_eval_result_entries(yaml.safe_load(published.hub.repo(MODEL).read(".eval_results/held_out.yaml")))
    assert [(entry.dataset_id, entry.value) for entry in entries] == [(ROWS, results["eval_cls_accuracy"])]


def test_the_card_alone_selects_the_pipeline(published: Published):
    assert published.cold["task"] == "image-classification"
    assert {entry["label"] for entry in published.cold["pipeline"]} == set(CLASSES)


def test_inference_reads_a_hub_id(published: Published):
    words = ["inference.py", "--model", MODEL, "--revision", "v1", "--mode", "classify"]
    image_file = published.home / "picture.png"
    done = run(*words, "--images", image_file, **online_environment(published.hub, published.home / "again"))
    assert done.returncode == 0 and any(name in done.stdout for name in CLASSES), done.stderr


def test_every_figure_is_verified_from_hub_ids(published: Published):
    words = ["-m", "imagelm", "verify", MODEL, "--dataset", ROWS, "--revision", "v1", "--dataset_revision", "v1"]
    done = run(*words, **online_environment(published.hub, published.home / "verified"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "figures and checks hold" in done.stdout.splitlines()[-1]


def test_each_repository_gets_one_commit_under_the_tag(published: Published):
    for repo_id, kind in ((MODEL, "model"), (ROWS, "dataset"), (DEMO, "space")):
        repo = published.hub.repo(repo_id, kind)
        assert len(repo.history()) == 2  # the Hub's own first one, and ours
        assert repo.files("v1") == repo.files("main")


def test_what_a_dry_run_shows_is_what_was_uploaded(published: Published, tmp_path: Path):
    done = run(*published.words, "--dry_run", tmp_path / "preview")
    assert done.returncode == 0, done.stderr
    for repo_id, kind in ((MODEL, "model"), (ROWS, "dataset"), (DEMO, "space")):
        folder = tmp_path / "preview" / kind
        shown = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert shown == stored(published.hub, repo_id, kind)
        for path in shown:
            assert f"  {path}\n" in done.stdout


def test_only_listed_files_are_uploaded(published: Published):
    listed = {"README.md", "config.json", "generation_config.json", "model.safetensors", "eval_results.json"}
    listed |= {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", ".eval_results/held_out.yaml"}
    listed |= {
        "decision.json",
        "decision_template.jinja",
        "codec.json",
        "codec.safetensors",
        "processor_config.json",
        "codec_imagelm.py",
        "pixels_imagelm.py",
        "vectors_imagelm.py",
        "handler.py",
        "processing_imagelm.py",
    }
    listed |= {f"{name}.png" for name in ("accuracy", "confusion_matrix", "learning_rate", "loss", "perplexity")}
    listed |= {"drawings.png", "training_images.safetensors"}
    assert set(stored(published.hub)) == listed
    demo = {"app.py", "model.py", "parts.py", "pictures.py", "sketch.js", "style.css"}
    assert set(stored(published.hub, DEMO, "space")) == demo | {"README.md", "model_id.txt", "requirements.txt"}
    rows = set(stored(published.hub, ROWS, "dataset"))
    assert {"README.md", "stats.json", "data/train-00000-of-00001.parquet", "tokenizer/vocab.json"} <= rows
    assert not [path for path in rows if path.startswith(("raw", "bad_rows"))]


def test_the_same_push_again_sends_nothing(published: Published):
    before, commits = len(published.hub.requests), len(published.hub.repo(MODEL).history())
    done = run(*published.words, **online_environment(published.hub, published.home / "home"))
    assert done.returncode == 0 and done.stdout.count("nothing was sent") == 3, done.stderr
    written = [one for one in published.hub.requests[before:] if one.method not in ("GET", "HEAD")]
    assert {one.path for one in written} == {"/api/validate-yaml"}
    assert len(published.hub.repo(MODEL).history()) == commits


def test_an_unreachable_hub_is_a_clear_error(published: Published):
    environment = online_environment(published.hub, published.home / "home") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run(*published.words, **environment)
    assert done.returncode == 1
    assert "the connection to the Hub broke" in done.stderr and "Traceback" not in done.stderr
