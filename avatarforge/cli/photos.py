"""The photos given to commands, and the sample that is used without one."""

from pathlib import Path

from PIL import Image

import avatarforge
from avatarforge.domain.errors import FormattedError
from avatarforge.imaging.decode import load_upright
from avatarforge.ingress.upload.inspect import clean_photo
from avatarforge.settings import UploadSettings

SAMPLE = Path(avatarforge.__file__).parent / "samples" / "portrait.png"


class NoSuchPhoto(FormattedError):
    """A photo named on the command line is not a file."""

    message = "There is no photo {path!r:1000}."
    path: str


def read_photo(path: Path) -> Image.Image:
    """Return the photo, upright, in RGB. Raises `NoSuchPhoto` and the errors of `clean_photo`."""
    if not path.is_file():
        raise NoSuchPhoto(str(path))
    with path.open("rb") as file:
        return load_upright(clean_photo(file, str(path), UploadSettings()).content.read())
