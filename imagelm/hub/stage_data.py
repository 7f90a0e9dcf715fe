"""Puts a dataset repository together: Parquet shards, card, statistics, and the tokenizer and codec of the rows.

One idea: `load_dataset` returns the rows that trained the model, column by column and in the same order.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, DatasetInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData

from imagelm.data.load import load_prepared, load_stats
from imagelm.data.stats import dataset_card
from imagelm.hub.arguments import PushArguments
from imagelm.hub.card import read_record
from imagelm.hub.privacy import without_paths
from imagelm.hub.staged import CARD_FILE, DATASET_COPIED, Staged
from imagelm.utils.artifacts import CODEC_FOLDER, MANIFEST_FILE, RAW_FOLDER, STATS_FILE, TOKENIZER_FOLDER
from imagelm.utils.atomic_io import write_json, write_text
from imagelm.utils.errors import InputError
from imagelm.utils.quiet import quiet_datasets
from imagelm.utils.text import number_of

SHARD_BYTES = 500_000_000
REASONS = dict.fromkeys(("bad_rows.jsonl", RAW_FOLDER), "may name files of this machine")
BATCH_ROWS = 1_000  # rows per row group, which the Hub's viewer reads at once


def stage_dataset(options: PushArguments, folder: Path) -> Staged:
    """Puts a dataset repository together, in constant memory.

    Raises:
        InputError: `--dataset_dir` isn't a prepared dataset, or not the one that the model was trained on.
    """
    repo_id, source = options.repositories["dataset"], Path(options.dataset_dir or "")
    dataset, stats = load_prepared(source, with_images=True), load_stats(source)
    trained_on = (read_record(Path(options.model_dir) / STATS_FILE, dict) or {}).get("fingerprint")
    if trained_on not in (None, stats["fingerprint"]):  # the card says that the model was trained on these rows
        raise InputError(
            f"--dataset_dir {source} has the fingerprint {stats['fingerprint']}, but {options.model_dir} was trained "
            f"on data with the fingerprint {trained_on}; give the folder of these data, or push without --dataset_dir"
        )
    staged = Staged("dataset", repo_id, folder)
    (folder / "data").mkdir(parents=True)
    with quiet_datasets():
        for name, rows in dataset.items():
            _write_shards(rows, folder / "data", name)
    for name in DATASET_COPIED:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    stats, hidden = without_paths(stats)
    write_json(folder / STATS_FILE, stats)
    write_text(folder / CARD_FILE, _card(repo_id, options, stats, dataset, folder / "data"))
    if hidden:
        staged.notes.append(f"{STATS_FILE}: shortened {number_of(hidden, 'local path')} to the last part")
    staged.notes += _not_uploaded(source, dataset, staged.files)
    return staged


def _write_shards(rows: Dataset, folder: Path, split: str) -> None:
    count = max(1, math.ceil((rows.data.nbytes or 0) / SHARD_BYTES))
    for shard in range(count):
        part = rows.shard(count, shard, contiguous=True)
        part.to_parquet(str(folder / f"{split}-{shard:05d}-of-{count:05d}.parquet"), batch_size=BATCH_ROWS)


def _card(repo_id: str, options: PushArguments, stats: dict[str, Any], dataset: DatasetDict, shards: Path) -> str:
    """The card that `imagelm prepare` writes, with the metadata by which the Hub finds the shards."""
    card, columns = DatasetCard(dataset_card(stats, repo_id, options.repo_id)), DatasetCardData()
    DatasetInfosDict({"default": DatasetInfo(features=dataset["train"].features)}).to_dataset_card_data(columns)
    card.data = DatasetCardData(
        **card.data.to_dict()
        | {
            "pretty_name": repo_id.split("/")[-1],
            "license": options.license,
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [{"split": split, "path": f"data/{split}-*"} for split in dataset],
                }
            ],
            "dataset_info": {
                **columns.to_dict()["dataset_info"],
                "splits": [
                    {"name": split, "num_bytes": rows.data.nbytes, "num_examples": len(rows)}
                    for split, rows in dataset.items()
                ],
                "download_size": sum(file.stat().st_size for file in shards.glob("*.parquet")),
                "dataset_size": sum(rows.data.nbytes for rows in dataset.values()),
            },
        }
    )
    return str(card)


def _not_uploaded(source: Path, dataset: DatasetDict, files: dict[str, Path]) -> list[str]:
    """A line for each entry of the prepared folder that isn't uploaded, neither unchanged nor as Parquet."""
    sent = {*(name.split("/")[0] for name in files), *dataset, "dataset_dict.json", MANIFEST_FILE}
    inner = [path for folder in (TOKENIZER_FOLDER, CODEC_FOLDER) for path in (source / folder).glob("*")]
    names = [path.name for path in source.iterdir() if path.name not in sent]
    names += [name for path in inner if (name := path.relative_to(source).as_posix()) not in files]
    return [f"not uploaded: {source.name}/{name} ({REASONS.get(name, 'not a dataset file')})" for name in sorted(names)]
