"""Photos to upload, made here so that everybody measures with the same bytes."""

import io
import random
from pathlib import Path

from PIL import Image, ImageFilter

import avatarforge

SAMPLE_PORTRAIT = Path(avatarforge.__file__).parent / "samples" / "portrait.png"


def noisy_jpeg(size: int = 200_000, side: int = 1000) -> bytes:
    """A JPEG of about `size` bytes and `side` x `side` pixels, grainy like a photo in poor light."""
    picture = _grainy(side)
    least, most = 1, 95
    while least < most:
        quality = (least + most + 1) // 2
        if len(_encoded(picture, quality)) <= size:
            least = quality
        else:
            most = quality - 1
    return _encoded(picture, least)


def _grainy(side: int) -> Image.Image:
    randomness = random.Random(1)
    channels = []
    for _ in range(3):
        coarse = Image.frombytes("L", (8, 8), randomness.randbytes(64)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        grain = Image.frombytes("L", (side, side), randomness.randbytes(side * side))
        channels.append(Image.blend(coarse, grain.filter(ImageFilter.GaussianBlur(0.7)), 0.15))
    return Image.merge("RGB", channels)


def _encoded(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()
