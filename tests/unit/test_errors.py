import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

import avatarforge.domain.errors as errors
from avatarforge.domain.errors import AvatarForgeError


def subclasses(of: type[AvatarForgeError]) -> Iterator[type[AvatarForgeError]]:
    for subclass in of.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def example_of(error: type[AvatarForgeError]) -> AvatarForgeError:
    """An instance with a plausible value for each parameter of the constructor."""
    values: dict[Any, Any] = {int: 7, float: 1.5, int | None: 5, str: "text", object: ["anything"]}
    if error.__init__ is AvatarForgeError.__init__:
        return error()
    return error(
        *(values[parameter.annotation] for parameter in list(inspect.signature(error).parameters.values()))
    )


@pytest.mark.parametrize("error", list(subclasses(AvatarForgeError)), ids=lambda error: error.__name__)
def test_an_error_survives_the_way_between_processes(error: type[AvatarForgeError]) -> None:
    sent = example_of(error)
    received = pickle.loads(pickle.dumps(sent))
    assert type(received) is error
    assert vars(received) == vars(sent)
    assert str(received) == str(sent)


def test_codes_are_unique() -> None:
    codes = [error.code for error in subclasses(AvatarForgeError)]
    assert len(codes) == len(set(codes))


def test_what_the_safety_checker_blocks_is_unsafe_content() -> None:
    assert errors.ImageWithheld("m").code == "unsafe_content"


def test_a_long_value_is_cut_in_a_message() -> None:
    message = str(errors.InvalidRequest("prompt", "x" * 10_000, "at most 1000 characters"))
    assert len(message) < 200
    assert "at most 1000 characters" in message


def test_an_error_made_with_named_fields_survives_the_way_too() -> None:
    received = pickle.loads(pickle.dumps(errors.DatabaseUnavailable(retry_after=9, reason="gone")))
    assert (received.reason, received.retry_after, received.args) == ("gone", 9, ("gone", 9, 0))
