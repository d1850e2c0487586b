"""Kinds of files are told by their content; what is not taken is named, with what to send instead."""

from io import BytesIO

import numpy as np
import pytest

from avatarforge.domain.errors import UnsupportedPhoto
from avatarforge.imaging import heif
from avatarforge.imaging.decode import load_upright
from avatarforge.ingress.upload.inspect import clean_photo
from avatarforge.settings import UploadSettings
from tests import pictures
from tests.unit.test_photo_cases import FOLDER

DNG = b"II*\0\x08\0\0\0\x01\0\x12\xc6\x01\0\x04\0\0\0\x01\x04\0\0" + bytes(100)
NEF = b"MM\0*\0\0\0\x08\0\x02\0\xfe\0\x04\0\0\0\x01\0\0\0\x01\x01\x4a\0\x04\0\0\0\x02\0\0\0\x40" + bytes(100)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (DNG, "a RAW picture (DNG)"),
        (NEF, "a RAW picture"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "a RAW picture (CR2)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(99), "a RAW picture (CR3)"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(99), "a RAW picture (RAF)"),
        (b"%PDF-1.7\n" + bytes(99), "a PDF"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(99), "a Live Photo's video (MOV)"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp42" + bytes(99), "a video"),
        (b"\xff\x0a" + bytes(99), "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "a JPEG XL picture"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "a drawing (SVG)"),
        (b"8BPS\0\1" + bytes(99), "a Photoshop document (PSD)"),
        (b"PK\x03\x04" + bytes(99), "an archive"),
    ],
)
def test_what_is_not_taken_is_named_with_what_to_do(content: bytes, kind: str) -> None:
    with pytest.raises(UnsupportedPhoto) as raised:
        clean_photo(BytesIO(content), "me", UploadSettings())
    assert f"'me' cannot be used: {kind}" in str(raised.value)
    assert raised.value.advice.startswith(("Send", "Export", "Unpack"))


def test_heic_is_refused_where_its_decoder_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "is_available", lambda: False)
    with pytest.raises(UnsupportedPhoto, match="install pi-heif"):
        clean_photo(BytesIO((FOLDER / "iphone.heic").read_bytes()), "me.heic", UploadSettings())


def test_metadata_of_a_broken_type_are_not_read() -> None:
    """pi-heif makes text of the types, without a look at what came of it: it crashes the process."""
    content = (FOLDER / "grid-depth.heic").read_bytes().replace(b"\0Exif\0", b"\0\xc6\xf9if\0")
    photo = clean_photo(BytesIO(content), "me", UploadSettings())
    assert (photo.width, photo.height) == (160, 240)


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["TIFF", "BMP", "AVIF"])
def test_other_formats_come_out_upright(kind: str, turn: int) -> None:
    options: dict[str, object] = {"BMP": {}, "TIFF": {"tiffinfo": {274: turn}}}.get(
        kind, {"exif": pictures.exif(turn), "quality": 100, "subsampling": "4:4:4"}
    )
    image = pictures.turned(turn if options else 1)
    photo = clean_photo(BytesIO(pictures.saved(image, kind, **options)), "me", UploadSettings())
    assert (photo.media_type, photo.width, photo.height) == ("image/png", 96, 64)
    seen = pictures.read_quarters(load_upright(photo.content.read()))
    assert np.abs(np.array(seen) - np.array(pictures.QUARTERS)).max() <= 4
