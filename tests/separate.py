"""Other versions of libraries than this environment's, put before it for a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest


def install(folder: Path, *requirements: str, dependencies: bool) -> Path:
    """Installs packages into a folder; without a package index the test is skipped, or fails in CI."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *requirements]
    done = subprocess.run(words + ([] if dependencies else ["--no-deps"]), capture_output=True, text=True, timeout=600)
    if done.returncode:
        not_installed(" ".join(requirements), done.stderr)
    return folder


def not_installed(requirements: str, error: str) -> NoReturn:
    """Skips the test, or fails it in CI, where a package index can be reached."""
    end = pytest.fail if os.environ.get("CI") else pytest.skip
    end(f"pip can't install {requirements} here: {error.strip().splitlines()[-1]}")


def environment(packages: Path, home: Path, **more: str) -> dict[str, str]:
    """The variables of a process that takes these packages first."""
    return os.environ | {"PYTHONPATH": str(packages), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"} | more
