"""Pictures as the rest of the code wants them: upright, eight bits a channel, one frame."""

import struct
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

# Pillow's own guard against huge pictures warns through the process-wide `warnings`. What is decoded
# here was measured before: uploads by their header (`ingress.photos`), stored ones when they came in.
Image.MAX_IMAGE_PIXELS = None

STORED_FORMATS = ("JPEG", "PNG", "WEBP")

_ORIENTATION = 0x0112
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
    """The picture that people see: mode RGB in sRGB, orientation applied, alpha flattened on white.

    `data` is a stored original. Raises Pillow's errors if it cannot be decoded.
    """
    with Image.open(BytesIO(data), formats=STORED_FORMATS) as image:
        picture = _flattened(_in_srgb(eight_bit(image)))
        return turned(picture, orientation(image.info.get("exif", b"")))


def orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 where it is absent or unreadable (Exif 2.32, section 4.6.4).

    `exif` is a TIFF structure, with or without the `Exif` mark before it. Read here, since Pillow's own
    reader warns about every broken block.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if value in _UPRIGHT else 1
    except struct.error:
        pass
    return 1


def swaps_sides(exif_orientation: int) -> bool:
    """Whether the picture's width is the height of what people see."""
    return exif_orientation >= 5


def turned(image: Image.Image, exif_orientation: int) -> Image.Image:
    """The picture as the orientation wants it shown."""
    transposition = _UPRIGHT.get(exif_orientation)
    return image if transposition is None else image.transpose(transposition)


def eight_bit(image: Image.Image) -> Image.Image:
    """The first frame in mode L, RGB, RGBA or CMYK: palettes resolved, 16 bits scaled, not clipped."""
    image.load()
    if image.mode in {"I;16", "I;16B", "I;16L", "I;16N", "I"}:
        return _scaled_to_eight_bit(image)
    if image.mode in {"CMYK", "RGBA"}:
        return image
    if image.has_transparency_data:
        return _scaled_transparency(image).convert("RGBA")
    if image.mode in {"L", "RGB"}:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _scaled_to_eight_bit(image: Image.Image) -> Image.Image:
    """(H, W) of 16 bits to (H, W) of 8: 65535 becomes 255, and a transparent grey stays transparent."""
    wide = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    alpha = Image.fromarray(np.where(wide == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha)).convert("RGBA")


def _scaled_transparency(image: Image.Image) -> Image.Image:
    """Pillow keeps the upper byte of 16-bit RGB, but the transparent colour as it was, in 16 bits."""
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:
        image.info["transparency"] = tuple(channel >> 8 for channel in colour)
    return image


def _in_srgb(image: Image.Image) -> Image.Image:
    """The picture's colours by its own profile as sRGB, in mode RGB or RGBA."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    opaque = image.convert("RGB") if image.mode == "RGBA" else image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        converted = ImageCms.profileToProfile(opaque, source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        # A broken profile, or one for another kind of picture: viewers show such a picture without it.
        return image
    if converted is None:
        return image
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, image).convert("RGB")
