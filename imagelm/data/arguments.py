"""The options of `imagelm prepare`.

One idea: a value that can't work, or an option that would have no effect, is refused here, before anything is read.
Nothing heavy is imported, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from imagelm.data.image_options import check_features, check_image_root, check_not_in_images, parse_size
from imagelm.utils.command_line import MAX_SEED, Option, OptionGroup, option, options_of
from imagelm.utils.errors import InputError

# Metadata: the input that an option goes with, and whether an existing codec decides it.
IMAGES, ROWS, CODEC = {"input": "images"}, {"input": "data_files"}, {"input": "images", "in_codec": True}
PLACE = {"no_effect": True}  # says where and by whom the data are prepared, and has no effect on them


@dataclass(kw_only=True)
class PrepareArguments(OptionGroup):
    """What to read, how to turn it into tokens, how to split it, and where to write it.

    Raises:
        InputError: A value can't work, or an option has no effect.
    """

    images: list[str] | None = option(
        "folders, files or patterns: one subfolder per class, images with a list, Parquet, Arrow, NPZ, NPY, zip, tar; "
        "or a dataset's id on the Hub",
        None,
        group="Input and output",
        metavar="PATH",
    )
    test_images: list[str] | None = option(
        "held-out images; without them a share of --images is held out", None, metavar="PATH", **IMAGES
    )
    data_files: list[str] | None = option("rows: .jsonl, .jsonl.gz or .jsonl.zst files, or globs", None, metavar="FILE")
    vocab_file: str | None = option("vocabulary of the rows: JSON, token to id", None, metavar="FILE", **ROWS)
    class_names: str | None = option(
        "names of the rows' classes: a JSON list in the order of the labels", None, metavar="FILE", **ROWS
    )
    output_dir: str = option("folder to write; it is complete or absent", metavar="FOLDER")
    overwrite: bool = option("replace an existing dataset in --output_dir", False)

    image_size: str | None = option(
        "size in pixels: 32, or 32x48 for height x width; without it the most common size",
        None,
        group="Images",
        metavar="SIZE",
        **CODEC,
    )
    fit: str = option(
        "how to fit images of another size: resize them, or pad them (larger ones are shrunk first)",
        "resize",
        choices=("resize", "pad"),
        **CODEC,
    )
    background: int = option(
        "brightness under transparent and padded pixels, from 0 (black) to 255 (white)",
        0,
        minimum=0,
        maximum=255,
        **CODEC,
    )
    channels: str = option(
        "colour channels; auto: grey if no image is coloured", "auto", choices=("auto", "grey", "rgb"), **CODEC
    )
    image_column: str | None = option(
        "column or NPZ array with the images; without it the column is found by its name and type",
        None,
        metavar="NAME",
        **IMAGES,
    )
    label_column: str | None = option("column or NPZ array with the labels", None, metavar="NAME", **IMAGES)
    split: str | None = option("use only this split of --images", None, metavar="NAME", **IMAGES)
    config_name: str | None = option(
        "configuration of a dataset on the Hub, or of a snapshot of one", None, metavar="NAME", **IMAGES
    )
    revision: str | None = option("branch, tag or commit of a dataset on the Hub", None, metavar="NAME", **IMAGES)
    image_root: str | None = option(
        "folder for the relative paths in tables and lists (.csv, .tsv, .json, .jsonl); no file outside it is read; "
        "without it only where every row names a file in a subfolder of the table",
        None,
        metavar="FOLDER",
        **IMAGES,
    )
    augment: str | None = option(
        "how variants of training images differ: any of shift=2,rotate=10,scale=0.1,hflip,vflip (pixels, degrees, "
        "share); needs --variants",
        None,
        metavar="CHANGES",
        **IMAGES,
    )
    variants: int = option("number of variants of each training image", 0, minimum=0, **IMAGES)
    keep_images: bool = option("keep the images in the dataset; imagelm train --augment needs them", False, **IMAGES)
    write_jsonl: bool = option("also write the rows as raw JSONL, to the subfolder raw", False, **IMAGES)

    codebook: str = option(
        "patch: k-means over patches; unified: k-means over pixels with position and gradient, one token per pixel; "
        "learned: a small vector-quantized autoencoder",
        "patch",
        group="Codebook",
        choices=("patch", "unified", "learned"),
        **CODEC,
    )
    patch_size: int = option("side of the patch of a token, in pixels (patch, learned)", 4, minimum=1, **CODEC)
    codebook_size: int = option("number of codebook entries", 500, minimum=2, **CODEC)
    codec: str | None = option(
        "use this codec instead of fitting one: the codec folder of another dataset, or a model", None, metavar="FOLDER"
    )
    features: str = option(
        "unified: features of a pixel, from x,y,t,R,G,B,A,Gx,Gy; t is the image's number: a column or array t, or else "
        "its index within its class",
        "x,y,R,G,B,Gx,Gy",
        metavar="X,Y",
        **CODEC,
    )
    feature_scaling: str = option(
        "unified: standardize divides each feature by its standard deviation",
        "standardize",
        choices=("standardize", "none"),
        **CODEC,
    )
    centroids: str | None = option(
        "unified: read the centroids from a CSV file with one column per feature instead of fitting them",
        None,
        metavar="FILE",
        **CODEC,
    )
    codec_steps: int = option("learned: number of training steps", 2000, minimum=1, **CODEC)
    device: str = option("device to fit the codec on: auto, cpu, cuda or cuda:N", "auto", metavar="DEVICE", **IMAGES)

    on_bad_rows: str | None = option(
        "stop: write nothing (default for rows); skip: drop bad rows or unreadable images and list them in "
        "bad_rows.jsonl (default for images)",
        None,
        group="Rows",
        choices=("stop", "skip"),
    )
    max_length: int | None = option("longest row in tokens; without it the longest row is kept whole", None, **ROWS)
    truncation_side: str = option(
        "side on which longer images lose tokens; <IMG> and the tail are always kept", "left", choices=("left", "right")
    )

    split_by: str = option(
        "stratified: at random within each class; hash: the side of a row never changes as the data grow; field: the "
        "rows' own split: train, validation or test",
        "stratified",
        group="Split",
        choices=("stratified", "hash", "field"),
    )
    test_size: float = option("share of test rows", 0.2)
    validation_size: float = option(
        "share of the training rows that becomes the validation split, which chooses the best model; 0: none; a "
        "validation split that the data have is used instead",
        0.1,
    )
    seed: int = option("seed of the stratified split, the codebook and the variants", 42, minimum=0, maximum=MAX_SEED)

    num_proc: int = option(
        "number of processes that read and encode; the result is the same",
        1,
        group="Many processes and machines",
        minimum=1,
        **PLACE,
    )
    num_shards: int | None = option(
        "prepare one of this many shares of the input; --merge_shards joins them", None, minimum=1, **PLACE
    )
    shard_index: int | None = option("which of the --num_shards shares, from 0", None, minimum=0, **PLACE)
    merge_shards: str | None = option(
        "join the shards in the subfolders of this folder: the same result as without shards; they hold all other "
        "options",
        None,
        metavar="FOLDER",
        **PLACE,
    )
    plan: str | None = option(
        "encode shards of images by this plan, which --merge_shards made of shards of the same images; it holds all "
        "other options",
        None,
        metavar="FOLDER",
        **PLACE,
    )

    def __post_init__(self) -> None:
        from imagelm.utils.atomic_io import check_folder_name  # imported late, so that --help answers at once

        check_folder_name(self.output_dir)
        if self.merge_shards is not None:
            self._check_alone("merge_shards")
            return
        if self.plan is not None:
            self._check_alone("plan", "num_shards", "shard_index")
            self._check_share()
            return
        if (self.data_files is None) == (self.images is None):
            raise InputError("give --images, or --data_files with --vocab_file: one of the two")
        if self.images is None and self.vocab_file is None:
            raise InputError("--data_files needs --vocab_file: a JSON file with the id of each token")
        if self.on_bad_rows is None:
            # A bad row is an error in the program that wrote the rows; a damaged file among many images is common.
            self.on_bad_rows = "skip" if self.images else "stop"
        super().__post_init__()
        self._check_values()
        for entry in self.changed():
            self._check_effect(entry)
        self._check_codebook()
        self._check_output()

    def record(self) -> dict[str, object]:
        """The options that have an effect with this input, for `stats.json`."""
        other = "data_files" if self.images else "images"
        entries = [entry for entry in options_of(PrepareArguments) if entry.field.metadata.get("input") != other]
        return {entry.name: getattr(self, entry.name) for entry in entries if "no_effect" not in entry.field.metadata}

    @property
    def share(self) -> tuple[int, int]:
        """Which share of the input is prepared, from 0, and of how many."""
        return (0, 1) if self.shard_index is None or self.num_shards is None else (self.shard_index, self.num_shards)

    def _check_alone(self, name: str, *others: str) -> None:
        """Refuses options beside one that names a folder with all options."""
        from imagelm.utils.output_folder import check_outside  # imported late, as above

        super().__post_init__()
        allowed = (name, *others, "output_dir", "overwrite")
        if given := [entry.flag for entry in self.changed() if entry.name not in allowed]:
            raise InputError(f"{given[0]} has no effect with --{name}: its folder holds the options; remove it")
        check_outside(self.output_dir, f"--{name}", getattr(self, name))

    def _check_share(self) -> None:
        if self.num_shards is not None and self.num_proc > 1:
            raise InputError("--num_proc and --num_shards contradict each other: a shard is one process's; remove one")
        if (self.num_shards is None) != (self.shard_index is None) or (self.plan and self.num_shards is None):
            raise InputError("--num_shards and --shard_index belong together, such as --num_shards 8 --shard_index 0")
        if self.share[0] >= self.share[1]:
            raise InputError(
                f"--shard_index {self.share[0]} isn't one of {self.share[1]} shards; give 0 to {self.share[1] - 1}"
            )

    def _check_values(self) -> None:
        self._check_share()
        if not 0 < self.test_size < 1:
            raise InputError(f"--test_size {self.test_size} isn't a share; give one between 0 and 1, such as 0.2")
        if not 0 <= self.validation_size < 1:
            raise InputError(
                f"--validation_size {self.validation_size} isn't a share; give one between 0 and 1, such as 0.1, or 0 "
                "for no validation split"
            )
        parse_size(self.image_size)
        check_image_root(self.image_root, [*(self.images or []), *(self.test_images or [])])
        if self.max_length is not None:
            from imagelm.tokens.grammar import NUM_FRAME_TOKENS  # needs numpy

            if self.max_length <= NUM_FRAME_TOKENS:
                raise InputError(
                    f"--max_length {self.max_length} leaves no room for an image; "
                    f"the frame takes {NUM_FRAME_TOKENS} tokens, so give at least {NUM_FRAME_TOKENS + 1}"
                )

    def _check_effect(self, entry: Option) -> None:
        """Refuses an option that isn't at its default and would have no effect."""
        flag, needed = entry.flag, entry.field.metadata.get("input")
        if needed == "images" and self.images is None:
            raise InputError(f"{flag} goes with --images")
        if needed == "data_files" and self.data_files is None:
            raise InputError(f"{flag} goes with --data_files; with --images the codebook and the images decide it")
        if self.codec and "in_codec" in entry.field.metadata:
            raise InputError(f"{flag} and --codec contradict each other: the codec decides it; remove one of them")
        if self.centroids and entry.name in ("features", "feature_scaling", "codebook_size"):
            raise InputError(f"{flag} and --centroids contradict each other: the file decides it; remove one of them")

    def _check_codebook(self) -> None:
        check_features(self.features)
        if self.centroids and self.codebook != "unified":
            raise InputError("--centroids needs --codebook unified")
        if bool(self.augment) != bool(self.variants):
            raise InputError(
                "--augment and --variants belong together: how a variant may differ, and how many variants a training "
                "image gets, such as --augment shift=2,rotate=10 --variants 4"
            )

    def _check_output(self) -> None:
        from imagelm.utils.output_folder import check_outside  # imported late, as above

        for name in ("images", "test_images", "data_files", "vocab_file", "class_names", "codec", "centroids"):
            value = getattr(self, name)
            for source in [value] if isinstance(value, str) else value or []:
                check_outside(self.output_dir, f"--{name}", source)
        check_not_in_images(self.output_dir, [*(self.images or []), *(self.test_images or [])])
