"""Secrets and local paths in what is staged are found, and what only resembles them is accepted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagelm.hub.checks import check_staged
from imagelm.hub.privacy import find_private, without_paths
from imagelm.utils.errors import InputError
from imagelm.utils.text import table_cell
from testing.local_hub import ALICE
from tests.hub.common import stage


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
