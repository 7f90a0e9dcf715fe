"""The content of a repository, put together in a folder, and the names of the files that a push writes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from imagelm.codecs.reconstruction import CODEBOOK_IMAGE, RECONSTRUCTION_IMAGE
from imagelm.evaluation.plots import PLOTS
from imagelm.inference.loading import LoadedModel
from imagelm.models.decision import DECISION_CONFIG, DECISION_TEMPLATE
from imagelm.models.save import CODE_FILES, HANDLER_FILE
from imagelm.remote_code.codec_imagelm import CODEC_CONFIG, CODEC_WEIGHTS
from imagelm.remote_code.processing_imagelm import PROCESSOR_CONFIG
from imagelm.utils.artifacts import CODEC_FOLDER, RESULTS_FILE, STATS_FILE, TOKENIZER_FOLDER, TRAINING_IMAGES_FILE

CARD_FILE = "README.md"
OUR_TAG = "imagelm"  # in the metadata of every card that a push writes
SAMPLES_FILE = "drawings.png"
EVAL_RESULTS_FILE = ".eval_results/held_out.yaml"
MODEL_ID_FILE = "model_id.txt"  # of a demo Space
APP_FILES = ("app.py", "model.py", "parts.py", "pictures.py", "sketch.js", "style.css")  # of one with a server
PAGE_FILES = ("index.html", "app.js", "codec.js", "model.js", "style.css")  # of one without a server
WHOLE_WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
# Copied unchanged; all other files of the repository are written by the push.
COPIED = ("config.json", "generation_config.json", CODEC_CONFIG, CODEC_WEIGHTS, PROCESSOR_CONFIG, TRAINING_IMAGES_FILE)
DECISION_FILES = (DECISION_CONFIG, DECISION_TEMPLATE)
# What `imagelm export` wrote; its own list of files stays at home.
EXPORTED = re.compile(
    r"onnx/(model|model_quantized)\.onnx(\.data)?|openvino/(openvino_model\.(xml|bin)|(config|export)\.json)"
    r"|(onnx|openvino)/imagelm\.json"
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
# Copied from the prepared folder to a dataset repository, next to the shards.
DATASET_COPIED = (
    *(f"{TOKENIZER_FOLDER}/{name}" for name in TOKENIZER_FILES),
    *(f"{CODEC_FOLDER}/{name}" for name in (CODEC_CONFIG, CODEC_WEIGHTS)),
    *(CODEBOOK_IMAGE, RECONSTRUCTION_IMAGE),
)
DATASET_FILES = (*DATASET_COPIED, STATS_FILE, CARD_FILE)


@dataclass
class Staged:
    """The content of a repository."""

    kind: str  # "dataset", "model" or "space"
    repo_id: str
    folder: Path  # holds every file that is uploaded, and nothing else
    notes: list[str] = field(default_factory=list)  # files that aren't uploaded and other things to know
    loaded: LoadedModel | None = None  # the model in `folder`, once for card, samples and checks

    @property
    def files(self) -> dict[str, Path]:
        """Path in the repository → file, sorted."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}


def is_ours(kind: str, path: str) -> bool:
    """Whether a push writes a file of this path, so that the next push may delete it."""
    if kind == "model":
        own = {*COPIED, WEIGHTS_INDEX, *TOKENIZER_FILES, *DECISION_FILES, *CODE_FILES, *PLOTS}
        own |= {HANDLER_FILE, CARD_FILE, RESULTS_FILE, SAMPLES_FILE}
        return path in own or bool(WEIGHTS.fullmatch(path) or EXPORTED.fullmatch(path)) or path == EVAL_RESULTS_FILE
    if kind == "dataset":
        return path in DATASET_FILES or bool(re.fullmatch(r"data/(train|test)-\d{5}-of-\d{5}\.parquet", path))
    return path in (*APP_FILES, "requirements.txt", *PAGE_FILES, MODEL_ID_FILE, CARD_FILE)
