"""Fuzzes the reader of raw JSONL, led by coverage: `python -m tests.faults.fuzz_jsonl -max_total_time=60`.

Needs `pip install atheris`. Further options are libFuzzer's. What it finds it writes as `crash-…`.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["imagelm.data.jsonl.parser", "imagelm.data.jsonl.lines", "imagelm.tokens.grammar"]
):
    from imagelm.data.jsonl import lines
    from imagelm.data.jsonl.parser import read_rows
    from imagelm.data.rows import ProblemLog
    from imagelm.tokens.grammar import Grammar
    from imagelm.tokens.vocabulary import make_vocabulary
    from imagelm.utils.errors import InputError

SUFFIXES = (".jsonl", ".gz", ".zst")
SEED = json.dumps({"tokens": "<IMG> <Z_001> </IMG> <CLS> <CLS_1> <EOS>", "label": 1, "split": "test", "source": "a"})
GRAMMAR = Grammar(make_vocabulary(3, 2))
FOLDER = tempfile.TemporaryDirectory(prefix="imagelm-fuzz-")


def read(data: bytes) -> None:
    """Reads the bytes as a file; its first byte says which kind."""
    kind = data[0] if data else 0
    file = Path(FOLDER.name) / f"rows{SUFFIXES[kind % 3]}"
    file.write_bytes(data[1:])
    log = ProblemLog(keep=io.BytesIO())
    try:
        num_rows = sum(len(batch.labels) for batch in read_rows([file], GRAMMAR, log, need_split=bool(kind & 64)))
    except InputError:
        return
    if kind % 3 == 0 and len(data) < lines.MAX_LINE_BYTES:
        content = data[1:].removeprefix(lines.BYTE_ORDER_MARK)
        assert num_rows + sum(log.counts.values()) == sum(not line.isspace() for line in io.BytesIO(content))


def main() -> None:
    corpus = Path(FOLDER.name) / "corpus"
    corpus.mkdir()
    for number, text in enumerate((SEED, f"{SEED}\n{SEED}\r\n", SEED.replace("<Z_001>", "<CLS_0>"), "\ufeff" + SEED)):
        (corpus / str(number)).write_bytes(b"\0" + text.encode())
    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[1:]], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
