"""What a push is going to send, file by file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from imagelm.codecs.reconstruction import CODEBOOK_IMAGE, RECONSTRUCTION_IMAGE
from imagelm.evaluation.report import PLOTS
from imagelm.models.processor import CODE_FILES
from imagelm.remote_code.codec_imagelm import CODEC_CONFIG, CODEC_WEIGHTS
from imagelm.remote_code.processing_imagelm import PROCESSOR_CONFIG
from imagelm.utils.artifacts import CODEC_FOLDER, RESULTS_FILE, STATS_FILE, TOKENIZER_FOLDER

CARD_FILE = "README.md"


DRAWINGS_FILE = "drawings.png"


EVAL_RESULTS_FOLDER = ".eval_results"


WHOLE_WEIGHTS = "model.safetensors"


WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


# Copied as they are; what else the repository holds is made anew.
COPIED = ("config.json", "generation_config.json", CODEC_CONFIG, CODEC_WEIGHTS, PROCESSOR_CONFIG)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


# Beside the shards of a dataset repository, copied from what prepare_dataset.py wrote.
DATASET_COPIED = (
    *(f"{TOKENIZER_FOLDER}/{name}" for name in TOKENIZER_FILES),
    *(f"{CODEC_FOLDER}/{name}" for name in (CODEC_CONFIG, CODEC_WEIGHTS)),
    *(CODEBOOK_IMAGE, RECONSTRUCTION_IMAGE),
)


DATASET_FILES = (*DATASET_COPIED, STATS_FILE, CARD_FILE)


@dataclass
class Staged:
    """A repository's content, put together.

    Attributes:
        kind: "dataset", "model" or "space".
        repo_id: `USER/NAME`.
        folder: All that goes out, and nothing else.
        notes: What was left out or changed on the way, a line each.
    """

    kind: str
    repo_id: str
    folder: Path
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, Path]:
        """Path in the repository → file, sorted."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files.values())


def is_ours(kind: str, path: str) -> bool:
    """Whether a file in a repository is one that a push writes, so that the next push may delete it."""
    if kind == "model":
        own = {*COPIED, WEIGHTS_INDEX, *TOKENIZER_FILES, *CODE_FILES, *PLOTS, CARD_FILE, RESULTS_FILE, DRAWINGS_FILE}
        return path in own or bool(WEIGHTS.fullmatch(path)) or path.startswith(f"{EVAL_RESULTS_FOLDER}/")
    if kind == "dataset":
        return path in DATASET_FILES or bool(re.fullmatch(r"data/(train|test)-\d{5}-of-\d{5}\.parquet", path))
    return path in ("app.py", "requirements.txt", "model_id.txt", CARD_FILE)


WEIGHTS_INDEX = "model.safetensors.index.json"
