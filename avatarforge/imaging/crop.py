"""Cuts what becomes the avatar from a photo: around the face, where there is one."""

from dataclasses import dataclass

from PIL import Image

from avatarforge.domain.jobs import Crop, GenerationParameters
from avatarforge.imaging.faces import Face, find_face

# Where a portrait has its head: in a square of 3.4 times the face's side the head is about half as high as
# the square, and the face's middle is at 45 % of the height. Near an edge the square is rather made smaller
# than moved.
_SIDE = 3.4
_MIN_SIDE = 2.6
_OFFSET = 0.05
_MAX_TILT = 60
"""Degrees that a head is taken to lean by; beyond, the photo lies on its side or stands on its head."""
_CHIN = (0, 1), (-1, 0), (0, -1), (1, 0)
"""Which way the chin is in a photo that must be turned so often, counter-clockwise."""
_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


@dataclass(frozen=True, slots=True)
class Square:
    """A cut from a photo: a square of its pixels, wholly within it, and how that is turned."""

    left: float
    top: float
    side: float
    crop: Crop
    quarter_turns: int = 0
    """Turns by 90 degrees counter-clockwise that make the face upright."""


def cut(
    photo: Image.Image, size: tuple[int, int], parameters: GenerationParameters
) -> tuple[Image.Image, Crop]:
    """Crop a photo in RGB to an image of `size` (width, height) around `find_square`, with the face upright.

    If the parameters say so, a photo of these proportions is taken as it is.
    """
    if not parameters.crop_to_face and photo.width * size[1] == photo.height * size[0]:
        return photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), Crop.CENTRE
    return _crop(photo, size)


def square(photo: Image.Image, size: int) -> tuple[Image.Image, Crop]:
    """`find_square` of a photo in RGB, as an image of `size` x `size` pixels with the face upright."""
    return _crop(photo, (size, size))


def _crop(photo: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Crop]:
    found = find_square(photo)
    return extract(photo, found, size), found.crop


def extract(photo: Image.Image, found: Square, size: tuple[int, int]) -> Image.Image:
    """The square that `find_square` found, widened to be of `size` (width, height), as an image."""
    # In the photo's own direction, before the turn.
    size = size[::-1] if found.quarter_turns % 2 else size
    box = _widen(found, photo, size)
    image = photo.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    turn = _TURNS.get(found.quarter_turns)
    return image if turn is None else image.transpose(turn)


def _widen(square: Square, photo: Image.Image, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the box of the proportions of `size` whose shorter side is the square's, around its middle.

    Within the photo: moved, and smaller where that is not enough.
    """
    width, height = (square.side * side / min(size) for side in size)
    fitting = min(1, photo.width / width, photo.height / height)
    width, height = min(fitting * width, photo.width), min(fitting * height, photo.height)
    left = min(max(square.left + (square.side - width) / 2, 0), photo.width - width)
    top = min(max(square.top + (square.side - height) / 2, 0), photo.height - height)
    return left, top, left + width, top + height


def find_square(photo: Image.Image) -> Square:
    """Head and shoulders where there is a face, else the middle; as large as the photo allows.

    A square that would reach over the photo's edge is smaller, and moved into the photo where that is not
    enough.
    """
    face = find_face(photo)
    if face is None:
        side = min(photo.size)
        return Square((photo.width - side) / 2, (photo.height - side) / 2, side, Crop.CENTRE)
    return _around(face, photo)


def _around(face: Face, photo: Image.Image) -> Square:
    turns = _quarter_turns(face.roll)
    # From the face's middle to the square's, in sides of the square: towards the chin.
    across, down = (_OFFSET * way for way in _CHIN[turns])
    fitting = min(
        face.x / (0.5 - across),
        (photo.width - face.x) / (0.5 + across),
        face.y / (0.5 - down),
        (photo.height - face.y) / (0.5 + down),
    )
    side = min(max(fitting, _MIN_SIDE * face.side), _SIDE * face.side, *photo.size)
    left, top = face.x + (across - 0.5) * side, face.y + (down - 0.5) * side
    return Square(
        min(max(left, 0), photo.width - side), min(max(top, 0), photo.height - side), side, Crop.FACE, turns
    )


def _quarter_turns(roll: float) -> int:
    if abs(roll) <= _MAX_TILT:
        return 0
    if abs(roll) > 135:
        return 2
    return 3 if roll > 0 else 1
