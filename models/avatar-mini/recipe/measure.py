"""Measures avatars as customers get them: through a running service, with its default settings.

    python measure.py --url http://127.0.0.1:8000 --portraits FOLDER --json ../measurement.json

Nobody measured was seen in training. Beside the model's figures stand those of the filters that it learnt
from and of its autoencoder alone, since no model is better than either.
"""

import argparse
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from captions import BACKGROUNDS
from diffusers import AutoencoderKLHunyuanImage
from faces import FaceReader
from odd_photos import make_odd_photos
from photos import read_photo, split_files
from PIL import Image
from skimage.color import rgb2lab
from skimage.filters import gaussian
from skimage.metrics import structural_similarity
from styles import STYLES
from torch import Tensor

from avatarforge.client import Client

Picture = npt.NDArray[np.uint8]

SEED: Final = 7
NEAREST_ALLOWED: Final = 0.4
"""Validation people nearer than this to a training portrait are left out: perhaps the same person."""
KEEP_COLOURS: Final = ("flat illustration", "watercolor", "pixel art", "oil painting")
"""Styles in which skin, hair and clothes keep their colours."""
ASKED_COLOURS: Final = ("teal", "white", "yellow", "pink", "green", "red", "purple", "black")
BACKGROUND_AVATARS: Final = 200
STEPS: Final = (1, 2, 4, 8)
_MOST_LIGHTNESS: Final = 12
"""CIELAB lightness by which a backdrop may differ in styles that give colours of their own."""


class Service:
    """Avatars and the squares they were made from."""

    def __init__(self, url: str) -> None:
        self._client = Client(url)
        self._styles = {
            style.title.lower().replace("watercolour", "watercolor"): style.name
            for style in self._client.list_styles().styles
        }

    def draw(
        self, photo: Picture, style: str, prompt: str | None = None, steps: int | None = None
    ) -> tuple[Picture, Picture]:
        """The avatar and its square at the avatar's size, both (H, W, 3)."""
        packed = io.BytesIO()
        Image.fromarray(photo).save(packed, "PNG")
        job = self._client.submit(
            "measurement", packed.getvalue(), style=self._styles[style], seed=SEED, prompt=prompt, steps=steps
        )
        job = self._client.wait(job)
        avatar = _pixels(self._client.download(job).content)
        square = Image.fromarray(_pixels(self._client.download(job, "square").content))
        return avatar, np.asarray(square.resize(avatar.shape[1::-1], Image.Resampling.LANCZOS))


def _pixels(content: bytes) -> Picture:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def apply_filter(style: str, square: Picture) -> Picture:
    """What the style's filter makes of a square."""
    return _to_bytes(STYLES[style](_to_tensor(square) / 2 + 0.5) * 2 - 1)


def _to_tensor(picture: Picture) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def _to_bytes(picture: Tensor) -> Picture:
    return np.asarray((picture[0].clamp(-1, 1) + 1).mul(127.5).round().byte().permute(1, 2, 0))


class Autoencoder:
    """The checkpoint's autoencoder alone."""

    def __init__(self, checkpoint: Path) -> None:
        self._model = AutoencoderKLHunyuanImage.from_pretrained(
            checkpoint / "vae", dtype=torch.float32
        ).eval()

    @torch.inference_mode()
    def repeat(self, picture: Picture) -> Picture:
        """A picture through encoder and decoder."""
        return _to_bytes(
            self._model.decode(self._model.encode(_to_tensor(picture)).latent_dist.mode()).sample
        )


def choose_people(reader: FaceReader, portraits: Path) -> list[Path]:
    """Validation files with a face that is no training portrait's."""
    training, validation = split_files(portraits)
    known = [found for file in training if (found := _embed_alone(reader, read_photo(file))) is not None]
    chosen = []
    for file in validation:
        own = _embed_alone(reader, read_photo(file))
        if own is not None and np.linalg.norm(np.stack(known) - own, axis=1).min() >= NEAREST_ALLOWED:
            chosen.append(file)
    return chosen


def _embed_alone(reader: FaceReader, photo: Picture) -> npt.NDArray[np.float64] | None:
    side = min(photo.shape[:2])
    left = (photo.shape[1] - side) // 2
    square = np.ascontiguousarray(photo[:side, left : left + side])
    box = reader.find(square)
    return None if box is None else reader.embed(square, box)


class Likeness:
    """How often a picture's own photo is the nearest of all, and how often a face is found."""

    def __init__(self, reader: FaceReader, squares: list[Picture]) -> None:
        self._reader = reader
        boxes = [reader.find(square) for square in squares]
        self.places = [number for number, box in enumerate(boxes) if box is not None]
        self._boxes = [boxes[number] for number in self.places]
        self._known = np.stack([reader.embed(squares[number], boxes[number]) for number in self.places])

    def rate(self, pictures: list[Picture]) -> dict[str, float]:
        """Shares in percent; `pictures` are those of the squares, in their order."""
        found, nearest = 0, 0
        for row, number in enumerate(self.places):
            box = self._reader.find(pictures[number])
            found += box is not None
            own = self._reader.embed(pictures[number], box or self._boxes[row])
            nearest += int(np.linalg.norm(self._known - own, axis=1).argmin()) == row
        count = len(self.places)
        return {
            "nearest_is_own": round(100 * nearest / count, 1),
            "face_found": round(100 * found / count, 1),
        }

    def box(self, number: int) -> Any:
        """The face's box in a square, at faces.SIDE pixels."""
        return self._boxes[self.places.index(number)]


def describe(picture: Picture) -> npt.NDArray[np.float64]:
    """Colours at 64 pixels and a histogram of gradients, for telling styles apart."""
    small = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX)) / 255
    light = np.asarray(Image.fromarray(picture).convert("L"), dtype=float) / 255
    down, across = np.gradient(light)
    strength = np.hypot(down, across)
    counts, _ = np.histogram(strength, bins=np.array([0, 0.01, 0.02, 0.04, 0.08, 0.16, 1.0]))
    return np.concatenate([small.ravel() / small.size, counts / light.size * 0.25])


def distance(first: Picture, second: Picture) -> float:
    """L1 of two descriptions."""
    return float(np.abs(describe(first) - describe(second)).sum())


def part_colours(picture: Picture, box: Any, side: int) -> npt.NDArray[np.float64]:
    """Median CIELAB of skin, hair and clothes by their places around the face's box, (3, 3)."""
    scale = picture.shape[0] / side
    left, top, right, bottom = (
        int(value * scale) for value in (box.left(), box.top(), box.right(), box.bottom())
    )
    width, height = right - left, bottom - top
    middle = slice(left + width // 4, right - width // 4)
    places = (
        (slice(top + height // 2, top + 3 * height // 4), middle),
        (slice(max(0, top - height // 3), max(4, top - height // 12)), middle),
        (slice(min(bottom + height // 2, picture.shape[0] - 12), picture.shape[0]), middle),
    )
    lab = rgb2lab(picture)
    return np.stack([np.median(lab[place].reshape(-1, 3), axis=0) for place in places])


def psnr(first: Picture, second: Picture) -> float:
    """Decibels."""
    return float(-10 * np.log10(((first.astype(float) - second) ** 2).mean() / 255**2))


def blurred_similarity(first: Picture, second: Picture) -> float:
    """SSIM of blurred light."""
    lights = [
        gaussian(np.asarray(Image.fromarray(picture).convert("L")) / 255, 3) for picture in (first, second)
    ]
    return float(structural_similarity(*lights, data_range=1.0))


def measure_backgrounds(service: Service, photos: list[Picture]) -> dict[str, float]:
    """Share of avatars before the colour asked for, by what the filter makes of each colour, in percent."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    styles = list(STYLES)
    for number in range(BACKGROUND_AVATARS):
        style, colour = styles[number % len(styles)], ASKED_COLOURS[number % len(ASKED_COLOURS)]
        avatar, _ = service.draw(photos[(number // 2) % len(photos)], style, f"{colour} background")
        seen = _corner_colour(avatar)
        plain = {
            name: _corner_colour(apply_filter(style, np.full_like(avatar, BACKGROUNDS[name])))
            for name in ASKED_COLOURS
        }
        if style in KEEP_COLOURS:
            best = min(plain, key=lambda name: float(np.linalg.norm(plain[name] - seen)))
            right[True].append(best == colour)
        else:
            right[False].append(_is_like(plain[colour], seen))
    return {
        "styles_that_keep_colour": round(100 * float(np.mean(right[True])), 1),
        "other_styles": round(100 * float(np.mean(right[False])), 1),
    }


def _is_like(wanted: npt.NDArray[np.float64], seen: npt.NDArray[np.float64]) -> bool:
    if abs(wanted[0] - seen[0]) > _MOST_LIGHTNESS:
        return False
    chroma = np.linalg.norm(wanted[1:]) * np.linalg.norm(seen[1:])
    return chroma < 60 or float(wanted[1:] @ seen[1:]) / chroma > 0.8


def _corner_colour(picture: Picture) -> npt.NDArray[np.float64]:
    """Median CIELAB of the two upper corners."""
    side = picture.shape[0] // 8
    corners = np.concatenate([picture[:side, :side], picture[:side, -side:]])
    return np.asarray(np.median(rgb2lab(corners).reshape(-1, 3), axis=0))


def measure_styles(
    service: Service, autoencoder: Autoencoder, reader: FaceReader, files: list[Path]
) -> dict[str, Any]:
    """Likeness, faces, styles, colours and the autoencoder, of every person in every style."""
    photos = [read_photo(file) for file in files]
    avatars: dict[str, list[Picture]] = {style: [] for style in STYLES}
    squares: list[Picture] = []
    for photo in photos:
        for style in STYLES:
            avatar, square = service.draw(photo, style)
            avatars[style].append(avatar)
        squares.append(square)
    likeness = Likeness(reader, squares)
    filtered = {style: [apply_filter(style, square) for square in squares] for style in STYLES}
    report: dict[str, Any] = {"people": len(likeness.places), "styles": {}}
    through = [autoencoder.repeat(square) for square in squares]
    report["photo_through_autoencoder"] = likeness.rate(through) | {"psnr": _mean(psnr, through, squares)}
    for style in STYLES:
        repeated = [autoencoder.repeat(picture) for picture in filtered[style]]
        right, apart = [], []
        for number, avatar in enumerate(avatars[style]):
            others = {name: filtered[name][number] for name in STYLES} | {"photo": squares[number]}
            right.append(min(others, key=lambda name: distance(avatar, others[name])) == style)
            if number in likeness.places:
                pair = [
                    part_colours(picture, likeness.box(number), 512) for picture in (avatar, others[style])
                ]
                apart.append(float(np.linalg.norm(pair[0] - pair[1], axis=1).mean()))
        report["styles"][style] = {
            "avatar": likeness.rate(avatars[style]),
            "filter": likeness.rate(filtered[style]),
            "filter_through_autoencoder": likeness.rate(repeated)
            | {"psnr": _mean(psnr, repeated, filtered[style])},
            "is_the_style": round(100 * float(np.mean(right)), 1),
            "lab_distance": round(float(np.mean(apart)), 2),
            "psnr_to_filter": _mean(psnr, avatars[style], filtered[style]),
        }
    return report


def measure_steps(service: Service, reader: FaceReader, photos: list[Picture]) -> dict[str, dict[str, float]]:
    """Likeness and faces by the number of steps, styles by turns."""
    report = {}
    for steps in STEPS:
        drawn = [
            service.draw(photo, list(STYLES)[number % len(STYLES)], steps=steps)
            for number, photo in enumerate(photos)
        ]
        likeness = Likeness(reader, [square for _, square in drawn])
        report[str(steps)] = likeness.rate([avatar for avatar, _ in drawn])
    return report


def measure_odd_photos(service: Service, portraits: Path) -> dict[str, float]:
    """Each odd photo's blurred similarity of avatar and filter, styles by turns."""
    report = {}
    for number, (name, photo) in enumerate(make_odd_photos(portraits).items()):
        style = list(STYLES)[number % len(STYLES)]
        avatar, square = service.draw(photo, style)
        report[f"{name}, {style}"] = round(blurred_similarity(avatar, apply_filter(style, square)), 3)
    return report


def _mean(measure: Callable[[Picture, Picture], float], first: list[Picture], second: list[Picture]) -> float:
    return round(float(np.mean([measure(*pair) for pair in zip(first, second, strict=True)])), 2)


def find_face_models() -> Path:
    """The folder of `face_recognition_models`' files; the package itself is not imported."""
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise SystemExit("the package face_recognition_models is missing: pip install -r requirements.txt")
    return Path(spec.origin).parent / "models"


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: %(default)s)")
    parser.add_argument(
        "--portraits", type=Path, required=True, help="the folder that the model was trained from"
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=here.parent / "checkpoint", help="default: %(default)s"
    )
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    options = parser.parse_args()
    service, reader = Service(options.url), FaceReader(find_face_models())
    files = choose_people(reader, options.portraits)
    report = measure_styles(service, Autoencoder(options.checkpoint), reader, files)
    photos = [read_photo(file) for file in files]
    report["steps"] = measure_steps(service, reader, photos)
    report["background"] = measure_backgrounds(service, photos)
    report["odd_photos"] = measure_odd_photos(service, options.portraits)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
