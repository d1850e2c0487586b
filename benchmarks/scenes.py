"""Photos made for measuring how faces are found: portraits pasted into backdrops, and backdrops alone."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_SIZES = (1200, 900), (900, 1200), (1350, 900), (900, 1350), (1600, 900), (900, 1600), (1000, 1000)
_HIGHER = 1.6
"""A head with its hair is so much higher than its face is wide, and lies so far beyond the face's box."""

Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True, slots=True)
class Face:
    """The middle and the side, in pixels, of a face's box from the forehead to the lower lip."""

    x: float
    y: float
    side: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Portrait:
    """An upright portrait and where its face is."""

    photo: Image.Image
    face: Face


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A photo with one face or none."""

    photo: Image.Image
    face: Face | None = None
    share: float = 0
    """The face's side as a share of the photo's shorter one."""
    tilt: float = 0
    """Degrees by which the head leans to its left shoulder."""
    quarter_turns: int = 0
    """Counter-clockwise turns by 90 degrees that were done to the photo."""


def paste(portrait: Portrait, backdrop: Image.Image, share: float, tilt: float, rng: Rng) -> Scene:
    """The portrait, turned by `tilt` degrees, anywhere on the backdrop where its face is wholly in it.

    Every other one is a rectangle, as in a poster; the others fade into the backdrop.
    """
    side = share * min(backdrop.size)
    scale = side / portrait.face.side
    size = tuple(max(1, round(length * scale)) for length in portrait.photo.size)
    small = portrait.photo.resize(size, Image.Resampling.LANCZOS)
    mask = Image.new("L", size, 255)
    if rng.random() < 0.5:
        mask = Image.new("L", size, 0)
        edge = side / 8
        ImageDraw.Draw(mask).rectangle((edge, edge, size[0] - edge, size[1]), fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(edge / 3))
    # Turned around the face's middle: with `expand` that middle is where the whole picture's is moved to.
    x, y = portrait.face.x * scale, portrait.face.y * scale
    turned = small.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    mask = mask.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    angle = np.deg2rad(tilt)
    across, down = x - size[0] / 2, y - size[1] / 2
    x = turned.width / 2 + across * np.cos(angle) + down * np.sin(angle)
    y = turned.height / 2 - across * np.sin(angle) + down * np.cos(angle)
    margin = side * _HIGHER / 2
    centre_x, centre_y = (_between(margin, length - margin, rng) for length in backdrop.size)
    photo = backdrop.copy()
    photo.paste(turned, (round(centre_x - x), round(centre_y - y)), mask)
    return Scene(
        photo=photographed(photo, rng), face=Face(x=centre_x, y=centre_y, side=side), share=share, tilt=tilt
    )


def turn(scene: Scene, quarter_turns: int) -> Scene:
    """The scene as a phone stores it that does not say how it was held."""
    photo, face = scene.photo, scene.face
    for _ in range(quarter_turns):
        if face is not None:
            face = Face(x=face.y, y=photo.width - face.x, side=face.side)
        photo = photo.transpose(Image.Transpose.ROTATE_90)
    return Scene(photo=photo, face=face, share=scene.share, tilt=scene.tilt, quarter_turns=quarter_turns)


def photographed(photo: Image.Image, rng: Rng) -> Image.Image:
    """With a camera's light, grain and JPEG's losses."""
    light = rng.uniform(0.55, 1.15)
    grain = rng.normal(0, rng.uniform(0, 6), (photo.height, photo.width, 1))
    pixels = (np.asarray(photo, np.float32) * light + grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(60, 95)))
    return Image.open(file).convert("RGB")


def backdrop(pieces: list[Image.Image], rng: Rng) -> Image.Image:
    """A picture without faces; `pieces` are parts of photos to make some of them from."""
    size = _SIZES[rng.integers(len(_SIZES))]
    kinds: list[Callable[[tuple[int, int], Rng], Image.Image]] = [
        _gradient, _clouds, _blinds, _shelf, _leaves, _bokeh, _tiles, _page, _rooms, _buttons,
    ]  # fmt: skip
    chosen = rng.integers(len(kinds) + (5 if pieces else 0))
    if chosen < len(kinds):
        return kinds[chosen](size, rng)
    return _patchwork(size, pieces, rng) if chosen < len(kinds) + 2 else _enlarged(size, pieces, rng)


def pieces_of(portraits: list[Portrait]) -> list[Image.Image]:
    """What is below and beside the faces: shirts, ties, flags, walls."""
    pieces = []
    for portrait in portraits:
        photo, face = portrait.photo, portrait.face
        below = round(face.y + face.side * 0.95)
        if photo.height - below > 40:
            pieces.append(photo.crop((0, below, photo.width, photo.height)))
        beside = round(face.x - face.side * 0.95)
        if beside > 40:
            pieces.append(photo.crop((0, 0, beside, photo.height)))
    return pieces


def photos_in(folder: Path) -> list[Image.Image]:
    """All pictures of the folder."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    return [Image.open(path).convert("RGB") for path in paths]


def _between(least: float, most: float, rng: Rng) -> float:
    return float(rng.uniform(least, most)) if least < most else (least + most) / 2


def _colour(rng: Rng, least: int = 20, most: int = 235) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(least, most, 3))
    return red, green, blue


def _gradient(size: tuple[int, int], rng: Rng) -> Image.Image:
    corners = rng.integers(10, 245, (2, 2, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def _clouds(size: tuple[int, int], rng: Rng) -> Image.Image:
    """Noise at several scales, coarse and fine: skies, walls, rock, grass."""
    width, height = size
    total = np.zeros((height, width, 3), np.float32)
    roughness = rng.uniform(0.4, 0.9)
    for octave in range(1, 8):
        cells = rng.integers(0, 255, (2**octave + 1, 2**octave + 1, 3)).astype(np.uint8)
        if rng.random() < 0.7:
            cells = np.repeat(cells[..., :1], 3, axis=2)
        layer = Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)
        total += (np.asarray(layer, np.float32) - 128) * roughness**octave * 1.5
    return Image.fromarray((total + np.array(_colour(rng, 60, 200))).clip(0, 255).astype(np.uint8))


def _blinds(size: tuple[int, int], rng: Rng) -> Image.Image:
    picture = _gradient(size, rng)
    draw = ImageDraw.Draw(picture)
    step = int(rng.integers(14, 90))
    for start in range(0, max(size), step):
        thick = int(step * rng.uniform(0.2, 0.7))
        box = (0, start, size[0], start + thick)
        draw.rectangle(box if size[1] > start else (0, 0, 0, 0), fill=_colour(rng))
    return picture.rotate(float(rng.choice([0, 90, 12, -20])), fillcolor=_colour(rng))


def _shelf(size: tuple[int, int], rng: Rng) -> Image.Image:
    """Books and things in rows."""
    picture = Image.new("RGB", size, _colour(rng, 30, 90))
    draw = ImageDraw.Draw(picture)
    row = int(rng.integers(90, 260))
    for bottom in range(row, size[1] + row, row):
        left = 0
        while left < size[0]:
            wide, high = int(rng.integers(row // 10 + 2, row // 3)), row * rng.uniform(0.6, 0.92)
            if rng.random() < 0.85:
                draw.rectangle((left, bottom - high, left + wide, bottom - 8), _colour(rng), (20, 20, 20))
                label = bottom - high * 0.8
                draw.rectangle((left + wide * 0.3, label, left + wide * 0.7, label + row / 16), _colour(rng))
            else:
                draw.ellipse((left, bottom - wide * 1.3, left + wide, bottom - 8), _colour(rng), (20, 20, 20))
            left += wide + int(rng.integers(0, 6))
        draw.rectangle((0, bottom - 8, size[0], bottom + 6), _colour(rng, 60, 140))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3)))


def _leaves(size: tuple[int, int], rng: Rng) -> Image.Image:
    picture = _clouds(size, rng)
    hue = np.array(_colour(rng, 40, 160))
    for _ in range(int(rng.integers(80, 260))):
        length = int(rng.integers(20, 160))
        leaf = Image.new("L", (length, length), 0)
        ImageDraw.Draw(leaf).ellipse((0, length * 0.3, length - 1, length * 0.7), fill=255)
        leaf = leaf.rotate(float(rng.uniform(0, 360)))
        colour = tuple(int(value) for value in (hue + rng.integers(-35, 36, 3)).clip(0, 255))
        place = (int(rng.integers(-length, size[0])), int(rng.integers(-length, size[1])))
        picture.paste(Image.new("RGB", leaf.size, colour), place, leaf)
    return picture


def _bokeh(size: tuple[int, int], rng: Rng) -> Image.Image:
    picture = _gradient(size, rng).point(lambda value: value // 3)
    for _ in range(int(rng.integers(20, 90))):
        radius = int(rng.integers(8, 90))
        disc = Image.new("L", (2 * radius, 2 * radius), 0)
        ImageDraw.Draw(disc).ellipse((0, 0, 2 * radius - 1, 2 * radius - 1), fill=int(rng.integers(60, 220)))
        place = (int(rng.integers(-radius, size[0])), int(rng.integers(-radius, size[1])))
        picture.paste(Image.new("RGB", disc.size, _colour(rng, 90, 255)), place, disc)
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(1, 6)))


def _tiles(size: tuple[int, int], rng: Rng) -> Image.Image:
    """Bricks, tiles, windows."""
    picture = Image.new("RGB", size, _colour(rng))
    draw = ImageDraw.Draw(picture)
    high = int(rng.integers(20, 140))
    wide, base = int(high * rng.uniform(0.8, 2.6)), np.array(_colour(rng, 60, 200))
    for row, top in enumerate(range(0, size[1], high)):
        for left in range(-wide * (row % 2) // 2, size[0], wide):
            colour = tuple(int(value) for value in (base + rng.integers(-25, 26, 3)).clip(0, 255))
            draw.rectangle((left, top, left + wide - 4, top + high - 4), fill=colour)
            if high > 70:
                draw.line((left, top + high / 2, left + wide, top + high / 2), fill=_colour(rng), width=3)
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))


def _page(size: tuple[int, int], rng: Rng) -> Image.Image:
    """Printed lines and a drawing, as on a poster."""
    picture = Image.new("RGB", size, _colour(rng, 200, 255))
    draw = ImageDraw.Draw(picture)
    letter = int(rng.integers(8, 40))
    for top in range(letter, size[1] - letter, 2 * letter):
        words = "".join(chr(int(code)) if code > 100 else " " for code in rng.integers(88, 122, 160))
        draw.text((letter, top), words, fill=_colour(rng, 0, 110), font_size=letter)
    return picture


def _rooms(size: tuple[int, int], rng: Rng) -> Image.Image:
    """A landscape or a room: a few large areas and things in them."""
    picture = _gradient(size, rng)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, int(size[1] * rng.uniform(0.5, 0.8)), *size), fill=_colour(rng))
    for _ in range(int(rng.integers(3, 14))):
        left, top = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        box = (left, top, left + int(rng.integers(30, 400)), top + int(rng.integers(30, 400)))
        shape = (draw.rectangle, draw.ellipse)[rng.integers(2)]
        shape(box, fill=_colour(rng), outline=_colour(rng), width=int(rng.integers(1, 9)))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 4)))


def _buttons(size: tuple[int, int], rng: Rng) -> Image.Image:
    """Pairs of dark discs over a bar: sockets, front views of cars, knobs."""
    picture = _clouds(size, rng)
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(2, 9))):
        side = int(rng.integers(40, 300))
        left, top = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        draw.rounded_rectangle((left, top, left + side, top + side), side // 6, fill=_colour(rng, 80, 230))
        for shift in (0.15, 0.6):
            draw.ellipse(
                (left + side * shift, top + side * 0.2, left + side * (shift + 0.25), top + side * 0.45),
                fill=_colour(rng, 0, 80),
            )
        if rng.random() < 0.5:
            draw.rectangle(
                (left + side * 0.2, top + side * 0.7, left + side * 0.8, top + side * 0.8), fill=_colour(rng)
            )
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3)))


def _patchwork(size: tuple[int, int], pieces: list[Image.Image], rng: Rng) -> Image.Image:
    """Parts of photos, turned and blurred, over one another."""
    picture = _clouds(size, rng)
    for _ in range(int(rng.integers(6, 20))):
        piece = pieces[rng.integers(len(pieces))]
        scale = rng.uniform(0.4, 2)
        piece = piece.resize((max(1, round(piece.width * scale)), max(1, round(piece.height * scale))))
        piece = piece.rotate(float(rng.choice([0, 0, 90, 180, 270])), expand=True)
        piece = piece.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2.5)))
        picture.paste(piece, (int(rng.integers(-80, size[0])), int(rng.integers(-80, size[1]))))
    return picture


def _enlarged(size: tuple[int, int], pieces: list[Image.Image], rng: Rng) -> Image.Image:
    """A part of one photo as the whole picture."""
    piece = pieces[rng.integers(len(pieces))]
    scale = max(size[0] / piece.width, size[1] / piece.height) * rng.uniform(1, 1.5)
    piece = piece.resize((round(piece.width * scale) + 1, round(piece.height * scale) + 1))
    left, top = (int(rng.integers(0, spare + 1)) for spare in (piece.width - size[0], piece.height - size[1]))
    return piece.crop((left, top, left + size[0], top + size[1]))
