"""Images ↔ codebook entries: how a model trained on image tokens reads images and draws them.

One idea: a codec is a small JSON file and a safetensors file in the model's folder. Only this module reads and writes
them; it is published with the model, so it imports only numpy, Pillow, torch, safetensors and transformers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import cached_file

CODEC_CONFIG = "codec.json"
CODEC_WEIGHTS = "codec.safetensors"
FEATURES = ("x", "y", "t", "R", "G", "B", "A", "Gx", "Gy")
MAX_PIXELS = 1 << 24  # of an image: every one becomes as large, so that a stranger's codec could fill the memory
FIT_MODES = ("resize", "pad")
MAX_VALUE = 65535  # of 16-bit pixels, where a codec records no smaller range
DRAWN_BY_PROGRAMS = ("EPS", "WMF")  # Pillow starts ghostscript or the system's own drawing
SCORE_ELEMENTS = 1 << 19  # scores of a chunk of vectors against all entries: 2 MB, which fits into a core's cache
NUMPY_SCORE_ELEMENTS = 1 << 17  # the same for numpy, whose matrix library is faster with smaller products
ENCODE_VALUES = 1 << 21  # pixel values encoded at once, so that memory doesn't grow with the number of images
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


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
        self.config: dict[str, Any] = {
            **{"kind": self.kind, "fit": "resize", "background": 0, "max_value": MAX_VALUE},
            **config,
        }
        self.tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.image_size: tuple[int, int] = tuple(self.config["image_size"])
        self.channels: int = self.config["channels"]
        sizes = [*self.image_size, self.config.get("patch_size", 1)]
        if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"image_size and patch_size are {sizes}, expected positive whole numbers")
        if self.image_size[0] * self.image_size[1] > MAX_PIXELS:
            raise ValueError(f"images of {self.image_size} pixels, expected at most {MAX_PIXELS}")
        if self.channels not in (1, 3) or self.config["fit"] not in FIT_MODES:
            raise ValueError(f"{self.channels} channels, fit {self.config['fit']!r}; expected 1 or 3, and {FIT_MODES}")
        if type(self.config["background"]) is not int or not 0 <= self.config["background"] <= 255:
            raise ValueError(f"background is {self.config['background']!r}, expected 0 to 255")
        if type(self.config["max_value"]) is not int or not 255 <= self.config["max_value"] <= MAX_VALUE:
            raise ValueError(f"max_value is {self.config['max_value']!r}, expected 255 to {MAX_VALUE}")
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
        colours = "grey" if self.channels == 1 else "RGB"
        return (
            f"{self.kind} codebook of {self.codebook_size} entries; images of {height}×{width} pixels, {colours}, "
            f"become {rows}×{columns} tokens"
        )

    def pixels(self, image: Image.Image) -> np.ndarray:
        """An image as `read_pixels` gives it in this codec's format; uint8, shape (height, width, channels)."""
        form = (self.config[name] for name in ("fit", "background", "max_value"))
        return read_pixels(image, self.image_size, self.channels, *form)

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

    Pixels and entries are whole numbers from 0 to 255, shifted to −128 to 127 for the comparison: every sum is exact in
    the float type that is used, so the entries don't depend on batch, device or matrix library, and an image made of
    entries is encoded to exactly these entries.

    Config: `patch_size` in pixels. Tensors: `codebook`, uint8, shape (entries, patch_size² × channels).
    """

    kind = "patch"

    def _check_tensors(self) -> None:
        self._check("codebook", torch.uint8, self.codebook_size, self.config["patch_size"] ** 2 * self.channels)

    def _entries(self, images: Tensor, codebook: Tensor, t: np.ndarray | None) -> Tensor:
        patches = cut_patches(images, self.config["patch_size"]).flatten(0, 1)
        # ½|c|² and p·c are sums of halves up to 1.5 · 2¹⁴ · dimensions, exact in float32 below 2²³.
        is_exact = patches.shape[-1] * 1.5 * 2**14 < 2**23
        if images.device.type == "cpu" and is_exact:
            return torch.from_numpy(nearest_patches(patches.numpy(), codebook.numpy()))
        dtype = torch.float32 if is_exact else torch.float64
        return nearest(patches.to(dtype) - 128, codebook.to(images.device, dtype))

    def _scaled_codebook(self) -> Tensor:
        return self.tensors["codebook"].to(torch.float64) - 128

    def decode(self, entries: np.ndarray) -> np.ndarray:
        patches = self.entry_pixels()[check_entries(self, entries).reshape(-1, *self.grid)]
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
        pixels = self.entry_pixels()[:, 0, 0][check_entries(self, entries)]
        return pixels.reshape(len(entries), *self.image_size, self.channels)

    def entry_pixels(self) -> np.ndarray:
        """The colour of each entry; uint8, shape (entries, 1, 1, channels); a ValueError if `can_decode` is false."""
        names = self.config["features"]
        if not self.can_decode:
            raise ValueError(f"a codebook of the features {', '.join(names)} has no colours to decode to")
        colours = self.tensors["codebook"].numpy()[:, [names.index(name) for name in "RGB"]]
        if self.channels == 1:
            colours = colours @ np.array(LUMA)[:, None]
        return np.rint(colours * 255).clip(0, 255).astype(np.uint8)[:, None, None]


class LearnedCodec(Codec):
    """A small convolutional vector-quantized autoencoder (van den Oord et al., 2017, arXiv:1711.00937).

    Config: `patch_size`, pixels a token and side, a power of 2; `hidden`, channels inside; `num_blocks`, residual
    blocks a stage. Tensors: `codebook`, float32, shape (entries, code size), and the weights of `Autoencoder`.
    """

    kind = "learned"

    def __init__(self, config: dict, tensors: dict[str, Tensor]) -> None:
        super().__init__(config, tensors)
        code_size = self.tensors["codebook"].shape[1]
        sizes = (config["patch_size"], config["hidden"], config["num_blocks"], code_size)
        with torch.device("meta"):  # uses neither time nor random numbers
            self.autoencoder = Autoencoder(self.channels, *sizes)
        weights = {name: value for name, value in self.tensors.items() if name != "codebook"}
        self.autoencoder.load_state_dict(weights, assign=True)
        self.autoencoder.eval()

    def _check_tensors(self) -> None:
        if self.config["patch_size"] & (self.config["patch_size"] - 1):
            raise ValueError(f"patch_size is {self.config['patch_size']}, expected a power of 2")
        # Each block has weights of its own, so a larger number is wrong; building its layers could fill the memory.
        if not 0 <= self.config["num_blocks"] < len(self.tensors):
            raise ValueError(f"num_blocks is {self.config['num_blocks']}, but there are {len(self.tensors)} tensors")
        self._check("codebook", torch.float32, self.codebook_size, *self.tensors["codebook"].shape[-1:])

    def _entries(self, images: Tensor, codebook: Tensor, t: np.ndarray | None) -> Tensor:
        encoder = self.autoencoder.encoder.to(images.device)
        # TF32, cuDNN's default for float32, would give other entries on a GPU than on a CPU.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            vectors = encoder(to_signal(images)).flatten(2).transpose(1, 2)
        return nearest(vectors.flatten(0, -2), codebook.to(vectors))

    def decode(self, entries: np.ndarray, device: str | torch.device = "cpu") -> np.ndarray:
        codes = self.tensors["codebook"][torch.from_numpy(check_entries(self, entries))]
        codes = codes.view(len(entries), *self.grid, -1).permute(0, 3, 1, 2).to(device)
        with torch.no_grad():
            signal = self.autoencoder.decoder.to(device)(codes)
        return ((signal + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def entry_pixels(self) -> np.ndarray:
        """A patch from the middle of an image made of each entry alone."""
        size = self.config["patch_size"]
        top, left = ((side // size - 1) // 2 * size for side in self.image_size)
        uniform = np.repeat(np.arange(self.codebook_size)[:, None], self.num_tokens, axis=1)
        parts = [self.decode(part) for part in np.array_split(uniform, max(1, self.codebook_size // 32))]
        return np.concatenate(parts)[:, top : top + size, left : left + size]


class Autoencoder(nn.Module):
    """One vector of `code_size` per patch, and back: a linear map plus a correction by strided convolutions around it.

    The linear maps can start as the principal components of patches; the corrections start at zero. The arguments are
    those of `LearnedCodec`; `channels` are the images'.
    """

    def __init__(self, channels: int, patch_size: int, hidden: int, num_blocks: int, code_size: int) -> None:
        super().__init__()
        stages = patch_size.bit_length() - 1
        down: list[nn.Module] = [nn.Conv2d(channels, hidden, 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(code_size, hidden, 3, padding=1)]
        for _ in range(stages):
            down += [nn.SiLU(), nn.Conv2d(hidden, hidden, 4, stride=2, padding=1)]
            down += [ResidualBlock(hidden) for _ in range(num_blocks)]
            up += [ResidualBlock(hidden) for _ in range(num_blocks)]
            up += [nn.SiLU(), nn.ConvTranspose2d(hidden, hidden, 4, stride=2, padding=1)]
        down += [nn.SiLU(), nn.Conv2d(hidden, code_size, 1)]
        up += [nn.SiLU(), nn.Conv2d(hidden, channels, 3, padding=1)]
        linear_down = nn.Conv2d(channels, code_size, patch_size, stride=patch_size)
        linear_up = nn.ConvTranspose2d(code_size, channels, patch_size, stride=patch_size)
        self.encoder, self.decoder = Sum(linear_down, nn.Sequential(*down)), Sum(linear_up, nn.Sequential(*up))


class Sum(nn.Module):
    """linear(x) + correction(x), where the correction's last layer starts at zero."""

    def __init__(self, linear: nn.Conv2d | nn.ConvTranspose2d, correction: nn.Sequential) -> None:
        super().__init__()
        self.linear, self.correction = linear, correction
        for parameter in correction[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.correction(x)


class ResidualBlock(nn.Module):
    """x + convolutions(x)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.SiLU(), nn.Conv2d(hidden, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


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


def image_formats() -> list[str]:
    """The formats that images are read in: all of Pillow's except those that start a program to draw the image."""
    Image.init()
    return [name for name in Image.ID if name not in DRAWN_BY_PROGRAMS]


def image_from_array(array: np.ndarray) -> Image.Image:
    """An image of pixels of shape (height, width[, channels]): uint8, uint16 in grey, or floats from 0 to 1.

    Raises:
        ValueError: The type or range is another one, whose white isn't known.
    """
    array = array[..., 0] if array.shape[2:] == (1,) else array
    if array.dtype.kind == "f":
        if not (array.size and array.min() >= 0 and array.max() <= 1):
            raise ValueError("floats outside 0 to 1 have no known range; convert the image to 8 or 16 bits")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype not in (bool, np.uint8) and (array.dtype != np.uint16 or array.ndim != 2):
        raise ValueError(
            f"pixels are {array.dtype} {array.shape}, expected uint8, uint16 in grey, or floats from 0 to 1"
        )
    return Image.fromarray(array)


def peak(image: Image.Image) -> int:
    """The largest value of an image with 16-bit pixels; 0 for others."""
    return int(np.asarray(image).max()) if image.mode.startswith("I;16") else 0


def range_problem(peaks: Sequence[int], max_value: int) -> str | None:
    """What is wrong with images whose 16-bit pixels don't fit a codec's `max_value`; None if nothing is.

    `peaks` holds `peak` of each image.
    """
    peaks = [value for value in peaks if value]
    equal = "different images may become equal"
    if above := sum(value > max_value for value in peaks):
        return (
            f"{above} of {len(peaks)} images with 16-bit pixels have values above {max_value}, which is white for this "
            f"codec: they are cut off, and {equal}"
        )
    if peaks and max(peaks) < (max_value + 1) // 4:
        return (
            f"{len(peaks)} images with 16-bit pixels use values up to {max(peaks)}, but white is {max_value} for this "
            f"codec: they are dark, and {equal}; multiply their pixels by {max_value // max(peaks)} if they use fewer "
            "bits than the images that the codec was fitted on"
        )
    return None


def flatten(image: Image.Image, background: int, max_value: int = MAX_VALUE) -> Image.Image:
    """An image of any mode as 8-bit L or RGB, upright, on an opaque background; a ValueError for 32-bit modes.

    16-bit pixels are divided by `max_value`; larger ones are white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion would cut off everything above 255.
        return Image.fromarray(np.rint(np.minimum(np.asarray(image) / max_value, 1) * 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no known range; convert the image to 8 or 16 bits")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (background, background, background, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def read_pixels(
    image: Image.Image,
    image_size: tuple[int, int],
    channels: int,
    fit: str,
    background: int,
    max_value: int = MAX_VALUE,
) -> np.ndarray:
    """An image of any mode and size in a codec's format (see `Codec`); uint8, shape (height, width, channels).

    `fit` "resize" may change the aspect ratio; "pad" keeps it: larger images are shrunk, and all are centred on the
    background.

    Raises:
        ValueError: The pixels have no known range (32-bit modes).
    """
    image = flatten(image, background, max_value).convert("L" if channels == 1 else "RGB")
    height, width = image_size
    if image.size != (width, height) and fit == "resize":
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    elif image.size != (width, height):
        scale = min(1, width / image.width, height / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new(image.mode, (width, height), background if channels == 1 else (background,) * 3)
        place = ((width - size[0]) // 2, (height - size[1]) // 2)
        canvas.paste(image if size == image.size else image.resize(size, Image.Resampling.BICUBIC), place)
        image = canvas
    return np.asarray(image).reshape(height, width, channels)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The entry with the smallest squared distance to each vector, the first of equal ones; int64, shape (n,).

    |v − c|² = |v|² − 2 (v·c − ½|c|²); |v|² is the same for all entries, so the largest v·c − ½|c|² wins. Vectors have
    the shape (n, dimensions), the codebook (entries, dimensions) and the same type.
    """
    offset, transposed = -0.5 * (codebook**2).sum(1), codebook.T.contiguous()
    chunks = vectors.split(max(1, SCORE_ELEMENTS // len(codebook)))
    scores = (torch.addmm(offset, chunk, transposed) for chunk in chunks)
    if vectors.device.type == "cpu":  # numpy's argmax uses vector instructions, torch's doesn't
        return torch.from_numpy(np.concatenate([chunk.numpy().argmax(1) for chunk in scores]))
    return torch.cat([chunk.argmax(1) for chunk in scores])


def nearest_patches(patches: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """`nearest` for uint8 patches and a codebook shifted by −128, on a CPU, where every sum is exact in float32.

    The offset is an additional row of the product. Patches of one value, such as an empty background, are looked up in
    a table of 256 entries: in drawings most patches are of this kind.
    """
    dimensions = patches.shape[1]
    table = np.concatenate([codebook.T, -0.5 * (codebook**2).sum(1)[None]]).astype(np.float32)
    block = max(16, NUMPY_SCORE_ELEMENTS // len(codebook))
    moved, scores = np.ones((block, dimensions + 1), np.float32), np.empty((block, len(codebook)), np.float32)

    def search(patches: np.ndarray) -> np.ndarray:
        found = np.empty(len(patches), dtype=np.int64)
        for start in range(0, len(patches), block):
            part = patches[start : start + block]
            count = len(part)
            np.subtract(part, 128, out=moved[:count, :-1], dtype=np.float32)
            np.dot(moved[:count], table, out=scores[:count]).argmax(1, out=found[start : start + count])
        return found

    if dimensions % 8:
        is_plain = (patches == patches[:, :1]).all(1)
    else:  # eight values at once
        words = np.ascontiguousarray(patches).view(np.uint64)
        is_plain = (words == (patches[:, :1] * np.uint64(0x0101010101010101))).all(1)
    if np.count_nonzero(is_plain) <= 256:
        return search(patches)
    found = np.empty(len(patches), dtype=np.int64)
    plain = search(np.repeat(np.arange(256, dtype=np.uint8)[:, None], dimensions, axis=1))
    found[is_plain] = plain[patches[is_plain, 0]]
    found[~is_plain] = search(patches[~is_plain])
    return found


def cut_patches(images: Tensor, size: int) -> Tensor:
    """(images, height, width, channels) → (images, patches, size² × channels), patches row by row."""
    count, height, width, channels = images.shape
    grid = images.reshape(count, height // size, size, width // size, size, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(count, -1, size * size * channels)


def unified_features(images: Tensor, names: list[str], t: np.ndarray | None = None) -> Tensor:
    """Features of every pixel (see `UnifiedCodec`), in the order of `names`.

    uint8 (images, height, width, channels) and, where `t` is a feature, the images' numbers (images,) → float64
    (images, height × width, features).
    """
    count, height, width, _ = images.shape
    colours = (images.to(torch.float64) / 255).expand(-1, -1, -1, 3)
    if images.shape[-1] == 1:
        grey = images[..., 0].to(torch.float64)
    else:
        grey = images.to(torch.float64) @ torch.tensor(LUMA, dtype=torch.float64, device=images.device)
    if "t" in names and t is None:
        raise ValueError(
            "this codebook was fitted with t, the number of an image's file, which an image alone doesn't have"
        )

    def plane(name: str) -> Tensor:
        if name in "RGB":
            return colours[..., "RGB".index(name)]
        if name in ("Gx", "Gy"):
            return torch.gradient(grey, dim=2 if name == "Gx" else 1)[0]
        if name == "x":
            return torch.arange(width, device=images.device).expand(count, height, width)
        if name == "y":
            return torch.arange(height, device=images.device)[:, None].expand(count, height, width)
        if name == "t":
            return torch.as_tensor(t, device=images.device)[:, None, None].expand(count, height, width)
        return torch.ones_like(grey)

    return torch.stack([plane(name).to(torch.float64) for name in names], dim=-1).flatten(1, 2)


def to_signal(images: Tensor) -> Tensor:
    """uint8 (images, height, width, channels) → float32 (images, channels, height, width) in −1 to 1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def check_entries(codec: Codec, entries: np.ndarray) -> np.ndarray:
    """Raises a ValueError if the shape isn't (images, num_tokens), or an entry is out of range."""
    entries = np.asarray(entries)
    if entries.ndim != 2 or entries.shape[1] != codec.num_tokens:
        raise ValueError(f"entries have shape {entries.shape}, expected (n, {codec.num_tokens})")
    if entries.size and not 0 <= entries.min() <= entries.max() < codec.codebook_size:
        raise ValueError(f"entries from {entries.min()} to {entries.max()}, expected 0 to {codec.codebook_size - 1}")
    return entries
