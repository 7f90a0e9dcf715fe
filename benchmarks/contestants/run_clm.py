"""transformers' run_clm.py, from the file given first, with the arguments that follow.

Without --do_train it loads, tokenizes, groups, builds its model and ends. transformers 5 lacks an argument and a
telemetry call that older versions of the file use.
"""

from __future__ import annotations

import runpy
import sys

import transformers.utils
from transformers import TrainingArguments

TrainingArguments.overwrite_output_dir = True
transformers.utils.send_example_telemetry = lambda *_, **__: None
script, *words = sys.argv[1:]
sys.argv = [script, *words]
runpy.run_path(script, run_name="__main__")
