"""A finished run with checkpoints, trained once, and copies of it that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import train
from tests.faults.common import RUN


@pytest.fixture(scope="session")
def uninterrupted(prepared, tmp_path_factory) -> Path:
    """A whole run. An epoch has 9 steps, so most of its checkpoints fall in the middle of an epoch."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    done = train(prepared, output, *RUN)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def cut(uninterrupted, tmp_path) -> Path:
    """The run as a kill after step 120's checkpoint would have left it."""
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)
    shutil.rmtree(output / "final_model")
    return output
