"""Recomputes the figures of a published model on the published rows, and says for each whether it holds.

    imagelm verify USER/NAME --dataset USER/NAME-rows
    imagelm verify outputs/mine/best_model --dataset data/mine
    imagelm verify MODEL --dataset rows.jsonl --reported perplexity=1.01 cls_accuracy=0.07

The model may be any causal language model over such rows. Where a figure doesn't hold, the command names the known
error that gives it: labels shifted twice, scored padding, an answer that is cut off, duplicates across the split, or a
head that sees the answer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from imagelm.commands.parser import Command
from imagelm.hub.arguments import VerifyArguments
from imagelm.utils.errors import EXIT_FAILURE, run_script

FAILURES = "a figure or check doesn't hold, or any other error"
COMMAND = Command("verify", __doc__, (VerifyArguments,), FAILURES, first="model")


def main() -> None:
    options = VerifyArguments(**COMMAND.parse())
    # Imported late, so that --help answers at once.
    from imagelm.commands.logs import log_to_terminal, logger
    from imagelm.hub.verification.outcome import summary
    from imagelm.hub.verification.verify import verify
    from imagelm.utils.atomic_io import write_json

    log_to_terminal()
    result = verify(options)
    logger.info("%s", "\n".join(summary(result)))
    if options.output:
        write_json(Path(options.output), result.as_json())
    if not result.holds:
        sys.exit(EXIT_FAILURE)


if __name__ == "__main__":
    run_script(main)
