"""Pixels → vectors, and the nearest entry of a codebook to each.

One idea: patches, features of pixels and codes of an autoencoder are all vectors, and an entry is the one with the
smallest squared distance, the same on every device. Published with the model, so it imports only numpy and torch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

FEATURES = ("x", "y", "t", "R", "G", "B", "A", "Gx", "Gy")
SCORE_ELEMENTS = 1 << 19  # scores of a chunk of vectors against all entries: 2 MB, which fits into a core's cache
NUMPY_SCORE_ELEMENTS = 1 << 17  # the same for numpy, whose matrix library is faster with smaller products
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


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


def patch_entries(patches: Tensor, codebook: Tensor) -> Tensor:
    """`nearest` for uint8 patches on their device and a codebook shifted by −128, exact on every device.

    Pixels and entries are whole numbers from 0 to 255, shifted to −128 to 127. ½|c|² and p·c are sums of halves up to
    1.5 · 2¹⁴ · dimensions, exact in float32 below 2²³.
    """
    is_exact = patches.shape[-1] * 1.5 * 2**14 < 2**23
    if patches.device.type == "cpu" and is_exact:
        return torch.from_numpy(nearest_patches(patches.numpy(), codebook.numpy()))
    dtype = torch.float32 if is_exact else torch.float64
    return nearest(patches.to(dtype) - 128, codebook.to(patches.device, dtype))


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


def colours(codebook: np.ndarray, names: list[str], channels: int) -> np.ndarray:
    """The colour of each entry of a codebook of `unified_features`; uint8, shape (entries, channels)."""
    found = codebook[:, [names.index(name) for name in "RGB"]]
    if channels == 1:
        found = found @ np.array(LUMA)[:, None]
    return np.rint(found * 255).clip(0, 255).astype(np.uint8)


def to_signal(images: Tensor) -> Tensor:
    """uint8 (images, height, width, channels) → float32 (images, channels, height, width) in −1 to 1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


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

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], channels: int, patch_size: int, hidden: int, num_blocks: int
    ) -> Autoencoder:
        """The autoencoder of a codec's tensors: its weights, and `codebook`."""
        with torch.device("meta"):  # uses neither time nor random numbers
            autoencoder = cls(channels, patch_size, hidden, num_blocks, tensors["codebook"].shape[1])
        weights = {name: value for name, value in tensors.items() if name != "codebook"}
        autoencoder.load_state_dict(weights, assign=True)
        return autoencoder.eval()

    def to_codes(self, images: Tensor) -> Tensor:
        """Images as codecs take them → float32 (images, patches, code_size), on their device."""
        encoder = self.encoder.to(images.device)
        # TF32, cuDNN's default for float32, would give other entries on a GPU than on a CPU.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return encoder(to_signal(images)).flatten(2).transpose(1, 2)

    def to_images(self, codes: Tensor) -> Tensor:
        """float32 (images, rows, columns, code_size) → images as codecs give them, on the codes' device."""
        with torch.no_grad():
            signal = self.decoder.to(codes.device)(codes.permute(0, 3, 1, 2))
        return ((signal + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


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
