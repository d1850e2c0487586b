"""Stage 1: the autoencoder between pictures (B, 3, S, S) and latents (B, 4, S/8, S/8)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from dataset import Dataset
from diffusers import AutoencoderTiny
from training import Budget, Progress, update

_CROP = 64
"""Pixels along a training crop: a quarter of a 128 px picture teaches the same for a quarter of the time."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderPlan:
    """Size and training of the autoencoder."""

    channels: int
    batch: int
    save_every: int = 100


def new(plan: AutoencoderPlan) -> AutoencoderTiny:
    width = (plan.channels,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(1, 2, 2, 2),
        num_decoder_blocks=(2, 2, 2, 1),
        latent_channels=4,
    )


def train(
    dataset: Dataset,
    plan: AutoencoderPlan,
    budget: Budget,
    work: Path,
    start: AutoencoderTiny | None,
    device: str,
) -> AutoencoderTiny:
    """Train until the budget is spent; resumes from `work`. `start` gives weights to begin with."""
    model = (start or new(plan)).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4, betas=(0.9, 0.99))
    progress = Progress(work / "autoencoder.pt", model, optimizer, None)
    step = progress.resume()
    while step < (total := budget.total()):
        rng = np.random.default_rng((1, step))
        torch.manual_seed(step)
        pictures = _varied(_crops(dataset, plan.batch, rng), rng).to(
            device, memory_format=torch.channels_last
        )
        loss = _loss(model, pictures)
        update(loss, optimizer, budget.rate(step, total), model.parameters())
        step += 1
        progress.report(step, total, loss.item())
        if step % plan.save_every == 0 or step == total:
            progress.save(step)
    return _scaled(model.eval(), dataset, device)


def _crops(dataset: Dataset, count: int, rng: np.random.Generator) -> torch.Tensor:
    """Square pieces of random pictures, at steps of 8 pixels so that they meet the latent grid."""
    side = dataset.pixels.shape[1]
    pieces = []
    for index in rng.integers(len(dataset.portraits), size=count):
        top, left = rng.integers(0, (side - _CROP) // 8 + 1, size=2) * 8
        pieces.append(dataset.batch(np.array([index]))[:, :, top : top + _CROP, left : left + _CROP])
    return torch.cat(pieces)


def _varied(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A quarter of the pictures with other colours, colour fields, mixtures and noise, nearer to what photos
    hold."""
    count = max(1, len(pictures) // 4)
    some = pictures[:count]
    field = functional.interpolate(torch.randn(count, 3, 5, 5), size=some.shape[-1], mode="bicubic")
    mixture = torch.lerp(some, some.roll(1, 0).flip(-1), torch.rand(count, 1, 1, 1) * 0.7)
    order = torch.from_numpy(rng.permutation(3))
    noisy = mixture[:, order] * (0.7 + 0.6 * torch.rand(count, 1, 1, 1)) + 0.3 * field * torch.rand(
        count, 1, 1, 1
    )
    noisy = noisy + 0.05 * torch.rand(count, 1, 1, 1) * torch.randn_like(noisy)
    return torch.cat([noisy.clamp(-1, 1), pictures[count:]])


def _loss(model: AutoencoderTiny, pictures: torch.Tensor) -> torch.Tensor:
    """Pixels, edges and mean colours must survive; latents stay near zero mean and unit spread.

    The little noise on the latents makes the decoder forgiving towards what the denoiser will give it.
    """
    latents = model.encode(pictures).latents
    decoded = model.decode(latents + 0.04 * torch.randn_like(latents)).sample
    pixels = (decoded - pictures).abs().mean()
    edges = sum((decoded.diff(dim=axis) - pictures.diff(dim=axis)).abs().mean() for axis in (-1, -2))
    colours = (functional.avg_pool2d(decoded, 8) - functional.avg_pool2d(pictures, 8)).abs().mean()
    spread = (latents.std() - 1) ** 2 + (latents.mean((0, 2, 3)) ** 2).mean()
    return pixels + 0.5 * edges + colours + 0.02 * spread


@torch.no_grad()
def encoded(model: AutoencoderTiny, dataset: Dataset, device: str) -> torch.Tensor:
    """The scaled latents of the whole dataset, (N, 4, S/8, S/8), on the CPU."""
    parts = []
    for start in range(0, len(dataset.portraits), 50):
        indices = np.arange(start, min(start + 50, len(dataset.portraits)))
        parts.append(model.encode(dataset.batch(indices).to(device)).latents.float().cpu())
    return torch.cat(parts) * model.config["scaling_factor"]


def _scaled(model: AutoencoderTiny, dataset: Dataset, device: str) -> AutoencoderTiny:
    """The model with the scaling factor that gives latents a standard deviation of 1."""
    some = Dataset(pixels=dataset.pixels[:600], portraits=dataset.portraits[:600])
    model.register_to_config(scaling_factor=1.0)
    model.register_to_config(scaling_factor=float(1 / encoded(model, some, device).std()))
    return model
