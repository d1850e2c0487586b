"""The methods of `avatarforge.v1.ProfilePhotoJobService`."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from itertools import product

from avatarforge.access.authorizer import Authorizer, Credentials, check_scope
from avatarforge.access.permissions import GRPC, Permission
from avatarforge.domain.access import ApiKey
from avatarforge.domain.customers import validate_customer_id
from avatarforge.domain.errors import MalformedUpload, StreamOverflowed
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.ingress.grpc import messages
from avatarforge.ingress.grpc.errors import CallContext, handle_errors
from avatarforge.ingress.grpc.serving import SERVICE, read_request, require_decoded
from avatarforge.ingress.live.events import Overflowed
from avatarforge.ingress.middleware.authentication import parse_bearer
from avatarforge.ingress.service import ProfilePhotoService
from avatarforge.ingress.upload.multipart import Spool, until_silence
from avatarforge.telemetry import metrics, traces
from avatarforge.telemetry.logs import bind_request

HEARTBEAT_SECONDS = 15.0
"""How long a stream waits for an event at a time. Nothing is sent then: HTTP/2 has keep-alives of its own."""
CLOSE_TIMEOUT_SECONDS = 5.0
"""How long a client may take to read the last messages of a stream whose time is over."""


class JobMethods:
    """The methods, by whose names Serve finds them. A client that goes away cancels its calls."""

    def __init__(self, photos: ProfilePhotoService, authorizer: Authorizer, *, reraise: bool = False) -> None:
        """With `reraise` a stream that fails also raises its error, after it is set on the call."""
        self._photos = photos
        self._prefix = photos.settings.http.root_path
        self._authorizer = authorizer
        self._reraise = reraise
        for method, status in product(SERVICE.methods_by_name, ("OK", "INTERNAL")):
            photos.registry.declare(metrics.GRPC_CALLS, method, status)

    async def SubmitPhoto(
        self, requests: AsyncIterator[pb.SubmitPhotoRequest], grpc_context: CallContext
    ) -> pb.ProfilePhotoJobStatus:
        return await self._submit("SubmitPhoto", requests, grpc_context)

    async def UploadPhoto(
        self, requests: AsyncIterator[pb.SubmitPhotoRequest], grpc_context: CallContext
    ) -> pb.ProfilePhotoJobStatus:
        return await self._submit("UploadPhoto", requests, grpc_context)

    async def _submit(
        self, method: str, requests: AsyncIterator[pb.SubmitPhotoRequest], context: CallContext
    ) -> pb.ProfilePhotoJobStatus:
        limits = self._photos.settings.upload
        with (
            bind_request(_find_request_id(context)),
            handle_errors(context, method, self._photos.registry),
            traces.upload(_metadata(context, "traceparent")),
        ):
            caller = await self._authenticate(method, context)
            with (
                self._photos.upload_limit.slot(),
                closing(Spool(self._photos.upload_folder, limits)) as spool,
            ):
                first = await _receive_photo(requests, caller, spool)
                submitted = await self._photos.submit(
                    first.customer_id,
                    spool.file,
                    "photo",
                    messages.form_fields(first),
                    _metadata(context, "idempotency-key"),
                )
            if submitted.replayed:
                context.set_trailing_metadata([("idempotent-replayed", "true")])
            return messages.job_status(submitted.live, self._prefix)
        return pb.ProfilePhotoJobStatus()

    async def GetStatus(
        self, requests: AsyncIterator[pb.JobStatusRequest], grpc_context: CallContext
    ) -> pb.ProfilePhotoJobStatus:
        with handle_errors(grpc_context, "GetStatus", self._photos.registry):
            caller = await self._authenticate("GetStatus", grpc_context)
            request = await read_request(requests)
            caller.check_scope(request.customer_id)
            live = await self._photos.status(
                validate_customer_id(request.customer_id),
                messages.parse_job_id(request.job_id),
                messages.parse_wait_seconds(request, self._photos.settings.ingress.max_wait_seconds),
                messages.parse_after_seq(request),
            )
            return messages.job_status(live, self._prefix)
        return pb.ProfilePhotoJobStatus()

    async def StreamStatus(
        self, requests: AsyncIterator[pb.StatusStreamRequest], grpc_context: CallContext
    ) -> AsyncIterator[pb.ProfilePhotoJobStatus]:
        with (
            handle_errors(grpc_context, "StreamStatus", self._photos.registry, reraise=self._reraise),
            self._photos.open_streams.track("grpc"),
            _cancel_after(self._photos.settings.ingress.max_stream_seconds + CLOSE_TIMEOUT_SECONDS),
        ):
            caller = await self._authenticate("StreamStatus", grpc_context)
            request = await read_request(requests)
            caller.check_scope(request.customer_id)
            job_id = messages.parse_job_id(request.job_id) if request.HasField("job_id") else None
            events = self._photos.streams.follow(
                validate_customer_id(request.customer_id),
                job_id,
                messages.parse_after_seq(request),
                heartbeat_seconds=HEARTBEAT_SECONDS,
            )
            async with aclosing(events):
                async for event in events:
                    # The key may have been revoked since.
                    await self._authorizer.check(caller.key)
                    if isinstance(event, Overflowed):
                        raise StreamOverflowed(event.seq)
                    if event is not None:
                        for message in messages.stream_messages(
                            request.customer_id, event, self._prefix, previews=request.previews
                        ):
                            yield message

    async def CancelJob(
        self, requests: AsyncIterator[pb.CancelJobRequest], grpc_context: CallContext
    ) -> pb.ProfilePhotoJobStatus:
        with handle_errors(grpc_context, "CancelJob", self._photos.registry):
            caller = await self._authenticate("CancelJob", grpc_context)
            request = await read_request(requests)
            caller.check_scope(request.customer_id)
            live = await self._photos.cancel(
                validate_customer_id(request.customer_id), messages.parse_job_id(request.job_id)
            )
            return messages.job_status(live, self._prefix)
        return pb.ProfilePhotoJobStatus()

    async def KeepImage(
        self, requests: AsyncIterator[pb.KeepImageRequest], grpc_context: CallContext
    ) -> pb.ProfilePhotoJobStatus:
        with handle_errors(grpc_context, "KeepImage", self._photos.registry):
            caller = await self._authenticate("KeepImage", grpc_context)
            request = await read_request(requests)
            caller.check_scope(request.customer_id)
            live = await self._photos.keep_image(
                validate_customer_id(request.customer_id),
                messages.parse_job_id(request.job_id),
                messages.parse_index(request),
            )
            return messages.job_status(live, self._prefix)
        return pb.ProfilePhotoJobStatus()

    async def _authenticate(self, method: str, context: CallContext) -> "_Caller":
        """Ask for a valid key before the message is read, which says for which customer it must be."""
        text = parse_bearer(_metadata(context, "authorization") or "")
        key = await self._authorizer.authorize(Permission.KEY, None, Credentials(key=text))
        return _Caller(key, GRPC[f"{SERVICE.full_name}/{method}"])


@dataclass(frozen=True, slots=True)
class _Caller:
    """The caller of a method, and the permission that it needs."""

    key: ApiKey | None
    permission: Permission

    def check_scope(self, customer_id: str) -> None:
        check_scope(self.key, self.permission, customer_id)


async def _receive_photo(
    requests: AsyncIterator[pb.SubmitPhotoRequest], caller: _Caller, spool: Spool
) -> pb.SubmitPhotoRequest:
    """Write the photo as it comes, and return the first message, which has the fields.

    Raises `PhotoTooLarge`, and `MalformedUpload` for a client that goes away or falls silent.
    """
    first: pb.SubmitPhotoRequest | None = None
    async with until_silence() as heard:
        async for request in requests:
            heard()
            piece = require_decoded(request)
            if first is None:
                first = piece
                caller.check_scope(first.customer_id)
                # Before the size: it says more.
                validate_customer_id(first.customer_id)
            spool.write(memoryview(piece.photo))
    if first is None:
        raise MalformedUpload("it ends before its first message")
    first.ClearField("photo")
    spool.file.seek(0)
    return first


@contextmanager
def _cancel_after(seconds: float) -> Iterator[None]:
    """Cancel the call after so long: a stream that its client does not read waits in a `yield`."""
    task = asyncio.current_task()
    timer = asyncio.get_running_loop().call_later(seconds, lambda: task and task.cancel())
    try:
        yield
    finally:
        timer.cancel()


def _find_request_id(context: CallContext) -> str | None:
    """Return the id that the client gets with the answer: Serve has put it there."""
    request_id = dict(context.trailing_metadata() or ()).get("request_id")
    return request_id if isinstance(request_id, str) else None


def _metadata(context: CallContext, name: str) -> str | None:
    value = dict(context.invocation_metadata()).get(name)
    return value if isinstance(value, str) else None
