"""Finds a face in a photo, at any angle, with BlazeFace (https://arxiv.org/abs/1907.05047).

`face_detector.tflite` is `face_detection_short_range.tflite` of MediaPipe 0.10.21, unchanged (copyright
Google; Apache License 2.0). It is made for pictures of 128 x 128 pixels; without its last, fixed reshaping
it takes any size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock, local
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]

_NETWORK = Path(__file__).with_name("face_detector.tflite")
_STRIDES = 8, 16
"""Pixels between the anchors of each of the network's two outputs."""
_COPY_SIDE = 1024
"""Longest side of the copy in which candidates are looked at closely, in pixels."""
_SEARCHES = (12_000, 50_000), (150_000,)
"""Pixels of the copies that are searched. The last one, which finds faces down to a twentieth of the shorter
side, takes two thirds of the time, and most photos have a larger face."""
_MIN_CANDIDATE_SCORE = 0.0
_MAX_CANDIDATES = 2
_MIN_FACE_SCORE = 1.6
"""Of a candidate looked at closely; both scores are logits. Of 150 faces all had 1.7 or more."""
_CLOSE_SIDE = 128
_CLOSE_MARGIN = 2.2
"""Side of the piece that is looked at closely, in units of the candidate's."""

# What BlazeFace calls a face is a little smaller and lower than what OpenCV's Haar cascade `frontalface_alt2`
# does, the box from the forehead to the lower lip: medians of 150 faces.
_SIDE = 1.10
_HIGHER = 0.13

_importing = Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A face's box, from the forehead to the lower lip: its middle and side in pixels of the photo."""

    x: float
    y: float
    side: float
    roll: float
    """Degrees, -180 to 180, that the head is turned by counter-clockwise from upright."""


@dataclass(frozen=True, slots=True)
class _Detection:
    score: float
    centre: Floats
    side: float
    eyes: Floats
    """The middle between them."""
    mouth: Floats

    @property
    def roll(self) -> float:
        across, down = self.mouth - self.eyes
        return float(np.degrees(np.arctan2(across, down)))


def find_face(photo: Image.Image) -> Face | None:
    """The largest face, or `None` if there is none. `photo` is in RGB."""
    scale = min(1.0, _COPY_SIDE / max(photo.size))
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    copy = np.asarray(photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0))
    for areas in _SEARCHES:
        candidates = _candidates([found for area in areas for found in _search(copy, area)])
        seen = (_look_closely(copy, candidate) for candidate in candidates)
        # Seen again at its own size and angle, what is no face often is none, and a face's size is steadier.
        seen_again = (_look(copy, face, -face.roll) for face in seen if face.score >= _MIN_FACE_SCORE)
        faces = [face for face in seen_again if face.score >= _MIN_FACE_SCORE]
        if faces:
            return _face(max(faces, key=lambda face: face.side), scale)
    return None


def _face(found: _Detection, scale: float) -> Face:
    side, roll = found.side * _SIDE, np.radians(found.roll)
    x, y = found.centre - side * _HIGHER * np.array((np.sin(roll), np.cos(roll)))
    return Face(x=float(x) / scale, y=float(y) / scale, side=side / scale, roll=found.roll)


def _search(copy: NDArray[np.uint8], area: int) -> Iterator[_Detection]:
    cv2 = _detector.cv2
    scale = math.sqrt(area / (copy.shape[0] * copy.shape[1]))
    height, width = (max(1, round(side * scale)) for side in copy.shape[:2])
    small = cv2.resize(copy, (width, height), interpolation=cv2.INTER_AREA)
    padded = cv2.copyMakeBorder(
        small, 0, -height % _STRIDES[-1], 0, -width % _STRIDES[-1], cv2.BORDER_CONSTANT, value=(127, 127, 127)
    )
    scores, points = _detector.run(padded, area)
    for index in np.flatnonzero(scores >= _MIN_CANDIDATE_SCORE):
        yield _detection(scores[index], points[index] / scale)


def _candidates(detections: list[_Detection]) -> list[_Detection]:
    """The best ones, of each place one."""
    kept: list[_Detection] = []
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if len(kept) < _MAX_CANDIDATES and not any(
            np.hypot(*(detection.centre - other.centre)) < max(detection.side, other.side) / 2
            for other in kept
        ):
            kept.append(detection)
    return kept


def _look_closely(copy: NDArray[np.uint8], candidate: _Detection) -> _Detection:
    """The best detection in the piece around the candidate, turned upright. Of a face upside down the eyes
    are often taken for the mouth: so it is looked at both ways round."""
    return max(
        (_look(copy, candidate, turn) for turn in (-candidate.roll, 180 - candidate.roll)),
        key=lambda found: found.score,
    )


def _look(copy: NDArray[np.uint8], candidate: _Detection, turn: float) -> _Detection:
    cv2 = _detector.cv2
    scale = _CLOSE_SIDE / (candidate.side * _CLOSE_MARGIN)
    x, y = (float(value) for value in candidate.centre)
    there = cv2.getRotationMatrix2D((x, y), turn, scale)
    there[:, 2] += _CLOSE_SIDE / 2 - candidate.centre
    piece = cv2.warpAffine(
        copy, there, (_CLOSE_SIDE, _CLOSE_SIDE), flags=cv2.INTER_LINEAR, borderValue=(127, 127, 127)
    )
    scores, points = _detector.run(piece, _CLOSE_SIDE**2)
    best = int(scores.argmax())
    back = cv2.invertAffineTransform(there)
    placed = points[best] @ back[:, :2].T + back[:, 2]
    placed[1] = points[best][1] / scale
    return _detection(scores[best], placed)


def _detection(score: float, points: Floats) -> _Detection:
    centre, (width, height), right_eye, left_eye, _nose, mouth = points[:6]
    return _Detection(float(score), centre, float(width + height) / 2, (right_eye + left_eye) / 2, mouth)


class _Detector(local):
    """The network, in each thread once for each number of pixels.

    OpenCV's must not be used by two at once, and lays its layers out anew when the input's size changes,
    which took a tenth of the time.
    """

    def __init__(self) -> None:
        self._networks: dict[int, Any] = {}

    @cached_property
    def cv2(self) -> Any:
        # Imported late. While OpenCV is imported it takes itself out of `sys.modules`, so that another thread
        # would get one without its parts.
        with _importing:
            import cv2
        # One thread: the cores belong to the ones who denoise.
        cv2.setNumThreads(1)
        return cv2

    def run(self, pixels: NDArray[np.uint8], area: int) -> tuple[Floats, Floats]:
        """Run it on a picture of about `area` pixels: one of the few numbers for which it is kept.

        Returns `(N,)` scores and `(N, 8, 2)` points in pixels: the box's middle, its width and height, the
        eyes (the one on the left first), the nose, the mouth, the ears. Sides are multiples of 16.
        """
        if (network := self._networks.get(area)) is None:
            network = self._networks[area] = self.cv2.dnn.readNetFromTFLite(str(_NETWORK))
        network.setInput(self.cv2.dnn.blobFromImage(pixels, 1 / 127.5, mean=(127.5, 127.5, 127.5)))
        outputs = network.forward(
            [f"{kind}_{stride}" for kind in ("classificator", "regressor") for stride in _STRIDES]
        )
        scores, points = [], []
        for stride, logits, offsets in zip(_STRIDES, outputs[:2], outputs[2:], strict=True):
            _, anchors, height, width = logits.shape
            scores.append(logits[0].transpose(1, 2, 0).reshape(-1))
            offsets = offsets[0].reshape(anchors, 8, 2, height, width).transpose(3, 4, 0, 1, 2)
            rows, columns = np.mgrid[:height, :width]
            middles = (np.stack([columns, rows], axis=-1) + 0.5) * stride
            is_place = np.array([1, 0, 1, 1, 1, 1, 1, 1]).reshape(8, 1)
            points.append((offsets + middles[:, :, None, None] * is_place).reshape(-1, 8, 2))
        return np.concatenate(scores), np.concatenate(points)


_detector = _Detector()
