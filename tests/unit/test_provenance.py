"""The credentials of avatars, read back with readers that are not ours: Pillow's, and C2PA's."""

import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import c2pa
import pytest
from PIL import Image, ImageCms

import avatarforge
from avatarforge.diffusion.replica.deployment import StableDiffusion
from avatarforge.domain.errors import SigningFailed
from avatarforge.domain.jobs import ImageFormat
from avatarforge.imaging.provenance import SOURCE_TYPE, ContentCredentials, open_content_credentials
from avatarforge.settings import ProvenanceSettings, SettingsError, load_settings
from tests.certificates import Files, write_certificates

GENERATOR = {"name": "AvatarForge", "version": avatarforge.__version__}


@pytest.fixture
def certificates(tmp_path: Path) -> Files:
    return write_certificates(tmp_path)


def settings(certificates: Files, **changes: Any) -> ProvenanceSettings:
    return ProvenanceSettings(
        **{"certificate": certificates.chain, "private_key": certificates.key} | changes
    )


def a_picture() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def xmp_of(content: bytes) -> dict[str, Any]:
    with Image.open(BytesIO(content)) as image:
        description: dict[str, Any] = image.getxmp()["xmpmeta"]["RDF"]["Description"]
        return description


def manifest_of(content: bytes, image_format: ImageFormat) -> tuple[dict[str, Any], str]:
    """The signed claim, and what C2PA's reader thinks of it."""
    with c2pa.Reader(image_format.media_type, BytesIO(content)) as reader:
        store = json.loads(reader.json())
    return store["manifests"][store["active_manifest"]], store["validation_state"]


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_every_format_says_that_it_is_made_by_ai_and_with_what(image_format: ImageFormat) -> None:
    marked = xmp_of(ContentCredentials().encode(a_picture(), image_format))
    assert marked == {
        "about": "",
        "DigitalSourceType": SOURCE_TYPE,
        "CreatorTool": f"AvatarForge {avatarforge.__version__}",
    }


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_nothing_but_the_marking_goes_into_the_file(image_format: ImageFormat) -> None:
    picture = a_picture()
    exif = Image.Exif()
    exif[0x010F] = "a camera's maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.info |= {
        "exif": exif.tobytes(), "icc_profile": profile, "xmp": b"<x/>", "comment": b"a word", "dpi": (72, 72),
    }  # fmt: skip
    assert ContentCredentials().encode(picture, image_format) == ContentCredentials().encode(
        a_picture(), image_format
    )


def test_marking_changes_no_pixel_and_leaves_the_picture_as_it_was() -> None:
    picture = a_picture()
    with Image.open(BytesIO(ContentCredentials().encode(picture, ImageFormat.PNG))) as read:
        assert read.tobytes() == picture.tobytes()
    assert picture.info == {}


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_with_a_certificate_every_format_is_signed_and_marked(
    certificates: Files, image_format: ImageFormat
) -> None:
    content = open_content_credentials(settings(certificates)).encode(a_picture(), image_format)
    manifest, verdict = manifest_of(content, image_format)
    assert verdict == "Valid"
    (generator,) = manifest["claim_generator_info"]
    assert generator.items() >= GENERATOR.items()
    (actions,) = manifest["assertions"]
    assert actions["data"]["actions"] == [
        {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": GENERATOR}
    ]
    assert manifest["signature_info"]["common_name"] == "Test Signer"
    assert "ingredients" not in manifest
    assert "thumbnail" not in manifest
    assert xmp_of(content)["DigitalSourceType"] == SOURCE_TYPE


def test_a_signed_picture_that_was_changed_is_found_out(certificates: Files) -> None:
    content = open_content_credentials(settings(certificates)).encode(a_picture(), ImageFormat.JPEG)
    changed = content[:-10] + bytes([content[-10] ^ 1]) + content[-9:]
    assert manifest_of(changed, ImageFormat.JPEG)[1] == "Invalid"


def test_many_threads_sign_with_one_marking(certificates: Files) -> None:
    credentials = open_content_credentials(settings(certificates))
    with ThreadPoolExecutor(4) as threads:
        files = list(threads.map(lambda _: credentials.encode(a_picture(), ImageFormat.WEBP), range(12)))
    assert {manifest_of(content, ImageFormat.WEBP)[1] for content in files} == {"Valid"}


def test_a_picture_without_its_time_stamp_is_no_file(certificates: Files) -> None:
    # Nothing listens on port 9 of this machine.
    credentials = open_content_credentials(settings(certificates, timestamp_url="http://127.0.0.1:9/"))
    with pytest.raises(SigningFailed, match=r"http://127\.0\.0\.1:9/"):
        credentials.encode(a_picture(), ImageFormat.PNG)


def test_a_certificate_that_is_not_there_is_told_with_its_variable(certificates: Files) -> None:
    certificates.chain.unlink()
    with pytest.raises(SettingsError, match=r"AVATARFORGE_PROVENANCE_CERTIFICATE\) is .*No such file"):
        open_content_credentials(settings(certificates))


def swapped_key(files: Files) -> None:
    files.key.write_bytes(files.root_key.read_bytes())


def self_signed(files: Files) -> None:
    files.chain.write_bytes(files.root.read_bytes())
    swapped_key(files)


def no_certificate(files: Files) -> None:
    files.chain.write_text("hello")


def no_key(files: Files) -> None:
    files.key.write_text("hello")


def run_out(files: Files) -> None:
    write_certificates(files.chain.parent, days=-1)


@pytest.mark.parametrize("spoil", [swapped_key, self_signed, no_certificate, no_key, run_out])
def test_a_certificate_that_cannot_sign_is_found_at_the_start(certificates: Files, spoil: Any) -> None:
    spoil(certificates)
    with pytest.raises(SettingsError, match="Avatars cannot be signed with the certificate"):
        open_content_credentials(settings(certificates))


async def test_a_replica_that_is_to_sign_and_cannot_does_not_start(
    certificates: Files, tmp_path: Path
) -> None:
    swapped_key(certificates)
    wanted = settings(certificates).model_dump(mode="json")
    with pytest.raises(SettingsError, match="Avatars cannot be signed"):
        StableDiffusion({"data_dir": str(tmp_path / "data"), "provenance": wanted})


def test_an_algorithm_that_is_not_the_keys_is_found_at_the_start(certificates: Files) -> None:
    with pytest.raises(SettingsError, match="the algorithm 'ps256'"):
        open_content_credentials(settings(certificates, algorithm="ps256"))


@pytest.mark.parametrize("one", ["CERTIFICATE", "PRIVATE_KEY"])
def test_a_certificate_without_its_key_is_refused(one: str) -> None:
    with pytest.raises(SettingsError, match="certificate and private_key belong together"):
        load_settings({}, {f"AVATARFORGE_PROVENANCE_{one}": "some.pem"})
