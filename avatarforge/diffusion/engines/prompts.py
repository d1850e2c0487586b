"""Reads prompts: all words of a long one count, as much as their weights say."""

import itertools
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from avatarforge.domain.errors import truncate_repr

PromptWeights = Literal["none", "automatic1111", "compel"]
"""How a prompt's words are weighted: not at all, or as one of these programs does."""

_MAX_WINDOWS: Final = 8
"""So many windows hold 600 tokens, some 450 words. Each token costs all rows of its pass."""
_COMMA_REACH: Final = 20
"""A piece rather ends with a comma, if there is one among so many last tokens."""
_EMPHASIS: Final = 1.1
"""The weight of brackets without a number."""
_MAX_WEIGHT: Final = 10.0
_WEIGHT: Final = r":\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)"
_MAX_WEAK: Final = 16
"""Fragments with a weight below 1 in compel's writing: each takes a row more through the text encoder."""
_COMPEL_WEIGHT: Final = r"\++|-+|\d+(?:\.\d+)?|\.\d+"
_COMPEL: Final = re.compile(
    rf"""\\[()"]|\(|\)(?P<by>{_COMPEL_WEIGHT})?|"(?P<quoted>[^"]*)"(?P<quoted_by>{_COMPEL_WEIGHT})"""
    r"""|(?P<word>[^\s()"\\.,;:!?+]+?)(?P<sign>\+++|-++)(?=[\s),.;:!?"]|$)|[^\s()"\\.,;:!?+]+|.""",
    re.DOTALL,
)
_CALL: Final = re.compile(r"""[)"]\s*\.(and|blend|swap|withLora)\(""")
_SYMBOL: Final = re.compile(rf"\\[\\()\[\]]|{_WEIGHT}|[()\[\]:\\]|[^()\[\]:\\]+")


class UnusablePrompt(ValueError):
    """The `text` of a prompt is not as it must be: `expected`."""

    def __init__(self, text: str, expected: str) -> None:
        super().__init__(text, expected)
        self.text, self.expected = text, expected

    def __str__(self) -> str:
        return f"The prompt is {truncate_repr(self.text)}, but it must be {self.expected}."


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt that fits a text encoder's window."""

    text: str
    weights: Sequence[float] | None = None
    """By token, without those of beginning and end; `None` if all are 1."""
    weak: Sequence[tuple[float, Sequence[int]]] = ()
    """Of each fragment of the prompt with a weight below 1: that, and its tokens in this piece, if any."""


def split_prompt(text: str, tokenizer: Any, weighting: PromptWeights = "none") -> list[Piece]:
    """Return the text in pieces that fit the tokenizer's window; the text itself where it fits.

    Pieces end between words, at a comma where one is near. Raises `UnusablePrompt` for too long a text, and
    for weights that cannot be used.
    """
    window = tokenizer.model_max_length - 2
    if not tokenizer.is_fast:
        return [Piece(text)]
    fragments = read_fragments(text, weighting)
    written = text
    # The encoder sees fragments as words of their own.
    text = " ".join(fragment for fragment, _ in fragments)
    fragment_at = [number for number, (fragment, _) in enumerate(fragments) for _ in f"{fragment} "]
    weak = [number for number, (_, weight) in enumerate(fragments) if weight < 1]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    added = tokenizer.added_tokens_encoder
    tokens = zip(encoding.tokens(), encoding["offset_mapping"], encoding.word_ids(), strict=True)
    places, words = [], []
    for number, (token, place, word) in enumerate(tokens):
        vectors = _count_vectors(token, added)
        places += [place] * vectors
        # A word of a textual inversion has no number.
        words += [-1 - number if word is None else word] * vectors
    if len(places) > (most := _MAX_WINDOWS * window):
        raise UnusablePrompt(written, f"at most {most} tokens long (it has {len(places)})")
    pieces: list[Piece] = []
    start = 0
    while start < len(places) or not pieces:
        end = _find_end(text, places, words, start, start + window)
        last = end == len(places)
        between = slice(places[start][0] if pieces else 0, None if last else places[end - 1][1])
        numbers = [fragment_at[place[0]] for place in places[start:end]]
        weights = [fragments[number][1] for number in numbers]
        if all(weight == 1 for weight in weights):
            pieces.append(Piece(text[between]))
        else:
            their_tokens = (
                [token for token, number in enumerate(numbers) if number == fragment] for fragment in weak
            )
            their_weights = (fragments[fragment][1] for fragment in weak)
            pieces.append(Piece(text[between], weights, list(zip(their_weights, their_tokens, strict=True))))
        start = end
    return pieces


def read_fragments(text: str, weighting: PromptWeights) -> list[tuple[str, float]]:
    """Return the text's fragments with their weights. Needs no tokenizer.

    Raises `UnusablePrompt` for weights that cannot be used.
    """
    if weighting == "none":
        return [(text, 1.0)]
    return read_weights(text) if weighting == "automatic1111" else read_compel(text)


def read_weights(text: str) -> list[tuple[str, float]]:
    """Return the text's fragments with their weights, as AUTOMATIC1111 writes them.

    `(words)` count 1.1 times as much, `[words]` 1/1.1 times, and `(words:1.3)` as much as is said. Brackets
    within each other multiply, an open one lasts to the end, and a backslash makes one a letter.
    Raises `UnusablePrompt` for a weight that no image bears.
    """
    found: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        found[start:] = [(fragment, weight * factor) for fragment, weight in found[start:]]

    for match in _SYMBOL.finditer(text):
        symbol = match[0]
        if symbol in opened:
            opened[symbol].append(len(found))
        elif symbol == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / _EMPHASIS)
        elif symbol.endswith(")") and symbol[0] != "\\" and opened["("]:
            multiply(opened["("].pop(), _EMPHASIS if match[1] is None else float(match[1]))
        else:
            is_escaped = len(symbol) == 2 and symbol[0] == "\\"
            found.append((symbol[1:] if is_escaped else symbol, 1.0))
    for bracket, factor in (("(", _EMPHASIS), ("[", 1 / _EMPHASIS)):
        for start in opened[bracket]:
            multiply(start, factor)
    return _merge(text, found)


def read_compel(text: str) -> list[tuple[str, float]]:
    """Return the text's fragments with their weights, as https://github.com/damian0815/compel writes them.

    `word+` and `(some words)+` count 1.1 times as much, `word--` 0.81 times, and `(some words)1.3` as much as
    is said; parentheses within each other multiply. Raises `UnusablePrompt` for `.and()` and the like, for a
    weight that no image bears, and for more than 16 fragments below 1.
    """
    if (call := _CALL.search(text)) is not None:
        raise UnusablePrompt(text, f"without .{call[1]}(): weights alone are supported")
    found: list[tuple[str, float]] = []
    opened: list[int] = []
    for match in _COMPEL.finditer(text):
        symbol = match[0]
        if symbol == "(":
            opened.append(len(found))
            found.append((symbol, 1.0))
        elif symbol[0] == ")" and opened:
            start, factor = opened.pop(), _read_factor(match["by"])
            # One that is never closed stays in the text.
            found[start:] = [(fragment, weight * factor) for fragment, weight in found[start + 1 :]]
        elif match["word"] is not None:
            found.append((match["word"], _read_factor(match["sign"])))
        elif match["quoted"] is not None:
            found.append((match["quoted"], _read_factor(match["quoted_by"])))
        else:
            found.append((symbol[-1] if symbol[0] == "\\" else symbol, 1.0))
    merged = _merge(text, found)
    if (weak := sum(weight < 1 for _, weight in merged)) > _MAX_WEAK:
        raise UnusablePrompt(text, f"with at most {_MAX_WEAK} weights below 1 (it has {weak})")
    return merged


def _read_factor(written: str | None) -> float:
    if not written:
        return 1.0
    signs = {"+": 1.1, "-": 0.9}
    return signs[written[0]] ** len(written) if written[0] in signs else float(written)


def _merge(text: str, found: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Join neighbours of one weight. Raises `UnusablePrompt` for a weight that no image bears."""
    merged: list[tuple[str, float]] = []
    for fragment, weight in found:
        if not -_MAX_WEIGHT <= weight <= _MAX_WEIGHT:
            raise UnusablePrompt(text, f"without weights above {_MAX_WEIGHT:g} (one is {weight:g})")
        weight = round(weight, 9)
        # Space between words has no tokens, and no weight.
        if merged and (fragment.isspace() or weight == merged[-1][1]):
            merged[-1] = (merged[-1][0] + fragment, merged[-1][1])
        else:
            merged.append((fragment, weight))
    return merged or [("", 1.0)]


def _count_vectors(token: str, added: Container[str]) -> int:
    """Return for how many tokens diffusers' `maybe_convert_prompt` replaces this one."""
    if token not in added:
        return 1
    return next(count for count in itertools.count(1) if f"{token}_{count}" not in added)


def _find_end(text: str, places: list[tuple[int, int]], words: list[int], start: int, end: int) -> int:
    """Return the number of tokens up to the best cut, at most `end`; all if that is enough."""
    if len(places) <= end:
        return len(places)
    for place in range(end, max(start, end - _COMMA_REACH), -1):
        if text[slice(*places[place - 1])].strip() == ",":
            return place
    between_words = (place for place in range(end, start, -1) if words[place] != words[place - 1])
    return next(between_words, end)
