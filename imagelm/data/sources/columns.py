"""Which columns of a table hold images and labels, and how a cell becomes an image.

One idea: a column is one of four kinds (files, lists of one file, arrays, paths), and each cell is read by its kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from imagelm.data.sources.decode import BadImage, channels_last, image_of_array
from imagelm.data.sources.names import IMAGE_NAMES, LABEL_NAMES, PATH_NAMES, by_rank, rank

FILE, FILES, ARRAY, PATH = "file", "files", "array", "path"  # the likelier, the earlier
_KINDS = (FILE, FILES, ARRAY, PATH)
_BINARY, _TEXT = ("binary", "large_binary"), ("string", "large_string")


def image_kind(feature: object) -> str | None:
    """How a column can hold images; None if it can't."""
    if isinstance(feature, dict):
        is_image = _is_value(feature.get("bytes"), *_BINARY, "null") and _is_value(feature.get("path"), *_TEXT, "null")
        return FILE if is_image else None
    if isinstance(feature, datasets.Image) or _is_value(feature, *_BINARY):
        return FILE
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return ARRAY
    if isinstance(feature, datasets.List | datasets.LargeList):
        if image_kind(feature.feature) == FILE:
            return FILES
        return ARRAY if _holds_numbers(feature) else None
    return PATH if _is_value(feature, *_TEXT) else None


def image_columns(features: Mapping[str, object]) -> list[str]:
    """The columns that likely hold images, the likeliest first: by type and by name."""
    ranks: dict[str, tuple[int, int, bool]] = {}
    for name, feature in features.items():
        kind = image_kind(feature)
        usual = PATH_NAMES if kind == PATH else IMAGE_NAMES
        is_typed = kind in (FILE, FILES) or isinstance(feature, datasets.Array2D | datasets.Array3D)
        if kind and (is_typed or rank(name, usual) < len(usual)):
            ranks[name] = _KINDS.index(kind), rank(name, usual), not isinstance(feature, datasets.Image)
    return sorted(ranks, key=lambda name: ranks[name])


def label_columns(features: Mapping[str, object], image_column: str) -> list[str]:
    """The columns that likely hold labels, the likeliest first: by name, then by type."""
    rest = {name: feature for name, feature in features.items() if name != image_column}
    named = [name for name in by_rank(rest, LABEL_NAMES) if holds_labels(rest[name])]
    classes = [name for name, feature in rest.items() if isinstance(single(feature), datasets.ClassLabel)]
    return [*named, *(name for name in classes if name not in named)]


def single(feature: object) -> object:
    """The type in a list, such as that of (n, 1) labels."""
    return feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature


def holds_labels(feature: object) -> bool:
    """Whether the cells of a column are numbers or text, each alone or in a list."""
    return isinstance(single(feature), datasets.ClassLabel) or (
        isinstance(single(feature), datasets.Value) and not _is_value(single(feature), *_BINARY)
    )


def one_each(column: pa.ChunkedArray) -> pa.ChunkedArray | np.ndarray:
    """Cells that are lists of one entry, without the lists; null for none.

    Lists of several entries, all of one length, become an array, shape (rows, entries).

    Raises:
        ValueError: The lists differ in length.
    """
    if not _is_list(column.type):
        return column
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    longest = pc.max(lengths).as_py() or 0
    if longest <= 1:
        return pa.chunked_array([pa.array([cell[0] if cell else None for cell in column.to_pylist()], _inner(column))])
    if pc.min(lengths).as_py() != longest:
        raise ValueError(f"lists of {pc.min(lengths).as_py()} to {longest} entries")
    return np.array(column.to_pylist())


def paths_in(column: pa.ChunkedArray) -> list[str]:
    """The paths of the cells that hold a path and no bytes."""
    if _is_list(column.type):
        column = pc.list_flatten(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.drop_null().to_pylist()
    if not pa.types.is_struct(column.type):
        return []
    sizes = pc.fill_null(pc.binary_length(pc.struct_field(column, "bytes").cast(pa.large_binary())), 0)
    return pc.struct_field(column, "path").filter(pc.equal(sizes, 0)).drop_null().to_pylist()


def pixels_of(values: Sequence | None) -> Image.Image | BadImage:
    """An image of nested lists of numbers: (height, width), with channels last or first."""
    if values is None:
        return BadImage("there is no image in this row")
    try:
        pixels = np.asarray(values)
    except ValueError:
        return BadImage("its rows differ in length")
    if pixels.dtype.kind not in "iuf" or pixels.ndim not in (2, 3):
        return BadImage(f"the array is {pixels.dtype} of shape {pixels.shape}; expected numbers in 2 or 3 axes")
    pixels = channels_last(pixels[None])[0] if pixels.ndim == 3 else pixels
    if pixels.size == 0 or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        return BadImage(f"the array has shape {pixels.shape}; expected 1, 3 or 4 channels")
    if pixels.dtype.kind == "f":
        return image_of_array(pixels)
    if pixels.min() < 0 or pixels.max() > 255:
        return BadImage(f"the array has values from {pixels.min()} to {pixels.max()}; expected 0 to 255")
    return image_of_array(pixels.astype(np.uint8))


def _holds_numbers(feature: object) -> bool:
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _holds_numbers(feature.feature)
    return isinstance(feature, datasets.Value) and feature.dtype.lstrip("u").startswith(("int", "float"))


def _inner(column: pa.ChunkedArray) -> pa.DataType:
    return column.type.value_type


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_value(feature: object, *types: str) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in types
