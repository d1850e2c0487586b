"""The photos given to commands, and the sample that is used without one."""

from pathlib import Path

from PIL import Image

import avatarforge
from avatarforge.domain.errors import FormattedError
from avatarforge.imaging.decode import load_upright
from avatarforge.imaging.formats import PHOTO_ENDINGS
from avatarforge.ingress.upload.inspect import clean_photo
from avatarforge.settings import UploadSettings

SAMPLE = Path(avatarforge.__file__).parent / "samples" / "portrait.png"


class NoSuchPhoto(FormattedError):
    """A photo named on the command line is not a file."""

    message = "There is no photo {path!r:1000}."
    path: str


class NoPhotosInFolder(FormattedError):
    """A folder named on the command line has no photo."""

    message = "The folder {path!r:1000} has no photo: no file that ends with one of {endings}."
    path: str
    endings: str


_ENDINGS = tuple(ending for endings in PHOTO_ENDINGS.values() for ending in endings)


def list_photos(path: Path) -> list[Path]:
    """Return the photo, or a folder's photos by their names. Raises `NoSuchPhoto` and `NoPhotosInFolder`."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDINGS and file.is_file())
        if not found:
            raise NoPhotosInFolder(str(path), ", ".join(_ENDINGS))
        return found
    if not path.is_file():
        raise NoSuchPhoto(str(path))
    return [path]


def read_photo(path: Path) -> Image.Image:
    """Return the photo, upright, in RGB. Raises `NoSuchPhoto` and the errors of `clean_photo`."""
    if not path.is_file():
        raise NoSuchPhoto(str(path))
    with path.open("rb") as file:
        return load_upright(clean_photo(file, str(path), UploadSettings()).content.read())
