"""Other versions of libraries than this environment's, put before it for a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def install(folder: Path, *requirements: str, dependencies: bool) -> Path:
    """Installs packages into a folder; skips the test where no package index can be reached."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *requirements]
    done = subprocess.run(words + ([] if dependencies else ["--no-deps"]), capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"pip can't install {' '.join(requirements)} here: {done.stderr.strip().splitlines()[-1]}")
    return folder


def environment(packages: Path, home: Path, **more: str) -> dict[str, str]:
    """The variables of a process that takes these packages first."""
    return os.environ | {"PYTHONPATH": str(packages), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"} | more
