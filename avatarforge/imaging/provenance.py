"""Marks avatars as AI-made, for machines: with XMP in every file, and with C2PA if there is a certificate.

Both name a term of IPTC's vocabulary http://cv.iptc.org/newscodes/digitalsourcetype/ (as it is since
2024-09-17). An avatar is not `trainedAlgorithmicMedia`, "created using generative AI", since it is a
person's photo that was changed. That is `compositeWithTrainedAlgorithmicMedia`, named "Edited using
Generative AI": "Augmentation, correction or enhancement using a Generative AI model".
"""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

import avatarforge
from avatarforge.domain.errors import SigningFailed
from avatarforge.domain.jobs import ImageFormat
from avatarforge.settings import ProvenanceSettings, SettingsError

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

_GENERATOR = {"name": "AvatarForge", "version": avatarforge.__version__}

# Part 1 of the XMP specification (ISO 16684-1), section 7; the packet's id is the same for all.
XMP = f"""<?xpacket begin="\N{ZERO WIDTH NO-BREAK SPACE}" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   <Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>{_GENERATOR["name"]} {_GENERATOR["version"]}</xmp:CreatorTool>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>""".encode()

# No ingredient and no thumbnail: what is known of the photo stays with us.
_CLAIM = {
    "claim_generator_info": [_GENERATOR],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {
                "actions": [
                    {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": _GENERATOR}
                ]
            },
        }
    ],
}

Signer = Callable[[bytes, ImageFormat], bytes]
"""Adds a signed C2PA manifest to an image's file. Raises `SigningFailed`."""


class ContentCredentials:
    """Encodes images as files that hold their pixels, their provenance, and nothing else."""

    def __init__(self, sign: Signer | None = None) -> None:
        self._sign = sign

    def encode(self, image: Image.Image, image_format: ImageFormat) -> bytes:
        """Encode the image, marked and, if there is a signer, signed. Raises `SigningFailed`."""
        # Pillow writes what an image carries from its own file (EXIF, profiles, texts): a new one has none.
        clean = Image.new("RGB", image.size)
        clean.paste(image)
        buffer = BytesIO()
        clean.save(buffer, format=image_format.value, **_get_encoder_options(image_format))
        content = buffer.getvalue()
        return content if self._sign is None else self._sign(content, image_format)


def _get_encoder_options(image_format: ImageFormat) -> dict[str, Any]:
    """Return Pillow's arguments: quality, and the XMP in the format's own place."""
    match image_format:
        case ImageFormat.PNG:
            texts = PngImagePlugin.PngInfo()
            texts.add_itxt("XML:com.adobe.xmp", XMP)
            # The default, 6, takes two to four times as long. It gives 2 to 10 % fewer bytes for lifelike
            # images, but a quarter fewer for flat ones, such as large blocks of few colours.
            return {"pnginfo": texts, "compress_level": 2}
        case ImageFormat.WEBP:
            # The default method, 4, takes twice as long. It gives as many bytes for lifelike images, but a
            # quarter fewer for flat ones.
            return {"quality": 92, "method": 2, "xmp": XMP}
        case ImageFormat.JPEG:
            return {"quality": 92, "subsampling": 0, "xmp": XMP}


def open_content_credentials(settings: ProvenanceSettings) -> ContentCredentials:
    """Open them as the settings say; with a certificate, sign one small image as a trial.

    Raises `SettingsError` if that fails: a process that is to sign avatars and cannot must not begin to
    make any.
    """
    if settings.certificate is None or settings.private_key is None:
        return ContentCredentials()
    chain, key = (
        _read_pem(settings.certificate, "certificate"),
        _read_pem(settings.private_key, "private_key"),
    )
    try:
        # Without a time stamp: its server may be away for a while, which is no fault of the settings.
        trial = ContentCredentials(_create_signer(chain, key, settings.algorithm, None))
        trial.encode(Image.new("RGB", (16, 16)), ImageFormat.PNG)
        return ContentCredentials(_create_signer(chain, key, settings.algorithm, settings.timestamp_url))
    except SigningFailed as error:
        raise SettingsError(
            f"Avatars cannot be signed with the certificate {settings.certificate}, the key "
            f"{settings.private_key} and the algorithm {settings.algorithm!r} ({error.reason}). The file "
            "must hold a chain in PEM that begins with a signing certificate, not a self-signed one; the key "
            "must be its own, in PKCS#8; see the settings provenance.*."
        ) from error


def _read_pem(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        variable = f"AVATARFORGE_PROVENANCE_{setting}".upper()
        raise SettingsError(
            f"The setting provenance.{setting} ({variable}) is {str(path)!r}, which cannot be read "
            f"({error.strerror or error})."
        ) from error


def _create_signer(chain: bytes, key: bytes, algorithm: str, timestamp_url: str | None) -> Signer:
    """Create a signer in memory, for any thread. A time stamp takes at most 30 seconds (c2pa's own limit)."""
    # A library of 23 MB that most replicas have no use for.
    import c2pa

    try:
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, timestamp_url))
        options = c2pa.Settings.from_dict({"builder": {"thumbnail": {"enabled": False}}})
        context = c2pa.Context(settings=options, signer=signer)
    except c2pa.C2paError as error:
        raise SigningFailed(str(error)) from error

    def sign(content: bytes, image_format: ImageFormat) -> bytes:
        signed = BytesIO()
        try:
            # Reads the signature back before it returns.
            with c2pa.Builder(json.dumps(_CLAIM), context=context) as builder:
                builder.sign(image_format.media_type, BytesIO(content), signed)
        except c2pa.C2paError as error:
            raise SigningFailed(str(error)) from error
        return signed.getvalue()

    return sign
