"""Stage 3: the UNet that removes noise from latents (B, 4, S/8, S/8), guided by the frozen text encoder.

It predicts v (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512): at high noise, where the colours of
large areas are decided, the target is almost the clean picture, so wrong colours cost as much there as
anywhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captions import worded
from dataset import Dataset
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from training import Average, Budget, Progress, update

Wording = Callable[[list[str]], torch.Tensor]
"""From captions to the text encoder's states, (B, tokens, width)."""

_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_STRONGEST_SIGNAL = 5.0
"""Steps whose signal-to-noise ratio is above this weigh less (min-SNR, https://arxiv.org/abs/2303.09556)."""


@dataclass(frozen=True, kw_only=True)
class DenoiserPlan:
    """Size and training of the UNet."""

    channels: tuple[int, ...]
    batch: int
    average: float = 0.998
    save_every: int = 200


def new(plan: DenoiserPlan, *, side: int, text_width: int) -> UNet2DConditionModel:
    """An untrained UNet for latents with this side.

    Attention begins at half the latents' resolution: on a CPU the full one costs 1.7 times the time a step.
    """
    deeper = len(plan.channels) - 1
    return UNet2DConditionModel(
        sample_size=side,
        layers_per_block=1,
        block_out_channels=plan.channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deeper),
        up_block_types=(*("CrossAttnUpBlock2D",) * deeper, "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def sampler() -> DDIMScheduler:
    """The scheduler that the saved pipeline comes with."""
    return DDIMScheduler(
        **_NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )


def train(
    dataset: Dataset,
    latents: torch.Tensor,
    wording: Wording,
    model: UNet2DConditionModel,
    plan: DenoiserPlan,
    budget: Budget,
    work: Path,
    device: str,
) -> UNet2DConditionModel:
    """Train until the budget is spent; resumes from `work`. The model returned holds the averaged weights."""
    model = model.to(device).train()
    noising = DDPMScheduler(**_NOISE, prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2, betas=(0.9, 0.98))
    average = Average(model, plan.average)
    progress = Progress(work / "denoiser.pt", model, optimizer, average)
    step = progress.resume()
    while step < (total := budget.total()):
        rng = np.random.default_rng((2, step))
        torch.manual_seed(step)
        indices = rng.integers(len(latents), size=plan.batch)
        states = wording([worded(dataset.portraits[index], rng).text for index in indices])
        loss = _loss(model, noising, latents[indices].to(device), states, rng)
        update(loss, optimizer, budget.rate(step, total), model.parameters())
        step += 1
        average.update(step)
        progress.report(step, total, loss.item(), every=100)
        if step % plan.save_every == 0 or step == total:
            progress.save(step)
    average.copy_into(model)
    return model.eval()


def averaged(model: UNet2DConditionModel, state: Path) -> tuple[UNet2DConditionModel, int]:
    """The model with the averaged weights of a training still under way, and the steps done."""
    saved = torch.load(state, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), saved["average"], strict=True):
            parameter.copy_(value)
    return model.eval(), int(saved["step"])


def _loss(
    model: UNet2DConditionModel,
    noising: DDPMScheduler,
    clean: torch.Tensor,
    states: torch.Tensor,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Weighted squared error of v, with a few more of the noisy time steps than of the others."""
    times = torch.from_numpy((1000 * rng.random(len(clean)) ** 0.8).astype(np.int64)).to(clean.device)
    noise = torch.randn_like(clean)
    target = noising.get_velocity(clean, noise, times)
    predicted = model(noising.add_noise(clean, noise, times), times, states).sample.float()
    kept = noising.alphas_cumprod.to(clean.device)[times]
    signal = kept / (1 - kept)
    weight = (signal.clamp(max=_STRONGEST_SIGNAL) + 1) / (signal + 1)
    return ((predicted - target).square().mean((1, 2, 3)) * weight).mean()
