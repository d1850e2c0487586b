"""The photos that commands are given, and the one that is used where none is."""

from pathlib import Path

from PIL import Image

import avatarforge
from avatarforge.domain.errors import NotAnImage
from avatarforge.storage.pictures import load_upright

SAMPLE = Path(avatarforge.__file__).parent / "samples" / "portrait.png"


class NoSuchPhoto(OSError):
    """A photo that the command line names is not a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"There is no photo {str(self.path)!r}."


def read_photo(path: Path) -> Image.Image:
    """The photo, upright, in RGB. Raises `NoSuchPhoto` and `NotAnImage`."""
    if not path.is_file():
        raise NoSuchPhoto(path)
    try:
        return load_upright(path.read_bytes())
    # Pillow's decoders raise errors of many kinds.
    except Exception as error:
        raise NotAnImage(str(path)) from error
