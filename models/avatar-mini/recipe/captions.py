"""What a prompt can say, and captions as people might word it.

A caption and what it names come together, so that the text encoder can be taught what a caption says before
any picture is involved. Whatever is named first counts: a service's style stands before the customer's own
words.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

Colour = tuple[int, int, int]

STYLES: Final[dict[str, tuple[str, ...]]] = {
    "flat illustration": (
        "flat illustration",
        "flat vector illustration",
        "vector art",
        "cartoon",
        "flat design",
    ),
    "watercolor": ("watercolor", "watercolour", "watercolor painting", "aquarelle"),
    "pencil sketch": ("pencil sketch", "pencil drawing", "graphite drawing", "sketch"),
    "pixel art": ("pixel art", "8-bit pixel art", "8-bit", "16-bit pixel art"),
    "oil painting": ("oil painting", "oil on canvas", "oil paint", "painting in oil"),
    "neon": ("neon", "glowing neon", "neon lights", "synthwave neon"),
}
"""Each style with the words that mean it."""

DEFAULT_STYLE: Final = "flat illustration"
"""What a prompt that names no style gets. An empty prompt gives the photo as it is."""

BACKGROUNDS: Final[dict[str, Colour]] = {
    "teal": (40, 140, 140),
    "navy": (25, 40, 90),
    "white": (245, 245, 242),
    "gray": (140, 142, 148),
    "yellow": (245, 205, 80),
    "pink": (245, 170, 190),
    "green": (90, 165, 100),
    "red": (200, 60, 55),
    "purple": (120, 80, 165),
    "orange": (240, 145, 60),
    "blue": (80, 140, 225),
    "black": (28, 28, 32),
    "beige": (228, 208, 180),
}
TONES: Final[dict[str, tuple[str, ...]]] = {
    "black and white": ("black and white", "monochrome", "grayscale", "greyscale", "black & white"),
    "warm": ("warm light", "warm colors", "warm tones", "golden light", "golden hour"),
    "cool": ("cool light", "cool colors", "cold light", "cool tones", "moonlight"),
}
ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "style": tuple(STYLES),
    "background": tuple(BACKGROUNDS),
    "tone": tuple(TONES),
}
"""Every attribute with its values."""

_COLOUR_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "gray": ("gray", "gray", "grey", "silver"),
    "navy": ("navy", "navy", "navy blue", "dark blue"),
    "teal": ("teal", "teal", "turquoise"),
    "purple": ("purple", "purple", "violet"),
    "beige": ("beige", "beige", "cream", "tan"),
    "red": ("red", "red", "crimson"),
    "blue": ("blue", "blue", "light blue", "sky blue"),
    "pink": ("pink", "pink", "rose"),
}
_BACKGROUND_PHRASES: Final = (
    *("{colour} background",) * 6,
    "on a {colour} background",
    "with a {colour} background",
    "{colour} backdrop",
    "background: {colour}",
    "background in {colour}",
    "a plain {colour} background",
    "solid {colour} background",
    "in front of a {colour} wall",
)
_SUBJECTS: Final = (
    *("a person",) * 4,
    *(
        "a man",
        "a woman",
        "a girl",
        "a boy",
        "an old man",
        "an astronaut",
        "someone",
        "me",
        "a friend",
        "my cat",
    ),
)
_OPENINGS: Final = (
    *("{style} portrait of {subject}",) * 4,
    "{style} avatar of {subject}",
    "a {style} of {subject}",
    "portrait of {subject}, {style}",
    "portrait of {subject} in {style} style",
    "{style} style",
    "{style}",
    "turn {subject} into a {style}",
    "make it a {style}",
    "as a {style}",
)
_PLAIN_OPENINGS: Final = (
    "portrait of {subject}",
    "{subject}",
    "avatar",
    "profile picture of {subject}",
    "portrait",
)
_OTHER_WORDS: Final = (
    *("high quality", "best quality", "highly detailed", "masterpiece", "beautiful", "professional", "8k"),
    *(
        "profile picture",
        "avatar",
        "digital art",
        "studio light",
        "sharp focus",
        "smiling",
        "serious",
        "happy",
    ),
    *(
        "looking at the camera",
        "centered",
        "head and shoulders",
        "with glasses",
        "beard",
        "curly hair",
        "freckles",
    ),
    *(
        "in a forest",
        "at the beach",
        "in space",
        "wearing a hat",
        "wearing a suit",
        "elegant",
        "by a famous artist",
    ),
    *(
        "trending",
        "dramatic",
        "soft",
        "cinematic",
        "fantasy",
        "hero",
        "knight",
        "wizard",
        "robot",
        "cyberpunk",
    ),
)
_OTHER_NOUNS: Final = (
    "hair",
    "eyes",
    "shirt",
    "jacket",
    "dress",
    "hat",
    "lips",
    "tie",
    "scarf",
    "suit",
    "flowers",
)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption and the value that it names of each attribute; None where it names none."""

    text: str
    style: str | None = None
    background: str | None = None
    tone: str | None = None


def word(rng: np.random.Generator, *, style: str | None, background: str | None, tone: str | None) -> Caption:
    """A random caption that names exactly these values."""
    phrases = []
    if background is not None:
        colour = str(rng.choice(_COLOUR_WORDS.get(background, (background,))))
        phrases.append(str(rng.choice(_BACKGROUND_PHRASES)).format(colour=colour))
    if tone is not None:
        phrases.append(str(rng.choice(TONES[tone])))
    for _ in range(int(rng.choice((0, 0, 0, 1, 1, 2, 3, 5)))):
        phrases.append(_unrelated(rng))
    rng.shuffle(phrases)
    text = ", ".join([_opening(rng, style), *phrases])
    if rng.random() < 0.12:
        text = _contradicted(rng, text, style, background)
    if rng.random() < 0.1:
        text = text.replace(",", "")
    return Caption(text=text, style=style, background=background, tone=tone)


def sample_caption(rng: np.random.Generator) -> Caption:
    """A caption of nothing in particular, for the text encoder."""
    if rng.random() < 0.03:
        return Caption(text="")
    style = None if rng.random() < 0.15 else str(rng.choice(list(STYLES)))
    background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.6 else None
    tone = str(rng.choice(list(TONES))) if rng.random() < 0.3 else None
    return word(rng, style=style, background=background, tone=tone)


def _opening(rng: np.random.Generator, style: str | None) -> str:
    subject = str(rng.choice(_SUBJECTS))
    if style is None:
        return str(rng.choice(_PLAIN_OPENINGS)).format(subject=subject)
    words = STYLES[style]
    named = words[0] if rng.random() < 0.6 else str(rng.choice(words))
    return str(rng.choice(_OPENINGS)).format(style=named, subject=subject)


def _unrelated(rng: np.random.Generator) -> str:
    """A phrase that changes nothing: praise, another thing's colour, or letters without sense."""
    kind = rng.random()
    if kind < 0.45:
        return str(rng.choice(_OTHER_WORDS))
    if kind < 0.75:
        return f"{rng.choice(list(BACKGROUNDS))} {rng.choice(_OTHER_NOUNS)}"
    letters = list("abcdefghijklmnopqrstuvwxyzeeaaoitnsr")
    return " ".join(
        "".join(rng.choice(letters, int(rng.integers(2, 9)))) for _ in range(int(rng.integers(1, 4)))
    )


def _contradicted(rng: np.random.Generator, text: str, style: str | None, background: str | None) -> str:
    """Name another style, or another background, behind the one that counts."""
    if style is not None and rng.random() < 0.6:
        return f"{text}, {rng.choice(STYLES[str(rng.choice(list(STYLES)))])}"
    if background is not None:
        return f"{text}, {rng.choice(list(BACKGROUNDS))} background"
    return text
