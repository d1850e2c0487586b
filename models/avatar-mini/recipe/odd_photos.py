"""Thirty photos such as no portrait is: dark, tilted, noisy, behind glasses, or of no person at all.

python odd_photos.py PORTRAITS FOLDER
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from photos import read_photo, split_files
from skimage import data

Picture = npt.NDArray[np.uint8]


def _darken(photo: Picture, rng: np.random.Generator) -> Picture:
    return _bytes(photo * 0.35)


def _light_from_side(photo: Picture, rng: np.random.Generator) -> Picture:
    slope = np.linspace(0.25, 1.5, photo.shape[1])[None, :, None]
    return _bytes(photo * slope)


def _overexpose(photo: Picture, rng: np.random.Generator) -> Picture:
    return _bytes(photo * 1.45 + 15)


def _tilt(photo: Picture, rng: np.random.Generator) -> Picture:
    height, width = photo.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.choice((-18, 18))), 1.0)
    return np.asarray(cv2.warpAffine(photo, matrix, (width, height), borderMode=cv2.BORDER_REFLECT))


def _border(photo: Picture, rng: np.random.Generator) -> Picture:
    return np.asarray(cv2.copyMakeBorder(photo, 60, 60, 60, 60, cv2.BORDER_CONSTANT, value=(250, 250, 250)))


def _noise(photo: Picture, rng: np.random.Generator) -> Picture:
    return _bytes(photo + rng.normal(0, 18, photo.shape))


def _grey(photo: Picture, rng: np.random.Generator) -> Picture:
    return np.asarray(cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def _blur(photo: Picture, rng: np.random.Generator) -> Picture:
    return np.asarray(cv2.GaussianBlur(photo, (0, 0), 2.2))


def _cast(photo: Picture, rng: np.random.Generator) -> Picture:
    return _bytes(photo * np.array([1.15, 0.95, 0.6]))


def _hat(photo: Picture, rng: np.random.Generator) -> Picture:
    """A brim and a crown where a face detector sees the forehead."""
    left, top, side = _face(photo)
    drawn = photo.copy()
    brim = top + side // 12
    cv2.ellipse(drawn, (left + side // 2, brim), (int(side * 0.85), side // 8), 0, 0, 360, (120, 40, 40), -1)
    cv2.rectangle(
        drawn,
        (left + side // 12, max(0, brim - side // 2)),
        (left + side - side // 12, brim),
        (140, 50, 45),
        -1,
    )
    return drawn


def _sunglasses(photo: Picture, rng: np.random.Generator) -> Picture:
    left, top, side = _face(photo)
    drawn = photo.copy()
    for share in (0.3, 0.7):
        cv2.ellipse(
            drawn,
            (left + int(side * share), top + int(side * 0.38)),
            (side // 6, side // 8),
            0,
            0,
            360,
            (20, 20, 25),
            -1,
        )
    line = top + int(side * 0.36)
    cv2.line(
        drawn,
        (left + int(side * 0.4), line),
        (left + int(side * 0.6), line),
        (20, 20, 25),
        max(2, side // 30),
    )
    return drawn


TREATMENTS: Final[dict[str, Callable[[Picture, np.random.Generator], Picture]]] = {
    "dark": _darken,
    "side-light": _light_from_side,
    "overexposed": _overexpose,
    "tilted": _tilt,
    "border": _border,
    "noise": _noise,
    "grey": _grey,
    "blur": _blur,
    "cast": _cast,
    "hat": _hat,
    "sunglasses": _sunglasses,
}


def make_odd_photos(portraits: Path) -> dict[str, Picture]:
    """Names and pictures: 27 treated validation portraits, a cat, a cup of coffee and a rocket."""
    _, files = split_files(portraits)
    names = list(TREATMENTS)
    pictures = {}
    for number in range(27):
        name = names[number % len(names)]
        rng = np.random.default_rng(number)
        photo = read_photo(files[(3 * number) % len(files)])
        pictures[f"{number:02}-{name}"] = TREATMENTS[name](photo, rng)
    for name, load in (("cat", data.cat), ("coffee", data.coffee), ("rocket", data.rocket)):
        pictures[f"{len(pictures):02}-{name}"] = np.asarray(load(), dtype=np.uint8)
    return pictures


def _face(photo: Picture) -> tuple[int, int, int]:
    detector = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    faces = detector.detectMultiScale(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), 1.1, 5, minSize=(60, 60))
    if not len(faces):
        height, width = photo.shape[:2]
        return width // 4, height // 5, width // 2
    left, top, side, _ = (int(value) for value in max(faces, key=lambda face: int(face[2])))
    return left, top, side


def _bytes(photo: npt.NDArray[np.floating]) -> Picture:
    return np.asarray(photo.clip(0, 255), dtype=np.uint8)


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for title, made in make_odd_photos(Path(sys.argv[1])).items():
        cv2.imwrite(str(target / f"{title}.png"), cv2.cvtColor(made, cv2.COLOR_RGB2BGR))
