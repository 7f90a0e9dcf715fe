"""What a file is, by its name and first bytes: what is read, and what isn't, with the way out.

One idea: a file that isn't read is named for what it is, so that nobody looks for a damaged image.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image

from imagelm.data.image_options import LIST_SUFFIXES, TABLE_SUFFIXES
from imagelm.utils.text import printable

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz")  # and .tar.gz, …
COMPRESSED = (".gz", ".bz2", ".xz")
DATA_SUFFIXES = (*TABLE_SUFFIXES, ".npz", ".npy", *LIST_SUFFIXES, *ARCHIVE_SUFFIXES)
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "icon\r")
_ARRAYS = "read it with its own library, and save images and labels with numpy.savez(…, image=…, label=…)"
_TABLE = "save its rows as Parquet with a column of images and one of labels"
_UNPACK = "unpack it, and name the folder"
_EXPORT = "export its images as PNG or JPEG"
_TEXT = (
    "text, not an image of a known format",
    "name the images, or a list with a column of paths and one of labels (.csv, .jsonl)",
)
NOT_READ = {  # what people have beside or instead of images, and what to do
    **dict.fromkeys((".rar", ".7z", ".zst", *COMPRESSED), ("an archive or a compressed file of a kind", _UNPACK)),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), ("an HDF5 file", _ARRAYS)),
    ".ubyte": ("an IDX file, as of MNIST,", _ARRAYS),
    ".mat": ("a MATLAB file", _ARRAYS),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), ("a pickle, which may run code,", _ARRAYS)),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors"), ("a file of tensors", _ARRAYS)),
    **dict.fromkeys((".tfrecord", ".tfrecords"), ("a TFRecord file", _TABLE)),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".mdb", ".lmdb"), ("a database", _TABLE)),
    **dict.fromkeys((".feather", ".orc", ".avro", ".xlsx", ".xls", ".ods"), ("a table of a kind", _TABLE)),
    ".pdf": ("a PDF document", _EXPORT),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg"), ("a video", _EXPORT)),
    **dict.fromkeys((".svg", ".ai", ".dcm", ".nii", ".exr", ".hdr", ".jxl"), ("a picture of a kind", _EXPORT)),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng"), ("a raw photo", _EXPORT)),
    **dict.fromkeys((".txt", ".md", ".rst", ".log", ".html", ".htm", ".xml", ".yaml", ".yml", ".ini", ".cfg"), _TEXT),
    **dict.fromkeys((".py", ".ipynb", ".sh", ".toml", ".docx", ".doc", ".pptx"), _TEXT),
}
_FIRST_BYTES = {  # of files whose name says something else, or nothing
    b"\x89HDF": ".h5",
    b"MATLAB": ".mat",
    b"SQLite format 3": ".sqlite",
    b"Rar!": ".rar",
    b"7z\xbc\xaf": ".7z",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\x1f\x8b": ".gz",
    b"%PDF": ".pdf",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), ".pkl"),
}
_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # of HEIC; others are videos
_VIDEO_SUFFIXES = [suffix for suffix, (kind, _) in NOT_READ.items() if kind == "a video"]
NUM_FIRST_BYTES = 16


@cache
def register_plugins() -> None:
    """Lets Pillow read HEIC where its plugin is installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def is_archive(path: Path) -> bool:
    """Whether a name is that of a packed folder."""
    suffix, packed = path.suffix.lower(), Path(path.stem).suffix.lower()
    return suffix in ARCHIVE_SUFFIXES or (packed == ".tar" and suffix in COMPRESSED)


def is_image_name(path: Path) -> bool:
    """Whether the ending of a name is that of an image format."""
    register_plugins()
    suffix = path.suffix.lower()
    return suffix not in NOT_READ and suffix in Image.registered_extensions()


def is_other_file(path: Path) -> bool:
    """Whether a file among images is certainly none, by its name; a video counts as an image that can't be read."""
    suffix = _suffix(path)
    return suffix not in _VIDEO_SUFFIXES and (suffix in NOT_READ or suffix in DATA_SUFFIXES)


def not_read(path: Path) -> str | None:
    """What a file is that isn't read, and what to do; None for any other file."""
    suffix = _suffix(path)
    if suffix not in NOT_READ and not is_image_name(path):
        with open(path, "rb") as file:
            return kind_of_bytes(file.read(NUM_FIRST_BYTES))
    return _in_words(suffix)


def kind_of_bytes(start: bytes) -> str | None:
    """What a file with these first `NUM_FIRST_BYTES` bytes is if it isn't read, and what to do; else None."""
    if start[4:8] == b"ftyp" and start[8:12] in _BRANDS:
        return "a HEIC photo, which Pillow reads with a plugin: install pillow-heif, or convert it to JPEG or PNG"
    if start[4:8] == b"ftyp":
        is_avif = start[8:12] in (b"avif", b"avis")
        return "an AVIF image that this Pillow can't read; convert it to JPEG or PNG" if is_avif else _in_words(".mp4")
    return _in_words(next((suffix for first, suffix in _FIRST_BYTES.items() if start.startswith(first)), ""))


def _in_words(suffix: str) -> str | None:
    if suffix not in NOT_READ:
        return None
    kind, remedy = NOT_READ[suffix]
    return f"{kind}; {remedy}" if NOT_READ[suffix] == _TEXT else f"{kind} that isn't read; {remedy}"


def _suffix(path: Path) -> str:
    """The ending of a name, which of MNIST's files is at the end of the name itself."""
    return ".ubyte" if path.name.lower().removesuffix(".gz").endswith("ubyte") else path.suffix.lower()


def shown(paths: Sequence[Path], root: Path) -> str:
    """The first path, and how many more there are."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{printable(paths[0].relative_to(root))}{more}"
