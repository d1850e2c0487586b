"""How a call ends that is not answered."""

from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from avatarforge.domain import errors
from avatarforge.ingress.grpc.errors import handle_errors


class ACall:
    """Remembers how it ended."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, Any] = {}

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return ()

    def trailing_metadata(self) -> None: ...

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        self.trailing = dict(trailing_metadata)

    @property
    def rich(self) -> Status:
        return Status.FromString(self.trailing["grpc-status-details-bin"])


def test_an_error_of_ours_is_told_with_its_code_its_sentence_and_its_facts() -> None:
    call, error = ACall(), errors.InvalidRequest("steps", "ten", "a whole number")
    with handle_errors(call, "SubmitPhoto"):
        raise error
    assert (call.code, call.details) == (grpc.StatusCode.INVALID_ARGUMENT, str(error))
    assert call.trailing["avatarforge-code"] == "invalid_request"
    assert (call.rich.code, call.rich.message) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], str(error))
    info = ErrorInfo()
    assert call.rich.details[0].Unpack(info)
    assert info == ErrorInfo(
        reason="invalid_request",
        domain="avatarforge",
        metadata={"field": "steps", "value": "ten", "expected": "a whole number"},
    )


def test_what_passes_by_itself_says_when_to_come_again_and_not_why() -> None:
    call = ACall()
    with handle_errors(call, "SubmitPhoto"):
        raise errors.DatabaseUnavailable("can't connect to db-7.internal:3306", retry_after=7)
    assert call.code is grpc.StatusCode.UNAVAILABLE
    assert b"db-7" not in call.trailing["grpc-status-details-bin"]
    retry = RetryInfo()
    assert call.rich.details[1].Unpack(retry)
    assert retry.retry_delay.seconds == 7


def test_a_client_that_reads_too_slowly_hears_from_where_to_go_on() -> None:
    call = ACall()
    with handle_errors(call, "StreamStatus"):
        raise errors.StreamOverflowed(41)
    assert call.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "seq 41" in call.details
    assert b"afterSeq" in call.trailing["grpc-status-details-bin"]


def test_an_error_that_nobody_expected_is_told_without_what_broke() -> None:
    call = ACall()
    with handle_errors(call, "GetStatus"):
        raise ZeroDivisionError("secret")
    assert call.code is grpc.StatusCode.INTERNAL
    assert call.trailing["avatarforge-code"] == "internal_error"
    assert "did not expect" in call.details
    assert "secret" not in call.details + str(call.trailing)


@pytest.mark.parametrize("error", [errors.JobNotFound("ana", "1"), ZeroDivisionError("broken")])
def test_where_the_status_would_get_lost_the_error_is_raised_after_all(error: Exception) -> None:
    call = ACall()
    with pytest.raises(type(error)), handle_errors(call, "StreamStatus", reraise=True):
        raise error
    assert call.code is not None


def test_a_long_value_from_outside_does_not_fill_the_trailing_metadata() -> None:
    call = ACall()
    with handle_errors(call, "SubmitPhoto"):
        raise errors.InvalidRequest("prompt", "x" * 100_000, "shorter")
    assert len(call.details) + len(call.trailing["grpc-status-details-bin"]) < 1000
