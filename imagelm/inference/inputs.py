"""What a user wants answered: rows from the command line, files, standard input, prepared datasets or images.

One idea: whatever the input, it becomes a list of rows, and all of them are read and checked before anything is
computed; images become rows through the model's codec.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import torch
from datasets.config import DATASETDICT_JSON_FILENAME
from PIL import Image
from tqdm import tqdm

from imagelm.data.image_form import notes_on_form
from imagelm.data.jsonl.lines import expand_files, line_chunks
from imagelm.data.load import load_codec_of, load_prepared
from imagelm.data.sources.decode import NUM_FRAMES, BadImage, upright_size
from imagelm.data.sources.open import ImageSource, batches, open_images
from imagelm.inference.arguments import InputArguments
from imagelm.inference.loading import LoadedModel
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.tokens.grammar import EOS, IMG, NUM_FRAME_TOKENS, NUM_TAIL_TOKENS
from imagelm.tokens.row import NUM_QUESTION_TOKENS, BadRow, Row, parse_row, shorten
from imagelm.tokens.tokenizer import grammar_of, load_tokenizer
from imagelm.utils.artifacts import TOKENIZER_FOLDER
from imagelm.utils.errors import InputError
from imagelm.utils.text import printable

STANDARD_INPUT = "-"
NUM_SHOWN_PROBLEMS = 20


@dataclass
class Prompts:
    """All rows of an input.

    Attributes:
        rows: In the order of the input.
        source: Where the pictures are, if it's pictures.
        notes: What a user should know about the input, a line each.
    """

    rows: list[Row]
    source: ImageSource | None = None
    notes: list[str] = field(default_factory=list)

    def picture(self, row: Row) -> Image.Image:
        """The picture that a row was made from."""
        return self.source.load(row.picture, row.picture + 1)[0]


def read_prompts(options: InputArguments, mode: str, loaded: LoadedModel, cut: bool = False) -> Prompts:
    """Reads and checks the input.

    Args:
        options: What to read.
        mode: What it will be used for; each has its own demands.
        loaded: The model that will read it.
        cut: Whether whole images will be cut before they are used.

    Raises:
        InputError: There is no input, it can't be read, or rows are wrong; the first ones are told with their places.
    """
    try:
        if options.images:
            prompts = _image_prompts(options, loaded)
        elif options.dataset_dir:
            prompts = _dataset_prompts(options, loaded)
        else:
            prompts = Prompts(_token_rows(islice(_lines(options), options.num_rows), loaded))
    except OSError as error:
        raise InputError(f"{_input_in_words(options)} can't be read: {error.strerror or error}") from error
    if not prompts.rows:
        raise InputError(f"{_input_in_words(options)}: there are no rows in it")
    refuse([(row.place, reason) for row in prompts.rows if (reason := unfit(row, mode, loaded, cut))])
    return prompts


def unfit(row: Row, mode: str, loaded: LoadedModel, cut: bool = False) -> str | None:
    """Why a row can't be used in a mode; None if it can. See `read_prompts`."""
    expected, found = loaded.num_image_tokens, len(row.body)
    if mode == "classify" and not found:
        return f"there is no codebook token after {IMG}, so there is nothing to classify"
    if mode == "classify" and not row.num_tail and expected not in (None, found):
        return (
            f"the image has {found} tokens, the model's images have {expected}; "
            "give a whole one, or complete it with --mode continue"
        )
    if not row.num_tail and expected is not None and found > expected:
        return f"the image has {found} tokens, the model's images have {expected}"
    if mode == "next_token" and row.num_tail == NUM_TAIL_TOKENS and not cut:
        return f"it ends with {EOS}, and nothing follows; cut it, or give --keep_percent"
    length = found + {"classify": NUM_QUESTION_TOKENS, "continue": NUM_FRAME_TOKENS}.get(mode, 1 + row.num_tail)
    if loaded.num_positions is not None and length > loaded.num_positions:
        return f"it takes {length} positions, and the model has {loaded.num_positions}; give a shorter image"
    return None


def refuse(problems: list[tuple[str, str]]) -> None:
    """Raises an InputError that tells the first problems, if there are any; each is a place and a reason."""
    if len(problems) == 1:
        raise InputError(": ".join(problems[0]))
    if problems:
        lines = [f"  {place}: {reason}" for place, reason in problems[:NUM_SHOWN_PROBLEMS]]
        if len(problems) > NUM_SHOWN_PROBLEMS:
            lines.append(f"  … and {len(problems) - NUM_SHOWN_PROBLEMS} more")
        raise InputError("\n".join([f"{len(problems)} bad rows", *lines]))


def encode_pixels(pixels: Sequence[np.ndarray], loaded: LoadedModel) -> np.ndarray:
    """The ids of whole image bodies; shape (images, tokens).

    Args:
        pixels: As the codec's `pixels` gives them, each of shape (height, width, channels).
        loaded: The model.

    Raises:
        InputError: The codec needs more than pixels.
    """
    try:
        return loaded.grammar.code_ids[loaded.codec.encode(np.stack(pixels), device=str(loaded.device))]
    except ValueError as error:
        raise InputError(f"--images: {error}") from error


def require_codec(loaded: LoadedModel, flag: str, draws: bool = False) -> None:
    """Refuses what needs a codec where the model has none.

    Args:
        loaded: The model.
        flag: What the user asked for.
        draws: Whether the codec must draw, too.

    Raises:
        InputError: It has none, or one that can't draw.
    """
    if loaded.codec is None:
        raise InputError(
            f"{flag} needs a codec, and there is none (codec.json, codec.safetensors) beside {loaded.name}; "
            "put the codec there that the data were made with, or work with tokens"
        )
    if draws and not loaded.codec.can_decode:
        raise InputError(
            f"{flag}: the codec of {loaded.name} reads pictures but draws none; its features lack R, G or B"
        )


def _token_rows(lines: Iterable[tuple[str, bytes]], loaded: LoadedModel) -> list[Row]:
    rows, problems = [], []
    for place, line in lines:
        try:
            tokens, label = _parse_line(line, loaded)
            rows.append(parse_row(tokens, label, place, loaded.grammar))
        except BadRow as error:
            problems.append((place, str(error)))
    refuse(problems)
    return rows


def _lines(options: InputArguments) -> Iterator[tuple[str, bytes]]:
    """Every line that isn't blank, with its place."""
    if options.tokens:
        for i, row in enumerate(options.tokens, start=1):
            yield f"row {i}", row.encode("utf-8", "surrogateescape")  # bytes that weren't UTF-8 are refused as a file's
        return
    names = options.data_files or [STANDARD_INPUT]
    if not options.data_files and sys.stdin.isatty():
        raise InputError(
            "no input: give --tokens, --data_files, --dataset_dir or --images, or pipe rows into standard input"
        )
    for name in names:
        files = [None] if name == STANDARD_INPUT else expand_files([name])
        for file in files:
            for number, line in _numbered_lines(file):
                if line.strip():
                    yield f"{'stdin' if file is None else printable(file)}:{number}", line


def _numbered_lines(file: Path | None) -> Iterator[tuple[int, bytes]]:
    if file is None:
        yield from enumerate(sys.stdin.buffer, start=1)
        return
    for first, lines in line_chunks(file, tqdm(disable=True)):
        yield from enumerate(lines, start=first)


def _parse_line(line: bytes, loaded: LoadedModel) -> tuple[list[str], int | None]:
    """A line of text or a JSON object → tokens and label."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRow("not UTF-8 text, expected tokens or a JSON object") from None
    if not text.lstrip().startswith("{"):
        return text.split(), None
    try:
        entry = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRow(f"not JSON ({error}), expected an object with tokens") from None
    if "tokens" not in entry:
        raise BadRow(f"no key 'tokens' in the object; found {shorten(', '.join(entry))}")
    tokens = entry["tokens"]
    if isinstance(tokens, list):
        if wrong := [token for token in tokens if not isinstance(token, str)]:
            raise BadRow(f"tokens holds {shorten(wrong[0])}, expected strings only")
    elif isinstance(tokens, str):
        tokens = tokens.split()
    else:
        raise BadRow(f"tokens is {shorten(tokens)}, expected a string or a list of strings")
    return tokens, _parse_label(entry.get("label"), loaded)


def _parse_label(label: object, loaded: LoadedModel) -> int | None:
    if label is None:
        return None
    if isinstance(label, str) and (number := loaded.label_named(label)) is not None:
        return number
    if type(label) is not int or not 0 <= label < loaded.grammar.num_classes:
        raise BadRow(
            f"label {shorten(label)}, expected a number from 0 to {loaded.grammar.num_classes - 1} or a class name"
        )
    return label


def _dataset_prompts(options: InputArguments, loaded: LoadedModel) -> Prompts:
    dataset, grammar = load_prepared(options.dataset_dir), loaded.grammar
    split = options.split or "test"
    if split not in dataset:
        raise InputError(f"--split {split}: {options.dataset_dir} has {' and '.join(dataset)}")
    theirs = grammar_of(load_tokenizer(Path(options.dataset_dir) / TOKENIZER_FOLDER)).vocabulary
    if theirs != grammar.vocabulary:
        either = {token for token, _ in theirs.items() ^ grammar.vocabulary.items()}
        first = min(either)
        raise InputError(
            f"--dataset_dir {options.dataset_dir} has another vocabulary than the model: {first} has id "
            f"{theirs.get(first)} there, {grammar.vocabulary.get(first)} in the model; prepare the rows with the "
            "model's vocab.json"
        )
    _check_same_codec(options.dataset_dir, loaded)
    place, prompts = printable(f"{options.dataset_dir}/{split}"), Prompts([])
    rows = dataset[split].select_columns(["input_ids", "label"])
    labels = _labels(rows.features["label"].names, loaded, prompts.notes)
    for i, row in enumerate(islice(rows.with_format("numpy"), options.num_rows)):
        body = row["input_ids"][1:-NUM_TAIL_TOKENS]
        prompts.rows.append(Row(body, NUM_TAIL_TOKENS, labels[row["label"]], f"{place}:{i}"))
    return prompts


def _check_same_codec(folder: str, loaded: LoadedModel) -> None:
    """Refuses rows of another codec: the vocabularies may be equal, and every token means something else."""
    theirs, ours = load_codec_of(folder), loaded.codec
    if theirs is None or ours is None:
        return
    differences = [
        f"{name} is {theirs.config.get(name)} there, {ours.config.get(name)} in the model"
        for name in sorted(theirs.config.keys() | ours.config.keys())
        if theirs.config.get(name) != ours.config.get(name)
    ]
    if not differences:
        differences = [f"its {name} has other values" for name in sorted(_different_tensors(theirs, ours))]
    if differences:
        raise InputError(
            f"--dataset_dir {folder}: these rows were made with another codec: {'; '.join(differences[:5])}; "
            f"prepare them with --codec {loaded.name}"
        )


def _different_tensors(first: Codec, second: Codec) -> set[str]:
    both = first.tensors.keys() & second.tensors.keys()
    differ = {name for name in both if not torch.equal(first.tensors[name], second.tensors[name])}
    return differ | (first.tensors.keys() ^ second.tensors.keys())


def _image_prompts(options: InputArguments, loaded: LoadedModel) -> Prompts:
    require_codec(loaded, "--images")
    _check_split(options)
    source = open_images(options.images, options.image_column, options.label_column, options.split)
    prompts = Prompts([], source, list(source.notes))
    classes = [] if source.labels is None else _labels(source.class_names, loaded, prompts.notes)
    count, problems = min(len(source), options.num_rows or len(source)), []
    sizes, num_animated = [], 0
    for start, pictures in batches(source):
        if start >= count:
            break
        found = []
        for picture in pictures[: count - start]:
            found.append(_pixels(picture, loaded))
            if not isinstance(found[-1], BadImage):
                sizes.append(upright_size(picture))
                num_animated += NUM_FRAMES in picture.info
        problems += [(source.place(start + i), p.reason) for i, p in enumerate(found) if isinstance(p, BadImage)]
        numbers = [start + i for i, pixels in enumerate(found) if not isinstance(pixels, BadImage)]
        if not numbers:
            continue
        bodies = encode_pixels([found[number - start] for number in numbers], loaded)
        for i, body in zip(numbers, bodies.astype(loaded.grammar.id_dtype), strict=True):
            label = None if source.labels is None else classes[source.labels[i]]
            prompts.rows.append(Row(body, 0, label, printable(source.place(i)), i))
    if problems and not prompts.rows:
        refuse(problems)
    prompts.notes += notes_on_form(loaded.codec.config, np.array(sizes), num_animated)
    # A damaged file among many pictures is everyday life; it is named, and costs the others nothing.
    prompts.notes += [f"left out: {place}: {reason}" for place, reason in problems]
    return prompts


def _check_split(options: InputArguments) -> None:
    """Refuses a split of what has none; only folders of several splits and Hub datasets do."""
    for name in options.images if options.split else []:
        path = Path(name)
        if path.exists() and not (path / DATASETDICT_JSON_FILENAME).is_file():
            inner = path / options.split
            remedy = f"give --images {inner}" if inner.is_dir() else "leave it out"
            raise InputError(f"--split {options.split} has no effect on --images {name}, which has no splits; {remedy}")


def _pixels(picture: Image.Image | BadImage, loaded: LoadedModel) -> np.ndarray | BadImage:
    try:
        return picture if isinstance(picture, BadImage) else loaded.codec.pixels(picture)
    except ValueError as error:
        return BadImage(str(error))


def _labels(class_names: Sequence[str], loaded: LoadedModel, notes: list[str]) -> list[int | None]:
    """The model's label of each class of the input, matched by name; None where the model doesn't know it."""
    labels = [loaded.label_named(name) for name in class_names]
    if unknown := [name for name, label in zip(class_names, labels, strict=True) if label is None]:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        notes.append(
            f"{len(unknown)} of {len(labels)} classes of the input are unknown to the model ({shown}); "
            "their images count in no accuracy"
        )
    return labels


def _input_in_words(options: InputArguments) -> str:
    if options.images:
        return f"--images {' '.join(options.images)}"
    if options.dataset_dir:
        return f"--dataset_dir {options.dataset_dir}"
    if options.data_files and options.data_files != [STANDARD_INPUT]:
        return f"--data_files {' '.join(options.data_files)}"
    return "standard input"
