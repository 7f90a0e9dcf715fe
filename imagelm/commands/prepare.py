"""Turns images, or raw JSONL rows, into an Arrow `DatasetDict` with its tokenizer: checked, deduplicated and split.

    imagelm prepare --images photos/ --output_dir data/photos
    imagelm prepare --data_files rows.jsonl --vocab_file vocab.json --output_dir data/rows

Images are a folder with a subfolder per class, or another layout of docs/how_to/own_images.md: lists, archives, tables,
arrays, downloads and datasets of the Hub. A codebook is fitted on the training images and turns each image into tokens.
A row is a JSON object: {"tokens": "<IMG> <Z_012> … </IMG> <CLS> <CLS_7> <EOS>", "label": 7}; `tokens` may be a list.
"""

from __future__ import annotations

from imagelm.commands.parser import Command
from imagelm.data.arguments import PrepareArguments
from imagelm.utils.command_line import given_words, invocation
from imagelm.utils.errors import run_script

COMMAND = Command("prepare", __doc__, (PrepareArguments,))


def main() -> None:
    options = PrepareArguments(**COMMAND.parse())
    # Imported late, so that --help answers at once.
    import shlex

    from imagelm.commands.logs import log_to_terminal
    from imagelm.data.prepare import prepare

    log_to_terminal()
    prepare(options, command=shlex.join([*invocation(), *given_words()]))


if __name__ == "__main__":
    run_script(main)
