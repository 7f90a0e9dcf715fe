"""Log lines: plain on stdout, warnings on stderr, silent when a library user turns them off."""

from __future__ import annotations

import logging

import pytest

from imagelm.commands.logs import log_to_terminal
from tests.conftest import ROOT, random_rows, run, write_jsonl

PREPARE = """
import logging, sys
from imagelm.data.arguments import PrepareArguments
from imagelm.data.prepare import prepare
{setting}
prepare(PrepareArguments(data_files=["rows.jsonl"], vocab_file="vocab.json", output_dir="out"), command="test")
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


def test_a_library_call_prints_nothing(tmp_path, grammar):
    write_jsonl(tmp_path / "rows.jsonl", random_rows(30, seed=0))
    write_jsonl(tmp_path / "vocab.json", [grammar.vocabulary])
    setting = 'logging.getLogger("imagelm").setLevel(logging.CRITICAL)'
    done = run("-c", PREPARE.format(setting=setting), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "imagelm" not in done.stderr


def test_a_library_user_may_show_the_log_lines_elsewhere(package, caplog):
    package.setLevel(logging.INFO)
    logging.getLogger("imagelm.training.inputs").info("data: 1 training row")
    assert caplog.messages == ["data: 1 training row"]
