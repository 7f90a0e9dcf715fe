"""Staging: the listed files only, nothing private, and a card of known facts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import load_dataset
from huggingface_hub import ModelCard, SpaceCard
from matplotlib import get_data_path
from matplotlib.font_manager import fontManager
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers import AutoModelForCausalLM, AutoTokenizer

from imagelm.data.load import load_prepared
from imagelm.hub import stage_data as dataset_repo
from imagelm.hub.arguments import PushArguments
from imagelm.hub.checks import check_staged
from imagelm.hub.privacy import find_private, without_paths
from imagelm.hub.stage_data import stage_dataset
from imagelm.hub.stage_model import check_model_folder, stage_model
from imagelm.hub.stage_page import check_page_model, stage_page
from imagelm.hub.stage_space import stage_space
from imagelm.hub.staged import DATASET_FILES, Staged
from imagelm.remote_code.codec_imagelm import Autoencoder, LearnedCodec, UnifiedCodec
from imagelm.utils.artifacts import MANIFEST_FILE
from imagelm.utils.errors import InputError
from imagelm.utils.text import table_cell
from testing.local_hub import ALICE
from tests.conftest import CLASSES
from tests.damage import edit_column
from tests.images import cats_and_dogs, class_folder, prepare_images, smooth_images

MODEL, ROWS = "alice/animals", "alice/animal-rows"


@pytest.fixture
def folder(pictured: Path, tmp_path: Path) -> Path:
    """A copy of the trained folder, for the test to damage."""
    folder = Path(shutil.copytree(pictured / "out/best_model", tmp_path / "best_model"))
    (folder / MANIFEST_FILE).unlink()  # as for a folder that another program wrote
    return folder


def stage(folder: Path, tmp_path: Path, **more: object) -> Staged:
    return stage_model(PushArguments(model_dir=str(folder), repo_id=MODEL, num_drawings=0, **more), tmp_path / "staged")


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


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (ALICE.secret, "a Hugging Face token"),
        ("ghp_" + "a1" * 20, "a GitHub token"),
        ("AKIA" + "A1B2C3D4" * 2, "an AWS access key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("/home/alice/pictures/cat.png", "a local path, '/home/alice/pictures/cat.png'"),
        ("C:\\Users\\alice\\cat.png", "a local path"),
        ("file:///data/alice/x", "a local path"),
        ("alice@host:/gpfs/alice/x", "a local path, '/gpfs/alice/x'"),
        ("\\\\server\\share\\x", "a local path"),
        ("https://alice:secret@example.org/x", "a password in an address"),
    ],
)
def test_a_secret_or_local_path_is_refused_with_its_place(folder: Path, tmp_path: Path, secret: str, reason: str):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"note": f"see {secret}"}, indent=1))
    with pytest.raises(InputError) as refused:
        check_staged([stage(folder, tmp_path)], None)
    assert re.search(r"model config\.json:\d+: ", str(refused.value)) and reason in str(refused.value)
    if "token" in reason or "key" in reason:
        assert secret not in str(refused.value)


def test_escaped_json_strings_are_decoded_before_the_search(folder: Path, tmp_path: Path):
    hidden = "".join(f"\\u{ord(letter):04x}" for letter in ALICE.secret)
    (folder / "generation_config.json").write_text(f'{{"a": "\\/home\\/alice\\/x", "b": "{hidden}"}}')
    with pytest.raises(InputError) as refused:
        check_staged([stage(folder, tmp_path)], None)
    assert "'/home/alice/x'" in str(refused.value) and "a Hugging Face token" in str(refused.value)


DIGITS, MIXED = "0123456789abcdef" * 4, "a1B2c3" * 12


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"hf_oauth_eyJ{MIXED[:30]}.eyJ{MIXED[:30]}.{MIXED[:40]}", "a JSON web token"),
        (f"hf_jwt_{MIXED[:40]}", "a Hugging Face token"),
        (f"eyJ{MIXED[:17]}.{MIXED[:24]}.{MIXED[:43]}", "a JSON web token"),
        (f"npm_{MIXED[:36]}", "an npm token"),
        (f"pypi-AgEIcHlwaS5vcmc{MIXED}", "a PyPI token"),
        (f"sk_live_{MIXED[:24]}", "a Stripe key"),
        (f"glrt-{MIXED[:20]}", "a GitLab token"),
        (f"SG.{MIXED[:22]}.{MIXED[:43]}", "a SendGrid key"),
        (f"https://hooks.slack.com/services/T00000000/B00000000/{MIXED[:24]}", "a webhook's address"),
        (f"AccountKey={MIXED}==", "a password or key"),
        (f"AWS_SECRET_ACCESS_KEY={MIXED[:20]}/{MIXED[:19]}", "a password or key"),
        (f"WANDB_API_KEY: {DIGITS[:40]}", "a password or key"),
        ("--db_password=hunter2hunter2", "a password or key"),
        ("--db_password hunter2hunter2", "a password or key"),
        (f"curl -H 'Authorization: Bearer {DIGITS[:20]}'", "an authorization"),
        (f"https://{MIXED[:20]}@github.com/alice/x", "a password in an address"),
        ("-----BEGIN PGP PRIVATE " + "KEY BLOCK-----", "a private key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519", "a private key"),
    ],
)
def test_the_secrets_of_services_are_found_in_json_and_text(tmp_path: Path, text: str, kind: str):
    (tmp_path / "x.json").write_text(json.dumps({"note": text}))
    (tmp_path / "x.md").write_text(f"see {text} there")
    for file in (tmp_path / "x.json", tmp_path / "x.md"):
        found = list(find_private(file.name, file, None))
        assert f"{file.name}:1: {kind}" in found
        assert not any(text in line for line in found if "local path" not in line)


def test_a_key_under_its_name_in_json_is_found(tmp_path: Path):
    (tmp_path / "x.json").write_text(json.dumps({"wandb": {"api_key": DIGITS[:40]}}))
    assert list(find_private("x.json", tmp_path / "x.json", None)) == ["x.json:1: a password or key"]


@pytest.mark.parametrize(
    "path",
    [
        *("/gpfs01/home/alice/x", "/lustre/alice/x", "/pscratch/sd/a/alice/x", "/nobackup/alice/x", "/users/alice/x"),
        *("/beegfs/alice/x", "/hpc/home/alice/x", "/scratch/alice/x", "/work2/alice/x", "~alice/x"),
    ],
)
def test_the_folders_of_clusters_are_local_paths(tmp_path: Path, path: str):
    (tmp_path / "x.md").write_text(f"trained in {path} once")
    assert list(find_private("x.md", tmp_path / "x.md", None)) == [f"x.md:1: a local path, {path!r}"]
    assert without_paths(f"trained in {path} once") == ("trained in x once", 1)


NO_PATHS = [
    "C:\\",
    "a\\alpha",
    "\\alpha",
    "yes/no",
    "and/or/home/x",
    "https://example.org/data/x",
    "../data/x",
    "./tmp/x",
]
NO_PATHS += [
    "hf://datasets/a/b",
    "n/a",
    "</home>",
    "cat:dog",
    "sk-learn-or-something-longer",
    "5 km/h",
    "T:\\",
    "<IMG>",
    '"pad_token": "<PAD>", "hub_token": "<hidden>"',
    "token=os.environ['HF_TOKEN1']",
    'api_key = os.environ["KEY1"]',
    "a password is needed",
    "an access token of the Hub: `hf auth login`",
    f"sha256: {'0123456789abcdef' * 4}",
    "https://user@example.org/x",
    "the bearer of 12 rows",
    "~5/8",
]


@pytest.mark.parametrize("text", NO_PATHS)
def test_text_that_only_resembles_a_path_or_secret_is_accepted(text: str, tmp_path: Path):
    (tmp_path / "x.json").write_text(json.dumps({text: [text]}, indent=1))
    (tmp_path / "x.md").write_text(f"| {table_cell(text)} |\n{text}\n{yaml.safe_dump([text])}")
    for file in (tmp_path / "x.json", tmp_path / "x.md"):
        assert not list(find_private(file.name, file, None))
    assert without_paths([text]) == ([text], 0)


def test_texts_in_tables_and_images_are_searched(tmp_path: Path):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "image": pa.array([None, {"bytes": b"", "path": "/home/alice/cat.png"}], image),
        "words": pa.array([["x"], ["y", "/mnt/alice/x"]]),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata({"note": "/opt/alice/x"}), tmp_path / "x.parquet")
    texts = PngInfo()
    texts.add_text("Comment", "/home/alice/x", zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "x.png", pnginfo=texts)
    found = [line for name in ("x.parquet", "x.png") for line in find_private(name, tmp_path / name, None)]
    assert found == [
        "x.parquet:schema, note: a local path, '/opt/alice/x'",
        "x.parquet:row 1, image: a local path, '/home/alice/cat.png'",
        "x.parquet:row 1, words: a local path, '/mnt/alice/x'",
        "x.png:Comment: a local path, '/home/alice/x'",
    ]


def test_only_dataset_files_of_a_prepared_folder_are_uploaded(pictured: Path, tmp_path: Path):
    data = Path(shutil.copytree(pictured / "data", tmp_path / "data"))
    for name in ("tokenizer/.env", "codec/state.pkl", "me.png", "bad_rows.jsonl"):
        (data / name).write_text("mine")
    options = PushArguments(model_dir="x", repo_id=MODEL, dataset_dir=str(data), dataset_repo_id=ROWS)
    staged = stage_dataset(options, tmp_path / "staged")
    assert not [name for name in staged.files if name.endswith((".env", ".pkl", "bad_rows.jsonl", "me.png"))]
    assert set(staged.files) <= {
        *DATASET_FILES,
        *(f"data/{side}-00000-of-00001.parquet" for side in ("train", "validation", "test")),
    }
    assert {note for note in staged.notes if note.startswith("not uploaded")} == {
        "not uploaded: data/bad_rows.jsonl (may name files of this machine)",
        "not uploaded: data/codec/state.pkl (not a dataset file)",
        "not uploaded: data/me.png (not a dataset file)",
        "not uploaded: data/tokenizer/.env (not a dataset file)",
    }


def test_shards_together_hold_the_rows_in_order_and_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = smooth_images(45, channels=3)
    class_folder(tmp_path / "in", {name: images[i::3] for i, name in enumerate(CLASSES)})
    prepare_images(tmp_path / "data", tmp_path / "in", keep_images=True)
    monkeypatch.setattr(dataset_repo, "SHARD_BYTES", 2_000)
    options = PushArguments(model_dir="x", repo_id=MODEL, dataset_dir=str(tmp_path / "data"), dataset_repo_id=ROWS)
    staged = stage_dataset(options, tmp_path / "staged")
    check_staged([staged], None)
    assert len([name for name in staged.files if name.startswith("data/train-")]) > 2
    loaded = load_dataset(str(staged.folder), cache_dir=str(tmp_path / "cache"))
    for side, rows in load_prepared(tmp_path / "data").items():
        assert loaded[side].features == rows.features and loaded[side]["input_ids"][:] == rows["input_ids"][:]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(loaded[side]["image"], rows["image"], strict=True))


@pytest.mark.parametrize("column", ["image", "label"])
def test_rows_that_were_changed_are_not_published(tmp_path: Path, column: str):
    cats_and_dogs(tmp_path / "in")
    prepare_images(tmp_path / "data", tmp_path / "in", keep_images=True)
    edit_column(tmp_path / "data", "train", column, lambda values: [*values[1:], values[0]])
    options = PushArguments(model_dir="x", repo_id=MODEL, dataset_dir=str(tmp_path / "data"), dataset_repo_id=ROWS)
    with pytest.raises(InputError, match=f"train: other values, or another order of rows, in column {column}"):
        stage_dataset(options, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_rows_that_the_model_was_not_trained_on_are_not_published_as_its_own(pictured: Path, tmp_path: Path):
    prepare_images(tmp_path / "data", pictured / "in", seed=7)
    folders = {"model_dir": str(pictured / "out/best_model"), "dataset_dir": str(tmp_path / "data")}
    with pytest.raises(InputError, match="was trained on data with the fingerprint"):
        stage_dataset(PushArguments(repo_id=MODEL, dataset_repo_id=ROWS, **folders), tmp_path / "staged")
    folders["dataset_dir"] = str(pictured / "data")
    stage_dataset(PushArguments(repo_id=MODEL, dataset_repo_id=ROWS, **folders), tmp_path / "staged")


def test_the_token_in_use_is_found_whatever_its_form(folder: Path, tmp_path: Path):
    (folder / "generation_config.json").write_text(json.dumps({"note": "my-own-hub-password"}))
    with pytest.raises(InputError, match="the Hub token in use"):
        check_staged([stage(folder, tmp_path)], "my-own-hub-password")


def test_paths_in_commands_are_shortened(folder: Path, tmp_path: Path, pictured: Path):
    assert str(pictured) in (folder / "run.json").read_text()
    staged = stage(folder, tmp_path)
    card = (staged.folder / "README.md").read_text()
    assert str(pictured) not in card and "--dataset_dir data --output_dir out" in card
    check_staged([staged], None)


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


def test_a_card_without_results_shows_no_figures(folder: Path, tmp_path: Path):
    (folder / "eval_results.json").unlink()
    staged = stage(folder, tmp_path)
    check_staged([staged], None)
    card = (staged.folder / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert "## Results" not in card and "model-index" not in metadata and "confusion_matrix" not in card
    assert any("the card shows no figures" in note for note in staged.notes)


@pytest.mark.parametrize("name", ["run.json", "stats.json", "training_args.json", "selection.json", "log_history.json"])
def test_a_card_omits_a_record_that_is_missing_or_incomplete(folder: Path, tmp_path: Path, name: str):
    if name == "run.json":
        (folder / name).write_text("{}")
    else:
        (folder / name).unlink()
    staged = stage(folder, tmp_path)
    check_staged([staged], None)
    card = (staged.folder / "README.md").read_text()
    gone = {
        "run.json": ["## Training", "trained from scratch"],
        "stats.json": ["## Data"],
        "training_args.json": ["## Training"],
        "selection.json": ["were chosen", "those of the last step"],
        "log_history.json": ["loss.png"],
    }
    assert "## Results" in card and not [words for words in gone[name] if words in card]
    assert any("run.json lacks command" in note for note in staged.notes) == (name == "run.json")


def edit(file: Path, **more: object) -> dict:
    """Changes entries of a record; gives the record as it was."""
    record = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in (record | more).items() if value is not None}))
    return record


def test_a_card_tells_what_was_done_and_which_baseline_is_not_clearly_beaten(folder: Path, tmp_path: Path):
    done = {"steps": 8, "planned_steps": 60, "epochs": 8 / 9, "planned_epochs": 60 / 9}
    base = {"kept_classes": ["dog"], "new_classes": ["cat", "snow owl"], "test_rows_seen": 2}
    identity = json.loads((folder / "run.json").read_text())["identity"] | {"started_from": "someone/pets"}
    stopped = {"stopped": "3 evaluations without a better cls_accuracy"}
    edit(folder / "run.json", trained=done | stopped, base=base, identity=identity)
    options = json.loads((folder / "stats.json").read_text())["options"] | {"output_dir": "data/my pets (v2)"}
    edit(folder / "stats.json", duplicates_dropped=5, label_conflicts={"total": 2, "first": []}, options=options)
    edit(folder / "training_args.json", warmup_steps=0.05)
    test = {"only_model": 5, "only_baseline": 2, "p_value": 0.453125, "clearly_better": False}
    better = {"versus_bag_of_tokens": test, "versus_majority": test | {"clearly_better": True}}
    n = edit(folder / "eval_results.json", **better)["eval_samples"]
    card = stage(folder, tmp_path).files["README.md"].read_text()
    assert "\n| dropped | 5 duplicates (2 of them with another label than the row that stays), 0 bad rows |\n" in card
    assert "\n| warmup | 5 % of the steps |\n" in card
    assert "Of its classes those of dog were kept by name; these started anew: cat, snow owl." in card
    assert "**2 test rows show images that pets was trained on:**" in card
    kinds = {result.dataset_type for result in ModelCard(card).data.eval_results}
    assert kinds == {"my-pets-v2"}  # as the Hub's ids are spelled
    length = "8 of 60 planned steps (0.889 of 6.67 epochs), stopped early: 3 evaluations without a better cls_accuracy"
    assert f"\n| length | {length} |\n" in card
    counts = f"of {n} rows 5 are right by the model only, 2 by the baseline only; exact sign test, p = 0.45"
    assert f"\n\n**The model is not clearly better than a bag of tokens ({counts}).**\n\n" in card


def test_a_card_of_an_older_run_calls_its_length_planned_and_compares_nothing(folder: Path, tmp_path: Path):
    edit(folder / "run.json", trained=None)
    edit(folder / "eval_results.json", versus_bag_of_tokens=None, versus_majority=None)
    (folder / "training_images.safetensors").unlink()
    card = stage(folder, tmp_path).files["README.md"].read_text()
    assert "\n| length | 3 epochs planned |\n" in card
    assert "clearly better" not in card and "training_images" not in card


def test_the_record_of_the_training_images_is_published_and_explained(folder: Path, tmp_path: Path):
    staged = stage(folder, tmp_path)
    card = staged.files["README.md"].read_text()
    assert "(3 epochs), as planned |" in card and "clearly better than" in card
    assert (
        "`training_images.safetensors` holds a 64-bit digest" in card and "training_images.safetensors" in staged.files
    )


def test_figures_that_name_no_weights_are_not_shown(folder: Path, tmp_path: Path):
    results = json.loads((folder / "eval_results.json").read_text())
    del results["weights_sha256"]
    (folder / "eval_results.json").write_text(json.dumps(results))
    staged = stage(folder, tmp_path)
    assert "## Results" not in (staged.folder / "README.md").read_text() and "eval_results.json" not in staged.files
    assert any("eval_results.json lacks weights_sha256" in note for note in staged.notes)


@pytest.mark.parametrize(("started_from", "base"), [("/mnt/base/best_model", None), ("me/base", "me/base")])
def test_a_base_model_is_named_only_if_others_can_find_it(folder: Path, tmp_path: Path, started_from: str, base: str):
    run = json.loads((folder / "run.json").read_text())
    run["identity"]["started_from"] = started_from
    (folder / "run.json").write_text(json.dumps(run | {"base_model": base}))
    card = (stage(folder, tmp_path).folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]).get("base_model") == base
    assert "fine-tuned on such rows" in card and f"From the checkpoint {base or 'best_model'}" in card


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


def rename_classes(folder: Path, names: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    results = json.loads((folder / "eval_results.json").read_text())
    (folder / "eval_results.json").write_text(json.dumps(results | {"class_names": names}))


def test_a_model_whose_classes_cannot_be_told_apart_is_not_published(folder: Path, tmp_path: Path):
    rename_classes(folder, ["cat", "cat\u200b", "dog"])
    with pytest.raises(InputError, match="classes 0 and 1 have names that look the same"):
        stage(folder, tmp_path)


def test_a_card_holds_no_control_characters_and_no_over_long_names(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fontManager, "ttflist", [e for e in fontManager.ttflist if get_data_path() in e.fname])
    rename_classes(folder, ["c\x1b[2Jat猫", "d\u202eog", "x" * 500])
    card = (stage(folder, tmp_path).folder / "README.md").read_text()
    assert not set(card) & set("\x1b\u202e") and "x" * 40 not in card
    assert all(name in card for name in ("c\\\\x1b\\[2Jat猫", "d\\\\u202eog", "x" * 39 + "…"))
    assert "confusion_matrix.png)\n\nPictures show numbers for classes" in card  # and not boxes
    assert card.count("class 0 is c\\\\x1b\\[2Jat猫.") == 1
