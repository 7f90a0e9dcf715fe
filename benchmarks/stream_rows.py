#!/usr/bin/env python
"""Rows that are prepared in shards and streamed through training in two processes, which is stopped twice.

    python -m benchmarks.stream_rows --num_rows 1000000

datatrove prepares the shards (examples/prepare_shards.py), whose merge is compared with what one process writes. Then
a tiny model trains on Parquet shards of the rows for one epoch; SIGTERM ends it after one and two thirds of them, and
the same command goes on. Each row is noted as it enters the model; those noted are compared with the prepared rows.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset

from benchmarks.common import ROOT, environment, parser, random_rows, run, save
from benchmarks.noted_train import NOTE, digest
from imagelm.data.load import load_prepared
from imagelm.utils.artifacts import MANIFEST_FILE, STATS_FILE
from imagelm.utils.atomic_io import read_json

LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml", "--mixed_precision", "no")
PROCESSES = 2
# Small enough that reading, checking and noting the rows is a good part of the work.
NUM_CODES = 16
MODEL = "num_hidden_layers=1,num_attention_heads=1,hidden_size=16,n_inner=16,resid_pdrop=0,embd_pdrop=0,attn_pdrop=0"
TELL_THE_COMMAND = {STATS_FILE, "README.md", MANIFEST_FILE}
STOPPED = r"stopped by SIGTERM at step (\d+): checkpoint-\1 is saved"


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--num_rows", type=int, default=1_000_000)
    made.add_argument("--length", type=int, default=201, help="tokens a row")
    made.add_argument("--num_shards", type=int, default=8)
    made.add_argument("--batch_size", type=int, default=512, help="rows of a process per update")
    made.add_argument(
        "--held_out", type=float, default=0.001, help="share of the test rows, and of the validation rows"
    )
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        found = prepare(home, arguments)
        train = load_prepared(home / "data")["train"]
        write_shards(train, home / "shards", arguments.num_shards)
        launches = list(train_and_stop(home, str(home / "shards/*"), train, arguments.batch_size))
        steps = read_notes(home / "notes")["step"]
    numbers = {name: getattr(arguments, name) for name in ("num_rows", "length", "num_shards", "batch_size")}
    found |= {"training_rows": len(train), "updates": int(steps.max()) + 1, "launches": launches}
    save("stream_rows", numbers | found, arguments.output)


def prepare(home: Path, arguments) -> dict[str, float]:
    """Writes `home/data` in shards by the engine, and `home/one` in one process; the seconds of both.

    Raises:
        AssertionError: They differ in more than the command that made them.
    """
    rows = random_rows(home / "raw", arguments.num_rows, arguments.length, num_codes=NUM_CODES)
    words = ["--data_files", str(rows), "--vocab_file", str(home / "raw/vocab.json")]
    words += ["--test_size", str(arguments.held_out), "--validation_size", str(arguments.held_out)]
    engine = ["-m", "examples.prepare_shards", "--shards", str(arguments.num_shards), "--workers", str(PROCESSES)]
    engine += ["--work", str(home / "work"), "--output_dir", str(home / "data"), "--", *words]
    several = run([sys.executable, *engine], 1, cores=PROCESSES)
    one = run([sys.executable, "-m", "imagelm", "prepare", *words, "--output_dir", str(home / "one")], 1)
    contents = [
        {str(file.relative_to(home / name)): file for file in (home / name).rglob("*") if file.is_file()}
        for name in ("one", "data")
    ]
    assert contents[0].keys() == contents[1].keys()
    for name in contents[0].keys() - TELL_THE_COMMAND:
        assert subprocess.run(["cmp", *(str(files[name]) for files in contents)]).returncode == 0, name
    digests = [read_json(files[STATS_FILE])["fingerprint"] for files in contents]
    assert digests[0] == digests[1]
    return {"seconds_in_shards": round(several["wall_seconds"], 1), "seconds_in_one": round(one["wall_seconds"], 1)}


def write_shards(train: Dataset, folder: Path, num_shards: int) -> None:
    folder.mkdir()
    for index in range(num_shards):
        train.shard(num_shards, index, contiguous=True).to_parquet(folder / f"{index}.parquet")


def train_and_stop(home: Path, pattern: str, train: Dataset, batch_size: int, *words: str) -> Iterator[dict]:
    """Trains on all rows once, ended by SIGTERM after one and two thirds of them; the figures of each launch.

    Args:
        home: Holds `data`, prepared; gets the output in `out` and the notes.
        pattern: Of the shards.
        train: The rows in them.
        batch_size: Rows of a process per update.
        words: More options of the training.

    Raises:
        AssertionError: A row was trained on twice or never, or a launch didn't end as it should.
    """
    notes, third = home / "notes", len(train) // 3 // PROCESSES
    given = ["--dataset_dir", str(home / "data"), "--streaming", pattern, "--output_dir", str(home / "out")]
    given += ["--config_overrides", MODEL, "--num_train_epochs", "1", "--bf16", "false", "--num_threads", "1"]
    given += ["--per_device_train_batch_size", str(batch_size), "--disable_tqdm", "true", *words]
    several = ("--multi_gpu", "--num_processes", str(PROCESSES), "--main_process_port", "0")
    command = [sys.executable, *LAUNCH, *several, "-m", "benchmarks.noted_train"]
    noted = read_notes(notes)
    for stop in (["--stop_at", str(third)], ["--stop_at", str(third)], []):
        started, before = time.perf_counter(), len(noted)
        stopped_at = launch([*command, *stop, str(notes), *given], home)
        seconds, noted = time.perf_counter() - started, read_notes(notes)
        processes = [json.loads(file.read_text().splitlines()[-1]) for file in sorted(home.glob("notes.*.json"))]
        completed = {process["last_step"] for process in processes} | ({stopped_at} if stop else set())
        assert completed == {int(noted["step"].max()) + 1}, "rows of an update that wasn't completed were trained on"
        rate = round((len(noted) - before) / max(process["seconds"] for process in processes))
        yield {
            "rows": len(noted) - before,
            "seconds": round(seconds, 1),
            "rows_per_second": rate,
            "processes": processes,
        }
    expected = np.array([digest(ids) for rows in train.with_format("numpy").iter(1000) for ids in rows["input_ids"]])
    assert np.array_equal(np.sort(noted["row"]), np.sort(expected)), "rows are missing or repeated"


def launch(command: list[str], home: Path) -> int:
    """Runs the command; the step at which it says that SIGTERM stopped it, 0 if it came to its end."""
    with open(home / "log", "w+") as log:
        own = environment(1) | {"ACCELERATE_USE_CPU": "true"}
        code = subprocess.run(command, cwd=ROOT, env=own, stdout=log, stderr=log).returncode
        log.seek(0)
        output = log.read()
    found = re.search(STOPPED, output)
    assert bool(code) == bool(found) == ("--stop_at" in command), output
    return int(found[1]) if found else 0


def read_notes(notes: Path) -> np.ndarray:
    """The notes of all processes, of type `NOTE`."""
    files = [file for i in range(PROCESSES) if (file := notes.with_name(f"{notes.name}.{i}")).exists()]
    return np.concatenate([np.empty(0, NOTE), *(np.fromfile(file, NOTE) for file in files)])


if __name__ == "__main__":
    main()
