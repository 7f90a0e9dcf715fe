"""Checked rows → a `DatasetDict` on disk: repaired tails, truncation, deduplication, split, statistics.

One idea: all rows are read once, in constant memory; a few bytes of each decide its split. With shards the reading is
shared out, and the merge goes on where one machine would.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import repeat
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from datasets.config import DATASETDICT_JSON_FILENAME

from imagelm.data.arguments import PrepareArguments
from imagelm.data.jsonl.source import JsonlRows
from imagelm.data.jsonl.writer import join_raw
from imagelm.data.row_files import open_table, read_rows, write_splits
from imagelm.data.row_splits import find_duplicates, split_rows
from imagelm.data.rows import ProblemLog, RowCounts, RowSource, sum_counts
from imagelm.data.shards import SavedPlan, open_plan, open_shards, write_shard_record
from imagelm.data.stats import dataset_card, describe, summary, warnings
from imagelm.tokens.tokenizer import write_tokenizer
from imagelm.utils.artifacts import BAD_ROWS_FILE, PLAN_FILE, SHARD_FILE, STATS_FILE, TOKENIZER_FOLDER
from imagelm.utils.atomic_io import write_json, write_text
from imagelm.utils.errors import InputError
from imagelm.utils.output_folder import atomic_folder, check_replaceable
from imagelm.utils.text import number_of

logger = logging.getLogger(__name__)


def prepare(arguments: PrepareArguments, command: str) -> dict:
    """Writes the `DatasetDict`, the tokenizer, `stats.json` and the dataset card into `arguments.output_dir`.

    Memory doesn't grow with the input, but for the draw of a stratified split; what deduplication and split need of
    each row is on the disk. The statistics, which hold the command line, are returned too, and a summary is logged.
    With `num_shards` a shard is written instead, and its record returned; with `merge_shards` the rows are those of
    shards, or a plan is written.

    Raises:
        InputError: The input is wrong or the output folder is taken. Nothing is written then.
    """
    if arguments.merge_shards is not None:
        return _merge(arguments, command)
    if arguments.num_shards is not None:
        return _prepare_shard(arguments)
    folder = atomic_folder(*_output(arguments, DATASETDICT_JSON_FILENAME))
    with folder as staging, TemporaryDirectory(dir=staging) as home:
        with _problem_log(staging) as problems:
            folders, source, counts = _read_all(arguments, Path(home), staging, problems)
            problems.stop_if(arguments.on_bad_rows)
        stats = _write_dataset(arguments, command, source, counts, problems, folders, staging)
    return _log(arguments, stats)


def _read_all(
    arguments: PrepareArguments, home: Path, staging: Path, problems: ProblemLog
) -> tuple[list[Path], RowSource, RowCounts]:
    """Reads all rows into folders in `home`, one for each of `num_proc` processes."""
    folders = [home / str(i) for i in range(arguments.num_proc)]
    for folder in folders:
        folder.mkdir()
    if arguments.num_proc == 1:
        source = _open_source(arguments, staging, problems)
        return folders, source, read_rows(arguments, source, *folders)
    plan = None
    with _processes(arguments, folders) as in_processes:
        if arguments.images is not None:
            from imagelm.data.image_rows import plan_scanned_images  # late, as below

            in_processes(_scan_share, None)
            _add_problems(folders, problems)
            problems.stop_if(arguments.on_bad_rows)
            (home / "plan").mkdir()
            plan = SavedPlan(home / "plan", plan_scanned_images(arguments, folders, home / "plan", problems), "")
        counts = in_processes(_read_share, plan)
    if plan is None:
        _add_problems(folders, problems)
    return folders, _open_source(arguments, staging, problems, plan), sum_counts(counts)


@contextmanager
def _processes(arguments: PrepareArguments, folders: list[Path]) -> Iterator[Callable[..., list[dict]]]:
    """Yields what does some work for each share of the input in a process of its own, with its folder."""
    count = len(folders)
    shares = [  # which go on at a bad row, so that the first ones of all are named
        replace(arguments, num_proc=1, num_shards=count, shard_index=i, on_bad_rows="skip") for i in range(count)
    ]
    others = active_children()
    with ProcessPoolExecutor(count, get_context("spawn"), _end_with_parent) as pool:
        try:
            yield lambda work, plan: list(pool.map(work, shares, folders, repeat(plan)))
        except BrokenProcessPool as error:
            raise ChildProcessError("a process of --num_proc was killed, perhaps for its memory; give fewer") from error
        except BaseException:
            for process in set(active_children()).difference(others):
                process.terminate()  # or they would go on to the end of their shares
            raise


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, as by SIGKILL: it would wait for more work forever."""

    def end_after(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if parent := parent_process():
        Thread(target=end_after, args=[parent], daemon=True).start()


def _scan_share(arguments: PrepareArguments, folder: Path, _: None) -> dict:
    from imagelm.data.image_rows import scan_images_of_shard  # late, as below

    with _problem_log(folder) as problems:
        return scan_images_of_shard(arguments, folder, problems)


def _read_share(arguments: PrepareArguments, folder: Path, plan: SavedPlan | None) -> dict:
    with _problem_log(folder) as problems:
        return read_rows(arguments, _open_source(arguments, folder, problems, plan), folder).record()


def _prepare_shard(arguments: PrepareArguments) -> dict:
    """Writes a shard: of rows, or of what the plan of images needs; returns its record."""
    plan, counts = open_plan(arguments.plan) if arguments.plan else None, None
    if plan:
        arguments = plan.arguments(arguments)
    with atomic_folder(*_output(arguments, SHARD_FILE)) as staging:
        with _problem_log(staging) as problems:
            if arguments.images and not plan:
                from imagelm.data.image_rows import scan_images_of_shard  # late, as below

                identity = scan_images_of_shard(arguments, staging, problems)
            else:
                source = _open_source(arguments, staging, problems, plan)
                counts, identity = read_rows(arguments, source, staging), source.identity
            problems.stop_if(arguments.on_bad_rows)
        record = write_shard_record(arguments, identity, counts, plan, staging)
    index, num_shards = arguments.share
    bad = number_of(problems.counts.total(), "bad row")
    logger.info("shard %d of %d (from 0): %s; written: %s", index, num_shards, bad, arguments.output_dir)
    return record


def _merge(merge: PrepareArguments, command: str) -> dict:
    """Joins shards to the dataset that one process would have written, or shards of images to their plan."""
    shards = open_shards(str(merge.merge_shards))
    marker = DATASETDICT_JSON_FILENAME if shards.are_rows else PLAN_FILE
    with atomic_folder(*_output(merge, marker)) as staging:
        states, arguments, plan = shards.check_files(), shards.arguments(merge), shards.plan
        with _problem_log(staging) as problems:
            _add_problems([*([plan.folder] if plan else []), *shards.folders], problems)
            if shards.are_rows:
                source = _open_source(arguments, staging, problems, plan)
                shards.check_source(source.identity)
            else:
                from imagelm.data.image_rows import plan_scanned_images  # late, as below

                found = plan_scanned_images(arguments, shards.folders, staging, problems)
                shards.check_source(found["input"])
                write_json(staging / PLAN_FILE, found | {"options": arguments.record()})
        if shards.are_rows:
            found = _write_dataset(arguments, command, source, shards.counts, problems, shards.folders, staging)
        if shards.states() != states:
            raise InputError(f"--merge_shards {merge.merge_shards}: a shard was replaced meanwhile; merge them again")
    if shards.are_rows:
        return _log(arguments, found)
    logger.info("plan of images: %s; written: %s", number_of(problems.counts.total(), "bad image"), merge.output_dir)
    return found


def _output(arguments: PrepareArguments, marker: str) -> tuple:
    check = partial(check_replaceable, marker=marker, overwrite=arguments.overwrite)
    return Path(arguments.output_dir), check


@contextmanager
def _problem_log(staging: Path) -> Iterator[ProblemLog]:
    """Problems, each with its bad line in `BAD_ROWS_FILE`, if there are any."""
    with open(staging / BAD_ROWS_FILE, "wb") as keep:
        problems = ProblemLog(keep)
        yield problems
    if not problems.counts:
        (staging / BAD_ROWS_FILE).unlink()


def _add_problems(folders: list[Path], problems: ProblemLog) -> None:
    for folder in folders:
        if (kept := folder / BAD_ROWS_FILE).exists():
            problems.add_all(kept)


def _open_source(
    arguments: PrepareArguments, staging: Path, problems: ProblemLog, plan: SavedPlan | None = None
) -> RowSource:
    if arguments.images is None:
        return JsonlRows(arguments, staging, problems)
    from imagelm.data.image_rows import open_image_rows  # late: rows of tokens need none of its libraries

    return open_image_rows(arguments, staging, problems, plan)


def _write_dataset(
    arguments: PrepareArguments,
    command: str,
    source: RowSource,
    counts: RowCounts,
    problems: ProblemLog,
    folders: list[Path],
    staging: Path,
) -> dict:
    """Writes the dataset of the rows that `read_rows` wrote into `folders`, in order; returns its statistics."""
    table = open_table(source, folders, counts, staging)
    duplicates = find_duplicates(table)
    sides, split_notes = split_rows(table, duplicates, arguments)
    if arguments.write_jsonl:
        join_raw(folders, staging)
    digests = write_splits(staging, folders, table, sides, with_images=arguments.keep_images)
    stats = describe(arguments.record(), command, table, problems, duplicates, sides, split_notes, digests)
    write_tokenizer(source.grammar, stats["max_length"], staging / TOKENIZER_FOLDER)
    stats |= source.describe(table, sides, staging)
    write_json(staging / STATS_FILE, stats)
    write_text(staging / "README.md", dataset_card(stats))
    return stats


def _log(arguments: PrepareArguments, stats: dict) -> dict:
    for line in summary(stats):
        logger.info("%s", line)
    for warning in warnings(stats):
        logger.warning("%s", warning)
    logger.info("written: %s", arguments.output_dir)
    return stats
