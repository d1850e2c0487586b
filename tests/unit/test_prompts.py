"""Where long prompts are cut, and how much their words count."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from avatarforge.diffusion.engines.prompts import (
    Piece,
    UnusablePrompt,
    read_compel,
    read_weights,
    split_prompt,
)
from tests.checkpoints import CARRIED


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(CARRIED / "tokenizer")


def count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@pytest.mark.parametrize("text", ["", "neon", "neon, red hair " * 5])
def test_what_fits_is_left_whole(tokenizer: Any, text: str) -> None:
    assert split_prompt(text, tokenizer) == [Piece(text)]


@pytest.mark.parametrize(
    "text",
    [
        "neon portrait of a person with red hair, " * 20,
        "neon " * 200,
        "unbelievable incomprehensibility " * 20,
        "Ein schönes Porträt, 肖像画 😀 " * 20,
    ],
)
def test_the_pieces_fit_and_lose_nothing(tokenizer: Any, text: str) -> None:
    pieces = [piece.text for piece in split_prompt(text, tokenizer)]
    assert len(pieces) > 1
    assert all(0 < count_tokens(tokenizer, piece) <= 75 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_too_long_a_text_is_refused_with_its_length(tokenizer: Any) -> None:
    assert len(split_prompt("neon " * 600, tokenizer)) == 8
    with pytest.raises(UnusablePrompt, match=r"at most 600 tokens long \(it has 601\)"):
        split_prompt("neon " * 601, tokenizer)


def test_a_refusal_quotes_the_text_as_it_was_written(tokenizer: Any) -> None:
    text = "(neon:1.5) " * 601
    with pytest.raises(UnusablePrompt, match=r"^The prompt is '\(neon:1.5\) ") as refusal:
        split_prompt(text, tokenizer, "automatic1111")
    assert refusal.value.text == text


def test_a_piece_ends_with_a_near_comma_else_between_words(tokenizer: Any) -> None:
    first, second = split_prompt("neon " * 60 + "neon, " + "red " * 30, tokenizer)
    assert (first.text[-5:], second.text) == ("neon,", ("red " * 30))
    first, second = split_prompt("neon " * 74 + "unbelievable", tokenizer)
    assert (first.text, second.text) == ("neon " * 73 + "neon", "unbelievable")


def test_a_comma_too_far_back_is_no_end(tokenizer: Any) -> None:
    first, _ = split_prompt("neon, " + "red " * 100, tokenizer)
    assert count_tokens(tokenizer, first.text) == 75


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1)]),
        ("red hair", [("red hair", 1)]),
        ("a (red) hat", [("a ", 1), ("red", 1.1), (" hat", 1)]),
        ("a [[red]] hat", [("a ", 1), ("red", 1 / 1.21), (" hat", 1)]),
        ("(red:1.5)(hat: .5)", [("red", 1.5), ("hat", 0.5)]),
        ("((a) (b:2))", [("a ", 1.21), ("b", 2.2)]),
        ("(a [b]) c", [("a ", 1.1), ("b c", 1)]),
        (r"a \(film\) [\[still\]]", [("a (film) ", 1), ("[still]", 1 / 1.1)]),
        ("a (b c", [("a ", 1), ("b c", 1.1)]),
        ("a [b c", [("a ", 1), ("b c", 1 / 1.1)]),
        ("a) b] 3:4) (c:d)", [("a) b] 3:4) ", 1), ("c:d", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("\\", [("\\", 1)]),
        ("(" * 500, [("", 1)]),
    ],
)
def test_brackets_weight_words(text: str, expected: list[tuple[str, float]]) -> None:
    found = read_weights(text)
    assert [fragment for fragment, _ in found] == [fragment for fragment, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize("text", ["(a:10.5)", "(a:-11)", "(" * 30 + "a"])
def test_a_weight_that_no_image_bears_is_refused(text: str) -> None:
    with pytest.raises(UnusablePrompt, match="without weights above 10"):
        read_weights(text)


def test_each_piece_has_the_weights_of_its_tokens(tokenizer: Any) -> None:
    text = "neon " * 70 + "(red hat:1.5) " + "neon " * 20
    first, second = split_prompt(text, tokenizer, "automatic1111")
    assert count_tokens(tokenizer, f"{first.text} {second.text}") == 92
    assert first.weights == [1] * 70 + [1.5] * 2 + [1] * 3
    assert second.weights is None
    # Fragments are words of their own, as the encoder sees them.
    assert split_prompt("re(d:1.5)", tokenizer, "automatic1111")[0].text == "re d"
    assert split_prompt("(red)", tokenizer) == [Piece("(red)")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "red hair",
        "a red- hat- b",
        "(red hat)1.5, blue-eyed c++, d--.",
        "(red hair, (blue eyes)+)0.8",
        "((a)1.2)1.2 (b) c",
        '"a b"+ c, it\'s+',
        r"a \(film\) still+",
        "well- done - c (d)0.5c",
        "a (b",
        "<mine>+ x",
        "(neon)1.5 portrait, red-- hair",
    ],
)
def test_compels_writing_is_read_as_compel_reads_it(text: str) -> None:
    from compel import Compel

    [prompt] = Compel.parse_prompt_string(text).prompts
    theirs = [("".join(fragment.text.split()), fragment.weight) for fragment in prompt.children]
    ours = [("".join(fragment.split()), weight) for fragment, weight in read_compel(text)]
    assert [fragment for fragment, _ in ours] == [fragment for fragment, _ in theirs]
    assert [weight for _, weight in ours] == pytest.approx([weight for _, weight in theirs])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('("a", "b").and()', r"without \.and\(\)"),
        ("(a)11", "without weights above 10"),
        ("a, ".join(f"(b{number})0.5 " for number in range(17)), "at most 16 weights below 1"),
    ],
)
def test_what_is_not_done_of_compels_writing_is_refused(tokenizer: Any, text: str, expected: str) -> None:
    with pytest.raises(UnusablePrompt, match=expected):
        split_prompt(text, tokenizer, "compel")


LONGEST = 1000
"""Characters of a prompt."""


@pytest.mark.parametrize("read", [read_weights, read_compel])
@pytest.mark.parametrize(
    "text",
    [
        "(" * LONGEST,
        "(" * 499 + "a" + ")" * 499,
        "(a[b" * 250,
        "(a" * 333 + ")" * 333,
        "-" * 999 + "a",
        "+" * LONGEST,
        '"' * LONGEST,
        '"a' * 500,
        "a+-" * 333,
        "a-" * 500,
        ":" + "1" * 999,
        "(a:" + " " * 997,
        "\\" * LONGEST,
    ],
    ids=lambda value: None if callable(value) else value[:6],
)
def test_a_hostile_text_takes_no_time(read: Callable[[str], object], text: str) -> None:
    """compel's own parser would take years for some of these; ours take some hundredths of a second."""
    began = time.process_time()
    with suppress(UnusablePrompt):
        read(text)
    assert time.process_time() - began < 5
