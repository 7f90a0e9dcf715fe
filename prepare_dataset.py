#!/usr/bin/env python
"""The same as `imagelm prepare`: see imagelm/commands/prepare.py."""

from imagelm.commands.prepare import main
from imagelm.utils.errors import run_script

if __name__ == "__main__":
    run_script(main)
