#!/usr/bin/env python
"""The same as `imagelm train`: see imagelm/commands/train.py."""

from imagelm.commands.train import main
from imagelm.utils.errors import run_script

if __name__ == "__main__":
    run_script(main)
