"""What `prepare_dataset.py` is told, checked.

One idea: a value that can't work is refused here, before anything is read; the fields are the command's arguments by
the same names. Nothing heavy is imported, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from imagelm.tokens.grammar import NUM_FRAME_TOKENS
from imagelm.utils.atomic_io import check_folder_name
from imagelm.utils.errors import InputError

CODEBOOKS = ("patch", "unified", "learned")
FIT_MODES = ("resize", "pad")
PIXEL_FEATURES = ("x", "y", "t", "R", "G", "B", "A", "Gx", "Gy")


# What a codec decides where one is given.
CODEC_OPTIONS = (
    *("image_size", "fit", "background", "channels", "codebook", "patch_size", "codebook_size"),
    *("features", "feature_scaling", "centroids", "codec_steps"),
)


@dataclass
class ImageArguments:
    """What `prepare_dataset.py` is told about pictures; the command's arguments by the same names."""

    images: list[str]
    test_images: list[str] | None = None
    image_column: str | None = None
    label_column: str | None = None
    image_size: str | None = None
    fit: str = "resize"
    background: int = 0
    channels: str = "auto"
    codebook: str = "patch"
    patch_size: int = 4
    codebook_size: int = 500
    features: str = "x,y,R,G,B,Gx,Gy"
    feature_scaling: str = "standardize"
    centroids: str | None = None
    codec_steps: int = 2000
    augment: str | None = None
    variants: int = 0
    keep_images: bool = False
    write_jsonl: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.codebook not in CODEBOOKS:
            raise InputError(f"--codebook {self.codebook} is unknown; choose one of {', '.join(CODEBOOKS)}")
        if self.fit not in FIT_MODES:
            raise InputError(f"--fit {self.fit} is unknown; choose one of {', '.join(FIT_MODES)}")
        for name, low in (("patch_size", 1), ("codebook_size", 2), ("codec_steps", 1), ("variants", 0)):
            if getattr(self, name) < low:
                raise InputError(f"--{name} {getattr(self, name)}: give {low} or more")
        if not 0 <= self.background <= 255:
            raise InputError(f"--background {self.background}: give a brightness from 0 (black) to 255 (white)")
        if wrong := [name for name in self.features.split(",") if name not in PIXEL_FEATURES]:
            raise InputError(f"--features: {wrong[0]!r} is unknown; choose from {','.join(PIXEL_FEATURES)}")
        if bool(self.augment) != bool(self.variants):
            raise InputError(
                "--augment and --variants belong together: how a variant may differ, and how many a training image "
                "gets, such as --augment shift=2,rotate=10 --variants 4"
            )
        if self.centroids and self.codebook != "unified":
            raise InputError("--centroids is for --codebook unified")
        names = self.features.split(",")
        if len(set(names)) < len(names):
            raise InputError(f"--features {self.features} names one of them twice")
        for name in ("features", "feature_scaling", "codebook_size") if self.centroids else ():
            if getattr(self, name) != getattr(type(self), name):
                raise InputError(f"--{name} and --centroids contradict each other: the file decides it")
        parse_size(self.image_size)


@dataclass
class PrepareArguments:
    """What to read, where to write, and how to split; either `data_files` with `vocab_file`, or `images`."""

    data_files: list[str] | None = None
    vocab_file: str | None = None
    output_dir: str = ""
    max_length: int | None = None
    truncation_side: str = "left"
    test_size: float = 0.2
    split_by: str = "stratified"
    seed: int = 42
    on_bad_rows: str | None = None
    overwrite: bool = False
    codec: str | None = None
    class_names: str | None = None
    images: ImageArguments | None = None

    def __post_init__(self) -> None:
        check_folder_name(self.output_dir)
        self._check_input()
        if self.on_bad_rows is None:
            # A bad row is a fault in what wrote the rows; a damaged file among many pictures is everyday life.
            self.on_bad_rows = "skip" if self.images else "stop"
        if not 0 < self.test_size < 1:
            raise InputError(f"--test_size {self.test_size} is no share; give one between 0 and 1, such as 0.2")
        if self.max_length is not None and self.max_length <= NUM_FRAME_TOKENS:
            raise InputError(
                f"--max_length {self.max_length} leaves no room for an image; "
                f"the frame takes {NUM_FRAME_TOKENS} tokens, so give at least {NUM_FRAME_TOKENS + 1}"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed} is out of range; give one from 0 to {2**32 - 1}")

    def _check_input(self) -> None:
        if (self.data_files is None) == (self.images is None):
            raise InputError("give --images, or --data_files with --vocab_file: one of the two")
        if self.images is None and self.vocab_file is None:
            raise InputError("--data_files needs --vocab_file: a JSON file with each token's id")
        if self.images is not None:
            for folder in [*self.images.images, *(self.images.test_images or [])]:
                inside = Path(self.output_dir).resolve().is_relative_to(Path(folder).resolve())
                if folder and Path(folder).is_dir() and inside:
                    raise InputError(
                        f"--output_dir {self.output_dir} lies in the images' folder {folder}, which would take it for "
                        "a class the next time; choose another"
                    )
            for name in ("vocab_file", "class_names", "max_length"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"--{name} goes with --data_files; with --images the codebook and the pictures decide it"
                    )


def make_options(arguments: dict[str, object]) -> PrepareArguments:
    """The options that command-line arguments stand for.

    Raises:
        InputError: They contradict each other, or a value can't work.
    """
    own = {entry.name: entry.default for entry in fields(ImageArguments)}
    about_images = {name: value for name, value in arguments.items() if name in own}
    others = {name: value for name, value in arguments.items() if name not in own}
    if arguments["images"] is not None:
        for name in CODEC_OPTIONS if arguments["codec"] else ():
            if arguments[name] != own[name]:
                raise InputError(f"--{name} and --codec contradict each other: a codec that is there has its own")
        return PrepareArguments(**others, images=ImageArguments(**about_images))
    for entry in fields(ImageArguments):
        if entry.name != "images" and about_images[entry.name] != entry.default:
            raise InputError(f"--{entry.name} goes with --images")
    return PrepareArguments(**others)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`"28"` or `"28x32"` (height x width)."""
    if text is None:
        return None
    sides = str(text).lower().replace("×", "x").split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise InputError(f"--image_size {text}: give pixels, as 32, or height and width, as 32x48")
    return int(sides[0]), int(sides[-1])
