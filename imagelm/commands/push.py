"""Publishes a trained folder as a model repository on the Hub, with its data and a demo if asked.

    imagelm push --model_dir outputs/mine/best_model --repo_id USER/NAME
    imagelm push --model_dir outputs/mine/best_model --repo_id USER/NAME --dry_run

One commit holds weights, tokenizer, codec, card, figures and plots; pickles, optimizer states and other files in the
folder are not uploaded. Log in first with `hf auth login`, or set HF_TOKEN.
"""

from __future__ import annotations

from imagelm.commands.parser import Command
from imagelm.hub.arguments import PushArguments
from imagelm.utils.errors import run_script

FAILURES = "the Hub or anything else failed: run the same command again to continue"
COMMAND = Command("push", __doc__, (PushArguments,), FAILURES)


def main() -> None:
    options = PushArguments(**COMMAND.parse())
    # Imported late, so that --help answers at once.
    from imagelm.commands.logs import log_to_terminal
    from imagelm.hub.push import push

    log_to_terminal()
    push(options)


if __name__ == "__main__":
    run_script(main)
