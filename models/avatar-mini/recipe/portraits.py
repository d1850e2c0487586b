"""Draws portraits with known attributes: the only pictures that avatar-mini ever sees.

`sample` decides what a portrait shows, `draw` paints it. Parts sit at steady places with a moderate jitter,
so that the colour of a part can be read back at `PLACES`.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from palette import CUTS, EXPRESSIONS, PALETTES, STYLES, Colour
from PIL import Image, ImageDraw
from styles import Head, Picture, blurred, render, smooth_noise

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in fractions of the picture's side."""

PLACES: Final[dict[str, tuple[Box, ...]]] = {
    "skin": ((0.37, 0.51, 0.43, 0.56), (0.57, 0.51, 0.63, 0.56)),
    "hair": ((0.45, 0.20, 0.55, 0.24),),
    "shirt": ((0.30, 0.90, 0.40, 0.98), (0.60, 0.90, 0.70, 0.98)),
    "background": ((0.03, 0.03, 0.13, 0.16), (0.87, 0.03, 0.97, 0.16)),
}
"""Where the colour of each part shows in every portrait that is not bald: cheeks, top of the head, chest,
corners."""

_OVERSAMPLING = 3


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """What one picture shows.

    `names` holds the value of each attribute, None where no word fits (a colour between two palette entries).
    `colours` holds the colours really painted for skin, hair, shirt and background. A `loose` portrait
    imitates a photo: freer framing, clutter and grain.
    """

    names: dict[str, str | None]
    colours: dict[str, Colour]
    loose: bool


def sample(rng: np.random.Generator, *, loose_share: float = 0.22) -> Portrait:
    """A random portrait; `loose_share` of them imitate photos and may have colours without a name."""
    loose = bool(rng.random() < loose_share)
    names: dict[str, str | None] = {
        "style": str(rng.choice(STYLES)),
        "cut": str(rng.choice(CUTS, p=(0.26, 0.22, 0.16, 0.08, 0.14, 0.14))),
        "glasses": "glasses" if rng.random() < 0.3 else None,
        "beard": "beard" if rng.random() < 0.22 else None,
        "expression": str(rng.choice(EXPRESSIONS, p=(0.6, 0.4))),
    }
    colours: dict[str, Colour] = {}
    for part, palette in PALETTES.items():
        if loose and rng.random() < 0.7:
            names[part], colours[part] = None, _free_colour(part, rng)
        else:
            name = str(rng.choice(list(palette)))
            names[part], colours[part] = name, _jittered(palette[name], rng)
    return Portrait(names=names, colours=colours, loose=loose)


def draw(portrait: Portrait, rng: np.random.Generator, size: int = 128) -> npt.NDArray[np.uint8]:
    """The portrait as pixels, (size, size, 3); `rng` decides framing, texture and small variations."""
    head = _framing(portrait, rng)
    painter = _Painter(portrait, head, size * _OVERSAMPLING, rng)
    plain = painter.paint().resize((size, size), Image.Resampling.BOX)
    pixels = np.asarray(plain, np.float32)
    if portrait.loose:
        pixels = _photo_like(pixels, rng)
    return render(portrait.names["style"] or STYLES[0], pixels, head, rng).astype(np.uint8)


def _jittered(colour: Colour, rng: np.random.Generator) -> Colour:
    """The palette's colour in a slightly different light."""
    values = np.clip(np.array(colour) * rng.uniform(0.93, 1.06) + rng.uniform(-7, 7, 3), 0, 255)
    return (float(values[0]), float(values[1]), float(values[2]))


def _free_colour(part: str, rng: np.random.Generator) -> Colour:
    """A colour between two of the palette, or for clothes and background sometimes any colour at all."""
    entries = np.array(list(PALETTES[part].values()))
    one, other = entries[rng.integers(len(entries), size=2)]
    values = one + (other - one) * rng.random()
    if part in ("shirt", "background") and rng.random() < 0.4:
        values = rng.uniform(10, 250, 3)
    return (float(values[0]), float(values[1]), float(values[2]))


def _framing(portrait: Portrait, rng: np.random.Generator) -> Head:
    spread = 2.2 if portrait.loose else 1.0
    scale = 1 + rng.uniform(-0.06, 0.06) * spread
    return Head(
        x=0.5 + rng.uniform(-0.025, 0.025) * spread,
        y=0.45 + rng.uniform(-0.02, 0.02) * spread,
        half_width=0.2 * scale * rng.uniform(0.94, 1.06),
        half_height=0.26 * scale,
    )


def _photo_like(pixels: Picture, rng: np.random.Generator) -> Picture:
    """Uneven light and a little grain, as a camera would add them."""
    size = pixels.shape[0]
    lit = pixels * (1 + rng.uniform(0, 0.22) * smooth_noise(size, 3, rng))
    lit = lit + rng.uniform(0, 8) * smooth_noise(size, 20, rng)
    return np.clip(lit + rng.normal(0, rng.uniform(0, 3), lit.shape), 0, 255).astype(np.float32)


def _shade(colour: Colour, factor: float) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, round(value * factor))) for value in colour)
    return red, green, blue


class _Painter:
    """Paints one portrait in flat colours, back to front, in coordinates relative to the head.

    (0, 0) is the middle of the head, (1, 1) its right and lower end.
    """

    def __init__(self, portrait: Portrait, head: Head, side: int, rng: np.random.Generator) -> None:
        self._names, self._loose, self._head, self._side, self._rng = (
            portrait.names,
            portrait.loose,
            head,
            side,
            rng,
        )
        self._skin, self._hair = portrait.colours["skin"], portrait.colours["hair"]
        self._shirt, self._background = portrait.colours["shirt"], portrait.colours["background"]
        self._image = Image.new("RGB", (side, side), _shade(self._background, 1))
        self._canvas = ImageDraw.Draw(self._image)

    def paint(self) -> Image.Image:
        self._paint_background()
        self._paint_back_hair()
        self._paint_body()
        self._paint_head()
        self._paint_beard()
        self._paint_face()
        self._paint_front_hair()
        self._paint_glasses()
        return self._image

    def _at(self, x: float, y: float) -> tuple[float, float]:
        head = self._head
        return (head.x + x * head.half_width) * self._side, (head.y + y * head.half_height) * self._side

    def _box(self, left: float, top: float, right: float, bottom: float) -> Box:
        return (*self._at(left, top), *self._at(right, bottom))

    def _ellipse(self, x: float, y: float, across: float, along: float, fill: tuple[int, int, int]) -> None:
        self._canvas.ellipse(self._box(x - across, y - along, x + across, y + along), fill=fill)

    def _circle(self, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
        middle, reach = self._at(x, y), radius * self._head.half_width * self._side
        self._canvas.ellipse(
            (middle[0] - reach, middle[1] - reach, middle[0] + reach, middle[1] + reach), fill=fill
        )

    def _width(self, fraction: float) -> int:
        """A line's width as a fraction of half the head's width."""
        return max(2, round(fraction * self._head.half_width * self._side))

    def _paint_background(self) -> None:
        if self._loose:
            self._paint_clutter()
        elif self._rng.random() < 0.3:
            disc = _shade(self._background, self._rng.uniform(0.88, 1.1))
            self._canvas.ellipse(tuple(self._side * edge for edge in (0.1, 0.08, 0.9, 0.88)), fill=disc)

    def _paint_clutter(self) -> None:
        """Soft shapes behind the person, mostly in shades of the background, now and then in any colour."""
        side, rng = self._side, self._rng
        for _ in range(int(rng.integers(0, 5))):
            anything = (float(rng.uniform(0, 255)), float(rng.uniform(0, 255)), float(rng.uniform(0, 255)))
            fill = _shade(anything if rng.random() < 0.35 else self._background, rng.uniform(0.7, 1.25))
            left, top = rng.uniform(-0.2, 0.9, 2) * side
            across, along = rng.uniform(0.08, 0.5, 2) * side
            shape = self._canvas.ellipse if rng.random() < 0.5 else self._canvas.rectangle
            shape((left, top, left + across, top + along), fill=fill)
        softness = rng.uniform(0, 4) * side / 128
        self._image.paste(
            Image.fromarray(blurred(np.asarray(self._image, np.float32), softness).astype(np.uint8))
        )

    def _paint_back_hair(self) -> None:
        match self._names["cut"]:
            case "long":
                length, radius = self._rng.uniform(1.25, 1.55), self._width(1.0)
                self._canvas.rounded_rectangle(
                    self._box(-1.34, -1.12, 1.34, length), radius, fill=_shade(self._hair, 0.9)
                )
            case "curly":
                for step in range(20):
                    angle = math.pi * (0.86 + 1.28 * step / 19)
                    self._circle(1.14 * math.cos(angle), math.sin(angle), 0.4, _shade(self._hair, 0.92))
            case "bun":
                self._circle(0, -1.3, self._rng.uniform(0.38, 0.48), _shade(self._hair, 0.9))

    def _paint_body(self) -> None:
        self._canvas.rounded_rectangle(
            (*self._at(-1.95, 1.24), self._at(1.95, 0)[0], self._side * 1.3),
            self._width(0.8),
            fill=_shade(self._shirt, 1),
        )
        shadowed = _shade(self._skin, 0.86)
        self._canvas.rectangle(self._box(-0.42, 0.6, 0.42, 1.32), fill=shadowed)
        collar = self._rng.random()
        if collar < 0.4:
            self._canvas.pieslice(self._box(-0.58, 1.0, 0.58, 1.62), 0, 180, fill=shadowed)
        elif collar < 0.6:
            self._canvas.polygon(
                [self._at(-0.5, 1.26), self._at(0.5, 1.26), self._at(0, 1.75)], fill=shadowed
            )
        else:
            darker = _shade(self._shirt, self._rng.uniform(0.55, 0.8) if collar < 0.88 else 0.2)
            self._canvas.rounded_rectangle(self._box(-0.72, 1.14, 0.72, 1.42), self._width(0.2), fill=darker)

    def _paint_head(self) -> None:
        for ear in (-1, 1):
            self._ellipse(ear, 0.07, 0.17, 0.18, _shade(self._skin, 0.9))
        self._ellipse(0, 0, 1, 1, _shade(self._skin, 1))

    def _paint_beard(self) -> None:
        if self._names["beard"]:
            self._canvas.chord(self._box(-0.97, -0.4, 0.97, 1.06), 22, 158, fill=_shade(self._hair, 0.94))

    def _paint_face(self) -> None:
        brow = _shade(self._skin, 0.5) if self._names["cut"] == "bald" else _shade(self._hair, 0.62)
        gaze = self._rng.uniform(-0.04, 0.04)
        for side in (-1, 1):
            self._ellipse(side * 0.42, 0, 0.2, 0.11, (250, 250, 250))
            self._ellipse(side * 0.42 + gaze, 0, 0.115, 0.1, (34, 26, 28))
            arch = [self._at(side * 0.64, -0.17), self._at(side * 0.44, -0.235), self._at(side * 0.22, -0.19)]
            self._canvas.line(arch, fill=brow, width=self._width(0.09), joint="curve")
        nose = [self._at(0.02, 0.08), self._at(-0.08, 0.34), self._at(0.08, 0.35)]
        self._canvas.line(nose, fill=_shade(self._skin, 0.7), width=self._width(0.07), joint="curve")
        self._paint_mouth()

    def _paint_mouth(self) -> None:
        if self._names["expression"] == "smiling":
            teeth = self._rng.random() < 0.6
            self._canvas.chord(self._box(-0.42, 0.34, 0.42, 0.76), 8, 172, fill=(168, 44, 52))
            if teeth:
                self._canvas.chord(self._box(-0.34, 0.4, 0.34, 0.7), 10, 170, fill=(248, 246, 244))
        else:
            self._canvas.line(
                [self._at(-0.3, 0.6), self._at(0.3, 0.6)], fill=(140, 56, 58), width=self._width(0.1)
            )

    def _paint_front_hair(self) -> None:
        hair = _shade(self._hair, 1)
        match self._names["cut"]:
            case "short" | "long" | "bun":
                self._paint_fringe(hair)
            case "spiky":
                self._paint_spikes(hair)
            case "curly":
                for step in range(11):
                    angle = math.pi * (1.08 + 0.84 * step / 10)
                    self._circle(0.84 * math.cos(angle), 0.8 * math.sin(angle), 0.33, hair)
                self._ellipse(0, -0.86, 0.6, 0.22, hair)

    def _paint_fringe(self, hair: tuple[int, int, int]) -> None:
        """Straight across, parted to a side, or swept back."""
        kind = self._rng.random()
        if kind < 0.4:
            self._canvas.chord(self._box(-1.09, -1.14, 1.09, 0.9), 198, 342, fill=hair)
        elif kind < 0.75:
            part = self._rng.choice((-0.35, 0.35))
            self._canvas.chord(self._box(-1.09, -1.14, 1.09, 0.6), 205, 335, fill=hair)
            for side in (-1, 1):
                lock = [self._at(part, -0.95), self._at(side * 1.08, -0.5), self._at(side * 1.02, 0.0)]
                self._canvas.polygon([*lock, self._at(side * 0.8, -0.42)], fill=hair)
        else:
            self._canvas.chord(self._box(-1.1, -1.16, 1.1, 0.5), 200, 340, fill=hair)
            for side in (-1, 1):
                self._ellipse(side * 0.97, -0.28, 0.13, 0.32, hair)

    def _paint_spikes(self, hair: tuple[int, int, int]) -> None:
        outline = [self._at(-1.08, -0.3)]
        for step in range(9):
            outline.append(self._at(-1.12 + 2.24 * step / 8, -1.38 if step % 2 else -1.0))
        outline += [self._at(1.08, -0.3), self._at(0.6, -0.55), self._at(0, -0.48), self._at(-0.6, -0.55)]
        self._canvas.polygon(outline, fill=hair)

    def _paint_glasses(self) -> None:
        if not self._names["glasses"]:
            return
        frame, width = (28, 28, 34), self._width(0.1)
        for side in (-1, 1):
            self._canvas.ellipse(
                self._box(side * 0.42 - 0.33, -0.24, side * 0.42 + 0.33, 0.24), outline=frame, width=width
            )
            self._canvas.line([self._at(side * 0.75, -0.02), self._at(side * 1.0, -0.06)], frame, width)
        self._canvas.line([self._at(-0.1, -0.02), self._at(0.1, -0.02)], fill=frame, width=width)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a sheet of sample portraits.")
    parser.add_argument("output", type=Path, help="where to write the sheet (PNG)")
    parser.add_argument("--columns", type=int, default=12, help="portraits in a row (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=6, help="rows (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=128, help="pixels along a portrait (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    sheet = Image.new("RGB", (options.columns * options.size, options.rows * options.size))
    for index in range(options.rows * options.columns):
        picture = Image.fromarray(draw(sample(rng), rng, options.size))
        row, column = divmod(index, options.columns)
        sheet.paste(picture, (column * options.size, row * options.size))
    sheet.save(options.output)


if __name__ == "__main__":
    main()
