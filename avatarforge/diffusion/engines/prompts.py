"""Splits prompts that are longer than a text encoder's window, as AUTOMATIC1111 does: all words count."""

from typing import Any, Final

_COMMA_REACH: Final = 20
"""A piece rather ends with a comma, if there is one among so many last tokens."""


def split_prompt(text: str, tokenizer: Any) -> list[str]:
    """Return the text in pieces that fit the tokenizer's window; the text itself where it fits.

    Pieces end between words, at a comma where one is near.
    """
    window = tokenizer.model_max_length - 2
    # A token has at least one character; its place says where the text can be cut.
    if len(text) <= window or not tokenizer.is_fast:
        return [text]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places, words = encoding["offset_mapping"], encoding.word_ids()
    pieces, start = [], 0
    while len(places) - start > window:
        end = _find_end(text, places, words, start, start + window)
        pieces.append(text[places[start][0] : places[end - 1][1]])
        start = end
    if start < len(places) or not pieces:
        pieces.append(text[places[start][0] :] if pieces else text)
    return pieces


def _find_end(text: str, places: list[tuple[int, int]], words: list[int | None], start: int, end: int) -> int:
    """Return the number of tokens up to the best cut, at most `end`."""
    for place in range(end, max(start, end - _COMMA_REACH), -1):
        if text[slice(*places[place - 1])].strip() == ",":
            return place
    between_words = (place for place in range(end, start, -1) if words[place] != words[place - 1])
    return next(between_words, end)
