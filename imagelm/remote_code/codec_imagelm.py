"""Images ↔ codebook entries: how a model trained on image tokens reads images and draws them.

One idea: a codec is a small JSON file and a safetensors file in the model's folder. Only this module reads and writes
them; it is published with the model, so it imports only numpy, Pillow, torch, safetensors, transformers, and the two
files beside it: `pixels_imagelm` brings images to a codec's format, `vectors_imagelm` compares them with its entries.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import cached_file

from .pixels_imagelm import MAX_VALUE, check_format, read_pixels
from .vectors_imagelm import FEATURES, Autoencoder, colours, cut_patches, nearest, patch_entries, unified_features

CODEC_CONFIG = "codec.json"
CODEC_WEIGHTS = "codec.safetensors"
ENCODE_VALUES = 1 << 21  # pixel values encoded at once, so that memory doesn't grow with the number of images


class Codec(ABC):
    """The interface of all codecs, and what they share: the format of the images, checks, saving.

    Args:
        config: `kind`, `image_size` (height, width), `channels` (1 or 3), `fit` ("resize" or "pad"), `background`
            (0 to 255, under transparent and padded pixels), `max_value` (the value of 16-bit pixels that is white), and
            the entries of the kind.
        tensors: The fitted tensors.

    Attributes:
        grid: Rows and columns of tokens of an image.
    """

    kind: ClassVar[str]

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        defaults: dict[str, Any] = {"kind": self.kind, "fit": "resize", "background": 0, "max_value": MAX_VALUE}
        self.config = defaults | config
        self.tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.image_size: tuple[int, int] = tuple(self.config["image_size"])
        self.channels: int = self.config["channels"]
        sizes = [*self.image_size, self.config.get("patch_size", 1)]
        if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"image_size and patch_size are {sizes}, expected positive whole numbers")
        form = (self.config[name] for name in ("fit", "background", "max_value"))
        self._format: tuple[Any, ...] = (self.image_size, self.channels, *form)
        check_format(*self._format)
        self.grid: tuple[int, int] = self._grid()
        self._check_tensors()

    @abstractmethod
    def _check_tensors(self) -> None:
        """Raises a ValueError if a tensor is missing, or its type or shape doesn't fit the config."""

    def _check(self, name: str, dtype: torch.dtype, *shape: int) -> None:
        tensor = self.tensors.get(name)
        found = None if tensor is None else (tensor.dtype, tuple(tensor.shape))
        if tensor is None or found != (dtype, shape) or not tensor.isfinite().all() or not tensor.numel():
            raise ValueError(f"tensor {name!r} is {found}, expected finite values of {(dtype, shape)}")

    def _checked(self, entries: np.ndarray) -> np.ndarray:
        """Raises a ValueError if the shape isn't (images, num_tokens), or an entry is out of range."""
        entries = np.asarray(entries)
        if entries.ndim != 2 or entries.shape[1] != self.num_tokens:
            raise ValueError(f"entries have shape {entries.shape}, expected (n, {self.num_tokens})")
        if entries.size and not 0 <= entries.min() <= entries.max() < self.codebook_size:
            raise ValueError(f"entries from {entries.min()} to {entries.max()}, expected 0 to {self.codebook_size - 1}")
        return entries

    def _grid(self) -> tuple[int, int]:
        size = self.config["patch_size"]
        if any(side % size for side in self.image_size):
            raise ValueError(f"images of {self.image_size} pixels can't be cut into patches of {size}")
        return self.image_size[0] // size, self.image_size[1] // size

    @property
    def can_decode(self) -> bool:
        """Whether entries can be decoded to images."""
        return True

    @property
    def num_tokens(self) -> int:
        """Tokens an image."""
        return self.grid[0] * self.grid[1]

    @property
    def codebook_size(self) -> int:
        """Number of codebook entries."""
        if "codebook" not in self.tensors or self.tensors["codebook"].ndim != 2:
            raise ValueError("the tensors hold no codebook, expected a table")
        return len(self.tensors["codebook"])

    def describe(self) -> str:
        """The codec in one line."""
        (rows, columns), (height, width) = self.grid, self.image_size
        colour = "grey" if self.channels == 1 else "RGB"
        return (
            f"{self.kind} codebook of {self.codebook_size} entries; images of {height}×{width} pixels, {colour}, "
            f"become {rows}×{columns} tokens"
        )

    def pixels(self, image: Image.Image) -> np.ndarray:
        """An image as `read_pixels` gives it in this codec's format; uint8, shape (height, width, channels)."""
        return read_pixels(image, *self._format)

    def encode(self, images: np.ndarray, device: str | torch.device = "cpu", t: np.ndarray | None = None) -> np.ndarray:
        """The codebook entries of images, row by row of the grid.

        Args:
            images: uint8, shape (images, height, width, channels), as `pixels` returns them.
            device: Where to compute.
            t: The images' numbers, for a unified codebook with the feature `t`; shape (images,).

        Returns:
            int64, shape (images, num_tokens).
        """
        expected = (*self.image_size, self.channels)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 (n, {expected})")
        tensor = torch.from_numpy(np.ascontiguousarray(images))
        chunk = max(1, ENCODE_VALUES // max(1, tensor[0].numel())) if len(images) else 1
        entries = [np.empty((0, self.num_tokens), dtype=np.int64)]
        with torch.no_grad():
            codebook = self._scaled_codebook()
            for start in range(0, len(images), chunk):
                part = slice(start, start + chunk)
                found = self._entries(tensor[part].to(device), codebook, None if t is None else t[part])
                entries.append(found.view(-1, self.num_tokens).cpu().numpy())
        return np.concatenate(entries)

    @abstractmethod
    def decode(self, entries: np.ndarray) -> np.ndarray:
        """The images of entries; int64 (images, num_tokens) → uint8 (images, height, width, channels)."""

    @abstractmethod
    def entry_pixels(self) -> np.ndarray:
        """An image of each entry; uint8, shape (entries, height, width, channels)."""

    @abstractmethod
    def _entries(self, images: Tensor, codebook: Tensor, t: np.ndarray | None) -> Tensor:
        """The entries of images on their device, with `_scaled_codebook`; int64, one per token."""

    def _scaled_codebook(self) -> Tensor:
        return self.tensors["codebook"]

    def save(self, folder: str | Path) -> None:
        """Writes `codec.json` and `codec.safetensors`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, Path(folder) / CODEC_WEIGHTS)
        (Path(folder) / CODEC_CONFIG).write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")


class PatchCodec(Codec):
    """A codebook of square patches: each patch becomes the entry with the smallest squared distance.

    Every sum of the comparison is exact in the float type that is used, so the entries don't depend on batch, device or
    matrix library, and an image made of entries is encoded to exactly these entries.

    Config: `patch_size` in pixels. Tensors: `codebook`, uint8, shape (entries, patch_size² × channels).
    """

    kind = "patch"

    def _check_tensors(self) -> None:
        self._check("codebook", torch.uint8, self.codebook_size, self.config["patch_size"] ** 2 * self.channels)

    def _entries(self, images: Tensor, codebook: Tensor, t: np.ndarray | None) -> Tensor:
        return patch_entries(cut_patches(images, self.config["patch_size"]).flatten(0, 1), codebook)

    def _scaled_codebook(self) -> Tensor:
        return self.tensors["codebook"].to(torch.float64) - 128

    def decode(self, entries: np.ndarray) -> np.ndarray:
        patches = self.entry_pixels()[self._checked(entries).reshape(-1, *self.grid)]
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(len(entries), *self.image_size, self.channels)

    def entry_pixels(self) -> np.ndarray:
        """The patch of each entry; uint8, shape (entries, patch_size, patch_size, channels)."""
        size = self.config["patch_size"]
        return self.tensors["codebook"].numpy().reshape(-1, size, size, self.channels)


class UnifiedCodec(Codec):
    """A codebook of pixels, each with up to nine features: `x, y, t, R, G, B, A, Gx, Gy`. One token a pixel.

    x and y are in pixels; t is the number of the image's file within its class; R, G, B and A are in 0 to 1; Gx and Gy
    are `numpy.gradient` of the grey image in 0 to 255 along x and y. Comparison is in float64.

    Config: `features`, in the order of the columns. Tensors: `codebook`, float64, shape (entries, features), in the
    features' own units; `scale`, float64, shape (features,), the factor of each feature in the comparison.
    """

    kind = "unified"

    def _check_tensors(self) -> None:
        names = self.config["features"]
        if not names or not set(names) <= set(FEATURES) or len(set(names)) < len(names):
            raise ValueError(f"features are {names}, expected different ones of {FEATURES}")
        self._check("codebook", torch.float64, self.codebook_size, len(names))
        self._check("scale", torch.float64, len(names))

    def _grid(self) -> tuple[int, int]:
        if min(self.image_size) < 2 and {"Gx", "Gy"} & set(self.config["features"]):
            raise ValueError(f"images of {self.image_size} pixels have no gradient")
        return self.image_size

    @property
    def can_decode(self) -> bool:
        """Whether the entries have colours."""
        return set("RGB") <= set(self.config["features"])

    def _entries(self, images: Tensor, codebook: Tensor, t: np.ndarray | None) -> Tensor:
        vectors = unified_features(images, self.config["features"], t) * self.tensors["scale"].to(images.device)
        return nearest(vectors.flatten(0, -2), codebook.to(vectors))

    def _scaled_codebook(self) -> Tensor:
        return self.tensors["codebook"] * self.tensors["scale"]

    def decode(self, entries: np.ndarray) -> np.ndarray:
        pixels = self.entry_pixels()[:, 0, 0][self._checked(entries)]
        return pixels.reshape(len(entries), *self.image_size, self.channels)

    def entry_pixels(self) -> np.ndarray:
        """The colour of each entry; uint8, shape (entries, 1, 1, channels); a ValueError if `can_decode` is false."""
        names = self.config["features"]
        if not self.can_decode:
            raise ValueError(f"a codebook of the features {', '.join(names)} has no colours to decode to")
        return colours(self.tensors["codebook"].numpy(), names, self.channels)[:, None, None]


class LearnedCodec(Codec):
    """A small convolutional vector-quantized autoencoder (van den Oord et al., 2017, arXiv:1711.00937).

    Config: `patch_size`, pixels a token and side, a power of 2; `hidden`, channels inside; `num_blocks`, residual
    blocks a stage. Tensors: `codebook`, float32, shape (entries, code size), and the weights of `Autoencoder`.
    """

    kind = "learned"

    def __init__(self, config: dict, tensors: dict[str, Tensor]) -> None:
        super().__init__(config, tensors)
        sizes = (config["patch_size"], config["hidden"], config["num_blocks"])
        self.autoencoder = Autoencoder.from_tensors(self.tensors, self.channels, *sizes)

    def _check_tensors(self) -> None:
        if self.config["patch_size"] & (self.config["patch_size"] - 1):
            raise ValueError(f"patch_size is {self.config['patch_size']}, expected a power of 2")
        # Each block has weights of its own, so a larger number is wrong; building its layers could fill the memory.
        if not 0 <= self.config["num_blocks"] < len(self.tensors):
            raise ValueError(f"num_blocks is {self.config['num_blocks']}, but there are {len(self.tensors)} tensors")
        self._check("codebook", torch.float32, self.codebook_size, *self.tensors["codebook"].shape[-1:])

    def _entries(self, images: Tensor, codebook: Tensor, t: np.ndarray | None) -> Tensor:
        return nearest(self.autoencoder.to_codes(images).flatten(0, -2), codebook.to(images.device))

    def decode(self, entries: np.ndarray, device: str | torch.device = "cpu") -> np.ndarray:
        codes = self.tensors["codebook"][torch.from_numpy(self._checked(entries))]
        return self.autoencoder.to_images(codes.view(len(entries), *self.grid, -1).to(device)).cpu().numpy()

    def entry_pixels(self) -> np.ndarray:
        """A patch from the middle of an image made of each entry alone."""
        size = self.config["patch_size"]
        top, left = ((side // size - 1) // 2 * size for side in self.image_size)
        uniform = np.repeat(np.arange(self.codebook_size)[:, None], self.num_tokens, axis=1)
        parts = [self.decode(part) for part in np.array_split(uniform, max(1, self.codebook_size // 32))]
        return np.concatenate(parts)[:, top : top + size, left : left + size]


KINDS: dict[str, type[Codec]] = {codec.kind: codec for codec in (PatchCodec, UnifiedCodec, LearnedCodec)}


def load_codec(name: str | Path, **hub: Any) -> Codec:
    """Loads the codec of a folder or of a model on the Hub, with the options `hub` of its download (`revision`, …).

    Raises:
        FileNotFoundError: The folder or repository holds none.
        ValueError: The files aren't a codec.
    """
    files: list[Path] = []
    for file in (CODEC_CONFIG, CODEC_WEIGHTS):
        try:
            files.append(Path(str(cached_file(str(name), file, **hub))))
        except OSError as error:
            raise FileNotFoundError(f"{name} holds no {file}") from error
    try:
        config = json.loads(files[0].read_text(encoding="utf-8"))
        return KINDS[config["kind"]](config, load_file(files[1]))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        raise ValueError(f"{files[0]} and {CODEC_WEIGHTS} in the same folder aren't a codec: {reason}") from error
