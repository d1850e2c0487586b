"""How a call ends that is not answered: a status code, a sentence, and the error's facts for programs."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from avatarforge.domain.errors import AvatarForgeError
from avatarforge.ingress.problems import UNEXPECTED, answer_to, facts_of
from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Figures

log = structlog.get_logger(__name__)

DOMAIN = "avatarforge"
"""Whose codes `ErrorInfo.reason` holds."""


class Call(Protocol):
    """What is known of a call, and how it ends: Serve's `RayServegRPCContext` and grpcio's own context."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...


@contextmanager
def refusing(
    call: Call, method: str, figures: Figures | None = None, *, raising: bool = False
) -> Iterator[None]:
    """End the call with the error that is met inside, and swallow it unless `raising`. Counts it.

    An error that nobody expected is logged with its traceback and told without it.
    """
    figures = figures or Figures()
    status = "CANCELLED"
    try:
        yield
        status = "OK"
    except AvatarForgeError as error:
        status = answer_to(error).grpc
        figures.count(metrics.REFUSALS, error.code)
        _refuse_with(call, method, error)
        if raising:
            raise
    except Exception:
        status = grpc.StatusCode.INTERNAL.name
        figures.count(metrics.REFUSALS, AvatarForgeError.code)
        log.exception("unexpected error", method=method)
        refuse(call, grpc.StatusCode.INTERNAL, UNEXPECTED, AvatarForgeError.code)
        if raising:
            raise
    finally:
        # What neither ends well nor with an error was called off by its client.
        figures.count(metrics.GRPC_CALLS, method, status)


def refuse(
    call: Call,
    status: grpc.StatusCode,
    details: str,
    code: str,
    facts: Mapping[str, object] | None = None,
    retry_after: int | None = None,
) -> None:
    """End the call so. `code` is stable, `details` is for people.

    Both stand in the trailing metadata too: the code as it is under `avatarforge-code`, and all of it in
    Google's richer model of errors (https://google.aip.dev/193), which gRPC's libraries read.
    """
    info = ErrorInfo(
        reason=code, domain=DOMAIN, metadata={name: str(fact) for name, fact in (facts or {}).items()}
    )
    rich = Status(code=status.value[0], message=details)
    rich.details.add().Pack(info)
    if retry_after is not None:
        rich.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=retry_after)))
    call.set_code(status)
    call.set_details(details)
    call.set_trailing_metadata(
        [("avatarforge-code", code), ("grpc-status-details-bin", rich.SerializeToString())]
    )


def _refuse_with(call: Call, method: str, error: AvatarForgeError) -> None:
    answer = answer_to(error)
    if answer.http >= 500:
        log.warning(
            "request refused", code=error.code, reason=getattr(error, "reason", str(error)), method=method
        )
    facts: dict[str, Any] = facts_of(error)
    retry_after = facts.pop("retryAfter", None)
    refuse(call, grpc.StatusCode[answer.grpc], str(error), error.code, facts, retry_after)
