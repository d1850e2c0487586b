"""Errors of gRPC calls: a status code, a sentence, and the error's members for programs."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from avatarforge.domain.errors import AvatarForgeError, InvalidRequest
from avatarforge.ingress.problems import UNEXPECTED_ERROR, extension_members, problem_type_of
from avatarforge.ingress.upload.form import FORM_NAMES
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import MetricsRegistry

log = structlog.get_logger(__name__)

DOMAIN = "avatarforge"
"""The domain of the codes in `ErrorInfo.reason`."""


_FIELDS = {form_name: name for name, form_name in FORM_NAMES.items()} | {
    "customerId": "customer_id",
    "jobId": "job_id",
    "Idempotency-Key": "idempotency-key",
}
"""Our messages' and metadata's names by those of REST."""
_NAMES = re.compile(rf"\b({'|'.join(_FIELDS)})\b")


class CallContext(Protocol):
    """The part that Serve's `RayServegRPCContext` and grpcio's own context have in common."""

    def peer(self) -> str: ...

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]: ...

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...


@contextmanager
def handle_errors(
    context: CallContext, method: str, registry: MetricsRegistry | None = None, *, reraise: bool = False
) -> Iterator[None]:
    """End the call with an error that is raised inside, and swallow it unless `reraise`. Counts the call.

    An unexpected error is logged with its traceback and told without it.
    """
    registry = registry or MetricsRegistry()
    status = "CANCELLED"
    try:
        yield
        status = "OK"
    except AvatarForgeError as error:
        problem_type, told = problem_type_of(error), _name_fields(error)
        status = problem_type.grpc_status
        registry.count(metrics.ERRORS, error.code)
        if problem_type.http_status >= 500:
            reason = getattr(error, "reason", str(error))
            log.warning("request refused", code=error.code, reason=reason, method=method)
        members = extension_members(told)
        retry_after = members.pop("retryAfter", None)
        set_error(context, grpc.StatusCode[status], str(told), error.code, members, retry_after)
        if reraise:
            raise
    except Exception:
        status = grpc.StatusCode.INTERNAL.name
        registry.count(metrics.ERRORS, AvatarForgeError.code)
        log.exception("unexpected error", method=method)
        set_error(context, grpc.StatusCode.INTERNAL, UNEXPECTED_ERROR, AvatarForgeError.code)
        if reraise:
            raise
    finally:
        # A call that ends neither well nor with an error was cancelled by its client.
        registry.count(metrics.GRPC_CALLS, method, status)


def _name_fields(error: AvatarForgeError) -> AvatarForgeError:
    """Return the error with the names that gRPC's clients know."""
    if not isinstance(error, InvalidRequest):
        return error
    name = "after_seq" if error.name == "after" else _FIELDS.get(error.name, error.name)
    return type(error)(name, error.value, _NAMES.sub(lambda found: _FIELDS[found[0]], error.expected))


def set_error(
    context: CallContext,
    status: grpc.StatusCode,
    details: str,
    code: str,
    members: Mapping[str, object] | None = None,
    retry_after: int | None = None,
) -> None:
    """Set the error that the call ends with. `code` is stable, `details` is for people.

    Both stand in the trailing metadata too: the code as it is under `avatarforge-code`, and all of it in
    Google's richer model of errors (https://google.aip.dev/193), which gRPC's libraries read.
    """
    metadata = {name: str(member) for name, member in (members or {}).items()}
    rich = Status(code=status.value[0], message=details)
    rich.details.add().Pack(ErrorInfo(reason=code, domain=DOMAIN, metadata=metadata))
    if retry_after is not None:
        rich.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=retry_after)))
    context.set_code(status)
    context.set_details(details)
    context.set_trailing_metadata(
        [("avatarforge-code", code), ("grpc-status-details-bin", rich.SerializeToString())]
    )
