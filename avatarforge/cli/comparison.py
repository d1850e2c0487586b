"""The before/after picture: the photo and its avatar side by side, labelled."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

_SIDE, _MARGIN, _LABEL = 512, 32, 56
"""Pixels: of each picture, around them, and of the strip of text below."""

_BACKGROUND, _INK, _FAINT = (250, 249, 246), (38, 38, 44), (128, 128, 138)


def write_comparison(photo: Path, avatar: Path, target: Path, caption: str) -> None:
    """Write a PNG of 1120 x 664 pixels: `photo` left, `avatar` right, `caption` below the avatar."""
    width = 2 * _SIDE + 3 * _MARGIN
    picture = Image.new("RGB", (width, _SIDE + 2 * _MARGIN + _LABEL), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for column, (path, title, detail) in enumerate(
        ((photo, "photo", photo.name), (avatar, "avatar", caption))
    ):
        left = _MARGIN + column * (_SIDE + _MARGIN)
        picture.paste(_square(path), (left, _MARGIN), _rounded_mask())
        _write(draw, (left, _MARGIN + _SIDE + 16), title, detail)
    picture.save(target, optimize=True)


def _square(path: Path) -> Image.Image:
    """The whole picture, fitted into the square on a blurless ground; small ones are scaled up smoothly."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    fitted = ImageOps.contain(image, (_SIDE, _SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (_SIDE, _SIDE), (236, 234, 228))
    square.paste(fitted, ((_SIDE - fitted.width) // 2, (_SIDE - fitted.height) // 2))
    return square


def _rounded_mask(radius: int = 24, finer: int = 4) -> Image.Image:
    """Drawn larger and scaled down: Pillow's own corners have steps."""
    side = _SIDE * finer
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), radius * finer, fill=255)
    return mask.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], title: str, detail: str) -> None:
    bold, plain = ImageFont.load_default(26), ImageFont.load_default(20)
    draw.text(at, title, font=bold, fill=_INK)
    left = at[0] + draw.textlength(title, font=bold) + 14
    room = at[0] + _SIDE - left
    while detail and draw.textlength(detail, font=plain) > room:
        detail = detail.removesuffix("…")[:-1] + "…" if len(detail) > 1 else ""
    draw.text((left, at[1] + 5), detail, font=plain, fill=_FAINT)
