"""The portraits: which are for validation, where each face is, and the person cut from an even backdrop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.float32]

VALIDATION_EVERY: Final = 10
"""Of the files sorted by name, the first of every ten is for validation and never seen in training."""

FEWEST_PEOPLE: Final = 8
"""With fewer, a model only learns these faces by heart."""

_WORKING_WIDTH: Final = 400


@dataclass(frozen=True, kw_only=True)
class Person:
    """One photo: red, green and blue, (H, W, 3); the face's box; the person's share of each pixel."""

    photo: Picture
    face: tuple[int, int, int, int]
    alpha: Mask | None


def split_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files for training and for validation.

    Raises:
        SystemExit: the folder is missing, or holds too few pictures.
    """
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not a folder; name one with JPEG or PNG portraits, one person each")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < FEWEST_PEOPLE:
        raise SystemExit(
            f"{folder} holds {len(files)} JPEG or PNG files; at least {FEWEST_PEOPLE} people are needed"
        )
    validation = files[::VALIDATION_EVERY]
    return [file for file in files if file not in set(validation)], validation


def read_photo(file: Path) -> Picture:
    """A picture file in red, green and blue.

    Raises:
        SystemExit: the file holds no picture.
    """
    pixels = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if pixels is None:
        raise SystemExit(f"{file} is not a picture that can be read; take it out of the folder")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def load_people(files: list[Path]) -> list[Person]:
    """The photos in which a face is found; large ones made smaller.

    Raises:
        SystemExit: a file holds no picture, or too few hold a face.
    """
    detector = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    people = []
    for file in files:
        photo = read_photo(file)
        if photo.shape[1] > _WORKING_WIDTH:
            scale = _WORKING_WIDTH / photo.shape[1]
            photo = np.asarray(cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
        gray = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
        faces = detector.detectMultiScale(gray, 1.1, 5, minSize=(60, 60))
        if len(faces) and photo.shape[1] >= 240:
            left, top, width, height = (int(side) for side in max(faces, key=lambda face: int(face[2])))
            people.append(Person(photo=photo, face=(left, top, width, height), alpha=cut_out(photo)))
    if len(people) < FEWEST_PEOPLE - 1:
        raise SystemExit(
            f"a face was found in {len(people)} of {len(files)} photos; that is too few to train on"
        )
    return people


def cut_out(photo: Picture) -> Mask | None:
    """The person's share of each pixel, 0..1, before an even blue backdrop; None before another."""
    lab = cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    height, width = lab.shape[:2]
    border = np.zeros((height, width), bool)
    border[: height // 4, : width // 9] = border[: height // 4, -width // 9 :] = border[: height // 14] = True
    backdrop = np.median(lab[border], axis=0)
    if backdrop[2] > -18 or np.abs(lab[border][:, 1:] - backdrop[1:]).mean() > 9:
        return None
    solid = (np.linalg.norm((lab - backdrop)[..., 1:], axis=2) > 20).astype(np.uint8)
    solid = cv2.morphologyEx(solid, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    solid = cv2.morphologyEx(solid, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, areas, _ = cv2.connectedComponentsWithStats(solid)
    if count < 2:
        return None
    solid = (labels == 1 + areas[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    solid = _without_holes(solid)
    if not 0.25 < solid.mean() < 0.85:
        return None
    return np.asarray(cv2.GaussianBlur(solid.astype(np.float32), (0, 0), 1.0), dtype=np.float32)


def _without_holes(solid: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = solid.shape
    count, labels, areas, _ = cv2.connectedComponentsWithStats(1 - solid)
    for number in range(1, count):
        left, top, wide, high = areas[number][:4]
        if left > 0 and top > 0 and left + wide < width and top + high < height:
            solid[labels == number] = 1
    return solid


def remove_spill(photo: npt.NDArray[np.float32], alpha: Mask) -> npt.NDArray[np.float32]:
    """Take the backdrop's blue from a person's rim: there blue is no stronger than red or green."""
    eroded = cv2.erode(alpha, np.ones((9, 9), np.uint8))
    rim = (1 - cv2.GaussianBlur(eroded, (0, 0), 2.0))[..., None]
    least = np.maximum(photo[..., 0], photo[..., 1])[..., None]
    clean = np.concatenate([photo[..., :2], np.minimum(photo[..., 2:], least * 1.02)], axis=2)
    return np.asarray(photo * (1 - rim) + clean * rim, dtype=np.float32)
