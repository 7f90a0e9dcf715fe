"""A dataset repository: Parquet shards, card, statistics, and the tokenizer and codec that belong to the rows.

One idea: what `load_dataset` gives is what trained the model, column by column and in the same order.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from datasets import Dataset, DatasetDict, disable_progress_bars, enable_progress_bars
from huggingface_hub import DatasetCard, DatasetCardData

from imagelm.data.load import load_prepared, load_stats
from imagelm.data.stats import dataset_card
from imagelm.hub.arguments import PushArguments
from imagelm.hub.privacy import without_paths
from imagelm.hub.staged import CARD_FILE, DATASET_COPIED, Staged
from imagelm.utils.artifacts import CODEC_FOLDER, RAW_FOLDER, STATS_FILE, TOKENIZER_FOLDER
from imagelm.utils.atomic_io import write_json, write_text

SHARD_BYTES = 500_000_000
REASONS = dict.fromkeys(("bad_rows.jsonl", RAW_FOLDER), "may name files of this machine")
BATCH_ROWS = 1_000  # rows a row group: what the Hub's viewer reads at once


def stage_dataset(options: PushArguments, folder: Path) -> Staged:
    """Puts a dataset repository together, in constant memory.

    Raises:
        InputError: `--dataset_dir` isn't a prepared dataset.
    """
    source = Path(options.dataset_dir)
    dataset, stats = load_prepared(source), load_stats(source)
    staged = Staged("dataset", options.dataset_repo_id, folder)
    (folder / "data").mkdir(parents=True)
    disable_progress_bars()
    for name, rows in dataset.items():
        _write_shards(rows, folder / "data", name)
    enable_progress_bars()
    for name in DATASET_COPIED:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    stats, hidden = without_paths(stats)
    write_json(folder / STATS_FILE, stats)
    write_text(folder / CARD_FILE, _card(options, stats, dataset, folder / "data"))
    if hidden:
        staged.notes.append(f"{STATS_FILE}: {hidden} paths of this machine were shortened to their last part")
    staged.notes += _left_out(source, dataset, staged.files)
    return staged


def _write_shards(rows: Dataset, folder: Path, split: str) -> None:
    count = max(1, math.ceil((rows.data.nbytes or 0) / SHARD_BYTES))
    for shard in range(count):
        part = rows.shard(count, shard, contiguous=True)
        part.to_parquet(str(folder / f"{split}-{shard:05d}-of-{count:05d}.parquet"), batch_size=BATCH_ROWS)


def _card(options: PushArguments, stats: dict, dataset: DatasetDict, shards: Path) -> str:
    """The card that `prepare_dataset.py` writes, with what the Hub needs to find the shards."""
    card = DatasetCard(dataset_card(stats))
    features = dataset["train"].features._to_yaml_list()
    card.data = DatasetCardData(
        **card.data.to_dict()
        | {
            "pretty_name": options.dataset_repo_id.split("/")[-1],
            "license": options.license,
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [{"split": split, "path": f"data/{split}-*"} for split in ("train", "test")],
                }
            ],
            "dataset_info": {
                "features": features,
                "splits": [
                    {"name": split, "num_bytes": rows.data.nbytes, "num_examples": len(rows)}
                    for split, rows in dataset.items()
                ],
                "download_size": sum(file.stat().st_size for file in shards.glob("*.parquet")),
                "dataset_size": sum(rows.data.nbytes for rows in dataset.values()),
            },
        }
    )
    usage = (
        "\n## Use it\n\n```python\nfrom datasets import load_dataset\n\n"
        f'rows = load_dataset("{options.dataset_repo_id}")\n'
        'print(rows["train"][0])\n```\n\n'
        f"The model that was trained on it: [{options.repo_id}](https://huggingface.co/{options.repo_id}). "
        f"`{STATS_FILE}` holds all statistics.\n"
    )
    return f"{card.content.rstrip()}\n{usage}"


def _left_out(source: Path, dataset: DatasetDict, files: dict[str, Path]) -> list[str]:
    """A line for each entry of the prepared folder that doesn't go out, neither as it is nor as Parquet."""
    sent = {*(name.split("/")[0] for name in files), *dataset, "dataset_dict.json"}
    inner = [path for folder in (TOKENIZER_FOLDER, CODEC_FOLDER) for path in (source / folder).glob("*")]
    names = [path.name for path in source.iterdir() if path.name not in sent]
    names += [name for path in inner if (name := path.relative_to(source).as_posix()) not in files]
    return [f"left out: {source.name}/{name} ({REASONS.get(name, 'not of the dataset')})" for name in sorted(names)]
