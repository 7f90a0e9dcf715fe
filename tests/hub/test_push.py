"""Pushing to a Hub, and loading from it with a cold cache: the trained model arrives, or nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, constants, parse_eval_result_entries
from PIL import Image
from transformers import AutoModelForCausalLM

from imagelm.data.load import load_prepared
from imagelm.hub.arguments import PushArguments
from imagelm.hub.push import push
from imagelm.hub.stage_model import stage_model
from imagelm.hub.staged import Staged
from imagelm.hub.upload import check_owner, look_at, send
from imagelm.utils.errors import HubError, InputError
from testing.local_hub import ALICE, ALICE_ALONE, ALICE_READS, BOB, LocalHub
from tests.conftest import CLASSES, ROOT, run
from tests.local_hub.conftest import api, either_api, lfs, online  # noqa: F401 (fixtures)

MODEL, ROWS, DEMO = "alice/animals", "alice/animal-rows", "alice/animals-demo"
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


def push_words(pictured: Path, *words: str) -> list[str]:
    return ["push_to_hub.py", "--model_dir", str(pictured / "out/best_model"), "--repo_id", MODEL, *words]


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


def online_environment(hub: LocalHub, home: Path, token: object = ALICE) -> dict[str, str]:
    return hub.environment(home, token) | {"HF_HUB_OFFLINE": "0"}


@pytest.fixture
def here(hub: LocalHub, online: None, monkeypatch: pytest.MonkeyPatch, caplog) -> LocalHub:  # noqa: F811
    """A Hub that clients in this process take for theirs, logged in as alice."""
    caplog.set_level(logging.INFO, "imagelm")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("HF_TOKEN", ALICE.secret)
    return hub


@pytest.fixture
def options(pictured: Path) -> PushArguments:
    return PushArguments(model_dir=str(pictured / "out/best_model"), repo_id=MODEL, num_drawings=0)


@pytest.fixture(scope="module")
def staged(pictured: Path, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    """The model's repository, put together once."""
    folder = tmp_path_factory.mktemp("staged") / "model"
    return stage_model(PushArguments(model_dir=str(pictured / "out/best_model"), repo_id=MODEL, num_drawings=0), folder)


def stored(hub: LocalHub, repo_id: str = MODEL, kind: str = "model") -> dict[str, bytes]:
    """Everything in a repository, but for the Hub's own first file."""
    return {path: data for path, data in hub.repo(repo_id, kind).files().items() if path != ".gitattributes"}


def paths_asked(hub: LocalHub) -> set[str]:
    """All but what the client may ask by itself, once a process."""
    return {one.path for one in hub.requests} - {"/api/agent-harnesses"}


def content(staged: Staged) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in staged.files.items()}


# What arrives


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


# What is loaded


def test_a_push_loads_the_weights_once_and_from_the_staged_folder(options: PushArguments, tmp_path, monkeypatch):
    loads, load = [], AutoModelForCausalLM.from_pretrained

    def counted(folder: Path, **more: object):
        loads.append(sorted(path.name for path in Path(folder).iterdir()))
        return load(folder, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    push(replace(options, num_drawings=2, dry_run=str(tmp_path / "preview")))
    assert (tmp_path / "preview/model/drawings.png").is_file()
    (content_when_loaded,) = loads
    # Everything that is loaded was staged by then, and nothing of the trained folder that isn't published.
    assert {"model.safetensors", "config.json", "tokenizer.json", "codec.json"} <= set(content_when_loaded)
    assert set(content_when_loaded) <= {path.name for path in (tmp_path / "preview/model").iterdir()}


# What differs


def test_weights_are_not_sent_when_only_the_card_changes(here: LocalHub, options: PushArguments):
    push(options)
    before = here.uploaded_bytes()
    push(replace(options, license="mit"))
    assert here.uploaded_bytes() == before
    newest, older = here.repo(MODEL).history()[:2]
    assert {path for path in newest.files if newest.files[path] != older.files.get(path)} == {"README.md"}


def test_files_of_an_older_push_are_deleted_and_other_peoples_stay(here: LocalHub, options: PushArguments, caplog):
    push(options)
    theirs = {"LICENSE": b"ours", "notes/more.md": b"ours", ".eval_results/mmlu.yaml": b"[]"}
    here.commit(MODEL, {"model-00001-of-00002.safetensors": b"old weights"} | theirs)
    push(options)
    files = here.repo(MODEL).files()
    assert theirs.items() <= files.items()
    assert "model-00001-of-00002.safetensors" not in files and files["LICENSE"] == b"ours" and "notes/more.md" in files
    assert "1 old ones deleted" in caplog.text


CARDS = {  # which nobody's push wrote
    "text": b"# My model\n",
    "metadata": b"---\nlicense: mit\ntags:\n- gpt2\n- imagelm-like\n---\n",
    "named in the text": b"---\nlicense: mit\n---\ntags: imagelm\n",
    "dataset's": b"---\ndataset_info:\n  features: []\n---\n",
    "not YAML": b"---\ntags: [imagelm\n---\n",
    "not a mapping": b"---\n- imagelm\n---\n",
    "not UTF-8": b"---\nlicense: mit\n---\n\xff\xfe",
    "none": None,
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_repository_with_another_card_isnt_ours(here: LocalHub, options, api, card: bytes | None):  # noqa: F811
    api.create_repo(MODEL)
    here.commit(MODEL, {"config.json": b"{}"} | ({} if card is None else {"README.md": card}))
    for asked in (options, replace(options, create_pr=True), replace(options, revision="trial")):
        target = look_at(api, "model", MODEL, asked)
        with pytest.raises(InputError, match=r"replace or delete .*config\.json; choose another name, or give"):
            check_owner(api, target, asked)


def test_a_repository_that_isnt_ours_is_replaced_only_when_asked(here: LocalHub, options: PushArguments, api):  # noqa: F811
    api.create_repo(MODEL)
    theirs = {"README.md": b"# Theirs\n", "config.json": b"{}", "model.safetensors": b"theirs", "notes.md": b"theirs"}
    here.commit(MODEL, theirs)
    with pytest.raises(InputError, match="isn't the work of an earlier push"):
        push(options)
    assert stored(here) == theirs and not here.asked("/commit/", "POST")
    push(replace(options, replace_foreign_files=True))
    assert stored(here)["notes.md"] == b"theirs" and stored(here)["config.json"] != b"{}"
    push(options)  # it is ours from now on


@pytest.mark.parametrize(("kind", "file"), [("dataset", "data/train-00000-of-00001.parquet"), ("space", "app.py")])
def test_data_and_demos_of_others_are_kept_and_nothing_else_is_sent(here, options, pictured, api, kind: str, file: str):  # noqa: F811
    names = {"dataset": ROWS, "space": DEMO}
    api.create_repo(names[kind], repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    here.commit(names[kind], {file: b"theirs"}, kind)
    before = stored(here, names[kind], kind)
    both = replace(options, dataset_dir=str(pictured / "data"), dataset_repo_id=ROWS, space_repo_id=DEMO)
    with pytest.raises(InputError, match=f"{kind} {names[kind]} isn't the work of an earlier push: .*{file}"):
        push(both)
    assert stored(here, names[kind], kind) == before and not here.exists(MODEL)
    push(replace(both, replace_foreign_files=True))
    push(both)
    assert stored(here, names[kind], kind)[file] != b"theirs"


def test_repositories_with_only_the_hubs_own_card_count_as_empty(here: LocalHub, options, pictured: Path, api):  # noqa: F811
    api.create_repo(DEMO, repo_type="space", space_sdk="gradio")
    line = b"Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference\n"
    here.commit(DEMO, {"README.md": b"---\ntitle: Demo\nemoji: x\nsdk: gradio\npinned: false\n---\n\n" + line}, "space")
    api.create_repo(MODEL)
    here.commit(MODEL, {"README.md": b"---\nlicense: mit\n---\n"})
    push(replace(options, space_repo_id=DEMO))
    assert b"# animals" in stored(here)["README.md"] and "app.py" in stored(here, DEMO, "space")


def test_a_demo_that_an_older_version_pushed_is_ours(here: LocalHub, options: PushArguments, api):  # noqa: F811
    api.create_repo(DEMO, repo_type="space", space_sdk="gradio")
    here.commit(DEMO, {"README.md": b"# Demo\n", "app.py": b"old", "model_id.txt": b"alice/animals\n"}, "space")
    push(replace(options, space_repo_id=DEMO))
    assert stored(here, DEMO, "space")["app.py"] != b"old"


def test_a_branch_is_made_and_main_stays(here: LocalHub, options: PushArguments):
    push(options)
    main = here.repo(MODEL).refs["branches"]["main"]
    push(replace(options, revision="trial", license="mit"))
    refs = here.repo(MODEL).refs["branches"]
    assert refs["main"] == main != refs["trial"]


def test_a_pull_request_leaves_main_as_it_was(here: LocalHub, options: PushArguments, caplog):
    push(options)
    main = here.repo(MODEL).refs["branches"]["main"]
    push(replace(options, create_pr=True, license="mit"))
    assert here.repo(MODEL).refs["branches"]["main"] == main
    assert "/discussions/1" in caplog.text


def test_a_pull_request_is_opened_once_also_on_someone_elses_repository(here: LocalHub, options, caplog):
    push(options)
    theirs = replace(options, create_pr=True, license="mit", token=BOB.secret)
    for _ in range(2):
        push(theirs)
        assert caplog.messages[-1].endswith("/discussions/1")
    push(replace(theirs, license="apache-2.0"))
    assert caplog.messages[-1].endswith("/discussions/2")
    assert len(here.repo(MODEL).history()) == 2


@pytest.mark.parametrize(("more", "words"), [({}, "needs a repository"), ({"revision": "nope"}, "has no branch nope")])
def test_a_pull_request_needs_something_to_be_opened_on(here: LocalHub, options, api, more: dict, words: str):  # noqa: F811
    if more:
        api.create_repo(MODEL)
    with pytest.raises(InputError, match=words):
        push(replace(options, create_pr=True, **more))
    assert here.exists(MODEL) == bool(more)


def test_private_repositories_are_hidden_from_strangers(here: LocalHub, options: PushArguments):
    push(replace(options, private=True))
    assert here.repo(MODEL).meta["private"] is True
    with pytest.raises(OSError):
        HfApi(endpoint=here.endpoint, token=False).model_info(MODEL)


def test_a_name_without_namespace_is_a_repository_of_the_user(here: LocalHub, options: PushArguments):
    push(replace(options, repo_id="mine"))
    assert (
        "model: alice/mine" not in stored(here, "alice/mine") and b"# mine" in stored(here, "alice/mine")["README.md"]
    )
    assert b'from_pretrained("alice/mine")' in stored(here, "alice/mine")["README.md"]


# What breaks


def test_an_upload_cut_at_ten_points_leaves_the_old_version_and_the_next_run_completes_it(
    hub: LocalHub,
    either_api: HfApi,  # noqa: F811
    staged: Staged,
    options: PushArguments,
    tmp_path: Path,
):
    send(either_api, staged, look_at(either_api, "model", MODEL, options), options)
    old = content(staged)
    total = None
    for number in range(11):
        new = Staged("model", MODEL, tmp_path / str(number))
        shutil.copytree(staged.folder, new.folder)
        (new.folder / "model.safetensors").write_bytes(np.random.default_rng(number).bytes(150_000))
        (new.folder / "README.md").write_text(f"version {number}")
        if total is not None:
            hub.faults.cut_upload(after=int(total * number / 11))
            with pytest.raises(HubError, match="run the same command again"):
                send(either_api, new, look_at(either_api, "model", MODEL, options), options)
            assert stored(hub) == old
            hub.faults.clear()
        before = sum(one.body_bytes for one in hub.requests)
        send(either_api, new, look_at(either_api, "model", MODEL, options), options)
        assert stored(hub) == content(new)
        old = content(new)
        total = total or sum(one.body_bytes for one in hub.requests) - before


def test_large_files_that_arrived_before_a_cut_are_not_sent_twice(
    hub: LocalHub,
    either_api: HfApi,  # noqa: F811
    staged: Staged,
    options: PushArguments,
):
    hub.faults.answer(500, "/commit/")
    with pytest.raises(HubError, match="500"):
        send(either_api, staged, look_at(either_api, "model", MODEL, options), options)
    hub.faults.clear()
    sent = hub.uploaded_bytes()
    assert sent > 100_000 and set(hub.repo(MODEL).files()) == {".gitattributes"}
    send(either_api, staged, look_at(either_api, "model", MODEL, options), options)
    assert hub.uploaded_bytes() == sent
    assert stored(hub) == content(staged)


def test_a_commit_whose_answer_is_lost_counts_as_made(here: LocalHub, staged: Staged, options: PushArguments, api):  # noqa: F811
    here.faults.lose_answer("/commit/")
    sent = send(api, staged, look_at(api, "model", MODEL, options), options)
    assert sent.num_sent == len(staged.files)
    assert stored(here) == content(staged) and len(here.repo(MODEL).history()) == 2


def test_a_crash_of_the_hub_in_the_commit_leaves_the_old_version(here: LocalHub, staged, options, api):  # noqa: F811
    api.create_repo(MODEL)
    here.crash_in_commit()
    with pytest.raises(HubError):
        send(api, staged, look_at(api, "model", MODEL, options), options)
    assert stored(here) == {}
    send(api, staged, look_at(api, "model", MODEL, options), options)
    assert stored(here) == content(staged)


def test_someone_elses_commit_in_between_is_not_overwritten(here: LocalHub, staged, options, api):  # noqa: F811
    api.create_repo(MODEL)
    here.faults.before(lambda: here.commit(MODEL, {"LICENSE": b"theirs"}), "/commit/")
    with pytest.raises(HubError, match="someone else committed meanwhile"):
        send(api, staged, look_at(api, "model", MODEL, options), options)
    assert stored(here) == {"LICENSE": b"theirs"}
    here.faults.clear()
    send(api, staged, look_at(api, "model", MODEL, options), options)
    assert stored(here) == content(staged) | {"LICENSE": b"theirs"}


@pytest.mark.parametrize(
    ("status", "path", "kind", "words"),
    [
        (401, "/whoami", InputError, "hf auth login"),
        (403, "/commit/", InputError, "may not write there"),
        (409, "/commit/", HubError, "in conflict"),
        (429, "/preupload/", HubError, "too many requests"),
        (503, "/preupload/", HubError, "the Hub failed again after retries"),
        (507, "/commit/", HubError, "no room"),
    ],
)
def test_a_refusal_names_the_remedy(here: LocalHub, options, status: int, path: str, kind: type, words: str):
    here.faults.answer(status, path, times=None)
    with pytest.raises(kind, match=words) as refused:
        push(options)
    assert str(status) in str(refused.value)


def test_a_busy_hub_is_asked_again(here: LocalHub, staged: Staged, options: PushArguments, api):  # noqa: F811
    here.faults.answer(429, "/preupload/", times=1, headers={"Retry-After": "1"})
    send(api, staged, look_at(api, "model", MODEL, options), options)
    assert [one.status for one in here.asked("/preupload/")][:2] == [429, 200]
    assert stored(here) == content(staged)


def test_without_a_token_nothing_is_asked_but_the_message_is_clear(here: LocalHub, options, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no Hub token: log in with `hf auth login`, set HF_TOKEN, or give --token"):
        push(options)
    assert not paths_asked(here)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": ALICE_READS.secret}, "may only read"),
        ({"token": BOB.secret}, "bob has no namespace 'alice'"),
        ({"token": "hf_" + "x" * 34}, "the token isn't valid"),
        ({"repo_id": "nobody/thing"}, "alice has no namespace 'nobody', only acme, alice"),
        ({"token": ALICE_ALONE.secret, "repo_id": "acme/x"}, "fine-grained token .* has no right to write there"),
    ],
)
def test_missing_write_access_is_reported_before_anything_is_staged(here, options, caplog, change: dict, words: str):
    with pytest.raises(InputError, match=words):
        push(replace(options, **change))
    assert not caplog.messages and paths_asked(here) == {"/api/whoami-v2"}


def test_private_refuses_a_public_repository(here: LocalHub, options: PushArguments, api):  # noqa: F811
    api.create_repo(MODEL)
    with pytest.raises(InputError, match="exists and is public"):
        push(replace(options, private=True))
    assert stored(here) == {}


def test_a_tag_never_moves(here: LocalHub, options: PushArguments):
    push(replace(options, tag="v1"))
    with pytest.raises(InputError, match="has a tag v1 already"):
        push(replace(options, tag="v1", license="mit"))
    assert len(here.repo(MODEL).history()) == 2


def test_the_same_command_completes_a_push_with_a_tag_that_broke_between_two_repositories(
    here, options, pictured: Path
):
    both = replace(options, dataset_dir=str(pictured / "data"), dataset_repo_id=ROWS, tag="v1")
    here.faults.answer(500, f"/api/models/{MODEL}/commit/", times=None)
    with pytest.raises(HubError, match=f"model {MODEL}: the Hub failed"):
        push(both)
    here.faults.clear()
    assert "v1" in here.repo(ROWS, "dataset").refs["tags"] and "v1" not in here.repo(MODEL).refs["tags"]
    for _ in range(2):
        push(both)
    assert here.repo(MODEL).files("v1") == here.repo(MODEL).files("main")
    assert len(here.repo(ROWS, "dataset").history()) == 2


def test_a_tag_that_the_hub_refused_is_created_by_the_next_run(here: LocalHub, options: PushArguments):
    here.faults.answer(500, "/tag/", times=None)
    with pytest.raises(HubError):
        push(replace(options, tag="v1"))
    here.faults.clear()
    push(replace(options, tag="v1"))
    assert here.repo(MODEL).files("v1") == here.repo(MODEL).files("main") and len(here.repo(MODEL).history()) == 2


def test_an_unreachable_hub_is_a_clear_error(published: Published):
    environment = online_environment(published.hub, published.home / "home") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run(*published.words, **environment)
    assert done.returncode == 1
    assert "the connection to the Hub broke" in done.stderr and "Traceback" not in done.stderr


# What is refused


def test_nothing_of_a_folder_with_a_secret_is_sent(
    here: LocalHub, options: PushArguments, pictured: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(pictured / "out/best_model", tmp_path / "best_model"))
    (folder / "complete.json").unlink()  # as for a folder that another program wrote
    (folder / "generation_config.json").write_text(json.dumps({"note": BOB.secret}))
    with pytest.raises(InputError, match="nothing was uploaded"):
        push(replace(options, model_dir=str(folder)))
    assert not here.exists(MODEL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model_dir", "nowhere"], "no such folder"),
        (["--repo_id", "a/b/c"], "isn't a repository name"),
        (["--repo_id", "me/na me"], "isn't a repository name"),
        (["--repo_id", "me/x.git"], "isn't a repository name"),
        (["--revision", "refs/pr/1"], "isn't a valid name in git"),
        (["--tag", "version 1"], "isn't a valid name in git"),
        (["--dataset_repo_id", "me/x"], "needs --dataset_dir"),
        (["--tag", "v1", "--create_pr"], "remove one of the two"),
        (["--license", "My Own!"], "isn't a license identifier"),
        (["--num_drawings", "-1"], "give 0 or more"),
    ],
)
def test_wrong_options_end_with_code_2_and_one_line(pictured: Path, change: list[str], words: str):
    done = run(*push_words(pictured, *change))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_never_replaces_other_files(options: PushArguments, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds no uploads\.json, so it wasn't written by this program"):
        push(replace(options, dry_run=str(tmp_path / "photos")))
    assert (tmp_path / "photos/cat.png").read_bytes() == b"mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_reported_and_leaves_nothing(pictured: Path, tmp_path: Path):
    (tmp_path / "small").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", tmp_path / "small"], check=False)
    if mounted.returncode:
        pytest.skip("this machine doesn't let a small disk be mounted")
    try:
        done = run(*push_words(pictured), "--dry_run", tmp_path / "small/preview")
        assert done.returncode == 1
        assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
        assert list((tmp_path / "small").iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)
