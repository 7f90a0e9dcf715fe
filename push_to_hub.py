#!/usr/bin/env python
"""The same as `imagelm push`: see imagelm/commands/push.py."""

from imagelm.commands.push import main
from imagelm.utils.errors import run_script

if __name__ == "__main__":
    run_script(main)
