"""Words portraits: captions as people might type them, and the attributes that each caption really names.

A caption and its labels always come together, so the text encoder can be taught what a caption says before
any picture is involved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from palette import VALUES
from portraits import Portrait

ORDER: Final = ("skin", "hair", "glasses", "beard", "expression", "shirt", "background")
"""The usual order of phrases; half of the captions keep to it. Hair colour and cut share a phrase."""

_SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "gray": ("gray", "grey"),
    "blonde": ("blonde", "blond"),
    "smiling": ("smiling", "smiling", "happy", "with a smile", "cheerful"),
    "serious": ("serious", "serious", "neutral", "not smiling"),
    "glasses": ("glasses", "glasses", "with glasses", "wearing glasses", "eyeglasses"),
    "beard": ("beard", "beard", "with a beard", "bearded"),
    "curly": ("curly", "curly", "afro"),
    "flat illustration": ("flat illustration", "flat illustration", "flat vector illustration"),
    "pixel art": ("pixel art", "pixel art", "8-bit pixel art"),
    "pencil sketch": ("pencil sketch", "pencil sketch", "pencil drawing"),
    "watercolor": ("watercolor", "watercolor", "watercolour", "watercolor painting"),
    "3d render": ("3d render", "3d render", "3d rendered"),
    "neon": ("neon", "neon", "glowing neon"),
}
_SHIRTS: Final = ("shirt", "shirt", "shirt", "t-shirt", "sweater", "top", "jacket", "suit")
_SUBJECTS: Final = (
    *("a person",) * 3,
    *("a man", "a woman", "a girl", "a boy"),
    *("an astronaut", "someone", "me", "a friend"),
)
_OPENINGS: Final = (
    "{style} portrait of {subject}",
    "{style} avatar of {subject}",
    "a {style} portrait of {subject}",
    "portrait of {subject}, {style}",
    "portrait of {subject}, {style} style",
    "{style} of {subject}",
    "{subject} as {style}",
    "{style}",
)
_PADDING: Final = (
    *("high quality", "best quality", "detailed", "masterpiece", "beautiful", "colorful", "professional"),
    *("profile picture", "avatar", "digital art", "studio light", "sharp focus"),
    *("looking at the camera", "centered", "head and shoulders"),
)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption and, for each attribute, the value that it names (None: it does not say)."""

    text: str
    named: Mapping[str, str | None]


EMPTY: Final = Caption(text="", named=dict.fromkeys(VALUES))


def canonical(named: Mapping[str, str | None], *, order: Sequence[str] = ORDER) -> str:
    """The plainest caption that names exactly these attributes: "neon portrait of a person, pale skin,
    ..."."""
    opening = f"{named['style']} portrait of a person" if named.get("style") else "portrait of a person"
    phrases = (_phrase(part, named, None) for part in order)
    return ", ".join([opening, *(phrase for phrase in phrases if phrase)])


def worded(portrait: Portrait, rng: np.random.Generator) -> Caption:
    """A random caption that is true of the portrait: anything from nothing at all to all there is to say."""
    fate = rng.random()
    if fate < 0.1:
        return EMPTY
    keep = rng.choice((0.0, 0.15, 0.4)) if fate < 0.3 else 0.92
    named: dict[str, str | None] = {
        attribute: value if rng.random() < keep else None for attribute, value in portrait.names.items()
    }
    if rng.random() < 0.97:
        named["style"] = portrait.names["style"]
    if portrait.names["cut"] == "bald":
        named["hair"] = None
    order = list(ORDER) if rng.random() < 0.5 else [str(part) for part in rng.permutation(ORDER)]
    if rng.random() < 0.55:
        return Caption(text=canonical(named, order=order), named=named)
    return Caption(text=_free_wording(named, order, rng), named=named)


def labels(caption: Caption) -> list[int]:
    """For each attribute in the order of `VALUES`: 0 if it is not named, else 1 + the number of its value."""
    return [
        0 if (value := caption.named[attribute]) is None else 1 + values.index(value)
        for attribute, values in VALUES.items()
    ]


def _free_wording(named: Mapping[str, str | None], order: Sequence[str], rng: np.random.Generator) -> str:
    phrases = [phrase for part in order if (phrase := _phrase(part, named, rng))]
    for _ in range(int(rng.integers(0, 3))):
        filler = str(rng.choice(_PADDING)) if rng.random() < 0.6 else _unknown_words(rng)
        phrases.insert(int(rng.integers(0, len(phrases) + 1)), filler)
    opening = _opening(named["style"], rng)
    separator = " " if rng.random() < 0.1 else ", "
    return separator.join([opening, *phrases]) if opening else separator.join(phrases)


def _opening(style: str | None, rng: np.random.Generator) -> str:
    subject = str(rng.choice(_SUBJECTS))
    if style is None:
        return str(rng.choice(("portrait of {subject}", "{subject}", "avatar"))).format(subject=subject)
    return str(rng.choice(_OPENINGS)).format(style=_synonym(style, rng), subject=subject)


def _phrase(part: str, named: Mapping[str, str | None], rng: np.random.Generator | None) -> str | None:
    """The words for one part, varied if a random generator is given."""
    if part == "hair":
        return _hair_phrase(named.get("hair"), named.get("cut"), rng)
    value = named.get(part)
    if value is None:
        return None
    word = _synonym(value, rng)
    match part:
        case "skin":
            return f"{word} skin"
        case "shirt":
            return f"{word} {rng.choice(_SHIRTS) if rng else 'shirt'}"
        case "background":
            return f"{'on a ' if rng and rng.random() < 0.15 else ''}{word} background"
        case _:
            return word


def _hair_phrase(colour: str | None, cut: str | None, rng: np.random.Generator | None) -> str | None:
    if cut == "bald":
        return "bald"
    colour_word = _synonym(colour, rng) if colour else None
    if cut == "bun":
        return f"{colour_word} hair in a bun" if colour_word else "hair in a bun"
    words = [word for word in (_synonym(cut, rng) if cut else None, colour_word) if word]
    return " ".join([*words, "hair"]) if words else None


def _synonym(value: str, rng: np.random.Generator | None) -> str:
    return str(rng.choice(_SYNONYMS.get(value, (value,)))) if rng else value


def _unknown_words(rng: np.random.Generator) -> str:
    """One or two words that mean nothing, so that the encoder learns to pass over what it does not know."""
    words = []
    for _ in range(int(rng.integers(1, 3))):
        letters = rng.choice(list("abcdefghijklmnopqrstuvwxyzeeaaoitnsr"), int(rng.integers(2, 8)))
        words.append("".join(letters))
    return " ".join(words)
