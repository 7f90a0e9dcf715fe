"""What `inference.py` can be told.

One idea: a dataclass a concern, each field with its help, its default and the modes that it works in; the command line
and the interactive prompt are made from the fields, and an option that would have no effect is refused. Nothing heavy
is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from pathlib import Path

from imagelm.utils.errors import InputError

MODES = {
    "classify": "the class of each row or image, with probabilities",
    "generate": "draw new images, of one class where asked",
    "continue": "complete rows or the rest of images",
    "next_token": "the most probable next tokens",
    "interactive": "a prompt for all of it",
}
READING = ("classify", "continue", "next_token")
DRAWING = ("generate", "continue", "interactive")
SHARED = tuple(MODES)
MIN_TEMPERATURE = 1e-3  # far below it, logits divided by it are no longer finite


def option(text: str, modes: tuple[str, ...] = SHARED, **words: object) -> dict[str, object]:
    """A field's metadata: its help, the modes it works in, and further words for `argparse`."""
    return {"help": text, "modes": modes, "words": words}


@dataclass
class LoadArguments:
    """Model"""

    model: str = field(
        default="", metadata=option("folder with a trained model (such as outputs/mine/best_model) or Hub id; required")
    )
    revision: str | None = field(default=None, metadata=option("branch, tag or commit of a Hub id"))
    device: str = field(default="auto", metadata=option("auto, cpu, cuda or cuda:N (default: auto)"))
    dtype: str = field(
        default="float32",
        metadata=option(
            "what to compute in (default: float32, as reported)", choices=("float32", "bfloat16", "float16")
        ),
    )
    onnx: str | None = field(
        default=None,
        metadata=option(
            "answer with onnxruntime: a folder that python -m imagelm.export.onnx wrote of this model",
            ("classify", "next_token"),
        ),
    )
    batch_size: int = field(
        default=64, metadata=option("sequences computed at once; changes no result of classify (default: 64)", type=int)
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("--model is missing; name a trained folder, such as outputs/mine/best_model, or a Hub id")
        _at_least("batch_size", self.batch_size, 1)


@dataclass
class InputArguments:
    """Input (one of tokens, data_files, dataset_dir, images; otherwise standard input)"""

    tokens: list[str] | None = field(
        default=None, metadata=option("rows, each one quoted word", READING, nargs="+", metavar="ROW")
    )
    data_files: list[str] | None = field(
        default=None,
        metadata=option(
            "JSONL (objects with tokens and perhaps label) or text (a row a line), also .gz and .zst; - is standard "
            "input",
            READING,
            nargs="+",
            metavar="F",
        ),
    )
    dataset_dir: str | None = field(default=None, metadata=option("folder that prepare_dataset.py wrote", READING))
    images: list[str] | None = field(
        default=None,
        metadata=option(
            "image files, folders (a folder a class), Parquet, NPZ, Hub datasets; the model needs its codec",
            READING,
            nargs="+",
            metavar="F",
        ),
    )
    split: str | None = field(
        default=None, metadata=option("of --dataset_dir (default: test) or of a dataset in --images", READING)
    )
    image_column: str | None = field(default=None, metadata=option("of a dataset in --images", READING))
    label_column: str | None = field(default=None, metadata=option("of a dataset in --images", READING))
    num_rows: int | None = field(
        default=None, metadata=option("read the first N rows only", READING, type=int, metavar="N")
    )

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("tokens", "data_files", "dataset_dir", "images") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are given; one input at a time")
        if self.split and not (self.dataset_dir or self.images):
            raise InputError(f"--split {self.split} belongs to --dataset_dir or --images")
        for name in ("image_column", "label_column"):
            if getattr(self, name) and not self.images:
                raise InputError(f"--{name} belongs to --images")
        if self.num_rows is not None:
            _at_least("num_rows", self.num_rows, 1)


@dataclass
class AnswerArguments:
    """classify and next_token"""

    top: int = field(
        default=5,
        metadata=option(
            "classes or tokens to show, best first (default: 5)", ("classify", "next_token", "interactive"), type=int
        ),
    )
    score: bool = field(
        default=False,
        metadata=option(
            "add log-likelihood (nats, all tokens after <IMG> up to and with </IMG>), bits per token and, with a "
            "codec, bits per dimension; a likelihood of tokens, not to be compared with models of pixels",
            ("classify",),
        ),
    )

    def __post_init__(self) -> None:
        _at_least("top", self.top, 1)


@dataclass
class GenerationArguments:
    """GeneratedRow (generate, continue); names and meaning as in transformers' GenerationConfig"""

    do_sample: bool = field(default=False, metadata=option("sample (default in generate)", DRAWING))
    greedy: bool = field(
        default=False, metadata=option("always the most probable token (default in continue)", DRAWING)
    )
    temperature: float | None = field(default=None, metadata=option("of sampling (default: 1)", DRAWING, type=float))
    top_k: int | None = field(
        default=None, metadata=option("sample from the k most probable tokens (default: 0, all)", DRAWING, type=int)
    )
    top_p: float | None = field(
        default=None, metadata=option("sample from the smallest set with this probability (1)", DRAWING, type=float)
    )
    num_beams: int = field(
        default=1, metadata=option("beam search with so many beams (default: 1, off)", DRAWING, type=int)
    )
    repetition_penalty: float = field(
        default=1.0, metadata=option("above 1 repeats less (default: 1, off)", DRAWING, type=float)
    )
    no_repeat_ngram_size: int = field(
        default=0, metadata=option("no n-gram of this size twice (default: 0, off)", DRAWING, type=int)
    )
    num_return_sequences: int = field(
        default=1, metadata=option("continuations of each row (default: 1)", ("continue", "interactive"), type=int)
    )
    seed: int = field(
        default=42, metadata=option("of sampling (default: 42); another --batch_size draws others", DRAWING, type=int)
    )
    no_grammar: bool = field(
        default=False, metadata=option("let the model write any token, even where no image can come of it", DRAWING)
    )
    num_image_tokens: int | None = field(
        default=None,
        metadata=option(
            "tokens of an image, for a model without codec (default: the model ends it itself)", DRAWING, type=int
        ),
    )
    keep_percent: float | None = field(
        default=None,
        metadata=option(
            "what is kept of a whole image: its top P %%, in rows of the grid (default in continue: 50; rows that are "
            "already cut are taken as they are)",
            ("continue", "next_token", "interactive"),
            type=float,
            metavar="P",
        ),
    )

    def __post_init__(self) -> None:
        if self.do_sample and self.greedy:
            raise InputError("--do_sample and --greedy contradict each other; leave one out")
        sampling = [f"--{name}" for name in ("temperature", "top_k", "top_p") if getattr(self, name) is not None]
        if self.greedy and sampling:
            raise InputError(f"{' and '.join(sampling)} without effect: --greedy doesn't sample; leave one out")
        if self.temperature is not None and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise InputError(
                f"--temperature {self.temperature}: give {MIN_TEMPERATURE} or more, such as 0.9; "
                "--greedy always takes the most probable token"
            )
        if not 0 < self.repetition_penalty < math.inf:
            raise InputError(f"--repetition_penalty {self.repetition_penalty}: give a positive number, such as 1.2")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"--top_p {self.top_p} is no share; give one above 0 and up to 1, such as 0.95")
        for name, least in (("top_k", 0), ("no_repeat_ngram_size", 0), ("num_beams", 1), ("num_return_sequences", 1)):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), least)
        if self.num_image_tokens is not None:
            _at_least("num_image_tokens", self.num_image_tokens, 1)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed} is out of range; give one from 0 to {2**32 - 1}")
        if self.keep_percent is not None and not 0 < self.keep_percent <= 100:
            raise InputError(f"--keep_percent {self.keep_percent}: give a number above 0 and up to 100")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise InputError(
                f"--num_return_sequences {self.num_return_sequences} are more than --num_beams {self.num_beams}; "
                "a beam gives one sequence"
            )

    def samples(self, mode: str) -> bool:
        """Whether tokens are drawn at random: where asked, or where another option only makes sense so."""
        asked = self.do_sample or any(value is not None for value in (self.temperature, self.top_k, self.top_p))
        if self.greedy or asked or self.num_beams > 1:
            return asked
        return mode == "generate" or self.num_return_sequences > 1


@dataclass
class ClassArguments:
    """generate"""

    num_samples: int = field(default=8, metadata=option("images to draw (default: 8)", ("generate",), type=int))
    class_name: str | None = field(
        default=None,
        metadata=option("draw images of this class, by name or number", ("generate",), flag="--class", metavar="C"),
    )
    condition: str = field(
        default="rejection",
        metadata=option(
            "rejection: draw until enough images are of the class; likelihood: keep those with the highest probability "
            "of the class among --num_candidates for each (default: rejection)",
            ("generate", "interactive"),
            choices=("rejection", "likelihood"),
        ),
    )
    max_draws: int = field(
        default=100,
        metadata=option(
            "rejection gives up after so many draws for each image (default: 100)",
            ("generate", "interactive"),
            type=int,
        ),
    )
    num_candidates: int = field(
        default=8,
        metadata=option("likelihood draws so many for each image (default: 8)", ("generate", "interactive"), type=int),
    )

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_draws", "num_candidates"):
            _at_least(name, getattr(self, name), 1)


@dataclass
class OutputArguments:
    """Output"""

    output: str | None = field(
        default=None,
        metadata=option(
            "write all records to this JSONL file, whole or not at all", (*READING, "generate"), metavar="F.jsonl"
        ),
    )
    output_image: str | None = field(
        default=None,
        metadata=option(
            "write the images as a PNG grid; the model needs its codec", ("generate", "continue"), metavar="F.png"
        ),
    )
    num_pictures: int = field(
        default=16,
        metadata=option("rows of continue that the PNG shows (default: 16)", ("continue",), type=int, metavar="N"),
    )
    overwrite: bool = field(
        default=False, metadata=option("replace files that exist", (*READING, "generate", "interactive"))
    )

    def __post_init__(self) -> None:
        _at_least("num_pictures", self.num_pictures, 1)
        for name in ("output", "output_image"):
            if (file := getattr(self, name)) is not None:
                check_output_file(file, f"--{name}", self.overwrite)
        if self.output and self.output_image and Path(self.output).resolve() == Path(self.output_image).resolve():
            raise InputError(f"--output and --output_image both name {self.output}; give each its own file")
        if self.output_image and Path(self.output_image).suffix.lower() != ".png":
            raise InputError(f"--output_image {self.output_image}: give a name that ends in .png")


GROUPS = (LoadArguments, InputArguments, AnswerArguments, GenerationArguments, ClassArguments, OutputArguments)


@dataclass
class InferenceArguments:
    """Everything that `inference.py` was told."""

    mode: str
    model: LoadArguments
    input: InputArguments
    answer: AnswerArguments
    draw: GenerationArguments
    classes: ClassArguments
    output: OutputArguments

    def __post_init__(self) -> None:
        for group in (self.model, self.input, self.answer, self.draw, self.classes, self.output):
            for entry in fields(group):
                if getattr(group, entry.name) != entry.default and self.mode not in entry.metadata["modes"]:
                    raise InputError(
                        f"{flag_of(entry)} has no effect in --mode {self.mode}; it belongs to "
                        f"{', '.join(entry.metadata['modes'])}"
                    )
        self.check_drawing(self.mode, self.draw, self.classes)

    @staticmethod
    def check_drawing(mode: str, draw: GenerationArguments, classes: ClassArguments) -> None:
        """Refuses to draw the same image several times.

        Raises:
            InputError: With what to do instead.
        """
        if mode == "continue" and draw.greedy and draw.num_beams == 1 < draw.num_return_sequences:
            raise InputError("--greedy gives one continuation; leave out --num_return_sequences, or give --num_beams")
        if mode != "generate" or draw.samples(mode):
            return
        if classes.class_name is not None:
            raise InputError("--class needs many different images to choose from; sample them (--do_sample)")
        if classes.num_samples > draw.num_beams:
            raise InputError(
                f"without sampling --num_beams {draw.num_beams} gives at most {draw.num_beams} different images; "
                f"sample (--do_sample), or give --num_samples {draw.num_beams}"
            )


def settings_of(group: object) -> dict[str, Field]:
    """The fields of a group that the interactive prompt can set, by name."""
    return {entry.name: entry for entry in fields(group) if "interactive" in entry.metadata["modes"]}


def check_output_file(name: str, flag: str, overwrite: bool) -> None:
    """Refuses a file that can't be written, or that exists and may not be replaced.

    Raises:
        InputError: With what to do.
    """
    file = Path(name)
    try:
        is_there = file.exists()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{flag} {name}: {error.strerror}; choose another name") from error
    if not name or file.is_dir():
        raise InputError(f"{flag} {name or 'is empty and'} is no file; name a file to write")
    if file.is_symlink() or (is_there and not file.is_file()):  # it would be replaced, not written to
        raise InputError(f"{flag} {name} is a link, a pipe or a device; name a regular file to write")
    if not file.parent.is_dir():
        raise InputError(f"{flag} {name}: there is no folder {file.parent}; make it first")
    if is_there and not overwrite:
        raise InputError(f"{flag} {name} exists; add --overwrite to replace it, or choose another name")


def flag_of(entry: Field) -> str:
    """How a field is called on the command line."""
    return entry.metadata["words"].get("flag", f"--{entry.name}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"--{name} {value}: give {least} or more")
