"""Training pairs: a photo as people take them, and the same person in a style, before any backdrop.

Everything that makes training photos unlike the portraits happens here: other backdrops, framings, tilts,
light, casts, noise, blur, and pictures without anybody. What the photo suffers, the target shares only where
a painter would keep it: light and colour, not noise and blur.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from captions import BACKGROUNDS, TONES
from photos import Person, remove_spill
from styles import STYLES

SIDE: Final = 256
Pixels = npt.NDArray[np.float32]
"""(SIDE, SIDE, 3), 0..255."""

STYLE_NAMES: Final = (*STYLES, "photo")
"""The styles, and last the photo itself: what an empty prompt gives."""
BACKGROUND_NAMES: Final = tuple(BACKGROUNDS)
TONE_NAMES: Final = tuple(TONES)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A photo, and the picture that its targets are made from."""

    photo: Pixels
    clean: Pixels
    background: int
    """The asked-for backdrop's number, or -1 for the one in the photo."""


def compose(rng: np.random.Generator, people: list[Person]) -> Scene:
    """Take one person's photo anew, as somebody else might have taken it."""
    person = people[int(rng.integers(len(people)))]
    if rng.random() < 0.06:
        scenery = _scenery(rng, people)
        return Scene(photo=_worsen(rng, scenery), clean=scenery, background=-1)
    photo, alpha = _frame(rng, person)
    background, clean = -1, photo
    if alpha is not None and rng.random() < 0.92:
        before = remove_spill(photo, alpha)
        share = alpha[..., None]
        kept = rng.random() < 0.15
        photo = photo if kept else before * share + _backdrop(rng, people) * (1 - share)
        clean = photo
        if rng.random() < 0.62:
            background = int(rng.integers(len(BACKGROUND_NAMES)))
            colour = np.array(BACKGROUNDS[BACKGROUND_NAMES[background]], np.float32)
            photo, clean = _light(rng, photo, before * share + colour * (1 - share))
            return Scene(photo=_worsen(rng, photo), clean=_plain(clean, share, colour), background=background)
    photo, clean = _light(rng, photo, clean)
    return Scene(photo=_worsen(rng, photo), clean=clean, background=background)


def render(scene: Scene, style: int, tone: int) -> npt.NDArray[np.uint8]:
    """A scene's target, (SIDE, SIDE, 3)."""
    name = STYLE_NAMES[style]
    picture = torch.from_numpy(scene.clean).permute(2, 0, 1)[None].div(255).clamp(0, 1)
    if name in STYLES:
        picture = STYLES[name](picture)
    if tone >= 0:
        picture = _toned(picture, TONE_NAMES[tone])
    return np.asarray(picture[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte())


def _toned(picture: torch.Tensor, tone: str) -> torch.Tensor:
    if tone == "black and white":
        return (
            picture.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]
            .mul(picture)
            .sum(1, keepdim=True)
            .expand(-1, 3, -1, -1)
        )
    gains = {"warm": (1.08, 0.98, 0.80), "cool": (0.82, 0.97, 1.10)}[tone]
    return (picture * picture.new_tensor(gains)[None, :, None, None]).clamp(0, 1)


def _frame(rng: np.random.Generator, person: Person) -> tuple[Pixels, npt.NDArray[np.float32] | None]:
    """Cut a square around the face, nearer or farther, tilted, mirrored; and the person's share in it."""
    left, top, wide, high = person.face
    height, width = person.photo.shape[:2]
    side = wide * rng.uniform(1.65, 3.5 if person.alpha is not None else 2.6)
    if person.alpha is None:
        side = min(side, width, height)
    middle_x = left + wide / 2 + side * rng.uniform(-0.08, 0.08)
    middle_y = top + high / 2 + side * rng.uniform(-0.04, 0.12)
    middle_y = min(middle_y, height - side / 2)
    if person.alpha is None:
        middle_x = float(np.clip(middle_x, side / 2, width - side / 2))
        middle_y = float(np.clip(middle_y, side / 2, height - side / 2))
    angle = rng.normal(0, 7) if rng.random() < 0.4 else 0.0
    matrix = cv2.getRotationMatrix2D((middle_x, middle_y), angle, SIDE / side)
    matrix[:, 2] += SIDE / 2 - np.array([middle_x, middle_y])
    if rng.random() < 0.5:
        matrix = np.array([[-1.0, 0, SIDE - 1], [0, 1, 0]]) @ np.vstack([matrix, [0, 0, 1]])
    flags = cv2.INTER_CUBIC if side < SIDE else cv2.INTER_AREA
    photo = cv2.warpAffine(person.photo, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    alpha = None
    if person.alpha is not None:
        # The person goes on below the photo, but not beside or above it.
        padded = cv2.copyMakeBorder(person.alpha, 0, height, 0, 0, cv2.BORDER_REPLICATE)
        alpha = cv2.warpAffine(padded, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=0.0).clip(
            0, 1
        )
    return photo.astype(np.float32), alpha


def _scenery(rng: np.random.Generator, people: list[Person]) -> Pixels:
    """No face: a piece of some photo, turned and recoloured, or a backdrop alone."""
    if rng.random() < 0.3:
        return _backdrop(rng, people)
    photo = people[int(rng.integers(len(people)))].photo
    side = int(rng.integers(60, photo.shape[1]))
    top, left = (
        int(rng.integers(0, length - side + 1)) for length in (max(photo.shape[0], side), photo.shape[1])
    )
    piece = cv2.resize(
        photo[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC
    )
    piece = np.rot90(piece, int(rng.integers(1, 4)))
    return np.ascontiguousarray(piece[..., rng.permutation(3)], dtype=np.float32)


def _backdrop(rng: np.random.Generator, people: list[Person]) -> Pixels:
    """A plain wall, a gradient, something out of focus, a room of edges, or clouds of colour."""
    kind = int(rng.integers(6))
    if kind == 0:
        return np.ones((SIDE, SIDE, 3), np.float32) * rng.uniform(10, 250, 3).astype(np.float32)
    if kind == 1:
        first, second = rng.uniform(10, 250, (2, 3))
        across, down = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE))
        turn = rng.uniform(0, 1)
        share = (turn * across + (1 - turn) * down)[..., None]
        return np.asarray(first * share + second * (1 - share), dtype=np.float32)
    if kind in (2, 3):
        photo = people[int(rng.integers(len(people)))].photo
        side = int(rng.integers(90, photo.shape[1]))
        top, left = (
            int(rng.integers(0, max(1, photo.shape[0] - side))),
            int(rng.integers(0, photo.shape[1] - side + 1)),
        )
        piece = cv2.resize(photo[top : top + side, left : left + side], (SIDE, SIDE)).astype(np.float32)
        piece = cv2.GaussianBlur(piece, (0, 0), rng.uniform(0.5, 12)) * rng.uniform(0.4, 1.2) + rng.uniform(
            -20, 40
        )
        return np.ascontiguousarray(piece[:, ::-1][..., rng.permutation(3)].clip(0, 255))
    if kind == 4:
        picture = np.ones((SIDE, SIDE, 3), np.float32) * rng.uniform(40, 230, 3).astype(np.float32)
        for _ in range(int(rng.integers(3, 22))):
            corners = rng.integers(-40, SIDE + 40, 4)
            colour = [float(value) for value in rng.uniform(0, 255, 3)]
            cv2.rectangle(
                picture,
                (int(corners[0]), int(corners[1])),
                (int(corners[2]), int(corners[3])),
                colour,
                -1 if rng.random() < 0.6 else int(rng.integers(1, 9)),
            )
        return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 7)) if rng.random() < 0.7 else picture
    fields = [_noise(rng, rng.uniform(3, 30)) * rng.uniform(15, 45) + rng.uniform(40, 210) for _ in range(3)]
    return np.stack(fields, axis=-1).clip(0, 255).astype(np.float32)


def _noise(rng: np.random.Generator, sigma: float) -> npt.NDArray[np.float32]:
    field = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE)).astype(np.float32), (0, 0), sigma)
    return np.asarray(field / (field.std() + 1e-6))


def _light(rng: np.random.Generator, photo: Pixels, clean: Pixels) -> tuple[Pixels, Pixels]:
    """Darker or brighter, tinted, lit from a side, or grey: the same for photo and target."""
    gain = np.ones((1, 1, 3), np.float32)
    gamma = 1.0
    if rng.random() < 0.7:
        gamma = float(rng.uniform(0.7, 1.5))
        gain = (rng.uniform(0.75, 1.15) * (1 + rng.uniform(-0.14, 0.14, 3))).astype(np.float32)[None, None]
    if rng.random() < 0.2:
        direction = rng.uniform(0, 2 * np.pi)
        down, across = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE - 0.5
        slope = (across * np.cos(direction) + down * np.sin(direction))[..., None]
        gain = gain * (1 + rng.uniform(0.3, 1.1) * slope)
    grey = rng.random() < 0.08

    def lit(picture: Pixels) -> Pixels:
        changed = 255 * (picture.clip(0, 255) / 255) ** gamma * gain
        if grey:
            changed = (changed @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].repeat(3, axis=2)
        return np.asarray(changed.clip(0, 255), dtype=np.float32)

    return lit(photo), lit(clean)


def _plain(clean: Pixels, share: Pixels, colour: Pixels) -> Pixels:
    """The light falls on the person; the backdrop has the colour that was asked for."""
    solid = share.clip(0.02, 1)
    person = np.where(share > 0.02, clean, 0)
    return np.asarray(
        person * (solid > 0.98) + (solid <= 0.98) * (clean * share + colour * (1 - share)), dtype=np.float32
    )


def _worsen(rng: np.random.Generator, photo: Pixels) -> Pixels:
    """What bad cameras do, and what the target is spared: blur, noise, JPEG."""
    if rng.random() < 0.25:
        photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.25:
        photo = photo + rng.normal(0, rng.uniform(2, 9), photo.shape).astype(np.float32)
    if rng.random() < 0.2:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 85))]
        _, packed = cv2.imencode(".jpg", photo.clip(0, 255).astype(np.uint8), quality)
        photo = cv2.imdecode(packed, cv2.IMREAD_COLOR).astype(np.float32)
    return np.asarray(photo.clip(0, 255), dtype=np.float32)
