#!/usr/bin/env python
"""A trained folder → a model repository on the Hub, with its data and a demo where asked.

    python push_to_hub.py --model_dir outputs/mine/best_model --repo_id USER/NAME
    python push_to_hub.py --model_dir outputs/mine/best_model --repo_id USER/NAME --dry_run

Weights, tokenizer, codec, card, figures and plots go out as one commit; pickles, optimizer states and whatever else
lies in the folder stay. Log in before with `hf auth login`, or set HF_TOKEN.
"""

from __future__ import annotations

import argparse

from imagelm.commands.logs import log_to_terminal
from imagelm.hub.arguments import PREVIEW_FOLDER, PushArguments
from imagelm.utils.errors import run_script


def parse_arguments() -> PushArguments:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done, 2 the input is wrong, 1 the Hub or anything else failed: the same command goes on.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what").add_argument
    add("--model_dir", required=True, metavar="F", help="a trained folder, such as outputs/mine/best_model")
    add("--repo_id", required=True, metavar="R", help="the model's repository: USER/NAME, or NAME for one of your own")
    add("--dataset_dir", metavar="D", help="the data that prepare_dataset.py wrote; published with --dataset_repo_id")
    add("--dataset_repo_id", metavar="R", help="publish the data there too, as Parquet; the model's card links to it")
    add("--space_repo_id", metavar="R", help="make a demo Space there too")
    add("--license", metavar="L", help="of model and data, such as apache-2.0, mit or cc-by-4.0 (default: none named)")
    text = "images drawn for the card, where the model has its codec (default: 28; 0 for none)"
    add("--num_drawings", type=int, default=28, metavar="N", help=text)

    add = parser.add_argument_group("how").add_argument
    text = (
        f"upload nothing; write just what would be uploaded to folder F (default: {PREVIEW_FOLDER} beside --model_dir)"
    )
    add("--dry_run", nargs="?", const="", metavar="F", help=text)
    add("--private", action="store_true", help="make new repositories private")
    add("--revision", metavar="B", help="branch to commit to; made where it isn't there (default: main)")
    add("--tag", metavar="T", help="give the commits this tag, such as v1.0")
    add("--create_pr", action="store_true", help="open pull requests instead of committing")
    add("--commit_message", metavar="M", help="of all commits")
    add("--token", metavar="T", help="a Hub token; better: HF_TOKEN, which no list of processes shows")
    return PushArguments(**vars(parser.parse_args()))


def main() -> None:
    options = parse_arguments()
    # Imported late, so that --help answers at once.
    from imagelm.hub.push import push

    log_to_terminal()
    push(options)


if __name__ == "__main__":
    run_script(main)
