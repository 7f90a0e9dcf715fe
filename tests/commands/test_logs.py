"""Log lines: plain on stdout, warnings on stderr, silent when a library user turns them off."""

from __future__ import annotations

import logging

import pytest

from imagelm.commands.logs import log_to_terminal
from imagelm.data.arguments import PrepareArguments
from imagelm.data.prepare import prepare
from tests.conftest import ROOT, random_rows, run, write_jsonl

LEVELS = ("INFO", "WARNING")
PREPARE = """
import logging, sys
from imagelm.data.arguments import PrepareArguments
from imagelm.data.prepare import prepare
{setting}
files = {{"data_files": ["rows.jsonl"], "vocab_file": "vocab.json", "output_dir": "out"}}
prepare(PrepareArguments(**files, on_bad_rows="skip"), command="test")
"""


@pytest.fixture
def package():
    """The package's logger, as it was before afterwards."""
    logger = logging.getLogger("imagelm")
    level, handlers = logger.level, list(logger.handlers)
    yield logger
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_information_goes_to_stdout_and_warnings_to_stderr_once_each(package, capsys):
    log_to_terminal()
    log_to_terminal()
    logging.getLogger("imagelm.data.prepare").info("read %d rows", 3)
    logging.getLogger("imagelm.hub.push").warning("the Hub is slow")
    logging.getLogger("imagelm.hub.push").debug("not shown")
    assert capsys.readouterr() == ("read 3 rows\n", "warning: the Hub is slow\n")


def test_only_the_first_of_several_processes_shows_information(package, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    log_to_terminal()
    package.info("shown by process 0 alone")
    package.warning("shown by all")
    assert capsys.readouterr() == ("", "warning: shown by all\n")


@pytest.fixture
def rows(tmp_path, grammar):
    """A folder with 30 rows, one row without tokens, and their vocabulary."""
    write_jsonl(tmp_path / "rows.jsonl", [*random_rows(30, seed=0), {"label": 1}])
    write_jsonl(tmp_path / "vocab.json", [grammar.vocabulary])
    return tmp_path


def test_preparing_logs_a_summary_and_warns_about_skipped_rows(rows, package, caplog):
    package.setLevel(logging.INFO)
    files = {"data_files": [str(rows / "rows.jsonl")], "vocab_file": str(rows / "vocab.json")}
    prepare(PrepareArguments(**files, output_dir=str(rows / "out"), on_bad_rows="skip"), command="test")
    logged = {level: [record.message for record in caplog.records if record.levelname == level] for level in LEVELS}
    assert logged["INFO"][0].startswith("rows: 31 read, 1 bad, ") and logged["INFO"][-1] == f"written: {rows / 'out'}"
    (warning,) = logged["WARNING"]
    assert warning.startswith(f"skipped 1 bad row, all listed in bad_rows.jsonl:\n  {rows / 'rows.jsonl'}:31: ")


def test_a_library_call_prints_nothing_once_its_log_is_off(rows):
    setting = 'logging.getLogger("imagelm").setLevel(logging.CRITICAL)'
    done = run("-c", PREPARE.format(setting=setting), cwd=rows, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "bad row" not in done.stderr


def test_a_library_user_may_show_the_log_lines_elsewhere(package, caplog):
    package.setLevel(logging.INFO)
    logging.getLogger("imagelm.training.launch").info("data: 1 training row")
    assert caplog.messages == ["data: 1 training row"]
