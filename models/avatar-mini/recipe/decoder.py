"""Stage 4: the decoder, taught to hide the blocks' edges and to forgive the denoiser.

It begins as the block code's synthesis and sees latents of pictures, with some noise, and latents that the
denoiser made, each with the picture that should come out. The encoder stays as it is, so stage 3 need not
wait for this one.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from autoencoder import BlockCode
from dataset import as_tensor, read_shard
from denoiser import LAST, caption
from diffusers import AutoencoderKLHunyuanImage, UNet2DConditionModel
from text_encoder import Words
from torch import Tensor
from training import Average, Budget, Stopwatch, picture_loss, save_whole, update

log = logging.getLogger("avatar-mini")

BATCH: Final = 8
CROP: Final = 96
"""Pixels along a crop's side."""
_MOST_NOISE: Final = 0.08


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Latents, (N, LATENTS, 32, 32), and the pictures that should come of them, (N, H, W, 3) in bytes."""

    latents: Tensor
    pixels: np.ndarray


@torch.inference_mode()
def gather_samples(
    files: list[Path], code: BlockCode, denoiser: UNet2DConditionModel, words: Words, *, seed: int
) -> list[Sample]:
    """Of each shard some photos, some targets, and as many targets as the denoiser draws them in one step."""
    rng, generator = np.random.default_rng((seed, 13)), torch.Generator().manual_seed(seed)
    samples = []
    for file in files:
        shard = read_shard(file)
        rows = rng.choice(len(shard.photos), 12, replace=False)
        columns = rng.integers(shard.targets.shape[1], size=len(rows))
        targets = shard.targets[rows, columns]
        photos = code.encode(as_tensor(shard.photos[rows]))
        texts = [
            caption(rng, torch.from_numpy(shard.named[row, column])).text
            for row, column in zip(rows, columns, strict=True)
        ]
        noise = torch.randn(photos.shape, generator=generator)
        made = denoiser(torch.cat([noise, photos], dim=1), LAST, words.encode(texts)).sample
        samples.append(Sample(latents=made, pixels=targets))
        plain = np.concatenate([shard.photos[rows[:4]], targets[:8]])
        samples.append(Sample(latents=code.encode(as_tensor(plain)), pixels=plain))
    return samples


def train_decoder(
    model: AutoencoderKLHunyuanImage, samples: list[Sample], budget: Budget, folder: Path, *, seed: int
) -> None:
    """Train `model.decoder` until the budget is spent; averaged weights end in the model and in `folder`."""
    rng, generator = np.random.default_rng((seed, 17)), torch.Generator().manual_seed(seed)
    decoder = model.decoder.to(memory_format=torch.channels_last).train()
    parameters = list(decoder.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-4)
    average, watch, step, losses, saved = Average(parameters, decay=0.99), Stopwatch(), 0, [], 0.0
    while (elapsed := watch.read()) < 60 * budget.minutes:
        latents, wanted = _batch(samples, rng, generator)
        loss = picture_loss(decoder(latents.contiguous(memory_format=torch.channels_last)), wanted, scales=3)
        update(loss, optimizer, parameters, budget.rate(step, elapsed))
        average.update()
        losses.append(loss.item())
        step += 1
        if step % 25 == 0:
            log.info("decoder step %d, %.0f s, loss %.4f", step, elapsed, float(np.mean(losses[-25:])))
        if elapsed - saved > 120:
            saved = elapsed
            average.swap()
            save_whole(decoder.state_dict(), folder / "decoder.pt")
            average.swap()
    average.swap()
    save_whole(decoder.state_dict(), folder / "decoder.pt")


def _batch(
    samples: list[Sample], rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    latents, pictures = [], []
    for _ in range(BATCH):
        sample = samples[int(rng.integers(len(samples)))]
        row = int(rng.integers(len(sample.pixels)))
        cells = CROP // 8
        down, across = (int(place) for place in rng.integers(0, 33 - cells, 2))
        piece = sample.latents[row, :, down : down + cells, across : across + cells].float()
        noise = torch.randn(piece.shape, generator=generator) * rng.uniform(0, _MOST_NOISE)
        latents.append(piece + noise)
        pixels = sample.pixels[row, 8 * down : 8 * down + CROP, 8 * across : 8 * across + CROP]
        pictures.append(as_tensor(np.ascontiguousarray(pixels)[None])[0])
    return torch.stack(latents), torch.stack(pictures)
