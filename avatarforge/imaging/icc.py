"""Builds colour profiles that say how colours look, and nothing else (ICC.1:2022).

Only profiles of three primaries and their curves, or of one grey curve, are built. What is left of a camera's
or a monitor's profile are the numbers that colours are computed from: no name, no serial number, no private
tag, no gap.
"""

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_BYTES = 16 * 1024 * 1024
"""A larger profile is not read; what fits in a JPEG is smaller."""
_MAX_CURVE = 4096
_PARAMETERS = (1, 3, 4, 5, 7)
"""Numbers of each type of a parametric curve (section 10.18)."""
_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue."""

SRGB: Chromaticities = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB: Chromaticities = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ADOBE_RGB_CURVE = (563 / 256,)
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def get_colour_space(profile: bytes) -> bytes | None:
    """Return the colours that the profile is for (`RGB `, `GRAY`, `CMYK`, …); `None` if it is no profile."""
    if not 132 <= len(profile) <= MAX_BYTES or profile[36:40] != b"acsp":
        return None
    return profile[16:20]


def rebuild(profile: bytes) -> bytes | None:
    """Build the profile anew from its primaries and curves; `None` if it is of another kind."""
    space = get_colour_space(profile)
    names = {b"RGB ": (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC"), b"GRAY": (b"kTRC",)}
    if space not in names or profile[20:24] != b"XYZ ":
        return None
    try:
        tags = _read_tags(profile)
        # Where there are tables, colours are computed from them.
        if any(name in tags for name in (b"A2B0", b"A2B1", b"A2B2", b"D2B0", b"D2B1")):
            return None
        return _assemble(space, {name: _rebuild_tag(tags[name]) for name in names[space]})
    except (KeyError, ValueError, struct.error):
        return None


def build(chromaticities: Chromaticities, curve: Sequence[float], space: bytes = b"RGB ") -> bytes:
    """Build a profile of these primaries, and a curve of one to seven parameters (section 10.18).

    One is the exponent of a power. Raises `ValueError` for numbers that make no profile.
    """
    numbers = b"".join(struct.pack(">i", _encode_fixed(value)) for value in curve)
    curve_tag = struct.pack(">4sIHH", b"para", 0, _PARAMETERS.index(len(curve)), 0) + numbers
    if space == b"GRAY":
        return _assemble(space, {b"kTRC": curve_tag})
    columns = compute_primaries(chromaticities).T
    tags = {
        name + b"XYZ": struct.pack(">4sI3i", b"XYZ ", 0, *(_encode_fixed(value) for value in column))
        for name, column in zip((b"r", b"g", b"b"), columns, strict=True)
    }
    return _assemble(space, tags | {name + b"TRC": curve_tag for name in (b"r", b"g", b"b")})


def compute_primaries(chromaticities: Chromaticities) -> Floats:
    """Return the (3, 3) matrix from linear RGB to XYZ as seen under D50. Raises `ValueError`."""
    pairs = np.array(chromaticities).reshape(4, 2)
    if pairs[:, 1].min() <= 0:
        raise ValueError("a chromaticity is not above 0")
    white, *primaries = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in pairs)
    try:
        scaled = np.column_stack(primaries)
        scaled = scaled * np.linalg.solve(scaled, white)
    except np.linalg.LinAlgError as error:
        raise ValueError("the primaries lie on a line") from error
    gains = (_BRADFORD @ np.array(_D50)) / (_BRADFORD @ white)
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD
    return np.asarray(adaptation @ scaled)


def _read_tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {}
    for entry in range(min(count, 100)):
        name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * entry)
        tags[name] = profile[offset : offset + size]
    return tags


def _rebuild_tag(data: bytes) -> bytes:
    """Rebuild a tag's data so that it holds its numbers alone. Raises `ValueError` and `struct.error`."""
    kind = data[:4]
    if kind == b"XYZ ":
        return struct.pack(">4sI12s", kind, 0, *struct.unpack_from(">12s", data, 8))
    if kind == b"curv":
        (count,) = struct.unpack_from(">I", data, 8)
        if count > _MAX_CURVE or len(data) < 12 + 2 * count:
            raise ValueError("the curve is too long")
        return struct.pack(">4sII", kind, 0, count) + data[12 : 12 + 2 * count]
    if kind == b"para":
        (function,) = struct.unpack_from(">H", data, 8)
        if function >= len(_PARAMETERS):
            raise ValueError("the curve is of no known type")
        size = 4 * _PARAMETERS[function]
        return struct.pack(f">4sIHH{size}s", kind, 0, function, 0, *struct.unpack_from(f">{size}s", data, 12))
    raise ValueError("the tag is of no known type")


def _assemble(space: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """Put a display profile together (sections 7.2, 7.3, 8.3 and 8.4)."""
    white = struct.pack(">4sI3i", b"XYZ ", 0, *(_encode_fixed(value) for value in _D50))
    every = {b"desc": _text("RGB" if space == b"RGB " else "Grey"), b"cprt": _text("CC0"), b"wtpt": white}
    every |= tags
    table, body = b"", b""
    begin = 132 + 12 * len(every)
    for name, data in every.items():
        table += struct.pack(">4sII", name, begin + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s24sI3i48s",
        *(begin + len(body), b"", 0x04200000, b"mntr", space, b"XYZ ", b"", b"acsp", b"", 0),
        *(*(_encode_fixed(value) for value in _D50), b""),
    )
    return header + struct.pack(">I", len(every)) + table + body


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return struct.pack(">4sIII4sII", b"mluc", 0, 1, 12, b"enUS", len(encoded), 28) + encoded


def _encode_fixed(value: float) -> int:
    """Return the s15Fixed16Number. Raises `ValueError` if it has none."""
    if not -32768 <= value < 32768:
        raise ValueError("the number is out of bounds")
    return round(value * 65536)
