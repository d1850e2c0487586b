"""The methods of `avatarforge.v1.ProfilePhotoJobService`."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from io import BytesIO

from avatarforge.access.gate import Gate, Shown
from avatarforge.access.rules import GRPC
from avatarforge.domain.access import ApiKey
from avatarforge.domain.customers import checked_customer_id
from avatarforge.domain.errors import PhotoTooLarge, StreamOverflowed
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.ingress.access import bearer_of
from avatarforge.ingress.grpc import messages
from avatarforge.ingress.grpc.refusals import Call, refusing
from avatarforge.ingress.grpc.serving import SERVICE, readable
from avatarforge.ingress.news import Overflowed
from avatarforge.ingress.service import ProfilePhotos
from avatarforge.telemetry import traces

QUIET_SECONDS = 15.0
"""How long a stream may wait for news at once. Nothing is sent then: HTTP/2 has its own signs of life."""
PATIENCE_SECONDS = 5.0
"""How long a client may take to read the last messages of a stream whose time is over."""


class JobMethods:
    """Named as the calls are: Serve finds them by their names. A client that goes away cancels them."""

    def __init__(self, photos: ProfilePhotos, gate: Gate, *, raising: bool = False) -> None:
        """`raising` ends streams that are refused with the error itself, after it is set on the call."""
        self._photos = photos
        self._gate = gate
        self._raising = raising

    async def SubmitPhoto(
        self, request: pb.SubmitPhotoRequest, grpc_context: Call
    ) -> pb.ProfilePhotoJobStatus:
        with (
            refusing(grpc_context, "SubmitPhoto", self._photos.figures),
            traces.upload(_metadata(grpc_context, "traceparent")),
        ):
            request = readable(request)
            await self._admit("SubmitPhoto", request.customer_id, grpc_context)
            # Before the size: it says more.
            checked_customer_id(request.customer_id)
            limit = self._photos.settings.upload.max_bytes
            if len(request.photo) > limit:
                raise PhotoTooLarge(limit)
            with self._photos.uploads.one():
                submitted = await self._photos.submit(
                    request.customer_id,
                    BytesIO(request.photo),
                    "photo",
                    messages.form_fields(request),
                    _idempotency_key(grpc_context),
                )
            if submitted.replayed:
                grpc_context.set_trailing_metadata([("idempotent-replayed", "true")])
            return messages.job_status(submitted.live)
        return pb.ProfilePhotoJobStatus()

    async def GetStatus(self, request: pb.JobStatusRequest, grpc_context: Call) -> pb.ProfilePhotoJobStatus:
        with refusing(grpc_context, "GetStatus", self._photos.figures):
            request = readable(request)
            await self._admit("GetStatus", request.customer_id, grpc_context)
            live = await self._photos.status(
                checked_customer_id(request.customer_id),
                messages.job_id_of(request.job_id),
                messages.wait_seconds_of(request, self._photos.settings.ingress.max_wait_seconds),
                messages.after_seq_of(request),
            )
            return messages.job_status(live)
        return pb.ProfilePhotoJobStatus()

    async def StreamStatus(
        self, request: pb.StatusStreamRequest, grpc_context: Call
    ) -> AsyncIterator[pb.ProfilePhotoJobStatus]:
        with (
            refusing(grpc_context, "StreamStatus", self._photos.figures, raising=self._raising),
            self._photos.clients.following("grpc"),
            _at_most(self._photos.settings.ingress.max_stream_seconds + PATIENCE_SECONDS),
        ):
            request = readable(request)
            key = await self._admit("StreamStatus", request.customer_id, grpc_context)
            job_id = messages.job_id_of(request.job_id) if request.HasField("job_id") else None
            following = self._photos.follow(
                checked_customer_id(request.customer_id),
                job_id,
                messages.after_seq_of(request),
                quiet_seconds=QUIET_SECONDS,
            )
            async with aclosing(following):
                async for item in following:
                    # The key may have been revoked since.
                    await self._gate.check(key)
                    if isinstance(item, Overflowed):
                        raise StreamOverflowed(item.seq)
                    if item is not None:
                        for message in messages.stream_messages(request.customer_id, item):
                            yield message

    async def CancelJob(self, request: pb.CancelJobRequest, grpc_context: Call) -> pb.ProfilePhotoJobStatus:
        with refusing(grpc_context, "CancelJob", self._photos.figures):
            request = readable(request)
            await self._admit("CancelJob", request.customer_id, grpc_context)
            live = await self._photos.cancel(
                checked_customer_id(request.customer_id), messages.job_id_of(request.job_id)
            )
            return messages.job_status(live)
        return pb.ProfilePhotoJobStatus()

    async def _admit(self, method: str, customer_id: str, call: Call) -> ApiKey | None:
        rule = GRPC[f"{SERVICE.full_name}/{method}"]
        return await self._gate.admit(rule, customer_id, Shown(key=_key_text(call)))


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Cancel the call if it is still here then: a stream that its client does not read waits in a `yield`."""
    task = asyncio.current_task()
    timer = asyncio.get_running_loop().call_later(seconds, lambda: task and task.cancel())
    try:
        yield
    finally:
        timer.cancel()


def _idempotency_key(call: Call) -> str | None:
    return _metadata(call, "idempotency-key")


def _metadata(call: Call, name: str) -> str | None:
    value = dict(call.invocation_metadata()).get(name)
    return value if isinstance(value, str) else None


def _key_text(call: Call) -> str | None:
    text = dict(call.invocation_metadata()).get("authorization")
    return bearer_of(text) if isinstance(text, str) else None
