"""Reads colours back from portraits, at the places where the drawings have them."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from palette import PALETTES, Colour
from portraits import PLACES, Box
from styles import tone

Pixels = npt.NDArray[np.uint8]
"""(S, S, 3)."""


def colour_at(pixels: Pixels, boxes: tuple[Box, ...]) -> npt.NDArray[np.float64]:
    """The median colour over all pixels in the boxes."""
    side = pixels.shape[0]
    patches = []
    for box in boxes:
        left, top, right, bottom = (round(edge * side) for edge in box)
        patches.append(pixels[top:bottom, left:right].reshape(-1, 3))
    median: npt.NDArray[np.float64] = np.median(np.concatenate(patches), axis=0)
    return median


def nearest(colour: npt.ArrayLike, palette: Mapping[str, Colour], style: str) -> str:
    """The palette's entry whose tone in this style is nearest to the colour (Euclidean distance in RGB)."""
    toned = tone(style, list(palette.values()))
    distances = np.linalg.norm(toned - np.asarray(colour), axis=-1)
    return list(palette)[int(distances.argmin())]


def read(pixels: Pixels, style: str) -> dict[str, str]:
    """The palette entry that each of the four parts shows."""
    return {part: nearest(colour_at(pixels, PLACES[part]), PALETTES[part], style) for part in PALETTES}
