"""Small pictures of what is being denoised, by one matrix from latents to colours.

The autoencoder would take longer than a step. Its latents are nearly a small picture already, so colours
are near a weighted sum of their channels (https://huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space).
The weights are fitted to the model's own autoencoder.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Final

import torch
from PIL import Image
from torch import Tensor

SECONDS: Final = 0.25
"""Between two previews of one image."""
SIDE: Final = 96
"""Longest side of a preview, in pixels."""
_SIDE_FITTED: Final = 128
"""Of the pictures that the weights are fitted to: some hundreds of latents are enough for five weights."""


class Previewer:
    """Turns latents into pictures."""

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        """`encode` gives the latents (B, C, h, w) of pictures (B, 3, H, W) in -1 to 1."""
        pictures = _colours()
        latents = encode(pictures).float()
        shown = torch.nn.functional.adaptive_avg_pool2d(pictures, (latents.shape[-2], latents.shape[-1]))
        known = _with_one(latents.cpu()).flatten(2).transpose(1, 2).flatten(0, 1)
        wanted = shown.flatten(2).transpose(1, 2).flatten(0, 1)
        self._weights = torch.linalg.lstsq(known, wanted).solution.T.to(latents.device)

    def colours(self, latents: Tensor) -> Tensor:
        """(h, w, 3) bytes from (C, h, w), on the same device."""
        colours = torch.einsum("oc,chw->hwo", self._weights, _with_one(latents[None])[0])
        # What is no number becomes black: the picture itself is judged when it is finished.
        return ((colours + 1) * 127.5).nan_to_num(0).clamp(0, 255).to(torch.uint8)


def encoded(colours: Tensor) -> bytes:
    """A WebP of colours (h, w, 3), not longer than `SIDE`."""
    picture = Image.fromarray(colours.numpy())
    scale = SIDE / max(picture.size)
    # A whole multiple keeps small latents even.
    scale = int(scale) if scale > 1 else scale
    size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
    buffer = BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "WEBP", quality=60, method=0)
    return buffer.getvalue()


def _colours() -> Tensor:
    """(2, 3, H, W): soft patches of all colours, of two sizes."""
    random = torch.Generator().manual_seed(0)
    return torch.cat(
        [
            torch.nn.functional.interpolate(
                torch.rand((1, 3, patches, patches), generator=random) * 2 - 1,
                (_SIDE_FITTED, _SIDE_FITTED),
                mode="bilinear",
            )
            for patches in (4, 8)
        ]
    )


def _with_one(latents: Tensor) -> Tensor:
    """With a channel of ones, for the constant part of the sum."""
    return torch.cat([latents.float(), latents.new_ones((len(latents), 1, *latents.shape[2:]))], dim=1)
