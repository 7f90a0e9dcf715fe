"""Input of a task: rows from the command line, files, standard input, prepared datasets or images.

One idea: every input becomes a list of rows, and all rows are read and checked before anything is computed. Images
become rows through the model's codec.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from imagelm.codecs.compare import codec_differences
from imagelm.data.image_scan import notes_on_format
from imagelm.data.jsonl.lines import expand_files, line_chunks
from imagelm.data.jsonl.parser import parse_object
from imagelm.data.load import load_codec_of, load_prepared
from imagelm.data.sources.decode import NUM_FRAMES, BadImage, upright_size
from imagelm.data.sources.open import ImageSource, batches, open_images
from imagelm.inference.arguments import InputArguments
from imagelm.inference.loading import LoadedModel
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.remote_code.pixels_imagelm import peak, range_problem
from imagelm.tokens.grammar import BODY, HEAD, NUM_FRAME_TOKENS, NUM_QUESTION_TOKENS, NUM_TAIL_TOKENS, BadRow, Row
from imagelm.tokens.tokenizer import load_grammar
from imagelm.tokens.vocabulary import EOS, IMG
from imagelm.utils.artifacts import TOKENIZER_FOLDER
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, list_first, printable, shorten

STANDARD_INPUT = "-"


@dataclass
class InputRows:
    """All rows of an input, in its order."""

    rows: list[Row]
    source: ImageSource | None = None  # if the input is images
    notes: list[str] = field(default_factory=list)  # lines that tell the user what is special about the input

    def image(self, number: int) -> Image.Image:
        """An image of the source, by its number; raises an InputError if it has changed since it was read."""
        assert self.source is not None
        image = self.source.load(number, number + 1)[0]
        if not isinstance(image, Image.Image):
            raise InputError(f"{self.source.place(number)} has changed: {image}; run the command again")
        return image


def read_inputs(options: InputArguments, mode: str, loaded: LoadedModel, cut: bool = False) -> InputRows:
    """Reads the input of a task, and checks it; `cut` says that complete images will be cut before they are used.

    Raises an InputError if it can't be read, holds no rows, or holds wrong ones: the message lists the first of them.
    """
    try:
        if options.images:
            inputs = _image_inputs(options, options.images, loaded)
        elif options.dataset_dir:
            inputs = _dataset_inputs(options, options.dataset_dir, loaded)
        else:
            inputs = InputRows(_token_rows(islice(_lines(options), options.num_rows), loaded))
    except OSError as error:
        raise InputError(f"{_name_of(options)} can't be read: {error.strerror or error}") from error
    if not inputs.rows:
        raise InputError(f"{_name_of(options)} holds no rows; give at least one")
    check_rows(inputs.rows, mode, loaded, cut)
    return inputs


def check_rows(rows: Sequence[Row], mode: str, loaded: LoadedModel, cut: bool = False) -> None:
    """Raises an InputError that lists the first rows that a task can't use; `cut` as in `read_inputs`."""
    _raise_problems([(row.place, reason) for row in rows if (reason := _row_problem(row, mode, loaded, cut))])


def _row_problem(row: Row, mode: str, loaded: LoadedModel, cut: bool) -> str | None:
    """Why a task can't use a row; None if it can."""
    expected, found = loaded.num_image_tokens, len(row.body)
    if mode == "classify" and not found:
        return f"there is no codebook token after {IMG}, so there is nothing to classify"
    if mode == "classify" and not row.num_tail and expected not in (None, found):
        return (
            f"the image has {found} tokens, the model's images have {expected}; "
            "give a complete one, or complete it with --mode continue"
        )
    if not row.num_tail and expected is not None and found > expected:
        return f"the image has {found} tokens, the model's images have {expected}; shorten it"
    if mode == "next_token" and row.num_tail == NUM_TAIL_TOKENS and not cut:
        return f"the row ends with {EOS}, and nothing follows; cut it, or give --keep_percent"
    frame = {"classify": NUM_QUESTION_TOKENS, "continue": NUM_FRAME_TOKENS}
    length = found + frame.get(mode, len(HEAD) + row.num_tail)
    if loaded.num_positions is not None and length > loaded.num_positions:
        return f"the row takes {length} positions, the model has {loaded.num_positions}; give a shorter image"
    return None


def _raise_problems(problems: list[tuple[str, str]]) -> None:
    """Lists the first problems, if there are any; each is a place and a reason."""
    if len(problems) == 1:
        raise InputError(": ".join(problems[0]))
    if problems:
        raise InputError("\n".join([f"{len(problems)} bad rows", *list_first(map(": ".join, problems))]))


def require_codec(loaded: LoadedModel, flag: str, decodes: bool = False) -> Codec:
    """The model's codec.

    Raises an InputError that names the option `flag` if there is none, or, where needed, one that can't decode tokens.
    """
    if loaded.codec is None:
        raise InputError(
            f"{flag} needs a codec, but {loaded.name} holds none (codec.json, codec.safetensors); "
            "add the codec that the data were made with, or work with tokens"
        )
    if decodes and not loaded.codec.can_decode:
        raise InputError(
            f"{flag}: the codec of {loaded.name} reads images but can't decode tokens, because its features lack R, G "
            "or B; remove the option"
        )
    return loaded.codec


def _token_rows(lines: Iterable[tuple[str, bytes]], loaded: LoadedModel) -> list[Row]:
    rows, problems = [], []
    for place, line in lines:
        try:
            tokens, label = _parse_line(line, loaded)
            rows.append(loaded.grammar.parse(tokens, label, place))
        except BadRow as error:
            problems.append((place, str(error)))
    _raise_problems(problems)
    return rows


def _lines(options: InputArguments) -> Iterator[tuple[str, bytes]]:
    """All lines that aren't blank, with their places."""
    if options.tokens:
        for i, row in enumerate(options.tokens, start=1):
            yield (f"row {i}", row.encode("utf-8", "surrogateescape"))  # bytes that aren't UTF-8 are rejected later
        return
    if not options.data_files and sys.stdin.isatty():
        raise InputError(
            "no input: give --tokens, --data_files, --dataset_dir or --images, or pipe rows into standard input"
        )
    for name in options.data_files or [STANDARD_INPUT]:
        files: Sequence[Path | None] = [None] if name == STANDARD_INPUT else expand_files([name])
        for file in files:
            place = "stdin" if file is None else printable(file)
            for first, lines in [(1, sys.stdin.buffer)] if file is None else line_chunks(file, tqdm(disable=True)):
                yield from ((f"{place}:{n}", line) for n, line in enumerate(lines, start=first) if line.strip())


def _parse_line(line: bytes, loaded: LoadedModel) -> tuple[list[str], int | None]:
    """A line of text or a JSON object → tokens and label."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRow("not UTF-8 text, expected tokens or a JSON object") from None
    if not text.lstrip().startswith("{"):
        return text.split(), None
    row, joined, _ = parse_object(text, ("tokens",))
    tokens = row["tokens"] if isinstance(row["tokens"], list) else joined.split()
    return tokens, _parse_label(row.get("label"), loaded)


def _parse_label(label: object, loaded: LoadedModel) -> int | None:
    if label is None:
        return None
    if isinstance(label, str) and (number := loaded.label_named(label)) is not None:
        return number
    if type(label) is not int or not 0 <= label < loaded.grammar.num_classes:
        raise BadRow(
            f"label {shorten(repr(label))}, expected a number from 0 to {loaded.grammar.num_classes - 1} or a class "
            "name"
        )
    return label


def _dataset_inputs(options: InputArguments, folder: str, loaded: LoadedModel) -> InputRows:
    split = options.split or "test"
    dataset, grammar = load_prepared(folder, [split]), loaded.grammar
    if split not in dataset:
        raise InputError(f"--split {split}: {folder} has {', '.join(dataset)}; name one of them")
    theirs = load_grammar(Path(folder) / TOKENIZER_FOLDER).vocabulary
    if theirs != grammar.vocabulary:
        first = min(token for token, _ in theirs.items() ^ grammar.vocabulary.items())
        raise InputError(
            f"--dataset_dir {folder} has another vocabulary than the model: {first} has id "
            f"{theirs.get(first)} there, {grammar.vocabulary.get(first)} in the model; prepare the rows with the "
            "model's vocab.json"
        )
    _check_same_codec(folder, loaded)
    place, inputs = printable(f"{folder}/{split}"), InputRows([])
    if split == "validation":
        inputs.notes.append("a model trained on these data was chosen on the validation rows: its figures are too good")
    rows = dataset[split].select_columns(["input_ids", "label"])
    labels = _labels(rows.features["label"].names, loaded, inputs.notes)
    for i, row in enumerate(islice(rows.with_format("numpy"), options.num_rows)):
        inputs.rows.append(Row(row["input_ids"][BODY], NUM_TAIL_TOKENS, labels[row["label"]], f"{place}:{i}"))
    return inputs


def _check_same_codec(folder: str, loaded: LoadedModel) -> None:
    """Refuses rows of another codec: the vocabularies may be equal, but every token has another meaning."""
    theirs, ours = load_codec_of(folder), loaded.codec
    if theirs is None or ours is None:
        return
    differences = codec_differences(theirs, ours, here="in the model")
    if differences:
        raise InputError(
            f"--dataset_dir {folder}: these rows were made with another codec: {join_first(differences, 5, '; ')}; "
            f"prepare them with --codec {loaded.name}"
        )


def _image_inputs(options: InputArguments, images: Sequence[str], loaded: LoadedModel) -> InputRows:
    codec = require_codec(loaded, "--images")
    columns = options.image_column, options.label_column
    names = images, *columns, options.split, options.image_root, options.config_name, options.images_revision
    source = open_images(*names)
    inputs = InputRows([], source, [*source.notes, *source.columns])
    classes = [] if source.labels is None else _labels(source.class_names or [], loaded, inputs.notes)
    count, num_animated = min(len(source), options.num_rows or len(source)), 0
    problems, sizes, peaks = [], [], []
    for start, batch in batches(source):
        if start >= count:
            break
        pixels: dict[int, np.ndarray] = {}
        for i, image in enumerate(batch[: count - start], start):
            if isinstance(image, BadImage):
                problems.append((source.place(i), image.reason))
                continue
            try:
                pixels[i] = codec.pixels(image)
            except ValueError as error:
                problems.append((source.place(i), str(error)))
            else:
                sizes.append(upright_size(image))
                peaks.append(peak(image))
                num_animated += NUM_FRAMES in image.info
        if not pixels:
            continue
        for i, body in zip(pixels, encode_pixels(list(pixels.values()), codec, loaded), strict=True):
            label = None if source.labels is None else classes[source.labels[i]]
            inputs.rows.append(Row(body, 0, label, printable(source.place(i)), i))
    if not inputs.rows:
        _raise_problems(problems)
    inputs.notes += notes_on_format(codec.image_size, codec.config["fit"], np.array(sizes), num_animated)
    inputs.notes += filter(None, [range_problem(peaks, codec.config["max_value"])])
    # A few damaged files among many images are normal: they are named, and the other images are answered.
    inputs.notes += [f"skipped: {place}: {reason}" for place, reason in problems]
    return inputs


def encode_pixels(pixels: Sequence[np.ndarray], codec: Codec, loaded: LoadedModel) -> np.ndarray:
    """The ids of image bodies, shape (images, tokens), of what `codec.pixels` gave for each image."""
    try:
        entries = codec.encode(np.stack(pixels), device=loaded.device)
    except ValueError as error:  # such as a codec that needs more than pixels
        raise InputError(f"--images: {error}") from error
    return loaded.grammar.code_ids[entries].astype(loaded.grammar.id_dtype)


def _labels(class_names: Sequence[str], loaded: LoadedModel, notes: list[str]) -> list[int | None]:
    """The model's label of each class of the input, matched by name; None if the model doesn't know the class."""
    labels = [loaded.label_named(name) for name in class_names]
    if unknown := [name for name, label in zip(class_names, labels, strict=True) if label is None]:
        notes.append(
            f"{len(unknown)} of {len(labels)} classes of the input are unknown to the model "
            f"({join_first(map(printable, unknown), 5)}); their images don't count in the accuracy"
        )
    return labels


def _name_of(options: InputArguments) -> str:
    if options.images:
        return f"--images {' '.join(options.images)}"
    if options.dataset_dir:
        return f"--dataset_dir {options.dataset_dir}"
    if options.data_files and options.data_files != [STANDARD_INPUT]:
        return f"--data_files {' '.join(options.data_files)}"
    return "standard input"
