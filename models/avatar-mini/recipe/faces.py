"""Whose face is it? dlib's embedding of the person in a picture, made where a given box says the face is.

Only two files of the package `face_recognition_models` are opened: the five-point predictor and the ResNet
(Davis King, "dlib_face_recognition_resnet_model_v1", public domain).
"""

from pathlib import Path
from typing import Final

import cv2
import dlib
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

SIDE: Final = 512
"""Pixels to which a picture is enlarged (bicubic) before a face is looked for."""


class FaceReader:
    """Finds a face and says in 128 numbers whose it is."""

    def __init__(self, models: Path) -> None:
        self._detector = dlib.get_frontal_face_detector()
        self._points = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self._network = dlib.face_recognition_model_v1(
            str(models / "dlib_face_recognition_resnet_model_v1.dat")
        )

    def find(self, picture: Picture) -> dlib.rectangle | None:
        """The largest face of a square picture as a box at `SIDE` pixels, or None."""
        boxes = self._detector(enlarge(picture), 0)
        return max(boxes, key=dlib.rectangle.area, default=None)

    def embed(self, picture: Picture, box: dlib.rectangle) -> npt.NDArray[np.float64]:
        """The face's embedding, (128,); below 0.6 apart dlib takes two for one person."""
        large = enlarge(picture)
        return np.array(self._network.compute_face_descriptor(large, self._points(large, box)))


def enlarge(picture: Picture) -> Picture:
    return np.ascontiguousarray(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
