"""Stage 3: the denoiser, a UNet in InstructPix2Pix's layout, taught to draw the person in a style.

The photo's latents stand beside the noisy ones, so the UNet sees the person at every step. The target is
nearly a function of photo and prompt, so the UNet predicts the picture itself ("sample"), not noise or
velocity: from pure noise (zero signal-to-noise ratio, Lin et al. 2023) one step gives the whole picture, and
any number of steps gives nearly the same one.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as functional
from autoencoder import LATENTS, BlockCode
from captions import DEFAULT_STYLE, Caption, word
from dataset import PHOTO, as_tensor, read_shard
from diffusers import DDIMScheduler, UNet2DConditionModel
from pairs import BACKGROUND_NAMES, STYLE_NAMES, TONE_NAMES
from text_encoder import WIDTH, Words
from torch import Tensor
from training import Average, Budget, Stopwatch, picture_loss, save_whole, update

log = logging.getLogger("avatar-mini")

CHANNELS: Final = (128, 160, 192)
BATCH: Final = 8
AVERAGE: Final = 0.998
LAST: Final = 999
"""The timestep of pure noise."""

_LAST_SHARE: Final = 0.6
"""Share of pairs shown at the last timestep."""
_DROP_ALL: Final = 0.04
"""Share of pairs shown without photo and prompt, for guidance."""

_UNNAMED: Final = 0.3
"""Share of captions of the default style that do not name it."""
_SHOWN_WEIGHT: Final = 0.7
"""What the difference of pixels and of their gradients counts beside that of latents."""

_GROUPS: Final = LATENTS // 2
"""Groups of the normalisations: in the last one two latents each."""
_ANCHOR: Final = 10.0
"""What the last normalisation measures by, see `_begin_with_photo`."""
_SMALL: Final = 0.05
"""What a branch that has not learnt anything yet counts beside the photo."""


def create_denoiser() -> UNet2DConditionModel:
    """A UNet for 32 x 32 latents that, untrained, answers pure noise with the photo as it is.

    Most of what a style does to a pixel depends on the pixels nearby and on the prompt. So words are heard at
    full size too, where self-attention, which costs most there, is left out (`only_cross_attention`).
    """
    model = UNet2DConditionModel(
        sample_size=32,
        in_channels=2 * LATENTS,
        out_channels=LATENTS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        only_cross_attention=(True, False, False),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=_GROUPS,
    )
    with torch.no_grad():
        _begin_with_photo(model)
    return model


def _begin_with_photo(model: UNet2DConditionModel) -> None:
    """Set the way over the last skip, from the first convolution to the last, so that it carries the photo.

    So training begins with the person and only has to learn the styles. Five channels of each of the last
    normalisation's groups are set: two latents, their negatives, and a constant anchor that is large beside
    all others, so that a group's mean and deviation are nearly constant. As silu(u) - silu(-u) = u, latent
    and negative together come through the SiLU unchanged.
    """
    first, last, norm = model.conv_in, model.conv_out, model.conv_norm_out
    size = CHANNELS[0] // _GROUPS
    deviation = (_ANCHOR**2 * (size - 1) / size**2 + 3.2 / size) ** 0.5
    first.weight[:, :LATENTS].mul_(0.1)
    first.bias.zero_()
    last.weight.mul_(0.3)
    last.bias.zero_()
    norm.bias.zero_()
    for channel in (size * group + place for group in range(_GROUPS) for place in range(5)):
        first.weight[channel] = 0.0
        last.weight[:, channel] *= 0.02 / 0.3
        norm.bias[channel] = _ANCHOR / size / deviation
    for latent in range(LATENTS):
        plus = size * (latent // 2) + 2 * (latent % 2)
        for channel, sign in ((plus, 1.0), (plus + 1, -1.0)):
            first.weight[channel, LATENTS + latent, 1, 1] = sign
            last.weight[latent, channel, 1, 1] = sign * deviation
    first.bias[4::size] = _ANCHOR
    resnet = model.up_blocks[-1].resnets[-1]
    width = CHANNELS[0]
    resnet.conv_shortcut.weight[:, :width] *= _SMALL
    resnet.conv_shortcut.weight[:, width:, 0, 0] = torch.eye(width)
    resnet.conv_shortcut.bias.zero_()
    for block in (model.down_blocks[0], model.up_blocks[-1]):
        for branch in (block.resnets[-1].conv2, block.attentions[-1].proj_out):
            branch.weight.mul_(_SMALL)
            branch.bias.zero_()


def create_scheduler() -> DDIMScheduler:
    """The noise schedule that the weights are trained for."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=0,
    )


@dataclass(frozen=True, kw_only=True)
class LatentPairs:
    """All pairs in memory: photos (N, LATENTS, 32, 32), targets (N, T, LATENTS, 32, 32), names (N, T, 3)."""

    photos: Tensor
    targets: Tensor
    named: Tensor


@torch.inference_mode()
def encode_pairs(files: list[Path], code: BlockCode) -> LatentPairs:
    """Read shards and encode their pictures, in half precision."""
    photos, targets, named = [], [], []
    for file in files:
        shard = read_shard(file)
        count, each = shard.targets.shape[:2]
        photos.append(code.encode(as_tensor(shard.photos)).half())
        latents = code.encode(as_tensor(shard.targets.reshape(-1, *shard.targets.shape[2:]))).half()
        targets.append(latents.reshape(count, each, *latents.shape[1:]))
        named.append(torch.from_numpy(shard.named))
    return LatentPairs(photos=torch.cat(photos), targets=torch.cat(targets), named=torch.cat(named))


def caption(rng: np.random.Generator, named: Tensor) -> Caption:
    """Some wording of what a target shows; empty for the photo itself."""
    style, background, tone = (int(number) for number in named)
    if style == PHOTO:
        return Caption(text="")
    name = STYLE_NAMES[style]
    return word(
        rng,
        style=None if name == DEFAULT_STYLE and rng.random() < _UNNAMED else name,
        background=BACKGROUND_NAMES[background] if background >= 0 else None,
        tone=TONE_NAMES[tone] if tone >= 0 else None,
    )


class DenoiserTraining:
    """One run of the stage: batches, loss, averaged weights."""

    def __init__(self, model: UNet2DConditionModel, words: Words, code: BlockCode, *, seed: int) -> None:
        self._model = model.to(memory_format=torch.channels_last).train()
        self._words, self._code = words, code
        self._rng = np.random.default_rng((seed, 11))
        self._generator = torch.Generator().manual_seed(seed)
        alphas = create_scheduler().alphas_cumprod
        self._signal, self._noise = alphas.sqrt(), (1 - alphas).sqrt()
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, betas=(0.9, 0.99), weight_decay=0.01)
        self._average = Average(self._parameters, decay=AVERAGE)

    def run(self, pairs: LatentPairs, budget: Budget, folder: Path, *, cells: int) -> None:
        """Train on windows of `cells` x `cells` latents until the budget is spent.

        Small windows teach the styles sooner, since a step costs less; whole pictures teach where a person
        ends and the backdrop begins. The averaged weights are in `folder` every two minutes.
        """
        watch, step, losses, saved = Stopwatch(), 0, [], 0.0
        while (elapsed := watch.read()) < 60 * budget.minutes:
            loss = self._loss(pairs, cells)
            update(loss, self._optimizer, self._parameters, budget.rate(step, elapsed))
            self._average.update()
            losses.append(loss.item())
            step += 1
            if step % 25 == 0:
                log.info("denoiser step %d, %.0f s, loss %.4f", step, elapsed, float(np.mean(losses[-25:])))
            if elapsed - saved > 120:
                saved = elapsed
                self.save(folder)
        self.save(folder)

    def save(self, folder: Path) -> None:
        """Write the averaged weights, whole or not at all."""
        self._average.swap()
        try:
            save_whole(
                {name: value.half() for name, value in self._model.state_dict().items()},
                folder / "denoiser.pt",
            )
        finally:
            self._average.swap()

    def _loss(self, pairs: LatentPairs, cells: int) -> Tensor:
        photos, targets, captions = self._batch(pairs, cells)
        dropped = torch.from_numpy(self._rng.random(BATCH) < _DROP_ALL)
        photos = torch.where(dropped[:, None, None, None], 0.0, photos)
        texts = ["" if drop else caption.text for drop, caption in zip(dropped, captions, strict=True)]
        times = np.where(self._rng.random(BATCH) < _LAST_SHARE, LAST, self._rng.integers(0, LAST + 1, BATCH))
        signal, noise_share = (share[times][:, None, None, None] for share in (self._signal, self._noise))
        noise = torch.randn(targets.shape, generator=self._generator)
        noisy = signal * targets + noise_share * noise
        seen = torch.cat([noisy, photos], dim=1).contiguous(memory_format=torch.channels_last)
        made = self._model(seen, torch.from_numpy(times), self._words.encode(texts)).sample
        shown = picture_loss(self._code.decode(made), self._code.decode(targets), scales=3)
        return functional.l1_loss(made, targets) + _SHOWN_WEIGHT * shown

    def _batch(self, pairs: LatentPairs, cells: int) -> tuple[Tensor, Tensor, list[Caption]]:
        rows = self._rng.integers(len(pairs.photos), size=BATCH)
        columns = self._rng.integers(pairs.targets.shape[1], size=BATCH)
        captions = [
            caption(self._rng, pairs.named[row, column]) for row, column in zip(rows, columns, strict=True)
        ]
        top, left = (int(place) for place in self._rng.integers(0, pairs.photos.shape[-1] - cells + 1, 2))
        window = (..., slice(top, top + cells), slice(left, left + cells))
        return pairs.photos[rows][window].float(), pairs.targets[rows, columns][window].float(), captions
