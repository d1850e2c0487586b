"""Photos with changed, cut and foreign bytes: what viewers show whole is taken, and nothing else happens.

The viewers are Chromium, and heif-convert for HEIC (Debian: libheif-examples).
`CHAOS_PHOTOS` says how many files there are of each format: 40 by default, 1000 in `make chaos`.
"""

import asyncio
import base64
import os
import random
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from avatarforge.domain.errors import AvatarForgeError
from avatarforge.imaging.decode import load_upright
from avatarforge.ingress.upload.inspect import clean_photo
from avatarforge.settings import UploadSettings
from tests import pictures
from tests.chaos.conftest import told
from tests.studio.browser import running_browser

FILES = int(os.environ.get("CHAOS_PHOTOS", "40"))
SHARE = 0.99
"""Of the files that a viewer shows whole."""
MAX_GROWTH = 64 * 1024 * 1024
"""Bytes of memory."""

PHOTOS = Path(__file__).parents[1] / "photos"
HEICS = ("iphone.heic", "turned-10-bit.heic", "p3-icc.heic")
OBJECT = re.compile("0x[0-9a-f]{6}|object at")

SHOW = """async (files) => {
  const canvas = document.createElement("canvas");
  const seen = [];
  for (const file of files) {
    const bytes = Uint8Array.from(atob(file), (c) => c.charCodeAt(0));
    const url = URL.createObjectURL(new Blob([bytes]));
    const image = new Image();
    image.src = url;
    try {
      await image.decode();
      Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      seen.push(canvas.toDataURL("image/png").split(",")[1]);
    } catch {
      seen.push(null);
    }
    URL.revokeObjectURL(url);
  }
  return seen;
}"""
"""What is shown of each file, as a PNG in base64; null if nothing is."""
BLOCK = 32
"""Pixels of a side."""


def a_portrait() -> Image.Image:
    return Image.open(BytesIO(pictures.photo(96, 128, 8000))).convert("RGB")


def save(kind: str, **options: object) -> bytes:
    content = BytesIO()
    a_portrait().save(content, kind, **options)
    return content.getvalue()


EXIF = pictures.exif(1, pictures.SECRET)
BASES: dict[str, Callable[[], list[bytes]]] = {
    "jpeg": lambda: [
        pictures.photo(96, 128, 6000),
        pictures.photo(96, 128, 6000, progressive=True),
        pictures.photo(96, 128, 6000, restart_marker_blocks=3),
        pictures.jpeg_with_everything(),
        save("JPEG", exif=EXIF, icc_profile=pictures.swapped_profile()),
    ],
    "png": lambda: [
        save("PNG"),
        save("PNG", exif=EXIF, icc_profile=pictures.swapped_profile()),
        pictures.png_with_everything(),
        pictures.png_16_bit_rgb(),
        pictures.png_palette(),
    ],
    "webp": lambda: [
        save("WEBP", lossless=True),
        save("WEBP", quality=80),
        save("WEBP", quality=80, exif=EXIF, icc_profile=pictures.swapped_profile(), xmp=pictures.SECRET),
    ],
    "avif": lambda: [save("AVIF"), save("AVIF", exif=EXIF, icc_profile=pictures.swapped_profile())],
    "heic": lambda: [(PHOTOS / name).read_bytes() for name in HEICS],
}


def mutated(bases: list[bytes], number: int) -> bytes:
    """A file with up to three changes; the same for the same number."""
    numbers = random.Random(number)
    content = bytearray(numbers.choice(bases))
    for _ in range(numbers.randint(1, 3)):
        # Most in the first kilobyte, where what matters stands close together.
        at = numbers.randrange(min(len(content), numbers.choice([64, 1024, 10**9])))
        size = numbers.randint(1, 8)
        match numbers.randrange(6):
            case 0:
                content[at] ^= 1 << numbers.randrange(8)
            case 1:
                content[at : at + size] = numbers.randbytes(size)
            case 2:
                content[at:at] = numbers.randbytes(size)
            case 3:
                del content[at : at + size]
            case 4:
                content[at : at + size] = bytes([numbers.choice([0, 255])]) * size
            case 5:
                del content[-size:]
                content += numbers.randbytes(numbers.choice([0, 0, 40]))
    return bytes(content)


def clean(content: bytes) -> bytes:
    return clean_photo(BytesIO(content), "photo", UploadSettings(max_pixels=4_000_000)).content.read()


def is_taken(content: bytes) -> bool:
    """Whether the photo is taken; any error but ours goes on, as would be answered with a 500."""
    try:
        cleaned = clean(content)
    except AvatarForgeError as error:
        # No address of an object: its own text would be a library's.
        return OBJECT.search(str(error)) is not None and pytest.fail(str(error))
    load_upright(cleaned)
    return True


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def show_in_chromium(files: list[bytes]) -> list[Image.Image | None]:
    shown: list[Image.Image | None] = []
    async with running_browser() as browser:
        page = await browser.new_page()
        for first in range(0, len(files), 50):
            batch = [base64.b64encode(each).decode() for each in files[first : first + 50]]
            for picture in await page.evaluate(SHOW, batch):
                shown.append(picture and Image.open(BytesIO(base64.b64decode(picture))))
    return shown


async def show_by_heif_convert(folder: Path, files: list[bytes]) -> list[Image.Image | None]:
    shown: list[Image.Image | None] = []
    out = folder / "out.png"
    for content in files:
        (folder / "in.heic").write_bytes(content)
        out.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            "heif-convert", folder / "in.heic", out, stdout=-3, stderr=-3
        )
        is_shown = await process.wait() == 0 and out.exists() and out.stat().st_size > 0
        # Not by Pillow alone, which refuses a PNG for the profile that was copied to it.
        shown.append(load_upright(clean(out.read_bytes())) if is_shown else None)
    return shown


def is_whole(shown: Image.Image | None, pictures: list[Image.Image | None]) -> bool:
    """Whether no pixel is left transparent, no last row is painted over, and no block is garbled.

    Decoders go on through broken data. A block may have other colours than in the unbroken pictures, where a
    profile is lost, but not other contours.
    """
    if shown is None or shown.convert("RGBA").getextrema()[3][0] < 255:
        return False
    grey = np.asarray(shown.convert("L")).astype(float)
    if np.ptp(grey[-1]) == 0:
        return False
    references = [np.asarray(each.convert("L")).astype(float) for each in pictures if each is not None]
    alike = [each for each in references if each.shape == grey.shape]
    return not alike or max(worst_correlation(grey, each) for each in alike) > 0.8


def worst_correlation(grey: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """The least correlation of two pictures' blocks; one of a single colour counts as like any."""
    worst = 1.0
    for top in range(0, grey.shape[0], BLOCK):
        for left in range(0, grey.shape[1], BLOCK):
            block = np.s_[top : top + BLOCK, left : left + BLOCK]
            if grey[block].std() > 1 and reference[block].std() > 1:
                worst = min(worst, np.corrcoef(grey[block].ravel(), reference[block].ravel())[0, 1])
    return float(worst)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", BASES)
async def test_what_a_viewer_shows_whole_is_taken(kind: str, tmp_path: Path) -> None:
    bases = BASES[kind]()
    files = [*bases, *(mutated(bases, number) for number in range(FILES))]
    seen = await (show_by_heif_convert(tmp_path, files) if kind == "heic" else show_in_chromium(files))
    references, seen = seen[: len(bases)], seen[len(bases) :]
    shown = [is_whole(each, references) for each in seen]
    is_taken(bases[0])
    before = resident_bytes()
    taken = [is_taken(content) for content in files[len(bases) :]]
    grown = resident_bytes() - before
    missed = [number for number in range(FILES) if shown[number] and not taken[number]]
    told(f"mutated {kind}", "taken of those shown whole", 100 - 100 * len(missed) / sum(shown), "%")
    print(
        f"{kind}: {FILES} files, {sum(each is not None for each in seen)} shown, {sum(shown)} whole, "
        f"{sum(taken)} taken, {grown / 2**20:.0f} MiB more; whole and not taken: {missed}"
    )
    assert grown < MAX_GROWTH
    assert len(missed) <= (1 - SHARE) * sum(shown), missed
