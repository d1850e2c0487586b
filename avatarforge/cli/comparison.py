"""The before/after image: the photo and its avatars side by side, labelled."""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from avatarforge.domain.jobs import ImageFormat
from avatarforge.imaging.provenance import ContentCredentials

_SIDE, _MARGIN, _LABEL = 512, 32, 56
"""Pixels: the side of each image, around them, and the height of the text below."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

BACKGROUND, INK, FAINT = (250, 249, 246), (38, 38, 44), (128, 128, 138)


def write_comparison(before: tuple[bytes, str], after: Sequence[tuple[bytes, str]], target: Path) -> None:
    """Write a PNG: the square photo and its avatars, each with its caption, in about as many rows as columns.

    With one avatar it has 1120 x 632 pixels, the avatar right of the photo.
    """
    tiles = [("photo", *before), *(("avatar", *each) for each in after)]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    pitch = _SIDE + _MARGIN, _SIDE + _MARGIN + _LABEL
    canvas = Image.new("RGB", (columns * pitch[0] + _MARGIN, rows * pitch[1] + _MARGIN), BACKGROUND)
    draw, mask = ImageDraw.Draw(canvas), draw_rounded_mask(_SIDE, 24)
    for place, (title, content, caption) in enumerate(tiles):
        left, top = _MARGIN + place % columns * pitch[0], _MARGIN + place // columns * pitch[1]
        with Image.open(BytesIO(content)) as file:
            image = ImageOps.fit(file.convert("RGB"), (_SIDE, _SIDE), Image.Resampling.LANCZOS)
        canvas.paste(image, (left, top), mask)
        _draw_label(draw, (left, top + _SIDE + 16), title, caption)
    target.write_bytes(ContentCredentials().encode(canvas, ImageFormat.PNG))


def draw_rounded_mask(side: int, radius: int, oversampling: int = 4) -> Image.Image:
    """Draw a square with round corners, larger and scaled down: Pillow's own corners have steps."""
    mask = Image.new("L", (side * oversampling, side * oversampling), 0)
    corner = side * oversampling - 1
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, corner, corner), radius * oversampling, fill=255)
    return mask.resize((side, side), Image.Resampling.LANCZOS)


def truncate(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """Return as much of the text as fits in `width` pixels."""
    while text and draw.textlength(text, font=font) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    return text


def _draw_label(draw: ImageDraw.ImageDraw, at: tuple[float, float], title: str, detail: str) -> None:
    bold, plain = ImageFont.load_default(26), ImageFont.load_default(20)
    draw.text(at, title, font=bold, fill=INK)
    left = at[0] + draw.textlength(title, font=bold) + 14
    fitting = truncate(draw, detail, plain, at[0] + _SIDE - left)
    draw.text((left, at[1] + 5), fitting, font=plain, fill=FAINT)
