"""The contact sheet: the avatars that models make of one photo, styles in rows, strengths in columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from avatarforge.cli.comparison import BACKGROUND, FAINT, INK, draw_rounded_mask, truncate
from avatarforge.domain.jobs import ImageFormat
from avatarforge.imaging.provenance import ContentCredentials

_SIDE, _GAP, _MARGIN, _BETWEEN = 192, 12, 36, 40
"""Pixels: the side of each image, between two, around the sheet, and between two models."""
_TITLES, _HEAD, _FOOT = 220, 100, 44
"""Pixels: the width of the rows' titles, the height above the images and below them."""

_CORNER, _EMPTY = 14, (236, 234, 228)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One model's part of the sheet."""

    title: str
    detail: str
    images: Mapping[tuple[str, float], Image.Image]
    """By row and strength; a field without an image stays empty."""


def write_contact_sheet(
    target: Path,
    photo: Image.Image,
    rows: Mapping[str, str],
    strengths: Sequence[float],
    panels: Sequence[Panel],
    caption: str,
) -> None:
    """Write a PNG: the photo on the left, then a panel for each model. `rows` are titles by key."""
    panel_width = len(strengths) * (_SIDE + _GAP) - _GAP
    left = _MARGIN + _TITLES
    width = left + len(panels) * (panel_width + _BETWEEN) - _BETWEEN + _MARGIN
    height = _MARGIN + _HEAD + len(rows) * (_SIDE + _GAP) - _GAP + _FOOT + _MARGIN // 2
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _draw_titles(sheet, draw, photo, list(rows.values()))
    for panel in panels:
        _draw_panel(sheet, draw, left, panel, list(rows), strengths)
        left += panel_width + _BETWEEN
    small = ImageFont.load_default(15)
    foot = height - _MARGIN // 2 - 15
    draw.text((_MARGIN, foot), truncate(draw, caption, small, width - 2 * _MARGIN), font=small, fill=FAINT)
    target.write_bytes(ContentCredentials().encode(sheet, ImageFormat.PNG))


def _draw_titles(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, photo: Image.Image, titles: Sequence[str]
) -> None:
    side = _MARGIN // 2 + _HEAD - 18
    small = photo.resize((side, side), Image.Resampling.LANCZOS)
    sheet.paste(small, (_MARGIN, _MARGIN // 2), draw_rounded_mask(side, _CORNER))
    font = ImageFont.load_default(19)
    for row, title in enumerate(titles):
        middle = _row_top(row) + _SIDE // 2
        fitting = truncate(draw, title, font, _TITLES - 16)
        draw.text((_MARGIN, middle), fitting, font=font, fill=INK, anchor="lm")


def _draw_panel(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    left: int,
    panel: Panel,
    rows: Sequence[str],
    strengths: Sequence[float],
) -> None:
    bold, plain, small = (ImageFont.load_default(size) for size in (26, 16, 16))
    width = len(strengths) * (_SIDE + _GAP) - _GAP
    draw.text((left, _MARGIN - 6), truncate(draw, panel.title, bold, width), font=bold, fill=INK)
    draw.text((left, _MARGIN + 28), truncate(draw, panel.detail, plain, width), font=plain, fill=FAINT)
    mask = draw_rounded_mask(_SIDE, _CORNER)
    for column, strength in enumerate(strengths):
        x = left + column * (_SIDE + _GAP)
        draw.text(
            (x + _SIDE // 2, _row_top(0) - 16), f"strength {strength:g}", font=small, fill=INK, anchor="mm"
        )
        for row, key in enumerate(rows):
            image = panel.images.get((key, strength))
            if image is None:
                _draw_empty(sheet, draw, (x, _row_top(row)), mask)
            else:
                resized = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
                sheet.paste(resized, (x, _row_top(row)), mask)


def _draw_empty(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], mask: Image.Image
) -> None:
    sheet.paste(Image.new("RGB", (_SIDE, _SIDE), _EMPTY), at, mask)
    middle = (at[0] + _SIDE // 2, at[1] + _SIDE // 2)
    draw.text(middle, "none", font=ImageFont.load_default(16), fill=FAINT, anchor="mm")


def _row_top(row: int) -> int:
    return _MARGIN + _HEAD + row * (_SIDE + _GAP)
