"""Training images → a learned codec: a small vector-quantized autoencoder.

One idea: the quantizer, with its known difficulties (dead entries, start, gradient), is vector-quantize-pytorch's;
after training only its table of vectors is kept, so that encoding and decoding need no further library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup
from vector_quantize_pytorch import VectorQuantize

from imagelm.codecs.kmeans import check_codebook_size
from imagelm.remote_code.codec_imagelm import LearnedCodec
from imagelm.remote_code.vectors_imagelm import Autoencoder, cut_patches, to_signal
from imagelm.utils.device import has_fast_bfloat16
from imagelm.utils.errors import DivergedError, InputError

HIDDEN, NUM_BLOCKS, CODE_SIZE = 48, 2, 32
BATCH_PIXELS = 1 << 16  # of the images of one step, about
LEARNING_RATE, WARMUP_SHARE = 1e-3, 0.05
NUM_COMPONENT_IMAGES = 500
KMEANS_ITERATIONS = 20
DECAY = 0.95  # of the moving averages that the entries are
DEAD_BELOW = 0.05  # of the mean use a step: an entry that is used less is replaced by one of the step's vectors
NUM_START_VECTORS = 20_000  # that the entries start from, by k-means


def fit_learned_codec(
    images: np.ndarray,
    patch_size: int,
    codebook_size: int,
    seed: int,
    steps: int,
    device: str | torch.device = "cpu",
    **config: Any,
) -> LearnedCodec:
    """A convolutional VQ autoencoder (see `LearnedCodec`), trained on the mean absolute plus squared error.

    Args:
        images: Training images; uint8, shape (images, height, width, channels), sides divisible by `patch_size`.
        patch_size: Pixels a token and side, a power of 2.
        seed: Of weights and order.
        steps: Optimizer steps (AdamW, warm-up and cosine).
        config: Further entries of the codec's config, such as `fit`.

    Raises:
        InputError: `patch_size` isn't a power of 2, or the images have fewer patches than `codebook_size`.
        DivergedError: The loss isn't finite.
    """
    if patch_size < 2 or patch_size & (patch_size - 1):
        raise InputError(f"--patch_size {patch_size}: a learned codebook needs a power of 2, at least 2")
    height, width, channels = images.shape[1:]
    tokens_an_image = (height // patch_size) * (width // patch_size)
    what = f"patches of {patch_size}×{patch_size} pixels"
    check_codebook_size(codebook_size, len(images) * tokens_an_image, what)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = Autoencoder(channels, patch_size, HIDDEN, NUM_BLOCKS, CODE_SIZE).to(device)
        _start_at_components(autoencoder, images, patch_size, seed)
        mean_use = _batch_size(images) * tokens_an_image / codebook_size
        quantizer = _quantizer(codebook_size, mean_use).to(device)
        _train(autoencoder, quantizer, images, steps, np.random.default_rng([seed, 1]), device)
    settings = {"image_size": [height, width], "channels": channels, "patch_size": patch_size}
    tensors = {name: value.detach().cpu() for name, value in autoencoder.state_dict().items()}
    tensors["codebook"] = quantizer.codebook.detach().float().cpu()
    return LearnedCodec({**config, **settings, "hidden": HIDDEN, "num_blocks": NUM_BLOCKS}, tensors)


def _start_at_components(autoencoder: Autoencoder, images: np.ndarray, patch_size: int, seed: int) -> None:
    """Sets the linear maps to the principal components of patches, a start about as good as k-means patches."""
    chosen = np.random.default_rng([seed, 2]).permutation(len(images))[:NUM_COMPONENT_IMAGES]
    patches = cut_patches(torch.from_numpy(images[chosen]), patch_size).flatten(0, 1).float() / 127.5 - 1
    centre = patches.mean(0)
    _, _, components = torch.linalg.svd(patches - centre, full_matrices=False)
    rows = components[:CODE_SIZE].view(-1, patch_size, patch_size, images.shape[3]).permute(0, 3, 1, 2)
    down, up = autoencoder.encoder.linear, autoencoder.decoder.linear
    with torch.no_grad():
        down.weight[: len(rows)], up.weight[: len(rows)] = rows, rows
        down.get_parameter("bias")[: len(rows)] = -(components[:CODE_SIZE] @ centre)
        up.get_parameter("bias").copy_(centre.view(patch_size, patch_size, -1).mean((0, 1)))


def _batch_size(images: np.ndarray) -> int:
    return max(1, min(len(images), BATCH_PIXELS // (images.shape[1] * images.shape[2])))


def _quantizer(codebook_size: int, mean_use: float) -> VectorQuantize:
    return VectorQuantize(
        dim=CODE_SIZE,
        codebook_size=codebook_size,
        kmeans_init=True,
        kmeans_iters=KMEANS_ITERATIONS,
        decay=DECAY,
        threshold_ema_dead_code=DEAD_BELOW * mean_use,
        commitment_weight=0.25,
    )


def _train(
    autoencoder: Autoencoder,
    quantizer: VectorQuantize,
    images: np.ndarray,
    steps: int,
    rng: np.random.Generator,
    device: str | torch.device,
) -> None:
    batch_size = _batch_size(images)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(WARMUP_SHARE * steps), steps)
    device = torch.device(device)
    with torch.no_grad():  # the entries start at the centroids of many vectors, not of one step's
        one = autoencoder.encoder(to_signal(torch.from_numpy(images[:1]).to(device)))
        count = max(1, NUM_START_VECTORS // one[0, 0].numel())
        some = torch.from_numpy(images[np.sort(rng.permutation(len(images))[:count])]).to(device)
        codes = torch.cat([autoencoder.encoder(to_signal(part)) for part in some.split(batch_size)])
        quantizer(codes.permute(0, 2, 3, 1).reshape(1, -1, codes.shape[1]))
    fast = torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
    with tqdm(total=steps, desc="training the codebook", disable=None) as progress:
        for step in range(steps):
            chosen = np.sort(rng.choice(len(images), batch_size, replace=False))
            signal = to_signal(torch.from_numpy(images[chosen]).to(device))
            with fast:
                codes = autoencoder.encoder(signal)
            codes = codes.float().permute(0, 2, 3, 1)
            quantized, _, commitment = quantizer(codes.flatten(1, 2))
            with fast:
                restored = autoencoder.decoder(quantized.view(codes.shape).permute(0, 3, 1, 2))
            restored = restored.float()
            error = functional.mse_loss(restored, signal)
            loss = error + functional.l1_loss(restored, signal) + commitment.sum()
            if not loss.isfinite():
                raise DivergedError(f"the codebook's loss is {loss.item()} at step {step}; try another --seed")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update()
            progress.set_postfix(mse=f"{error.item() * 127.5**2:.1f}", refresh=False)
