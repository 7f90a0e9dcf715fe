#!/usr/bin/env python
"""The same as `imagelm infer`: see imagelm/commands/infer.py."""

from imagelm.commands.infer import main
from imagelm.utils.errors import run_script

if __name__ == "__main__":
    run_script(main)
