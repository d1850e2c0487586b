"""Decodes images: upright, eight bits per channel, in sRGB, one frame."""

from io import BytesIO

import numpy as np
from PIL import Image

from avatarforge.imaging.colour import ColourCodes, convert_to_srgb
from avatarforge.imaging.exif import read_orientation

# Pillow's own guard against huge images warns through the process-wide `warnings`. What is decoded
# here was measured before: uploads by their header (`ingress.upload.inspect`), stored ones when they came in.
Image.MAX_IMAGE_PIXELS = None

STORED_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_DECODED_PIXELS = 64_000_000
"""A JPEG of more pixels is decoded at half its width and height: less memory than these take."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_upright(data: bytes) -> Image.Image:
    """Decode the image as people see it: mode RGB in sRGB, orientation applied, alpha flattened on white.

    `data` is a stored original. Raises Pillow's errors if it cannot be decoded.
    """
    with Image.open(BytesIO(data), formats=STORED_FORMATS) as image:
        reduce_huge(image)
        upright = _flatten(to_srgb(image, image.info.get("icc_profile")))
        return apply_orientation(upright, read_orientation(image.info.get("exif", b"")))


def reduce_huge(image: Image.Image) -> None:
    """Have an opened JPEG of more than `MAX_DECODED_PIXELS` decoded at half its width and height."""
    if image.width * image.height > MAX_DECODED_PIXELS:
        image.draft(None, ((image.width + 1) // 2, (image.height + 1) // 2))


def to_srgb(image: Image.Image, profile: bytes | None, codes: ColourCodes | None = None) -> Image.Image:
    """Return the first frame's colours in sRGB, in mode L, RGB or RGBA, and white where nothing is seen.

    `profile` and `codes` are what the file says of its colours.
    """
    colours, alpha = split_alpha(image)
    converted = convert_to_srgb(colours, profile, codes)
    if alpha is None or alpha.getextrema() == (255, 255):
        return converted
    converted = converted.convert("RGB")
    converted.paste((255, 255, 255), mask=alpha.point([255] + [0] * 255))
    converted.putalpha(alpha)
    return converted


def apply_orientation(image: Image.Image, exif_orientation: int) -> Image.Image:
    transposition = _UPRIGHT.get(exif_orientation)
    return image if transposition is None else image.transpose(transposition)


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the first frame's colours in mode L, RGB, CMYK or LAB, and its alpha where it has any.

    Palettes are resolved, and 16 bits are scaled, not clipped.
    """
    image.load()
    if image.mode in {"I;16", "I;16B", "I;16L", "I;16N", "I"}:
        return _scale_to_eight_bit(image)
    if image.mode in {"La", "RGBa"} or image.has_transparency_data:
        grey = image.mode in {"1", "L", "LA", "La"}
        # Of premultiplied grey there is no way to LA but this one.
        whole = _scale_transparency(image).convert("LA" if grey and image.mode != "1" else "RGBA")
        *_, alpha = whole.split()
        return whole.convert("L" if grey else "RGB"), alpha
    if image.mode in {"L", "RGB", "CMYK", "LAB"}:
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _scale_to_eight_bit(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Scale (H, W) of 16 bits to 8: 65535 becomes 255, and a transparent grey stays transparent."""
    wide = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey, None
    return grey, Image.fromarray(np.where(wide == transparent, 0, 255).astype(np.uint8))


def _scale_transparency(image: Image.Image) -> Image.Image:
    """Scale the transparent colour: of 16-bit RGB Pillow keeps the upper byte, but not of this colour."""
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:
        image.info["transparency"] = tuple(channel >> 8 for channel in colour)
    return image


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, image).convert("RGB")
