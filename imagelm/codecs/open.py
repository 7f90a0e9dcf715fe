"""Opening the codec that a user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imagelm.utils.errors import InputError

if TYPE_CHECKING:
    from imagelm.remote_code.codec_imagelm import Codec


def open_codec(folder: str) -> Codec:
    """The codec that `--codec` names.

    Raises:
        InputError: The folder or repository holds none.
    """
    if Path(folder).is_file():
        raise InputError(f"--codec {folder} is a file; name its folder")
    from imagelm.remote_code.codec_imagelm import load_codec  # late: rows of tokens need no torch

    try:
        return load_codec(folder)
    except (FileNotFoundError, ValueError) as error:
        missing = "" if Path(folder).is_dir() else f"{folder} isn't a folder, and as a Hub id: "
        raise InputError(f"--codec: {missing}{error}") from error
