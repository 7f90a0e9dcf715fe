"""The options of `imagelm infer`.

One idea: one dataclass per concern, each field with its help, its default and the modes that it works in. The command
line and the interactive prompt are made from the fields, and an option that would have no effect is refused. Nothing
heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imagelm.data.image_options import check_image_root
from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments, check_samples
from imagelm.utils.command_line import Option, OptionGroup, option
from imagelm.utils.errors import InputError

MODES = {
    "classify": "the class of each row or image, with probabilities",
    "generate": "new images, of one class if asked",
    "continue": "complete rows or images",
    "next_token": "the most probable next tokens",
    "interactive": "a prompt for all of these",
}
# Metadata: the modes that an option works in; all of them if it has no such entry.
READING = {"modes": ("classify", "continue", "next_token")}


@dataclass(kw_only=True)
class ModeArguments:
    """What to do."""

    mode: str = option("; ".join(f"{mode}: {text}" for mode, text in MODES.items()), group="Mode", choices=tuple(MODES))


@dataclass(kw_only=True)
class LoadArguments(OptionGroup):
    """Which model, where and how it computes."""

    model: str = option(
        "trained folder, such as outputs/mine/best_model, or Hub id", group="Model", metavar="FOLDER|ID"
    )
    revision: str | None = option("branch, tag or commit of a Hub id", None, metavar="NAME")
    device: str = option("auto, cpu, cuda or cuda:N", "auto", metavar="DEVICE")
    dtype: str = option(
        "number format of the computation; reported figures are in float32",
        "float32",
        choices=("float32", "bfloat16", "float16"),
    )
    backend: str = option(
        "what computes: torch; onnx or openvino, from the export beside the model (imagelm export); auto: the fastest "
        "on this CPU of those that are installed and exported",
        "torch",
        choices=("torch", "onnx", "openvino", "auto"),
    )
    export_dir: str | None = option(
        "folder with the onnx/ or openvino/ that imagelm export wrote, if it isn't the model's", None, metavar="FOLDER"
    )
    batch_size: int = option("sequences computed at once; changes no result of classify", 64, minimum=1)

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("--model is empty; name a trained folder, such as outputs/mine/best_model, or a Hub id")
        super().__post_init__()
        if self.export_dir is not None and self.backend == "torch":
            raise InputError("--export_dir has no effect with --backend torch; add --backend onnx, openvino or auto")
        if self.backend not in self.backends():
            formats = "float32 or bfloat16" if self.backend == "openvino" else "float32"
            raise InputError(
                f"--backend {self.backend} computes on the CPU in {formats}; remove --device {self.device} or --dtype "
                f"{self.dtype}, or use --backend torch"
            )

    def exports(self) -> set[str]:
        """The backends whose exports may answer."""
        return self.backends() - {"torch", "auto"} if self.backend == "auto" else {self.backend} - {"torch"}

    def backends(self) -> set[str]:
        """The backends that have this device and number format."""
        allowed = {"torch", "auto"}
        if self.device in ("auto", "cpu"):
            allowed |= {"float32": {"onnx", "openvino"}, "bfloat16": {"openvino"}}.get(self.dtype, set())
        return allowed


@dataclass
class InputArguments(OptionGroup):
    """What to read."""

    tokens: list[str] | None = option(
        "rows, each in quotes",
        None,
        group="Input: one of tokens, data_files, dataset_dir, images; otherwise standard input",
        metavar="ROW",
        **READING,
    )
    data_files: list[str] | None = option(
        "JSONL (objects with tokens and, if known, label) or text (one row per line), also .gz and .zst; - is standard "
        "input",
        None,
        metavar="FILE",
        **READING,
    )
    dataset_dir: str | None = option("folder that imagelm prepare wrote", None, metavar="FOLDER", **READING)
    images: list[str] | None = option(
        "images, as imagelm prepare takes them, with or without labels; the model needs its codec",
        None,
        metavar="PATH",
        **READING,
    )
    split: str | None = option(
        "split of --dataset_dir (test if not given) or of --images (train if not given)",
        None,
        metavar="NAME",
        **READING,
    )
    config_name: str | None = option(
        "configuration of a Hub dataset in --images, or of a snapshot of one", None, metavar="NAME", **READING
    )
    images_revision: str | None = option(
        "branch, tag or commit of a Hub dataset in --images", None, metavar="NAME", **READING
    )
    image_column: str | None = option("column of a dataset in --images", None, metavar="NAME", **READING)
    label_column: str | None = option("column of a dataset in --images", None, metavar="NAME", **READING)
    image_root: str | None = option(
        "folder for the relative paths in tables and lists of --images; no file outside it is read; "
        "without it only where every row names a file in a subfolder of the table",
        None,
        metavar="FOLDER",
        **READING,
    )
    num_rows: int | None = option("read only the first N rows", None, minimum=1, **READING)

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("tokens", "data_files", "dataset_dir", "images") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are given; give one input at a time")
        if self.split and not (self.dataset_dir or self.images):
            raise InputError(f"--split {self.split} needs --dataset_dir or --images")
        for name in ("image_column", "label_column", "image_root", "config_name", "images_revision"):
            if getattr(self, name) and not self.images:
                raise InputError(f"--{name} needs --images")
        check_image_root(self.image_root, self.images or [])
        super().__post_init__()


@dataclass
class AnswerArguments(OptionGroup):
    """What classify and next_token show."""

    top: int = option(
        "number of classes or tokens to show, best first",
        5,
        minimum=1,
        group="Answers of classify and next_token",
        modes=("classify", "next_token", "interactive"),
    )
    score: bool = option(
        "add the log-likelihood (nats, all tokens after <IMG> up to and including </IMG>), bits per token and, with a "
        "codec, bits per dimension; this is a likelihood of tokens, not comparable with models of pixels",
        False,
        modes=("classify",),
    )


@dataclass
class OutputArguments(OptionGroup):
    """Which files to write."""

    output: str | None = option(
        "write all records to this JSONL file; it is complete or absent",
        None,
        group="Output",
        metavar="FILE.jsonl",
        modes=("classify", "continue", "next_token", "generate"),
    )
    output_image: str | None = option(
        "write the images as a PNG grid; the model needs its codec",
        None,
        metavar="FILE.png",
        modes=("generate", "continue"),
    )
    num_pictures: int = option("rows of continue that the PNG shows", 16, minimum=1, modes=("continue",))
    overwrite: bool = option(
        "replace existing files", False, modes=("classify", "continue", "next_token", "generate", "interactive")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
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
    """All options of `imagelm infer`; raises an InputError if one has no effect in this mode."""

    mode: str
    model: LoadArguments
    input: InputArguments
    answer: AnswerArguments
    generation: GenerationArguments
    classes: ClassArguments
    output: OutputArguments

    def __post_init__(self) -> None:
        for group in (self.model, self.input, self.answer, self.generation, self.classes, self.output):
            for entry in group.changed():
                if self.mode not in (modes := modes_of(entry)):
                    works = ", ".join(modes)
                    raise InputError(f"{entry.flag} has no effect in --mode {self.mode}; it works in {works}")
        check_samples(self.mode, self.generation, self.classes)


def modes_of(entry: Option) -> tuple[str, ...]:
    """The modes that an option works in."""
    return entry.field.metadata.get("modes", tuple(MODES))


def check_output_file(name: str, flag: str, overwrite: bool) -> None:
    """Raises an InputError if a file can't be written, or exists and may not be replaced."""
    file = Path(name)
    try:
        is_there = file.exists()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{flag} {name}: {error.strerror}; choose another name") from error
    if not name or file.is_dir():
        raise InputError(f"{flag} {name or 'is empty and'} isn't a file; name a file to write")
    if file.is_symlink() or (is_there and not file.is_file()):  # it would be replaced, not written to
        raise InputError(f"{flag} {name} is a link, a pipe or a device; name a regular file to write")
    if not file.parent.is_dir():
        raise InputError(f"{flag} {name}: there is no folder {file.parent}; create it first")
    if is_there and not overwrite:
        raise InputError(f"{flag} {name} exists; add --overwrite to replace it, or choose another name")
