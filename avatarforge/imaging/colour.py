"""Turns colours into sRGB, as viewers show them.

What a file says about its colours is an ICC profile, or code points of ITU-T H.273 (CICP): those of HDR are
tone-mapped as Chromium does for an ordinary screen, by SMPTE ST 2094-50's curve around a reference white.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from avatarforge.imaging import icc

Floats = NDArray[np.float32]

_PQ, _HLG = 16, 18
_PRIMARIES: dict[int, icc.Chromaticities] = {
    1: icc.SRGB,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
TELEVISION = (1, 6, 14, 15)
# Of a television's transfer the inverse of the screen's, a power of 2.4 (BT.1886), not of the camera's.
_CURVES: dict[int, tuple[float, ...]] = {
    **dict.fromkeys(TELEVISION, (2.4,)),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
    13: icc.SRGB_CURVE,
}

_REFERENCE_WHITE_NITS, _PEAK_NITS = 203, 1000
_PEAK = _PEAK_NITS / _REFERENCE_WHITE_NITS
_STRIP = 128
"""Rows of an HDR image that are converted at a time: each pixel takes some hundred bytes meanwhile."""


@dataclass(frozen=True, slots=True)
class ColourCodes:
    """Code points of H.273."""

    primaries: int
    transfer: int

    def to_profile(self) -> bytes | None:
        """Return a profile of these colours, which are known and not HDR; `None` for sRGB."""
        if (self.primaries, self.transfer) == (1, 13):
            return None
        return icc.build(_PRIMARIES[self.primaries], _CURVES[self.transfer])

    @property
    def is_known(self) -> bool:
        """Tell whether these codes say what colours look like; the others are as good as none."""
        return self.primaries in _PRIMARIES and (self.is_hdr or self.transfer in _CURVES)

    @property
    def is_hdr(self) -> bool:
        return self.transfer in {_PQ, _HLG} and self.primaries in _PRIMARIES


def convert_to_srgb(
    image: Image.Image, profile: bytes | None, codes: ColourCodes | None = None
) -> Image.Image:
    """Convert an image in mode L, RGB, CMYK or LAB; codes go before a profile (PNG 3, section 4.3).

    A profile that is broken, or for other colours, is passed over, as viewers do. Returns mode L or RGB.
    """
    if codes is not None and codes.is_known:
        if codes.is_hdr:
            return _tone_map(image.convert("RGB"), codes)
        profile = codes.to_profile()
    return (profile and _apply_profile(image, profile)) or _drop_profile(image)


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    space = icc.get_colour_space(profile)
    if image.mode == "L" and space == b"RGB ":
        image = image.convert("RGB")
    if space != {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK", "LAB": b"Lab "}.get(image.mode):
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        return ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def _drop_profile(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return ImageCms.profileToProfile(image, lab, _srgb(), outputMode="RGB") or image.convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _tone_map(image: Image.Image, codes: ColourCodes) -> Image.Image:
    """Convert the image from HDR in place, strip by strip. The curve holds for BT.2020's channels."""
    wide = icc.compute_primaries(_PRIMARIES[9])
    luminance = wide[1].astype(np.float32)
    to_wide, to_srgb = (
        (np.linalg.inv(target) @ source).T.astype(np.float32)
        for target, source in (
            (wide, icc.compute_primaries(_PRIMARIES[codes.primaries])),
            (icc.compute_primaries(icc.SRGB), wide),
        )
    )
    signal = np.linspace(0, 1, 256, dtype=np.float64)
    levels = (_decode_pq(signal) if codes.transfer == _PQ else _decode_hlg(signal)).astype(np.float32)
    for top in range(0, image.height, _STRIP):
        box = (0, top, image.width, min(top + _STRIP, image.height))
        light = levels[np.asarray(image.crop(box))] @ to_wide
        if codes.transfer == _HLG:
            # The system gamma of 1.2 (BT.2100, table 5) on a screen of 1000 nits.
            light *= _PEAK * np.maximum(light @ luminance, 1e-9)[..., None] ** 0.2
        light *= _compute_gain(light.max(axis=-1))[..., None]
        image.paste(Image.fromarray(_encode_srgb(light @ to_srgb)), box)
    return image


def _decode_pq(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return light for signals of 0 to 1, 1 being the reference white (BT.2100, table 4)."""
    root = signal ** (1 / 78.84375)
    return (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125) * (
        10_000 / _REFERENCE_WHITE_NITS
    )


def _decode_hlg(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scene's light, 0 to 1, for signals of 0 to 1 (BT.2100, table 5)."""
    above = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(signal <= 0.5, signal**2 / 3, above)


def _compute_gain(peak: Floats) -> Floats:
    """Return the factors for pixels whose largest channel is `peak`.

    Up to the reference white it is a half; from there a curve (quadratic Bézier) leads to 1 at 1000 nits.
    """
    x_middle, y_middle = 1.65, 0.825
    a, b = 1 - 2 * x_middle + _PEAK, 2 * (x_middle - 1)
    above = np.clip(peak, 1, _PEAK)
    t = (np.sqrt(b * b + 4 * a * (above - 1)) - b) / (2 * a)
    curve = 0.5 + 2 * t * (y_middle - 0.5) + t * t * (0.5 - 2 * y_middle + 1)
    return np.asarray(curve / np.maximum(peak, 1), dtype=np.float32)


def _encode_srgb(light: Floats) -> NDArray[np.uint8]:
    light = np.clip(light, 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255), dtype=np.uint8)
