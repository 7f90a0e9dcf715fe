"""Shards: the merge of any number of them is what one process writes, and what isn't one set of shards is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from imagelm.data import rows, splits
from imagelm.data.arguments import PrepareArguments
from imagelm.data.jsonl import lines
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.data.sources import open as opening
from imagelm.utils.artifacts import MANIFEST_FILE, SHARD_FILE, STATS_FILE
from imagelm.utils.atomic_io import read_json, write_json
from imagelm.utils.errors import InputError
from imagelm.utils.manifest import write_manifest
from imagelm.utils.output_folder import atomic_folder
from tests.conftest import random_rows, sentence, write_jsonl
from tests.images import class_folder, smooth_images

NUM_SHARDS = 4


def rows_with_everything() -> list[dict]:
    """Variants of images, duplicates, the same image under two labels, old tails, bad given."""
    given = [{**row, "split": "test" if i % 4 else "train"} for i, row in enumerate(random_rows(200, seed=3))]
    for i, row in enumerate(given):
        if i % 3:
            row["source"], row["split"] = f"image {i // 12}", "test" if i // 12 % 4 else "train"
    given += [*given[:9], {**given[0], "tokens": sentence([1, 2, 3], 1)}]  # the last one's label isn't its class token
    given += [{"tokens": given[5]["tokens"].replace("<CLS_2>", "<CLS_1>"), "label": 1, "split": "test"}]
    given += [{"tokens": given[20]["tokens"].replace("<CLS_2>", "<CLS>"), "label": 2, "split": "test"}]
    return [*given, {"tokens": "<IMG>", "label": 0, "split": "train"}, {"label": 1}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, grammar) -> Iterator[Path]:
    """Three files of rows, one of them compressed, that are read in pieces of 1,000 bytes; and their shards in `s`."""
    home, given = tmp_path_factory.mktemp("rows"), rows_with_everything()
    (home / "vocab.json").write_text(json.dumps(grammar.vocabulary))
    write_jsonl(home / "a.jsonl", given[:70])
    (home / "a.jsonl").write_bytes(b"\xef\xbb\xbf\n\n" + (home / "a.jsonl").read_bytes() + b"\n")
    (home / "b.jsonl.gz").write_bytes(gzip.compress(write_jsonl(home / "b", given[70:110]).read_bytes()))
    write_jsonl(home / "c.jsonl", given[110:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", 1000)
        write_shards(home, "s")
        yield home


@pytest.fixture
def shards(home: Path, tmp_path: Path) -> Path:
    """A copy of the shards."""
    return Path(shutil.copytree(home / "s", tmp_path / "s"))


def options(home: Path, **others: object) -> dict:
    files = {"data_files": [f"{home}/*.jsonl*"], "vocab_file": f"{home}/vocab.json"}
    return {**files, "on_bad_rows": "skip", "test_size": 0.3, **others}


def write_shard(home: Path, index: int, folder: Path, num_shards: int = NUM_SHARDS, **others: object) -> None:
    words = options(home, output_dir=str(folder), num_shards=num_shards, shard_index=index, **others)
    prepare(PrepareArguments(**words), command="test")


def write_shards(home: Path, name: str, num_shards: int = NUM_SHARDS, **others: object) -> Path:
    for index in range(num_shards):
        write_shard(home, index, home / name / str(index), num_shards, **others)
    return home / name


def merge(shards: Path, output: Path) -> dict:
    return prepare(PrepareArguments(merge_shards=str(shards), output_dir=str(output)), command="test")


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without the manifest; of stats.json what doesn't name the folder."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    stats = read_json(folder / STATS_FILE)
    stats["options"].pop("output_dir")
    return files | {STATS_FILE: json.dumps(stats).encode(), MANIFEST_FILE: b""}


CASES = [{}, {"split_by": "hash", "max_length": 10}, {"split_by": "field", "truncation_side": "right"}]


@pytest.mark.parametrize("others", CASES, ids=str)
def test_merged_shards_are_what_one_process_writes(home, tmp_path, others):
    prepare(PrepareArguments(**options(home, output_dir=str(tmp_path / "one"), **others)), command="test")
    shards = write_shards(home, f"s{len(others)}{others.get('split_by')}", **others) if others else home / "s"
    stats = merge(shards, tmp_path / "many")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    load_prepared(tmp_path / "many")
    assert stats["bad_rows"]["total"] == 3 and stats["repaired_tails"] == 1
    if not others:  # 9 rows again, one with another label, one with an old tail
        assert stats["label_conflicts"]["total"] == 1 and stats["duplicates_dropped"] == 11


@pytest.mark.parametrize("others", CASES, ids=str)
def test_rows_that_are_sorted_in_parts_on_the_disk_give_the_same(home, tmp_path, monkeypatch, others):
    prepare(PrepareArguments(**options(home, output_dir=str(tmp_path / "whole"), **others)), command="test")
    monkeypatch.setattr(rows, "PART_ROWS", 16)
    monkeypatch.setattr(rows, "CHUNK_ROWS", 7)
    monkeypatch.setattr(splits, "BLOCK", 11)
    prepare(PrepareArguments(**options(home, output_dir=str(tmp_path / "parts"), **others)), command="test")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_more_shards_than_pieces_leave_some_empty(home, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 1 << 20)  # a piece a file
    shards = write_shards(home, "many", num_shards=5)
    read = [read_json(shards / str(i) / SHARD_FILE)["counts"]["read_tokens"] for i in range(5)]
    assert sum(count > 0 for count in read) == 3
    prepare(PrepareArguments(**options(home, output_dir=str(tmp_path / "one"))), command="test")
    merge(shards, tmp_path / "many")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize("num_shards", [1, 2, 7, 40])
def test_each_line_is_in_one_share(tmp_path, monkeypatch, num_shards):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 64)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 150)
    texts = [b"x" * (i * 37 % 200) for i in range(60)]  # empty ones, ones over several pieces, ones that are cut
    (tmp_path / "a").write_bytes(b"\n".join(texts))
    (tmp_path / "b").write_bytes(b"\n".join(texts[:9]) + b"\n")
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"\n".join(texts)))
    (tmp_path / "empty").write_bytes(b"")
    files = [tmp_path / name for name in ("a", "b", "empty", "c.gz")]
    found = []
    for index in range(num_shards):
        for file, first, stop in lines.share_of_files(files, (index, num_shards)):
            for number, chunk in lines.line_chunks(file, tqdm(disable=True), first, stop):
                found += [(file.name, number + i, line.rstrip(b"\n")) for i, line in enumerate(chunk)]
    expected = [("a", texts), ("b", texts[:9]), ("c.gz", texts)]
    assert found == [(name, i, text[:151]) for name, part in expected for i, text in enumerate(part, start=1)]


def damage_rows(shards: Path) -> None:
    (shards / "2/rows.arrow").write_bytes((shards / "2/rows.arrow").read_bytes()[:-1])


def damage_table(shards: Path) -> None:
    content = bytearray((shards / "1/rows.table").read_bytes())
    content[40] ^= 1
    (shards / "1/rows.table").write_bytes(content)


def change_record(shards: Path, key: str, value: object) -> None:
    """As a shard that another version wrote."""
    record = read_json(shards / "1" / SHARD_FILE)
    record[key] |= value
    write_json(shards / "1" / SHARD_FILE, record)
    write_manifest(shards / "1")


BROKEN = {
    "cut": (damage_rows, r"s/2 is damaged: rows.arrow has [\d,]+ bytes instead of [\d,]+; prepare this shard again"),
    "a bit": (damage_table, r"s/1 is damaged: rows.table isn't what was written"),
    "no manifest": (lambda s: (s / "0" / MANIFEST_FILE).unlink(), "s/0 is damaged: its complete.json is missing"),
    "missing": (lambda s: (shutil.rmtree(s / "1"), shutil.rmtree(s / "3")), "lacks 2 of 4 shards: 1, 3; prepare each"),
    "all missing": (lambda s: [shutil.rmtree(s / str(i)) for i in range(4)], "s holds no shard; write each one into"),
    "no folder": (shutil.rmtree, "no such folder"),
    "unfinished": (lambda s: (s / "3").rename(s / ".3.partial-abcdefgh"), "lacks 1 of 4 shards: 3"),
    "twice": (lambda s: shutil.copytree(s / "1", s / "copy"), "s/1 and .*s/copy are the same shard, 1 of 4; remove"),
    "version": (
        lambda s: change_record(s, "versions", {"imagelm": "0.1.0"}),
        r"s/1 doesn't belong to .*s/0: imagelm is 0\.1\.0, not \d+\.\d+\.\d+; prepare it again",
    ),
    "input": (
        lambda s: change_record(s, "input", {"bytes of input": 7}),
        r"s/1 doesn't belong to .*s/0: bytes of input is 7, not \d+",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_one_set_of_shards_is_named_and_nothing_is_written(shards, tmp_path, kind):
    change, message = BROKEN[kind]
    change(shards)
    with pytest.raises(InputError, match=message):
        merge(shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_of_other_options_is_named(home, shards, tmp_path):
    shutil.rmtree(shards / "2")
    write_shard(home, 2, shards / "2", seed=1, max_length=9)
    with pytest.raises(InputError, match=r"s/2 doesn't belong to .*s/0: --max_length is 9, not None, --seed is 1, not"):
        merge(shards, tmp_path / "out")


def test_an_input_that_changed_since_is_refused(home, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", random_rows(40, seed=1))
    files = {"data_files": [str(tmp_path / "rows.jsonl")], "vocab_file": f"{home}/vocab.json"}
    for index in (0, 1):
        words = {"output_dir": str(tmp_path / f"s/{index}"), "num_shards": 2, "shard_index": index}
        prepare(PrepareArguments(**files, **words), command="test")
    write_jsonl(tmp_path / "rows.jsonl", random_rows(41, seed=1))
    with pytest.raises(InputError, match=r"the input changed since .*s/0 was prepared: bytes of input is"):
        merge(tmp_path / "s", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_processes_never_write_one_shard_or_one_merge(home, shards, tmp_path):
    for folder, write in ((shards / "1", lambda: write_shard(home, 1, shards / "1", overwrite=True)),
                          (tmp_path / "out", lambda: merge(shards, tmp_path / "out"))):  # fmt: skip
        with pytest.raises(InputError, match="another process is writing this folder"), atomic_folder(folder):
            write()
    with pytest.raises(InputError, match="s/1 exists and is not empty; add --overwrite"):
        write_shard(home, 1, shards / "1")


def test_a_bad_row_stops_its_shard_and_is_named_by_its_line(home, tmp_path):
    index = NUM_SHARDS - 1
    number = len((home / "c.jsonl").read_bytes().splitlines())
    with pytest.raises(InputError, match=rf"c\.jsonl:{number - 1}: (?s:.*)c\.jsonl:{number}: no key 'tokens'"):
        write_shard(home, index, tmp_path / "shard", on_bad_rows="stop")
    assert not (tmp_path / "shard").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_shards": 4}, "--num_shards and --shard_index belong together"),
        ({"num_shards": 4, "shard_index": 4}, "--shard_index 4 isn't one of 4 shards; give 0 to 3"),
        ({"num_shards": 4, "shard_index": 0, "num_proc": 2}, "--num_proc and --num_shards contradict each other"),
        ({"merge_shards": "s"}, "--data_files has no effect with --merge_shards"),
        ({"merge_shards": "o/s", "data_files": None, "vocab_file": None}, "is inside the output folder"),
    ],
)
def test_options_of_shards_that_cannot_work_are_refused(given, message, tmp_path, monkeypatch):
    (tmp_path / "o/s").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        PrepareArguments(**{"data_files": ["a"], "vocab_file": "v", "output_dir": "o", **given})


# Images: read in shards, planned, encoded in shards


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Coloured, repeated, 16-bit and broken images, read 8 at a time; their shards in `read`, `plan` and `rows`."""
    home, images = tmp_path_factory.mktemp("pictures"), smooth_images(60, channels=3)
    images[41], images[58], images[7] = images[3], images[5], images[7, ..., :1]
    class_folder(home / "in", {"cat": images[:30], "dog": images[30:]})
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 15).save(home / "in/dog/deep.png")
    (home / "in/cat/text.png").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "READ_SIZE", 8)
        for index in range(3):
            read_share(home, index, home / "read" / str(index))
        merge(home / "read", home / "plan")
        for index in range(3):
            encode_share(home, index, home / "rows" / str(index))
        yield home


def picture_options(home: Path, **others: object) -> dict:
    fitted = {"images": [str(home / "in")], "codebook_size": 16, "device": "cpu"}
    return {**fitted, "augment": "shift=1", "variants": 1, "keep_images": True, "write_jsonl": True, **others}


def read_share(home: Path, index: int, folder: Path, **others: object) -> None:
    words = picture_options(home, output_dir=str(folder), num_shards=3, shard_index=index, **others)
    prepare(PrepareArguments(**words), command="test")


def encode_share(home: Path, index: int, folder: Path) -> None:
    words = {"plan": str(home / "plan"), "output_dir": str(folder), "num_shards": 3, "shard_index": index}
    prepare(PrepareArguments(**words), command="test")


def without_times(files: dict[str, bytes]) -> dict[str, bytes]:
    stats = json.loads(files[STATS_FILE])
    for name in ("encode_seconds", "images_per_second"):
        stats["codec"].pop(name)
    return files | {STATS_FILE: json.dumps(stats).encode()}


def test_images_prepared_in_shards_are_what_one_process_makes_of_them(pictures, tmp_path):
    prepare(PrepareArguments(**picture_options(pictures, output_dir=str(tmp_path / "one"))), command="test")
    stats = merge(pictures / "rows", tmp_path / "many")
    assert without_times(contents(tmp_path / "many")) == without_times(contents(tmp_path / "one"))
    assert stats["images"]["read"] == 62 and stats["bad_rows"]["total"] == 1
    assert any("16-bit" in note and "1023 becomes white" in note for note in stats["images"]["notes"])
    # 61 images can be read, 59 different ones: 12 groups, a fifth, are test images, and 5 of the other 47 validation
    # images. The training images, here with both copies of the repeated ones, have a variant each.
    assert stats["codec"]["images_encoded"] == 61 + 44


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(home, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 2 << 20)  # as in new processes
    monkeypatch.setattr(opening, "READ_SIZE", 64)
    for name, given in (("rows", options(home)), ("pictures", picture_options(pictures))):
        for count in (1, 2):
            output = str(tmp_path / f"{name}{count}")
            prepare(PrepareArguments(**given, output_dir=output, num_proc=count), command="test")
    assert contents(tmp_path / "rows2") == contents(tmp_path / "rows1")
    one, two = (without_times(contents(tmp_path / f"pictures{count}")) for count in (1, 2))
    assert two == one
    with pytest.raises(InputError, match="3 bad rows "):
        words = options(home, output_dir=str(tmp_path / "bad"), num_proc=2, on_bad_rows="stop")
        prepare(PrepareArguments(**words), command="test")
    assert not (tmp_path / "bad").exists()


def test_shards_of_images_that_do_not_belong_together_are_refused(pictures, tmp_path):
    mixed = Path(shutil.copytree(pictures / "rows", tmp_path / "mixed"))
    shutil.rmtree(mixed / "1")
    shutil.copytree(pictures / "read/1", mixed / "1")
    with pytest.raises(InputError, match=r"mixed/1 doesn't belong to .*mixed/0: kind is images without a plan, not"):
        merge(mixed, tmp_path / "out")
    with pytest.raises(InputError, match=r"--plan .*none holds no plan\.json; prepare shards of the images without"):
        prepare(PrepareArguments(plan="none", output_dir="o", num_shards=3, shard_index=0), command="test")


def test_a_plan_or_images_that_changed_are_refused(pictures, tmp_path):
    plan, kept = pictures / "plan/plan.npz", (pictures / "plan/plan.npz").read_bytes()
    plan.write_bytes(kept[:-1])
    with pytest.raises(InputError, match=r"plan is damaged: plan\.npz has .* bytes instead of .*; merge the shards of"):
        encode_share(pictures, 0, tmp_path / "0")
    plan.write_bytes(kept)
    moved = (pictures / "in/cat/1.png").rename(pictures / "in/cat/1000.png")
    try:
        with pytest.raises(InputError, match=r"the input changed since .*plan was prepared: names of images is"):
            encode_share(pictures, 0, tmp_path / "0")
        with pytest.raises(InputError, match=r"the input changed since .*plan was prepared: names of images is"):
            merge(pictures / "rows", tmp_path / "o")
    finally:
        moved.rename(pictures / "in/cat/1.png")
    assert not (tmp_path / "0").exists() and not (tmp_path / "o").exists()
