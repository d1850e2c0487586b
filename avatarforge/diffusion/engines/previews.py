"""Small previews of what is being denoised, by one matrix from latents to RGB.

The autoencoder would take longer than a step. Its latents are nearly a small image already, so colours
are near a weighted sum of their channels (https://huggingface.co/blog/TimothyAlexisVass/explaining-the-sdxl-latent-space).
The weights are fitted to the model's own autoencoder.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Final

import torch
from PIL import Image
from torch import Tensor

PREVIEW_INTERVAL_SECONDS: Final = 0.25
"""Least time between two previews of one image."""
MAX_PREVIEW_SIDE: Final = 96
"""Longest side of a preview, in pixels."""
_FIT_SIDE: Final = 128
"""Side of the images that the weights are fitted to: their latents are many more than the weights."""


class Previewer:
    """Converts latents to RGB."""

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        """`encode` returns the latents (B, C, h, w) of images (B, 3, H, W) in -1 to 1."""
        images = _make_fit_images()
        latents = encode(images).float()
        small = torch.nn.functional.adaptive_avg_pool2d(images, (latents.shape[-2], latents.shape[-1]))
        inputs = _append_ones(latents.cpu()).flatten(2).transpose(1, 2).flatten(0, 1)
        targets = small.flatten(2).transpose(1, 2).flatten(0, 1)
        self._weights = torch.linalg.lstsq(inputs, targets).solution.T.to(latents.device)

    def to_rgb(self, latents: Tensor) -> Tensor:
        """Return (h, w, 3) bytes from (C, h, w), on the same device."""
        rgb = torch.einsum("oc,chw->hwo", self._weights, _append_ones(latents[None])[0])
        # A value that is not finite becomes black: the image itself is checked when it is finished.
        return ((rgb + 1) * 127.5).nan_to_num(0).clamp(0, 255).to(torch.uint8)


def encode_webp(rgb: Tensor) -> bytes:
    """Encode RGB bytes (h, w, 3) as a WebP whose longest side is at most `MAX_PREVIEW_SIDE`."""
    image = Image.fromarray(rgb.numpy())
    scale = MAX_PREVIEW_SIDE / max(image.size)
    # A whole multiple keeps small latents even.
    scale = int(scale) if scale > 1 else scale
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    buffer = BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "WEBP", quality=60, method=0)
    return buffer.getvalue()


def _make_fit_images() -> Tensor:
    """Return (2, 3, H, W): soft patches of all colours, of two sizes."""
    random = torch.Generator().manual_seed(0)
    return torch.cat(
        [
            torch.nn.functional.interpolate(
                torch.rand((1, 3, patches, patches), generator=random) * 2 - 1,
                (_FIT_SIDE, _FIT_SIDE),
                mode="bilinear",
            )
            for patches in (4, 8)
        ]
    )


def _append_ones(latents: Tensor) -> Tensor:
    """Append a channel of ones, for the constant part of the sum."""
    return torch.cat([latents.float(), latents.new_ones((len(latents), 1, *latents.shape[2:]))], dim=1)
