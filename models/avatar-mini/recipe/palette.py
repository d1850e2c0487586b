"""The closed vocabulary of the drawn portraits: attributes, their values, and the colours that the values
stand for.

Everything that can be named in a caption is listed here once; drawing, wording, training and measuring all
read it.
"""

from typing import Final

Colour = tuple[float, float, float]
"""Red, green and blue, each 0 to 255."""

STYLES: Final = ("flat illustration", "pixel art", "pencil sketch", "watercolor", "3d render", "neon")
CUTS: Final = ("short", "long", "curly", "bald", "bun", "spiky")
EXPRESSIONS: Final = ("smiling", "serious")

SKIN: Final[dict[str, Colour]] = {
    "pale": (253, 228, 212),
    "fair": (240, 190, 155),
    "tan": (208, 145, 95),
    "olive": (170, 140, 86),
    "brown": (130, 78, 48),
    "dark": (74, 45, 34),
}
HAIR: Final[dict[str, Colour]] = {
    "black": (28, 24, 28),
    "brown": (98, 60, 34),
    "blonde": (230, 190, 98),
    "red": (190, 72, 30),
    "gray": (148, 150, 156),
    "white": (240, 240, 240),
    "blue": (50, 84, 205),
    "pink": (236, 112, 172),
}
SHIRT: Final[dict[str, Colour]] = {
    "black": (34, 34, 40),
    "white": (240, 240, 242),
    "gray": (128, 132, 138),
    "blue": (52, 96, 200),
    "red": (200, 46, 50),
    "green": (56, 140, 78),
    "purple": (128, 66, 172),
    "yellow": (242, 208, 72),
    "orange": (238, 126, 40),
}
BACKGROUND: Final[dict[str, Colour]] = {
    "white": (246, 246, 246),
    "gray": (146, 150, 156),
    "blue": (84, 146, 226),
    "green": (104, 184, 110),
    "yellow": (248, 214, 90),
    "orange": (240, 146, 70),
    "red": (210, 66, 66),
    "purple": (152, 100, 206),
    "teal": (50, 160, 156),
    "navy": (32, 44, 92),
}

PALETTES: Final[dict[str, dict[str, Colour]]] = {
    "skin": SKIN,
    "hair": HAIR,
    "shirt": SHIRT,
    "background": BACKGROUND,
}
"""The four parts that have a colour of their own."""

VALUES: Final[dict[str, tuple[str, ...]]] = {
    "style": STYLES,
    "skin": tuple(SKIN),
    "hair": tuple(HAIR),
    "cut": CUTS,
    "glasses": ("glasses",),
    "beard": ("beard",),
    "expression": EXPRESSIONS,
    "shirt": tuple(SHIRT),
    "background": tuple(BACKGROUND),
}
"""Every attribute with the values that a caption can name for it."""
