"""Contents and helpers for the tests of the local Hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from huggingface_hub import CommitInfo, HfApi, hf_hub_download
from huggingface_hub import CommitOperationAdd as Add

THING = "alice/thing"
WEIGHTS = np.random.default_rng(0).bytes(300_000) + bytes(range(256)) * 400
SMALL = {
    "README.md": b"---\nlicense: mit\n---\n# A thing\n",
    "empty.txt": b"",
    "ein ordner/stück 1.txt": "Größe".encode(),
}
CONTENT = SMALL | {"model.safetensors": WEIGHTS, "plots/curve": b"\x89PNG\0\xff"}


def push(api: HfApi, content: dict[str, bytes], repo_id: str = THING, **options) -> CommitInfo:
    operations = [Add(path, data) for path, data in content.items()]
    return api.create_commit(repo_id, operations, **{"commit_message": "Push"} | options)


def download(api: HfApi, path: str, home: Path, repo_id: str = THING, **options) -> bytes:
    token = options.pop("token", api.token)
    file = hf_hub_download(repo_id, path, endpoint=api.endpoint, token=token, cache_dir=home, **options)
    return Path(file).read_bytes()
