"""Cuts the square that becomes the avatar: around the face, where there is one."""

from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from avatarforge.domain.jobs import Crop

_SEARCHED = 512
"""Longest side of the copy that is searched for faces, in pixels: more finds little and costs much."""
_LEAST_FACES = 1 / 7, 1 / 14
"""Smallest face of each search, as a share of the copy's shorter side. Most photos have a large one, found
in a tenth of the time; faces smaller than in the last search are mostly none."""

# Where a portrait has its head, in units of the detector's box, which goes from the forehead to the lower
# lip: the head is then about half as high as the square, with its middle at 45 % of the height.
_SQUARE = 3.4
_ABOVE = 1.03
_MOST_ADDED = 0.2
"""How much of the square may lie above the photo, where its topmost row is repeated."""

_one_at_a_time = Lock()  # a CascadeClassifier must not be used by two threads at once
_importing = Lock()


@dataclass(frozen=True, slots=True)
class _Box:
    """A square of pixels."""

    left: float
    top: float
    side: float


def cut(photo: Image.Image, size: int, *, cut_face: bool) -> tuple[Image.Image, Crop]:
    """As `square`; without `cut_face` a square photo is taken as it is."""
    if not cut_face and photo.width == photo.height:
        return photo.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0), Crop.CENTRE
    return square(photo, size)


def square(photo: Image.Image, size: int) -> tuple[Image.Image, Crop]:
    """A square of `size` x `size` pixels in RGB, and how it was cut.

    With a face: head and shoulders, moved into the picture where they reach over its edge; above a head
    that is near the top the background is drawn out. Without a face: the middle. The square is as large as
    the picture allows.
    """
    face = _largest_face(photo)
    wanted = _centre(photo) if face is None else _portrait(face)
    cut = _within(wanted, photo)
    added = round(size * max(0.0, -cut.top) / cut.side)
    picture = photo.convert("RGB").resize(
        (size, size - added),
        Image.Resampling.LANCZOS,
        box=(cut.left, max(0.0, cut.top), cut.left + cut.side, cut.top + cut.side),
        reducing_gap=3.0,
    )
    if added:
        picture = Image.fromarray(np.pad(np.asarray(picture), ((added, 0), (0, 0), (0, 0)), mode="edge"))
    return picture, Crop.CENTRE if face is None else Crop.FACE


def _largest_face(photo: Image.Image) -> _Box | None:
    cv2 = _opencv()
    scale = min(1.0, _SEARCHED / max(photo.size))
    width, height = (max(1, round(side * scale)) for side in photo.size)
    grey = photo.convert("L").resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    even, faces = cv2.equalizeHist(np.asarray(grey)), ()
    for share in _LEAST_FACES:
        least = max(24, round(min(width, height) * share))
        if len(faces) == 0 and least <= min(width, height):
            with _one_at_a_time:
                faces = _detector().detectMultiScale(
                    even, scaleFactor=1.1, minNeighbors=6, minSize=(least, least)
                )
    if len(faces) == 0:
        return None
    left, top, side, _ = max(faces, key=lambda face: int(face[2]))
    return _Box(left / scale, top / scale, side / scale)


def _opencv() -> Any:
    """OpenCV, imported late. While it is imported it takes itself out of `sys.modules`, so that another
    thread would get one without its data."""
    with _importing:
        import cv2
    return cv2


@cache
def _detector() -> Any:
    cv2 = _opencv()
    # One thread: the cores belong to the ones who denoise.
    cv2.setNumThreads(1)
    return cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")


def _portrait(face: _Box) -> _Box:
    side = face.side * _SQUARE
    return _Box(face.left + (face.side - side) / 2, face.top - face.side * _ABOVE, side)


def _centre(photo: Image.Image) -> _Box:
    side = min(photo.size)
    return _Box((photo.width - side) / 2, (photo.height - side) / 2, side)


def _within(box: _Box, photo: Image.Image) -> _Box:
    side = min(box.side, *photo.size)
    # A square that must shrink keeps its middle.
    left, top = box.left + (box.side - side) / 2, box.top + (box.side - side) / 2
    return _Box(
        min(max(left, 0), photo.width - side),
        min(max(top, -_MOST_ADDED * side), photo.height - side),
        side,
    )
