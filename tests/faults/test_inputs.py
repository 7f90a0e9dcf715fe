"""Strange input of every kind gives a clear error with exit code 2: no traceback, no hang, no partial output."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datasets.config import HF_DATASETS_CACHE
from PIL import Image
from tqdm import tqdm

from imagelm.commands.parser import expand_config
from imagelm.commands.train import parse_launch
from imagelm.data.arguments import PrepareArguments
from imagelm.data.jsonl import lines
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.data.sources.decode import BadImage, read_image
from imagelm.data.sources.open import open_images
from imagelm.inference.arguments import InputArguments
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import load_tokenizer
from imagelm.tokens.vocabulary import load_vocabulary
from imagelm.utils.errors import InputError
from tests.conftest import random_rows, run, run_anew, sentence, train, write_jsonl
from tests.data.jsonl.test_parser import read
from tests.data.sources.common import png
from tests.faults.common import mounted
from tests.faults.test_faults import Payload
from tests.images import smooth_images

GOOD = json.dumps({"tokens": sentence([1, 2, 3], 1), "label": 1}).encode()
LONG = "1" * 5000

STRANGE_LINES = {
    "no object but nesting": (b"[" * 200_000, "invalid_json"),
    "nesting beside the row": (GOOD[:-1] + b', "x": ' + b"[" * 900 + b"]" * 900 + b"}", None),
    "objects in objects": (GOOD[:-1] + b', "x": ' + b'{"a":' * 900 + b"1" + b"}" * 901, None),
    "a million columns": (b"{" + b",".join(b'"a%d":0' % i for i in range(10**6)) + b"}", "missing_key"),
    "a row and a million columns": (GOOD[:-1] + b"," + b",".join(b'"a%d":0' % i for i in range(10**6)) + b"}", None),
    "a million tokens": (b'{"tokens": [' + b",".join([b'"<Z_001>"'] * 10**6) + b'], "label": 1}', "image_markers"),
    "one token of a megabyte": (b'{"tokens": "' + b"x" * 10**6 + b'", "label": 1}', "unknown_token"),
    "NUL bytes": (GOOD.replace(b"<Z_002>", b"<Z\0_002>"), "invalid_json"),
    "a NUL in words": (GOOD.replace(b"<Z_002>", b"<Z\\u0000_002>"), "unknown_token"),
    "nothing but NUL": (bytes(1000), "invalid_json"),
    "invalid UTF-8": (GOOD.replace(b"<Z_002>", b"<Z_\xc3\x28>"), "invalid_json"),
    "half a surrogate": (GOOD.replace(b"<Z_002>", b"\\ud800"), "invalid_json"),
    "a key twice": (GOOD[:-1] + b', "label": 2}', "duplicate_key"),
    "a key twice in two spellings": (GOOD[:-1] + b', "l\\u0061bel": 2}', "duplicate_key"),
    "another key twice": (GOOD[:-1] + b', "source": 1, "source": 2}', "duplicate_key"),
    "a key's name as a value": (GOOD[:-1] + b', "source": "label"}', None),
    "an escaped quote": (GOOD[:-1] + b', "source": "a\\"b"}', None),
    "NaN": (b'{"tokens": "<IMG>", "label": NaN}', "invalid_json"),
    "1e999": (b'{"tokens": "<IMG>", "label": 1e999}', "invalid_json"),
    "a huge number": (b'{"tokens": "<IMG>", "label": ' + LONG.encode() + b"}", "invalid_json"),
    "a number beyond 64 bits": (b'{"tokens": "<IMG>", "label": 18446744073709551616}', "wrong_type"),
    "the largest 64 bits": (b'{"tokens": "<IMG>", "label": 18446744073709551615}', "label_out_of_range"),
    "true": (b'{"tokens": "<IMG>", "label": true}', "wrong_type"),
    "minus zero": (GOOD.replace(b'"label": 1', b'"label": -0'), "label_mismatch"),
    "a carriage return": (GOOD + b"\r", None),
    "two rows in a line": (GOOD + GOOD, "invalid_json"),
    "a byte order mark inside": (b"\xef\xbb\xbf" + GOOD, "invalid_json"),
}


@pytest.mark.parametrize("name", STRANGE_LINES)
def test_a_strange_line_is_reported_with_its_kind_and_stops_no_other(tmp_path, grammar, name):
    line, kind = STRANGE_LINES[name]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([GOOD, line, GOOD]) + b"\n")
    rows, problems = read(file, grammar)
    assert dict(problems.counts) == ({} if kind is None else {kind: 1})
    assert len(rows) == (3 if kind is None else 2)
    if kind:
        assert problems.shown[0].startswith(f"{file}:2: ")
        assert len(problems.shown[0]) < 1000


def all_lines(file: Path) -> list[bytes]:
    return [line for _, chunk in lines.line_chunks(file, tqdm(disable=True)) for line in chunk]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_line_ends_of_windows_are_understood(tmp_path, grammar, ending):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + ending.join([GOOD, b"", GOOD]))
    rows, problems = read(file, grammar)
    assert (len(rows), dict(problems.counts)) == (2, {})
    file.write_bytes(b"\xef\xbb\xbf")  # found by fuzzing
    rows, problems = read(file, grammar)
    assert (len(rows), dict(problems.counts)) == (0, {})


def test_an_endless_line_is_reported_and_skipped_in_bounded_memory(tmp_path, grammar, monkeypatch):
    """The path of a 2 GB line, with a small limit; the slow test takes a real one."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 300)
    for endless in (b"x" * 5000, b'{"tokens": "' + b"y" * 1001, b"z" * 1001):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(b"\n".join([GOOD, endless, GOOD, GOOD]))
        given = all_lines(file)
        assert max(map(len, given)) <= 1001
        assert len(given) == 4
        rows, problems = read(file, grammar)
        assert (len(rows), dict(problems.counts)) == (3, {"line_too_long": 1})
        assert problems.shown == [f"{file}:2: longer than 1,000 bytes, expected one row per line"]
    file.write_bytes(GOOD + b"\n" + b"x" * 5000)  # without an end
    assert dict(read(file, grammar)[1].counts) == {"line_too_long": 1}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_archive_that_unpacks_to_a_thousand_times_its_size_stays_within_its_memory(tmp_path, suffix, grammar):
    """256 MB of one line from some kilobytes; the process may not grow by more than two limits of a line."""
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(level=19).compress
    file = tmp_path / f"rows.jsonl{suffix}"
    file.write_bytes(pack(GOOD + b"\n" + bytes(256 << 20) + b"\n" + GOOD + b"\n"))
    assert file.stat().st_size < 1 << 20
    (tmp_path / "vocab.json").write_text(json.dumps(grammar.vocabulary))
    code = (
        "import resource, sys; from pathlib import Path; from imagelm.data.jsonl.parser import *; "
        "from imagelm.data.rows import ProblemLog; from imagelm.tokens.grammar import Grammar; "
        "from imagelm.tokens.vocabulary import load_vocabulary; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "log = ProblemLog(); grammar = Grammar(load_vocabulary(sys.argv[2])); "
        "rows = sum(len(b.labels) for b in read_rows([Path(sys.argv[1])], grammar, log, False)); "
        "print(rows, dict(log.counts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = run_anew("-c", code, file, tmp_path / "vocab.json")
    assert done.returncode == 0, done.stderr
    found, grown = done.stdout.rsplit(" ", 1)
    assert found == "2 {'line_too_long': 1}"
    assert int(grown) < 400 << 10  # KiB


def test_a_zstd_bomb_of_the_densest_blocks_never_gives_more_than_128_mib_at_once():
    """Hand-made: 20,000 blocks of 128 KiB of one byte, 4 bytes each."""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\n"
    last = ((128 << 10) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\n"
    frame = bytes.fromhex("28b52ffd") + b"\x00\x58" + block * 19_999 + last
    stream = lines.ZstdFile(io.BytesIO(frame))
    total, largest = 0, 0
    buffer = memoryview(bytearray(64 << 20))
    while count := stream.readinto(buffer):
        total, largest = total + count, max(largest, count + len(stream.pending))
    assert total == 20_000 * (128 << 10)
    assert largest <= 128 << 20


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 1000)
    file = tmp_path / "rows.jsonl"
    for change in (lambda: file.open("ab").write(GOOD), lambda: os.truncate(file, 3000)):
        file.write_bytes(b"\n".join([GOOD] * 100) + b"\n")
        with pytest.raises(InputError, match="changed while it was read"):
            for number, _ in lines.line_chunks(file, tqdm(disable=True)):
                if number == 1:
                    change()


def test_a_file_that_another_process_writes_meanwhile_leaves_no_output(tmp_path, vocab_file):
    """A writer that never rests, as a user would have it; 40,000 rows take a while to read."""
    file = write_jsonl(tmp_path / "rows.jsonl", random_rows(40_000, seed=1, low=6, high=12))
    ended = threading.Event()

    def write() -> None:
        with open(file, "ab", buffering=0) as stream:
            while not ended.is_set():
                stream.write(GOOD + b"\n")
                time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        done = run(
            *("prepare_dataset.py", "--data_files", file, "--vocab_file", vocab_file),
            *("--output_dir", tmp_path / "out", "--on_bad_rows", "skip"),
        )
    finally:
        ended.set()
        thread.join()
    assert done.returncode == 2, done.stderr
    assert "changed while it was read" in done.stderr
    assert not (tmp_path / "out").exists()


def strange_files(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "empty").touch()
    (folder / "blank").write_text("\n \n\t\n")
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    (folder / "cut.gz").write_bytes(gzip.compress(GOOD * 100)[:-20])
    (folder / "damaged.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\0" + bytes(range(256)))
    (folder / "no.gz").write_bytes(GOOD)
    (folder / "cut.zst").write_bytes(zstandard.compress(GOOD * 100)[:-5])
    (folder / "no.zst").write_bytes(GOOD)
    message = dict.fromkeys(("cut.gz", "no.gz", "damaged.gz", "cut.zst", "no.zst"), "can't be read")
    message |= {"empty": "no usable row", "blank": "no usable row", "folder": "is a folder", "dangling": "No such file"}
    message |= {"circle": "Too many levels", "pipe": "a pipe or a device", "absent": "no such file"}
    return {name: (folder / name, text) for name, text in message.items()} | {"zero": (Path("/dev/zero"), "a device")}


def test_unusable_files_are_refused_with_a_message_and_no_output(tmp_path, vocab_file):
    for name, (file, message) in strange_files(tmp_path).items():
        with pytest.raises(InputError) as error:
            prepare(
                PrepareArguments(data_files=[str(file)], vocab_file=str(vocab_file), output_dir=str(tmp_path / "out")),
                command="test",
            )
        assert message in str(error.value), name
        assert not (tmp_path / "out").exists(), name


def test_an_invalid_vocabulary_is_refused(tmp_path, grammar):
    good = json.dumps(grammar.vocabulary)
    strange = {name: file for name, (file, _) in strange_files(tmp_path).items()}
    texts = {
        "huge number": good.replace('": 4', f'": {LONG}', 1),
        "infinite": good.replace('": 4', '": 1e999', 1),
        "nan": good.replace('": 4', '": NaN', 1),
        "true": good.replace('": 4', '": true', 1),
        "twice": good[:-1] + ', "<PAD>": 99}',
        "nested": "[" * 100_000,
        "nested objects": '{"a":' * 100_000,
        "NUL": good.replace("<PAD>", "<P\0AD>"),
        "huge code": good[:-1] + f', "<Z_{LONG}>": {len(grammar.vocabulary)}}}',
        "long token": good[:-1] + f', "{LONG} ": {len(grammar.vocabulary)}}}',
    }
    for name, text in texts.items():
        strange[name] = tmp_path / "vocab.json"
        strange[name].write_text(text)
        if name == "huge code":  # an unknown word, of no role
            assert Grammar(load_vocabulary(strange[name])).codebook_size == grammar.codebook_size
            continue
        with pytest.raises(InputError) as error:
            load_vocabulary(strange[name])
        assert len(str(error.value)) < 500, name
    for name in ("empty", "folder", "dangling", "circle", "pipe", "zero", "no.gz", "absent"):
        with pytest.raises(InputError):
            load_vocabulary(strange[name])
    for text in ("\0", "x" * 300):
        with pytest.raises(InputError):
            load_vocabulary(text)


@pytest.mark.parametrize("number", [10**5, pytest.param(10**6, marks=pytest.mark.slow)])
def test_a_vocabulary_of_many_tokens_is_read_in_seconds(tmp_path, grammar, number):
    many = {**grammar.vocabulary, **{f"<Z_{i + 1000}>": len(grammar.vocabulary) + i for i in range(number)}}
    many |= {"<Z_01000>": len(many)}
    (tmp_path / "vocab.json").write_text(json.dumps(many))
    with pytest.raises(InputError, match="two codebook tokens have the number 1000"):
        load_vocabulary(tmp_path / "vocab.json")


STRANGE_RECIPES = {
    "laughs": ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]", "anchors"),
    "itself": ("seed: &a [*a]", "anchors"),
    "twice": ("seed: 1\nlearning_rate: 1\nseed: 2", "key 'seed' occurs twice"),
    "twice inside": ("lr_scheduler_kwargs: {a: 1, a: 2}", "key 'a' occurs twice"),
    "nested": ("seed: " + "[" * 20_000, "isn't YAML"),
    "object": ("seed: !!python/object/apply:os.system [ls]", "isn't YAML"),
    "huge": (f"seed: {LONG}", "isn't YAML"),
    "date": ("seed: 2020-99-99", "isn't YAML"),
    "NUL": ("seed: 1\0", "isn't YAML"),
    "large": ("#" * 100_000, "expected at most"),
    "list": ("- seed", "holds no mapping"),
    "several": ("seed: 1\n---\nseed: 2", "isn't YAML"),
    "key": ("[1, 2]: 3", "isn't YAML"),
}


@pytest.mark.parametrize("name", STRANGE_RECIPES)
def test_a_strange_recipe_is_refused(tmp_path, name):
    text, message = STRANGE_RECIPES[name]
    (tmp_path / "r.yaml").write_text(text)
    known = {"seed", "learning_rate", "lr_scheduler_kwargs", "config", *"abcd"}
    with pytest.raises(InputError) as error:
        expand_config(["--config", str(tmp_path / "r.yaml")], known)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["empty", "folder", "dangling", "pipe", "zero", "absent"])
def test_a_recipe_that_isnt_a_file_is_refused(tmp_path, name):
    file = strange_files(tmp_path)[name][0]
    with pytest.raises(InputError, match="--config"):
        expand_config(["--config", str(file)], {"seed", "config"})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_is_not_finite_is_refused_before_anything_is_trained(tmp_path, value):
    words = ["--dataset_dir", "d", "--output_dir", str(tmp_path), "--use_cpu", f"--learning_rate={value}"]
    with pytest.raises(InputError, match=r"--learning_rate .*: give a finite number"):
        parse_launch(words)


# Untrusted files


def bomb(side: int) -> bytes:
    """A PNG of side² white pixels, in some kilobytes."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def test_an_image_of_too_many_pixels_is_not_unpacked(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb(20_000))
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    found = read_image(tmp_path / "bomb.png")
    assert isinstance(found, BadImage)
    assert "decompression bomb" in found.reason


def test_an_image_format_that_would_start_a_program_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert read_image(tmp_path / "x.png") == BadImage("not an image of a known format, or damaged")


def test_an_array_without_room_to_unpack_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """Ten kilobytes that unpack to ten megabytes, where there is room for one."""
    file = tmp_path / "x.npz"
    np.savez_compressed(file, image=np.zeros((10_000, 32, 32), dtype=np.uint8), label=np.zeros(10_000, dtype=int))
    assert file.stat().st_size < 50_000
    with mounted(tmp_path / "small", "size=1m") as small:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        with pytest.raises(InputError, match=r"array 'image' unpacks to 10,240,128 bytes, .* has room for"):
            open_images([str(file)])
        assert list(small.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert len(open_images([str(file)])) == 10_000


def test_an_array_that_claims_terabytes_is_refused(tmp_path):
    file = tmp_path / "x.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 1000, 1000)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header.getvalue() + bytes(1000))
    with pytest.raises(InputError, match=r"x\.npz"):
        open_images([str(file)])


def test_an_npz_of_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", image=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="pickle"):
        open_images([str(tmp_path / "x.npz")])


@pytest.fixture
def stranger(tmp_path) -> Path:
    """A folder with images of other people, one of them behind a link out of it, and a file beside the folder."""
    inside = tmp_path / "downloads"
    (inside / "pics").mkdir(parents=True)
    for file in (tmp_path / "private.png", inside / "passport.png", inside / "pics/0.png"):
        file.write_bytes(png(smooth_images(1, channels=3)[0]))
    (inside / "link.png").symlink_to(tmp_path / "private.png")
    os.mkfifo(inside / "pipe.png")
    return inside


def write_paths(file: Path, paths: list, **columns: list) -> Path:
    """A Parquet or Arrow file of rows with a path and no bytes."""
    cells = [{"bytes": None, "path": path} for path in paths]
    column = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": column, "label": [i % 2 for i in range(len(paths))], **columns})
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return file


def reasons(source) -> list[str | None]:
    """Why each image can't be read; None for one that can."""
    return [getattr(image, "reason", None) for image in source.load(0, len(source))]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_reads_no_file_beside_it(stranger, suffix, monkeypatch):
    monkeypatch.chdir(stranger)
    paths = [str(stranger / "passport.png"), "passport.png", "pics/0.png", "../private.png", "link.png", "/dev/zero"]
    paths += [str(Path(HF_DATASETS_CACHE) / "downloads/x.png"), "\0", "x" * 5000]
    source = open_images([str(write_paths(stranger / f"x.{suffix}", paths))])
    assert all("--image_root" in reason for reason in reasons(source)) and source.notes == []


def test_a_table_that_lists_images_in_its_subfolders_is_read_from_anywhere(stranger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (stranger / "pics/1.png").write_bytes((stranger / "pics/0.png").read_bytes())
    (stranger / "pics/link.png").symlink_to(tmp_path / "private.png")
    listed = ["pics/0.png", "pics/1.png"]
    source = open_images([str(write_paths(stranger / "x.parquet", listed))])
    assert reasons(source) == [None, None]
    assert source.notes == [f"2 of 2 rows of {stranger / 'x.parquet'} name a file, which is read from {stranger}"]
    # One row that names anything else, and nothing is read.
    others = [
        "passport.png",
        "pics/../../private.png",
        "pics/link.png",
        str(stranger / "pics/0.png"),
        "pics/2.png",
        None,
    ]
    for other in others:
        source = open_images([str(write_paths(stranger / "x.parquet", [*listed, other]))])
        assert None not in reasons(source) and source.notes == []


def test_a_table_reads_files_inside_image_root_only(stranger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = ["passport.png", "pics/0.png", "pics/../passport.png", str(stranger / "pics/0.png")]
    outside = ["../private.png", str(tmp_path / "private.png"), "link.png", "/dev/zero", "\0", "pics/../../private.png"]
    bad = {"pipe.png": "not a regular file", "none.png": "no longer exists", "x" * 5000: "can't be decoded"}
    table = write_paths(stranger / "x.parquet", [*good, *outside, *bad, None])
    source = open_images([str(table)], image_root=str(stranger))
    found = reasons(source)
    assert found[: len(good)] == [None] * len(good)
    assert all("leads out of" in reason for reason in found[len(good) : len(good) + len(outside)])
    assert all(said in reason for said, reason in zip(bad.values(), found[len(good) + len(outside) :], strict=False))
    assert found[-1] == "there is no image in this row"
    assert source.notes == [f"13 of 14 rows of {table} name a file, which is read from {stranger}"]


def test_urls_in_a_table_are_never_opened(stranger):
    urls = ["http://127.0.0.1:9/x.png", "hf://datasets/a/b/x.png", f"zip://x.png::{stranger}/x.zip"]
    urls += [f"file://{stranger}/passport.png"]
    name = str(write_paths(stranger / "x.parquet", urls))
    for root in (None, str(stranger)):
        assert all("URLs aren't opened" in reason for reason in reasons(open_images([name], image_root=root)))


def test_columns_that_only_the_library_would_open_are_not_decoded(stranger):
    """Images inside lists and structures, and an image column called t, whose numbers the codec could use."""
    path = {"bytes": None, "path": str(stranger / "passport.png")}
    image = datasets.Image()
    features = {"image": image, "t": image, "many": [image], "deep": {"bytes": image, "path": datasets.Value("string")}}
    row = {"image": path, "t": path, "many": [path], "deep": {"bytes": path, "path": "x.png"}}
    schema = datasets.Features(features).arrow_schema
    pq.write_table(pa.Table.from_pylist([row], schema=schema), stranger / "x.parquet")
    name = str(stranger / "x.parquet")
    source = open_images([name])
    assert source.extra("t") is None and "--image_root" in str(reasons(source)[0])
    for column in ("many", "deep"):
        with pytest.raises(InputError, match="holds no images"):
            open_images([name], image_column=column)


def test_a_saved_dataset_reads_files_inside_its_folder_only(stranger, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": b"x", "path": None}] * 4, "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(stranger / "saved")
    (file,) = (stranger / "saved").glob("*.arrow")
    write_paths(file, ["own.png", str(stranger / "saved/own.png"), "../passport.png", str(tmp_path / "private.png")])
    (stranger / "saved/own.png").write_bytes((stranger / "passport.png").read_bytes())
    source = open_images([str(stranger / "saved")])
    found = reasons(source)
    assert found[:2] == [None, None] and all("leads out of" in reason for reason in found[2:])
    assert source.notes == [f"4 of 4 rows of {stranger}/saved name a file, which is read from {stranger}/saved"]


def test_an_image_root_without_effect_is_refused(stranger):
    for images, root, said in (("pics", stranger, "has no effect"), ("x.arrow", stranger / "none", "no such folder")):
        with pytest.raises(InputError, match=said):
            PrepareArguments(images=[images], output_dir="o", image_root=str(root))
        with pytest.raises(InputError, match=said):
            InputArguments(images=[images], image_root=str(root))
    with pytest.raises(InputError, match="--image_root needs --images"):
        InputArguments(image_root=str(stranger))


def test_a_saved_dataset_may_not_name_files_outside_of_it(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    shutil.copy(next((prepared / "train").glob("*.arrow")), tmp_path / "outside.arrow")
    state = tmp_path / "data/train/state.json"
    content = json.loads(state.read_text())
    for name in ("../../outside.arrow", str(tmp_path / "outside.arrow")):
        state.write_text(json.dumps(content | {"_data_files": [{"filename": name}]}))
        with pytest.raises(InputError, match="outside the folder"):
            load_prepared(tmp_path / "data")
        with pytest.raises(InputError, match="outside the folder"):
            open_images([str(tmp_path / "data")])
    state.write_text("[" * 10_000)
    with pytest.raises(InputError, match="damaged"):
        load_prepared(tmp_path / "data")


SECRET = "hf_NeverToBeSeenAnywhere"


def test_a_token_is_in_no_file_and_no_line_of_a_run(prepared, tmp_path):
    words = ("--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2, "--hub_token", SECRET)
    done = train(prepared, tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) > 40
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    assert SECRET not in done.stdout + done.stderr
    assert "<hidden>" in json.loads((tmp_path / "out/run.json").read_text())["command"]
    assert [file for file in files if file.suffix in (".bin", ".pkl")] == []


def test_weights_that_are_a_pickle_are_read_without_running_it(prepared, trained, tmp_path):
    shutil.copytree(trained / "best_model", tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    (tmp_path / "model/pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(InputError, match="can't be loaded"):
        build_model(
            ModelArguments(model_name_or_path=str(tmp_path / "model")),
            load_tokenizer(prepared / "tokenizer"),
            14,
            "eager",
        )
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(prepared, trained, tmp_path):
    shutil.copytree(trained / "best_model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "model/theirs.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    )
    done = train(prepared, tmp_path / "out", "--model_name_or_path", tmp_path / "model")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_line_of_two_gigabytes_is_reported_in_bounded_memory(tmp_path, vocab_file):
    """A sparse file: 2 GiB of NUL between two good rows."""
    file = tmp_path / "rows.jsonl"
    rows = random_rows(30, seed=2)
    with open(file, "wb") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows[:15]).encode())
        stream.seek(2 << 30, os.SEEK_CUR)
        stream.write(("\n" + "".join(json.dumps(row) + "\n" for row in rows[15:])).encode())
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = ("--data_files", file, "--vocab_file", vocab_file, "--output_dir", tmp_path / "out")
    done = run_anew("-c", code, "prepare_dataset.py", *words)
    assert done.returncode == 2, done.stderr
    assert f"{file}:16: longer than 67,108,864 bytes" in done.stderr
    assert not (tmp_path / "out").exists()
    done = run_anew("-c", code, "prepare_dataset.py", *words, "--on_bad_rows", "skip")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/stats.json").read_text())["num_rows_read"] == 31
    kept = json.loads((tmp_path / "out/bad_rows.jsonl").read_text())
    assert (kept["line"], len(kept["text"])) == (16, 65536)
