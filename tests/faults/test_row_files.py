"""Strange files of rows: each bad line is named and stops no other, in bounded memory; other files are refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
import time
from pathlib import Path

import pytest
import zstandard
from tqdm import tqdm

from imagelm.data.arguments import PrepareArguments
from imagelm.data.jsonl import lines
from imagelm.data.prepare import prepare
from imagelm.utils.errors import InputError
from tests.conftest import random_rows, run, run_anew, write_jsonl
from tests.data.jsonl.test_parser import read
from tests.faults.common import GOOD, LONG, strange_files

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


def test_unusable_files_are_refused_with_a_message_and_no_output(tmp_path, vocab_file):
    for name, (file, message) in strange_files(tmp_path).items():
        with pytest.raises(InputError) as error:
            prepare(
                PrepareArguments(data_files=[str(file)], vocab_file=str(vocab_file), output_dir=str(tmp_path / "out")),
                command="test",
            )
        assert message in str(error.value), name
        assert not (tmp_path / "out").exists(), name
