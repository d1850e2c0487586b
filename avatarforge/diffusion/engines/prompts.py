"""Splits prompts that are longer than a text encoder's window, as AUTOMATIC1111 does: all words count."""

import itertools
from collections.abc import Container
from typing import Any, Final

from avatarforge.domain.errors import InvalidRequest

_MAX_WINDOWS: Final = 8
"""So many windows hold 600 tokens, some 450 words. Each token costs all rows of its pass."""
_COMMA_REACH: Final = 20
"""A piece rather ends with a comma, if there is one among so many last tokens."""


def split_prompt(text: str, tokenizer: Any) -> list[str]:
    """Return the text in pieces that fit the tokenizer's window; the text itself where it fits.

    Pieces end between words, at a comma where one is near. Raises `InvalidRequest` for too long a text.
    """
    window = tokenizer.model_max_length - 2
    if not tokenizer.is_fast:
        return [text]
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
        raise InvalidRequest("The prompt", text, f"at most {most} tokens long (it has {len(places)})")
    pieces, start = [], 0
    while len(places) - start > window:
        end = _find_end(text, places, words, start, start + window)
        pieces.append(text[places[start][0] : places[end - 1][1]])
        start = end
    if start < len(places) or not pieces:
        pieces.append(text[places[start][0] :] if pieces else text)
    return pieces


def _count_vectors(token: str, added: Container[str]) -> int:
    """Return for how many tokens diffusers' `maybe_convert_prompt` replaces this one."""
    if token not in added:
        return 1
    return next(count for count in itertools.count(1) if f"{token}_{count}" not in added)


def _find_end(text: str, places: list[tuple[int, int]], words: list[int], start: int, end: int) -> int:
    """Return the number of tokens up to the best cut, at most `end`."""
    for place in range(end, max(start, end - _COMMA_REACH), -1):
        if text[slice(*places[place - 1])].strip() == ",":
            return place
    between_words = (place for place in range(end, start, -1) if words[place] != words[place - 1])
    return next(between_words, end)
