"""Reads colours back from portraits, at the places where the drawings have them."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from palette import CUTS, PALETTES
from portraits import PLACES, Box, Portrait, draw

Pixels = npt.NDArray[np.uint8]
"""(S, S, 3)."""

References = Mapping[tuple[str, str], Mapping[str, npt.NDArray[np.float64]]]
"""For each style and part: how each entry of the part's palette looks in that style."""

_DRAWINGS: Final = 8
"""Drawings from which each reference colour is taken."""


def colour_at(pixels: Pixels, boxes: tuple[Box, ...]) -> npt.NDArray[np.float64]:
    """The median colour over all pixels in the boxes."""
    side = pixels.shape[0]
    patches = []
    for box in boxes:
        left, top, right, bottom = (round(edge * side) for edge in box)
        patches.append(pixels[top:bottom, left:right].reshape(-1, 3))
    median: npt.NDArray[np.float64] = np.median(np.concatenate(patches), axis=0)
    return median


def references(styles: tuple[str, ...], size: int) -> References:
    """How the drawings show each palette entry in each style, with the style's tint, light and strokes in it.

    The drawings have seeds of their own and the exact colours of the palette.
    """
    rng = np.random.default_rng(96)
    return {
        (style, part): {
            name: np.median(
                [
                    colour_at(draw(_example(style, part, name, rng), rng, size), PLACES[part])
                    for _ in range(_DRAWINGS)
                ],
                axis=0,
            )
            for name in palette
        }
        for style in styles
        for part, palette in PALETTES.items()
    }


def read(pixels: Pixels, style: str, known: References) -> dict[str, str]:
    """The palette entry that each of the four parts shows: the nearest, by Euclidean distance in RGB."""
    found = {}
    for part in PALETTES:
        colour = colour_at(pixels, PLACES[part])
        candidates = known[style, part]
        found[part] = min(candidates, key=lambda name: float(np.linalg.norm(candidates[name] - colour)))
    return found


def _example(style: str, part: str, name: str, rng: np.random.Generator) -> Portrait:
    """A portrait in which this part has this colour and all else is left to chance."""
    names: dict[str, str | None] = {
        other: str(rng.choice(list(palette))) for other, palette in PALETTES.items()
    }
    names |= {part: name, "style": style, "cut": str(rng.choice([cut for cut in CUTS if cut != "bald"]))}
    names |= {"glasses": None, "beard": None, "expression": "smiling"}
    colours = {other: palette[str(names[other])] for other, palette in PALETTES.items()}
    return Portrait(names=names, colours=colours, loose=False)
