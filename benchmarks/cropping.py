"""How many faces are found in photos, how often one is seen where none is, and how long it takes."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from avatarforge.domain.jobs import Crop
from avatarforge.imaging.crop import Square, find_square
from benchmarks.options import Options
from benchmarks.photos import SAMPLE_PORTRAIT
from benchmarks.report import Figure, Report, Table, percentile
from benchmarks.scenes import (
    Face,
    Portrait,
    Rng,
    Scene,
    backdrop,
    paste,
    photographed,
    photos_in,
    pieces_of,
    turn,
)

FACES, FACELESS = 400, 500
_OF_WHICH_HAAR = 4
"""One of so many scenes is also given to the Haar cascade, which is slow."""
_WANTED_SIDE = 3.4
"""The square's side in units of the face's."""
_PORTRAIT_SHARE = 0.58
"""Of the portraits' width their faces take so much."""


@dataclass
class Way:
    """A way to cut, and what came of it."""

    name: str
    find: Callable[[Image.Image], Square]
    found: dict[str, list[bool]] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)

    def take(self, kind: str, scene: Scene) -> None:
        begun = time.thread_time()
        square = self.find(scene.photo)
        self.milliseconds.append((time.thread_time() - begun) * 1000)
        right = square.crop is Crop.FACE if scene.face is None else _holds(square, scene)
        self.found.setdefault(kind, []).append(right)

    def percent(self, kind: str) -> float:
        return 100 * sum(self.found[kind]) / len(self.found[kind])


def run(options: Options) -> Report:
    """Scenes of several kinds."""
    rng = np.random.default_rng(7)
    portraits = _portraits(options)
    pieces = pieces_of(portraits) + ([] if options.faceless is None else photos_in(options.faceless))
    ours, haar = Way("AvatarForge", find_square), Way("Haar cascade", _haar())
    ours.find(portraits[0].photo)  # so that loading does not count
    for number, (kind, scene) in enumerate(_scenes(portraits, pieces, rng, options)):
        ours.take(kind, scene)
        if number % _OF_WHICH_HAAR == 0:
            haar.take(kind, scene)
    large = Way("12 megapixels", find_square)
    scene = _twelve_megapixels(portraits[0], pieces, rng)
    for _ in range(options.repeat(20)):
        large.take("face 8 %", scene)
    return Report(
        title="Finding the face in a photo",
        figures=[
            Figure(
                name="found, face 8 to 40 % of the side",
                value=ours.percent("face 8 to 40 %"),
                unit="%",
                wanted="≥ 95",
            ),
            Figure(name="found in what has no face", value=ours.percent("no face"), unit="%", wanted="≤ 2"),
            Figure(name="time, median", value=percentile(ours.milliseconds, 0.5), unit="ms", wanted="≤ 150"),
            Figure(
                name="time, slowest of a hundred",
                value=percentile(ours.milliseconds, 0.99),
                unit="ms",
                wanted="≤ 150",
            ),
            Figure(
                name="time for 12 megapixels, median", value=percentile(large.milliseconds, 0.5), unit="ms"
            ),
        ],
        conditions={
            "portraits": f"{len(portraits)}, tilted by up to 45 degrees, anywhere in a backdrop",
            "found": "the square holds the face, is not much larger than it should be, and is turned upright",
            "time": "the processor's, of the one thread that it all runs in",
        },
        tables=[
            Table(
                title="A face is found in, % (and how long that takes, ms)",
                columns=["", *ours.found, "median ms"],
                rows=[
                    [
                        way.name,
                        *(way.percent(kind) if kind in way.found else "" for kind in ours.found),
                        percentile(way.milliseconds, 0.5),
                    ]
                    for way in (ours, haar)
                ],
            )
        ],
    )


def _scenes(
    portraits: list[Portrait], pieces: list[Image.Image], rng: Rng, options: Options
) -> Iterable[tuple[str, Scene]]:
    def pasted(index: int, least: float, most: float, tilt: float) -> Scene:
        return paste(
            portraits[index % len(portraits)],
            backdrop(pieces, rng),
            rng.uniform(least, most),
            rng.uniform(-tilt, tilt),
            rng,
        )

    for index in range(options.size(FACES, 20)):
        yield "face 8 to 40 %", pasted(index, 0.08, 0.4, 45)
    for index in range(options.size(FACES // 2, 10)):
        yield "portrait 8 to 40 %", pasted(index, 0.08 * _PORTRAIT_SHARE, 0.4 * _PORTRAIT_SHARE, 45)
    for index in range(options.size(FACES // 2, 10)):
        yield "photo turned by 90, 180, 270", turn(pasted(index, 0.08, 0.4, 15), index % 3 + 1)
    for _ in range(options.size(FACELESS, 20)):
        yield "no face", Scene(photo=photographed(backdrop(pieces, rng), rng))


def _twelve_megapixels(portrait: Portrait, pieces: list[Image.Image], rng: Rng) -> Scene:
    return paste(portrait, backdrop(pieces, rng).resize((4000, 3000)), 0.08, 0, rng)


def _portraits(options: Options) -> list[Portrait]:
    """Every tenth of the folder; the sample portrait where none is named. Another detector says where the
    faces are."""
    photos = [Image.open(SAMPLE_PORTRAIT).convert("RGB")]
    if options.portraits is not None:
        photos = photos_in(options.portraits)[::10]
    cascade = _cascade("alt2")
    portraits = []
    for photo in photos:
        least = min(photo.size) // 6
        boxes = cascade.detectMultiScale(np.asarray(photo.convert("L")), 1.1, 4, minSize=(least, least))
        left, top, side, _ = max(boxes, key=lambda box: int(box[2]))
        portraits.append(
            Portrait(photo=photo, face=Face(x=left + side / 2, y=top + side / 2, side=int(side)))
        )
    return portraits


def _holds(square: Square, scene: Scene) -> bool:
    face = scene.face
    assert face is not None
    reach = 0.4 * face.side
    inside = (
        square.left <= face.x - reach
        and face.x + reach <= square.left + square.side
        and square.top <= face.y - reach
        and face.y + reach <= square.top + square.side
    )
    wanted = min(_WANTED_SIDE * face.side, *scene.photo.size)
    fits = wanted / 1.6 <= square.side <= wanted * 1.6
    upright = (square.quarter_turns + scene.quarter_turns) % 4 == 0
    return square.crop is Crop.FACE and inside and fits and upright


def _haar() -> Callable[[Image.Image], Square]:
    """OpenCV's own detector on an equalised copy of 512 pixels, first for large faces, then for others."""
    cascade = _cascade("default")

    def find(photo: Image.Image) -> Square:
        scale = 512 / max(photo.size)
        size = tuple(round(side * scale) for side in photo.size)
        grey = cv2.equalizeHist(np.asarray(photo.convert("L").resize(size, Image.Resampling.BILINEAR)))
        for share in (1 / 7, 1 / 14):
            least = max(24, round(min(size) * share))
            faces = cascade.detectMultiScale(grey, 1.1, 6, minSize=(least, least))
            if len(faces):
                left, top, face, _ = (int(value) / scale for value in max(faces, key=lambda box: int(box[2])))
                side = min(_WANTED_SIDE * face, *photo.size)
                return Square(
                    min(max(left + (face - side) / 2, 0), photo.width - side),
                    min(max(top - 1.03 * face, 0), photo.height - side),
                    side,
                    Crop.FACE,
                )
        return Square(0, 0, min(photo.size), Crop.CENTRE)

    return find


def _cascade(name: str) -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(cv2.data.haarcascades + f"haarcascade_frontalface_{name}.xml")
