"""The styles as image filters: what the denoiser learns to do to a photo.

Every filter is a function of the pixels nearby and, at most, of a pixel's place in its 8 x 8 block. So it
means the same in a crop as in a whole picture, and the latents, which see the picture in the same blocks, can
show it.

Pictures are (B, 3, H, W), red, green and blue in 0..1; H and W are multiples of 8.
"""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as functional
from torch import Tensor

BLOCK: Final = 8
"""Pixels along the side of a latent's block."""

_LAB_FROM_LINEAR: Final = torch.tensor(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB_FROM_CONES: Final = torch.tensor(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
"""Oklab's two matrices (Björn Ottosson, "A perceptual color space for image processing", 2020)."""


def to_oklab(picture: Tensor) -> Tensor:
    """Lightness 0..1 and two colour axes, some ±0.3, as three channels."""
    linear = torch.where(
        picture <= 0.04045, picture / 12.92, ((picture + 0.055) / 1.055).clamp(min=1e-6) ** 2.4
    )
    cones = _mixed(_LAB_FROM_LINEAR, linear).clamp(min=0) ** (1 / 3)
    return _mixed(_LAB_FROM_CONES, cones)


def from_oklab(lab: Tensor) -> Tensor:
    """Back to red, green and blue, cut to 0..1."""
    cones = _mixed(torch.linalg.inv(_LAB_FROM_CONES), lab)
    linear = _mixed(torch.linalg.inv(_LAB_FROM_LINEAR), cones**3).clamp(0, 1)
    return torch.where(
        linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055
    ).clamp(0, 1)


def _mixed(matrix: Tensor, picture: Tensor) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix.to(picture), picture)


def blur(picture: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur; borders are mirrored."""
    radius = max(1, round(3 * sigma))
    places = torch.arange(-radius, radius + 1, device=picture.device, dtype=picture.dtype)
    kernel = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(picture.shape[1], 1, 1, -1)
    padded = functional.pad(picture, (radius,) * 4, mode="reflect")
    across = functional.conv2d(padded, kernel, groups=picture.shape[1])
    return functional.conv2d(across, kernel.transpose(2, 3), groups=picture.shape[1])


def smooth(picture: Tensor, radius: int) -> Tensor:
    """Kuwahara's filter: each pixel takes the mean of the calmest of the four squares that it is a corner of.

    The four means are mixed by a steep power of their variance, not switched, so the result changes smoothly.
    """
    side = radius + 1
    padded = functional.pad(picture, (radius,) * 4, mode="reflect")
    means = functional.avg_pool2d(padded, side, stride=1)
    squares = functional.avg_pool2d(padded**2, side, stride=1)
    variance = (squares - means**2).clamp(min=0).mean(dim=1, keepdim=True)
    height, width = picture.shape[2:]
    total, weights = torch.zeros_like(picture), torch.zeros_like(picture[:, :1])
    for down in (0, radius):
        for right in (0, radius):
            part = (slice(None), slice(None), slice(down, down + height), slice(right, right + width))
            weight = (variance[part] + 2e-4) ** -4
            total, weights = total + weight * means[part], weights + weight
    return total / weights


def lines(light: Tensor, *, width: float, level: float, slope: float) -> Tensor:
    """Ink lines: 1 where there is none, 0 on a line (extended difference of Gaussians, Winnemöller 2011)."""
    fine = blur(light, width)
    edge = fine - blur(light, 1.6 * width)
    return torch.sigmoid(slope * (edge + level))


def steps(values: Tensor, count: int, softness: float) -> Tensor:
    """Lay values in 0..1 on `count` even steps with soft edges (0: hard)."""
    scaled = values * count - 0.5
    low = scaled.floor()
    rest = scaled - low
    ramp = torch.sigmoid((rest - 0.5) / max(softness, 1e-3)) if softness else (rest > 0.5).to(values)
    return ((low + ramp + 0.5) / count).clamp(0, 1)


def tile(cell: Tensor, like: Tensor) -> Tensor:
    """Repeat an 8 x 8 cell over a picture's size: (1, 1, H, W)."""
    height, width = like.shape[2:]
    return cell.to(like).repeat(height // BLOCK, width // BLOCK)[None, None]


def _busy(photo: Tensor) -> Tensor:
    """Where small dark things are that a broad brush would lose, eyes and lips above all: 0..1."""
    light = to_oklab(photo)[:, :1]
    return ((blur((blur(light, 0.8) - blur(light, 3.2)).abs(), 1.5) - 0.020) / 0.030).clamp(0, 1)


def _mix(first: Tensor, second: Tensor, share: Tensor | float) -> Tensor:
    return first + (second - first) * share


def _colour(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[None, :, None, None]


def _shade(lab: Tensor, light: Tensor, chroma: float) -> Tensor:
    """The colours of `lab` at another lightness."""
    return from_oklab(torch.cat([light, lab[:, 1:] * chroma], dim=1))


def _curve(light: Tensor) -> Tensor:
    """A gentle contrast around middle light."""
    return light + 0.12 * torch.sin((light - 0.55) * 2 * torch.pi).clamp(-1, 1) * (light * (1 - light) * 4)


def flat_illustration(photo: Tensor) -> Tensor:
    lab = to_oklab(smooth(smooth(photo, 3), 3))
    light = steps(_curve(lab[:, :1]), 5, 0.10)
    # As printed on light paper: no black but the ink's, shadows towards violet, lights towards cream.
    tint = torch.cat([0.008 * (1 - light) ** 2, 0.012 * light - 0.036 * (1 - light) ** 2], dim=1)
    painted = from_oklab(torch.cat([0.26 + 0.80 * light, 1.55 * blur(lab, 1.0)[:, 1:] + tint], dim=1))
    ink = lines(to_oklab(photo)[:, :1], width=1.3, level=0.017, slope=190)
    return _mix(_colour((0.13, 0.10, 0.18), photo), painted, blur(ink, 0.5))


def watercolor(photo: Tensor) -> Tensor:
    lab = to_oklab(_mix(smooth(smooth(photo, 4), 3), smooth(photo, 2), _busy(photo)))
    light, wide = lab[:, :1], blur(lab[:, :1], 3.0)
    pooled = (light - wide).clamp(-0.25, 0.25)
    wash = 0.47 + 0.56 * light + 0.60 * pooled
    washed = _shade(blur(lab, 1.2), wash.clamp(0, 1), 1.35)
    edges = lines(light, width=1.6, level=0.022, slope=120)
    washed = washed * (0.80 + 0.20 * edges)
    paper = _colour((0.995, 0.985, 0.955), photo)
    bleach = torch.sigmoid((light - 0.82) * 14)
    grain = tile(_PAPER, photo)
    pencilled = lines(to_oklab(photo)[:, :1], width=0.9, level=0.035, slope=120)
    return (_mix(washed * paper, paper, 0.75 * bleach) * (0.62 + 0.38 * pencilled) + 0.012 * grain).clamp(
        0, 1
    )


def pencil_sketch(photo: Tensor) -> Tensor:
    light = to_oklab(photo)[:, :1]
    tone = blur(light, 1.0)
    relief = (light + 0.03) / (blur(light, 7.0) + 0.03)
    base = relief.clamp(0.0, 1.0) ** 1.6
    strokes = torch.ones_like(light)
    for cell, level in ((_HATCH_RISING, 0.62), (_HATCH_FALLING, 0.44), (_HATCH_RISING_SHIFTED, 0.30)):
        dark = ((level - tone) / 0.22).clamp(0, 1)
        strokes = strokes * (1 - 0.50 * dark * tile(cell, photo))
    drawn = base * strokes * (0.35 + 0.65 * lines(light, width=1.0, level=0.020, slope=150))
    paper, graphite = _colour((0.975, 0.965, 0.935), photo), _colour((0.20, 0.20, 0.23), photo)
    return _mix(graphite, paper, drawn)


def pixel_art(photo: Tensor) -> Tensor:
    small = functional.avg_pool2d(photo, 4)
    lab = to_oklab(small)
    light = lab[:, :1]
    crisp = (light + 1.1 * (light - blur(light, 1.0))).clamp(0, 1)
    levels = torch.cat([steps(_curve(crisp), 10, 0), torch.round(lab[:, 1:] * 1.35 / 0.035) * 0.035], dim=1)
    squares = functional.interpolate(levels, scale_factor=4.0, mode="nearest")
    # A faint chequerboard, as old screens mixed shades.
    return from_oklab(torch.cat([squares[:, :1] + 0.02 * tile(_CHEQUERS, photo), squares[:, 1:]], dim=1))


def oil_painting(photo: Tensor) -> Tensor:
    lab = to_oklab(_mix(smooth(smooth(smooth(photo, 4), 3), 2), smooth(photo, 2), _busy(photo)))
    light = lab[:, :1]
    relief = light - functional.pad(blur(light, 0.8), (2, 0, 2, 0), mode="replicate")[..., :-2, :-2]
    thick = (_curve(light) * 0.92 + 0.9 * relief.clamp(-0.12, 0.12)).clamp(0, 1)
    fine = to_oklab(photo)[:, :1]
    detail = (blur(fine, 0.6) - blur(fine, 2.5)).clamp(-0.25, 0.12)
    rich = _shade(lab, (thick + 0.5 * detail).clamp(0, 1), 1.5)
    warm = rich * _colour((1.0, 0.965, 0.88), photo)
    return (warm * (1 + 0.09 * tile(_CANVAS, photo))).clamp(0, 1)


def neon(photo: Tensor) -> Tensor:
    light = to_oklab(smooth(photo, 2))[:, :1]
    tone = _curve(light)
    night = _gradient(
        tone,
        ((0.03, 0.02, 0.10), (0.16, 0.05, 0.34), (0.50, 0.10, 0.62), (0.96, 0.32, 0.72), (1.0, 0.72, 0.82)),
    )
    sharp = to_oklab(photo)[:, :1]
    dark_line = 1 - lines(sharp, width=1.2, level=0.018, slope=150)
    rim = 1 - lines(-sharp, width=1.6, level=0.020, slope=150)
    tube = _colour((0.12, 0.95, 1.0), photo)
    glow = blur(rim, 3.0) * 0.75
    lit = night * 0.86 * (1 - 0.75 * dark_line) + tube * (glow + 0.75 * rim)
    return lit.clamp(0, 1)


def _gradient(tone: Tensor, stops: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Colour by lightness, straight between even stops."""
    place = tone.clamp(0, 1) * (len(stops) - 1)
    result = torch.zeros_like(tone).expand(-1, 3, -1, -1).clone()
    for number, stop in enumerate(stops):
        result = result + (1 - (place - number).abs()).clamp(min=0) * _colour(stop, tone)
    return result


def _waves(across: int, down: int, shift: float = 0.0, power: float = 1.0) -> Tensor:
    """Stripes over a cell: `across` and `down` periods along its sides, 0..1."""
    y, x = torch.meshgrid(torch.arange(BLOCK), torch.arange(BLOCK), indexing="ij")
    phase = 2 * torch.pi * ((x * across + y * down) / BLOCK + shift)
    return (0.5 + 0.5 * torch.cos(phase)) ** power


_HATCH_RISING: Final = _waves(1, 1)
_HATCH_FALLING: Final = _waves(1, -1)
_HATCH_RISING_SHIFTED: Final = _waves(1, 1, shift=0.5)
_PAPER: Final = _waves(1, 0) * _waves(0, 1, 0.25) + _waves(1, 1, 0.4) * _waves(-1, 1, 0.7) - 0.5
_CANVAS: Final = (_waves(1, 0) - _waves(0, 1)) * 0.5
_CHEQUERS: Final = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)

STYLES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "flat illustration": flat_illustration,
    "watercolor": watercolor,
    "pencil sketch": pencil_sketch,
    "pixel art": pixel_art,
    "oil painting": oil_painting,
    "neon": neon,
}
