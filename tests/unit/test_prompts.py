"""Where long prompts are cut."""

from typing import Any

import pytest

from avatarforge.diffusion.engines.prompts import split_prompt
from avatarforge.domain.errors import InvalidRequest
from tests.checkpoints import CARRIED


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(CARRIED / "tokenizer")


def count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@pytest.mark.parametrize("text", ["", "neon", "neon, red hair " * 5])
def test_what_fits_is_left_whole(tokenizer: Any, text: str) -> None:
    assert split_prompt(text, tokenizer) == [text]


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
    pieces = split_prompt(text, tokenizer)
    assert len(pieces) > 1
    assert all(0 < count_tokens(tokenizer, piece) <= 75 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_too_long_a_text_is_refused_with_its_length(tokenizer: Any) -> None:
    assert len(split_prompt("neon " * 600, tokenizer)) == 8
    with pytest.raises(InvalidRequest, match=r"at most 600 tokens long \(it has 601\)"):
        split_prompt("neon " * 601, tokenizer)


def test_a_piece_ends_with_a_near_comma_else_between_words(tokenizer: Any) -> None:
    first, second = split_prompt("neon " * 60 + "neon, " + "red " * 30, tokenizer)
    assert (first[-5:], second) == ("neon,", ("red " * 30))
    first, second = split_prompt("neon " * 74 + "unbelievable", tokenizer)
    assert (first, second) == ("neon " * 73 + "neon", "unbelievable")


def test_a_comma_too_far_back_is_no_end(tokenizer: Any) -> None:
    first, _ = split_prompt("neon, " + "red " * 100, tokenizer)
    assert count_tokens(tokenizer, first) == 75
