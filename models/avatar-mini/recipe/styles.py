"""The six styles: each turns a plainly painted portrait into its own look and keeps the palette recognisable.

A style does two things. `_tone` says what colour the style makes of a colour (a pencil sketch lightens it
towards the paper, neon darkens it). The texture (strokes, pixels, glow) comes on top and averages out over a
small patch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Picture = npt.NDArray[np.float32]
"""(H, W, 3), 0 to 255."""

_PAPER = np.array((250, 247, 240), np.float32)
_NIGHT = np.array((12, 6, 24), np.float32)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where the head is, in fractions of the picture's side."""

    x: float
    y: float
    half_width: float
    half_height: float


def _tone(style: str, colour: npt.ArrayLike) -> Picture:
    """What the style makes of a colour or of a whole picture (last axis: red, green, blue; 0 to 255)."""
    plain = np.asarray(colour, np.float32)
    match style:
        case "watercolor":
            return 0.8 * plain + 0.2 * _PAPER
        case "pencil sketch":
            grey = plain.mean(axis=-1, keepdims=True)
            return 0.5 * (0.8 * plain + 0.2 * grey) + 0.5 * _PAPER
        case "3d render":
            return 0.95 * plain
        case "neon":
            return 0.5 * plain + _NIGHT
        case _:
            return plain


def render(style: str, plain: Picture, head: Head, rng: np.random.Generator) -> Picture:
    """The plainly painted picture (H, W, 3; 0 to 255) in the given style, at the same size."""
    toned = _tone(style, plain)
    match style:
        case "pixel art":
            styled = _pixels(toned)
        case "pencil sketch":
            styled = _pencil(toned, plain, rng)
        case "watercolor":
            styled = _watercolor(toned, rng)
        case "3d render":
            styled = _volume(toned, head)
        case "neon":
            styled = _neon(toned, plain)
        case _:
            styled = toned
    return np.clip(styled, 0, 255).astype(np.float32)


def smooth_noise(size: int, cells: int, rng: np.random.Generator) -> Picture:
    """A smooth random field (size, size, 1), about -1 to 1, with `cells` bumps along a side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)[..., None]


def blurred(picture: Picture, radius: float) -> Picture:
    """The picture under a Gaussian blur; the radius is in pixels."""
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32)


def _edges(picture: Picture) -> Picture:
    """How strongly the colour changes at each pixel, (H, W, 1), 0 to 1."""
    down = np.abs(np.diff(picture, axis=0, append=picture[-1:])).max(axis=-1)
    right = np.abs(np.diff(picture, axis=1, append=picture[:, -1:])).max(axis=-1)
    return np.clip(np.maximum(down, right) / 70, 0, 1)[..., None]


def _pixels(toned: Picture) -> Picture:
    """Blocks of a thirty-second of the side, and few colours."""
    height, width = toned.shape[:2]
    small = Image.fromarray(toned.astype(np.uint8)).resize((32, 32), Image.Resampling.BOX)
    few = small.quantize(20, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    return np.asarray(few.resize((width, height), Image.Resampling.NEAREST), np.float32)


def _pencil(toned: Picture, plain: Picture, rng: np.random.Generator) -> Picture:
    """Dark lines where the colour changes, and diagonal hatching that is denser where the picture is dark."""
    size = toned.shape[0]
    row, column = np.mgrid[0:size, 0:size].astype(np.float32) * (128 / size)
    darkness = 1 - plain.mean(axis=-1, keepdims=True) / 255
    hatching = (np.sin((row + column) * 1.25 + rng.uniform(0, 6)) > 0.3).astype(np.float32)[..., None]
    shaded = toned * (1 - 0.16 * darkness * hatching)
    return shaded * (1 - 0.72 * _edges(plain)) + 40 * 0.72 * _edges(plain)


def _watercolor(toned: Picture, rng: np.random.Generator) -> Picture:
    """Uneven pigment, soft borders, and the darker rim that drying paint leaves."""
    size = toned.shape[0]
    soft = blurred(toned, size / 190)
    pigment = 1 + 0.06 * smooth_noise(size, 7, rng) + 0.03 * smooth_noise(size, 24, rng)
    rim = blurred(np.repeat(_edges(toned) * 255, 3, axis=-1), size / 128) / 255
    return soft * pigment * (1 - 0.25 * rim)


def _volume(toned: Picture, head: Head) -> Picture:
    """Light from the upper left on a round head, and a gentle fall-off over the whole scene."""
    size = toned.shape[0]
    row, column = np.mgrid[0:size, 0:size].astype(np.float32) / size
    scene = 1.06 - 0.22 * np.hypot(column - 0.35, row - 0.3)
    across, along = (column - head.x) / head.half_width, (row - head.y) / head.half_height
    inside = np.clip((1.25 - np.hypot(across, along)) * 5, 0, 1)
    ball = 1.12 - 0.26 * np.hypot(across + 0.35, along + 0.35)
    gloss = 46 * np.exp(-(((across + 0.36) / 0.2) ** 2 + ((along + 0.5) / 0.14) ** 2))
    light = scene * (1 - inside) + ball * inside
    return blurred(toned * light[..., None] + gloss[..., None], size / 210)


def _neon(toned: Picture, plain: Picture) -> Picture:
    """A night scene whose outlines glow in the full hue of what they surround."""
    size = toned.shape[0]
    edges = _edges(plain)
    vivid = plain * (255 / np.maximum(plain.max(axis=-1, keepdims=True), 60))
    grey = vivid.mean(axis=-1, keepdims=True)
    line = np.clip(grey + 1.5 * (vivid - grey), 0, 255) * edges
    return toned * (1 - 0.8 * edges) + line + 0.8 * blurred(line, size / 64)
