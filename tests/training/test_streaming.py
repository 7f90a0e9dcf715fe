"""Streamed rows: every row once in an epoch, whatever the processes and interruptions; bad shards are named."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from benchmarks.common import random_rows
from benchmarks.noted_train import digest
from benchmarks.stream_rows import read_notes, train_and_stop
from benchmarks.stream_rows import write_shards as write_equal_shards
from imagelm.commands.train import parse_launch
from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared, load_stats
from imagelm.data.prepare import prepare
from imagelm.tokens.tokenizer import load_grammar
from imagelm.training.inputs import load_inputs
from imagelm.training.shard_files import deal, open_streams
from imagelm.training.streaming import RowCheck, StreamedRows, Update
from imagelm.utils.errors import InputError
from tests.conftest import TINY
from tests.conftest import run as run_command
from tests.training.test_processes import LAUNCH

NUM_SHARDS, NUM_ROWS = 6, 72


def write_shards(prepared: Path, folder: Path, kind: str) -> str:
    """The training rows as equal shards; returns a pattern for them."""
    train, folder = load_prepared(prepared)["train"], folder / kind
    folder.mkdir()
    for index in range(NUM_SHARDS):
        part, file = train.shard(NUM_SHARDS, index, contiguous=True), folder / f"{index}.{kind}"
        if kind == "parquet":
            part.to_parquet(file)
        elif kind == "jsonl":
            part.to_json(file)
        else:
            table = part.with_format("arrow")[:]
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
    return str(folder / "*")


def stream(prepared: Path, pattern: str | None, update: Update, held_out=(0,)) -> StreamedRows:
    stats, grammar = load_stats(prepared), load_grammar(prepared / "tokenizer")
    _, lanes, source = open_streams(str(prepared), prepared, pattern, stats, grammar, update.num_rows)
    check = RowCheck(grammar, np.asarray(held_out, dtype=np.int64))
    return StreamedRows(lanes, update, 3, 20, check, np.zeros(3, np.int64), source)


def epoch_of(rows: StreamedRows, epoch: int, update: Update) -> tuple[dict[int, list], dict[int, set]]:
    """The rows of each update, sorted, and the lanes that each process reads, by batches dealt in turn."""
    rows.set_epoch(epoch)
    updates, lanes = defaultdict(list), defaultdict(set)
    for number in range(len(rows) // update.batch):
        places = list(range(number * update.batch, (number + 1) * update.batch))
        for place, row in zip(places, rows.__getitems__(places), strict=True):
            lanes[number % update.num_processes].add(rows.lane_and_index(place)[0])
            if "labels" not in row:
                updates[place // update.num_rows].append(tuple(map(int, row["input_ids"])))
    return {number: sorted(found) for number, found in updates.items()}, dict(lanes)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("arrow", "jsonl")]


@pytest.mark.parametrize("kind", ["saved", "parquet", *SLOW])
def test_each_epoch_has_every_row_once_in_an_order_that_processes_don_t_change(prepared, tmp_path, kind):
    pattern = None if kind == "saved" else write_shards(prepared, tmp_path, kind)
    expected = Counter(map(tuple, load_prepared(prepared)["train"]["input_ids"]))
    found = {}
    for update in (Update(8, 1, 1), Update(4, 1, 2), Update(2, 2, 2), Update(2, 1, 4)):
        rows = stream(prepared, pattern, update)
        epochs = [epoch_of(rows, epoch, update) for epoch in (0, 1)]
        for updates, _ in epochs:
            assert Counter(row for part in updates.values() for row in part) == expected
        assert epochs[0][0] != epochs[1][0]
        assert found.setdefault(kind, epochs[0][0]) == epochs[0][0]
        shared = set.intersection(*epochs[0][1].values()) if update.num_processes == 2 else set()
        assert not shared  # no process reads what another one does


def test_reading_starts_at_any_place_and_a_sample_comes_from_all_lanes(prepared, tmp_path):
    rows = stream(prepared, write_shards(prepared, tmp_path, "parquet"), Update(6, 1, 1))
    rows.set_epoch(1)
    whole = [row["input_ids"].tolist() for row in rows.__getitems__(list(range(72)))]
    for start in (40, 7):  # forwards, and back
        assert [row["input_ids"].tolist() for row in rows.__getitems__([start, start + 1])] == whole[start : start + 2]
    sample = rows.sample(18)
    assert len(sample) == 18 and len({tuple(row) for row in sample["input_ids"]}) == 18
    assert [len({tuple(row) for row in rows.sample(size)["input_ids"]}) for size in (20, 99)] == [20, 72]


def test_shards_are_dealt_to_lanes_of_equal_size_as_many_as_the_batch_allows():
    assert deal([10] * 8, 128) == [[0], [1], [2], [3], [4], [5], [6], [7]]
    assert deal([10] * 12, 128) == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]  # eight would leave a quarter empty
    assert deal([30, 10, 10, 10], 2) == [[0], [1, 2, 3]]
    assert deal([10] * 5, 8) == [[0, 1, 2, 3, 4]]
    assert deal([100, 1, 1], 4) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (
            lambda folder: (folder / "3.parquet").unlink(),
            r"60 training rows, but stats.json records 72: a shard is mis",
        ),
        (
            lambda folder: shutil.copy(folder / "3.parquet", folder / "9.parquet"),
            "84 training rows.*a shard is there tw",
        ),
        (
            lambda folder: (folder / "3.parquet").write_bytes(b"PAR1" * 20),
            r"1 of 6 shards can't be read: .*/3\.parquet: ",
        ),
        (lambda folder: [file.unlink() for file in folder.glob("*")], "no shards of training rows"),
    ],
)
def test_missing_repeated_and_damaged_shards_are_named(prepared, tmp_path, damage, found):
    pattern = write_shards(prepared, tmp_path, "parquet")
    damage(tmp_path / "parquet")
    with pytest.raises(InputError, match=found):
        stream(prepared, pattern, Update(8, 1, 1))


def test_a_row_of_the_stream_that_is_evaluated_or_out_of_the_grammar_ends_the_run(prepared, tmp_path):
    from imagelm.data.load import image_bodies
    from imagelm.data.training_images import image_digests

    pattern, data = write_shards(prepared, tmp_path, "arrow"), load_prepared(prepared)
    held_out = image_digests(image_bodies(data["train"]))[5:7]
    with pytest.raises(InputError, match="2 of 72 rows show images that are also in a split that is e"):
        epoch_of(stream(prepared, pattern, Update(1, 1, 1), held_out), 0, Update(1, 1, 1))
    file = tmp_path / "arrow/2.arrow"
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    ids = table["input_ids"].to_pylist()
    ids[4][2] = 999
    table = table.set_column(0, table.schema.field("input_ids"), pa.array(ids, table.schema.field("input_ids").type))
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match=r"--streaming .*: a row is empty, or has a token or a label that"):
        epoch_of(stream(prepared, pattern, Update(1, 1, 1)), 0, Update(1, 1, 1))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--dataloader_num_workers", "2"], "--streaming: remove --dataloader_num_workers; each worker would read all"),
        (["--dataloader_drop_last", "true"], "--streaming: remove --dataloader_drop_last"),
        (["--train_sampling_strategy", "group_by_length"], "--streaming: remove --train_sampling_strategy"),
        (["--augment", "hflip"], "--streaming: remove --augment"),
    ],
)
def test_what_can_t_be_streamed_is_refused(prepared, tmp_path, words, found):
    with pytest.raises(InputError, match=found):
        parse_launch(
            ["--dataset_dir", str(prepared), "--streaming", "--output_dir", str(tmp_path / "out"), *TINY, *words]
        )


def upload(prepared: Path, url: str, pattern: str) -> None:
    """Puts prepared data into a store as a dataset repository holds them, with the shards of the training rows."""
    store, root = fsspec.core.url_to_fs(url)
    for name in ("tokenizer", "stats.json"):
        store.put(str(prepared / name), f"{root}/{name}", recursive=True)
    for split in ("validation", "test"):
        file = Path(pattern).parent.parent / f"{split}.parquet"
        load_prepared(prepared)[split].to_parquet(file)
        store.put(str(file), f"{root}/data/{split}-00000-of-00001.parquet")
    for file in Path(pattern).parent.glob("*"):
        store.put(str(file), f"{root}/data/train-{file.name}")


def test_data_in_a_store_are_streamed_from_there(prepared, tmp_path):
    upload(prepared, "memory://bucket/mine", write_shards(prepared, tmp_path, "parquet"))
    words = ["--dataset_dir", "memory://bucket/mine", "--streaming", "--output_dir", str(tmp_path / "out"), *TINY]
    data = load_inputs(parse_launch(words))
    rows = data.train.__getitems__(list(range(len(data.train))))
    found = Counter(tuple(row["input_ids"].tolist()) for row in rows if "labels" not in row)
    assert found == Counter(map(tuple, load_prepared(prepared)["train"]["input_ids"]))
    assert (len(data.dataset["validation"]), len(data.dataset["test"])) == (8, 18)
    with pytest.raises(InputError, match=r"--dataset_dir memory://bucket/nothing holds no stats\.json"):
        parse_launch([*words, "--dataset_dir", "memory://bucket/nothing"])


def digests(rows) -> Counter:
    return Counter(digest(np.asarray(row)) for row in rows["input_ids"])


def noted(notes: Path, first: int, last: int) -> Counter:
    """The rows of the steps from `first` to before `last`, of all processes."""
    found = read_notes(notes)
    return Counter(found["row"][(first <= found["step"]) & (found["step"] < last)].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, False])
def test_two_processes_stopped_twice_and_then_one_see_every_row_exactly_once(prepared, tmp_path, streamed):
    """Eight updates of 10 rows are an epoch, the last one of two rows; the last run does the second epoch, alone."""
    notes = tmp_path / "notes"
    words = ["--dataset_dir", prepared, "--output_dir", tmp_path / "out", *TINY, "--lr_scheduler_type", "constant"]
    words += ["--streaming", write_shards(prepared, tmp_path, "parquet")] if streamed else []
    for steps, processes in ((3, 2), (6, 2), (8, 2), (16, 1)):
        several = ("--multi_gpu", "--num_processes", processes, "--main_process_port", 0) if processes > 1 else ()
        done = run_command(
            *(*LAUNCH, "--mixed_precision", "no", *several, "-m", "benchmarks.noted_train", notes, *words),
            *("--per_device_train_batch_size", 10 // processes, "--max_steps", steps, "--change_processes"),
            ACCELERATE_USE_CPU="true",
        )
        assert done.returncode == 0, done.stderr
    expected = digests(load_prepared(prepared)["train"])
    assert noted(notes, 0, 8) == noted(notes, 8, 16) == expected
    assert noted(notes, 0, 3) != noted(notes, 8, 11)  # another order in the second epoch


@pytest.mark.slow
def test_a_streamed_run_of_two_processes_that_sigterm_stops_twice_trains_on_every_row_once(tmp_path):
    """The benchmark with 10,000 rows; it fails if a row is missing or repeated, or if a reported step is wrong."""
    rows, data = random_rows(tmp_path / "raw", 10_000, 53, num_codes=16), tmp_path / "data"
    words = {"data_files": [str(rows)], "vocab_file": str(rows.parent / "vocab.json"), "output_dir": str(data)}
    prepare(PrepareArguments(**words, test_size=0.01), command="test")
    train = load_prepared(data)["train"]
    write_equal_shards(train, tmp_path / "shards", NUM_SHARDS)
    launches = list(train_and_stop(tmp_path, str(tmp_path / "shards/*"), train, 32))
    assert sum(launch["rows"] for launch in launches) == len(train)
    ends = [(run["first_step"], run["last_step"]) for launch in launches for run in launch["processes"]]
    assert ends[0::2] == ends[1::2] and 0 == ends[0][0] < ends[0][1] == ends[2][0] < ends[2][1] == ends[4][0]


@pytest.mark.slow
def test_a_streamed_run_trains_from_a_repository_of_the_hub(pictured, tmp_path, hub):
    online = hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
    pushed = run_command(
        *(
            "push_to_hub.py",
            "--model_dir",
            pictured / "out/best_model",
            "--repo_id",
            "alice/animals",
            "--license",
            "mit",
        ),
        *("--dataset_dir", pictured / "data", "--dataset_repo_id", "alice/rows"),
        **online,
    )
    assert pushed.returncode == 0, pushed.stderr
    done = run_command(
        *("train.py", "--dataset_dir", "hf://datasets/alice/rows", "--streaming", "--output_dir", tmp_path / "out"),
        *(*TINY, "--num_train_epochs", 1),
        **online,
    )
    assert done.returncode == 0, done.stderr
    assert "the training rows are streamed in 1 lanes and checked as they are read" in done.stdout
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["data"]["fingerprint"] == load_stats(pictured / "data")["fingerprint"]
    assert (tmp_path / "out/best_model/codec").is_dir() or (tmp_path / "out/best_model/codec.safetensors").is_file()
