"""One attempt at one job: from a reserved slot to the attempt's end."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import structlog

from avatarforge.domain import errors
from avatarforge.domain.generations import (
    ORIGINAL_MISSING,
    WORKER_STOPPING,
    GenerationFailed,
    GenerationFinished,
    GenerationImage,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import AvatarImage, JobError, ProfilePhotoJob
from avatarforge.telemetry import traces
from avatarforge.tracker.ports import Reservation

log = structlog.get_logger(__name__)

AttemptEnd = GenerationFinished | GenerationFailed
"""The end of an attempt. A lost worker is a `GenerationFailed` that is retryable."""

WORKER_LOST, LEASE_EXPIRED = "worker_lost", "lease_expired"
LOST_WORKER_CODES = frozenset({WORKER_LOST, LEASE_EXPIRED})
"""Codes of attempts whose worker is gone: another one takes the job, as soon as there is one."""

ATTEMPT_FAILURES = (
    *(WORKER_LOST, LEASE_EXPIRED, WORKER_STOPPING, ORIGINAL_MISSING),
    *(
        error.code
        for error in (
            errors.AvatarForgeError,
            errors.DamagedPhoto,
            errors.DeviceFailed,
            errors.DeviceLost,
            errors.ImageNotFinite,
            errors.ImageWithheld,
            errors.InvalidRequest,
            errors.ModelMissing,
            errors.PipelineFailed,
            errors.RemoteFailed,
            errors.RemoteRefused,
            errors.RemoteUnavailable,
            errors.SigningFailed,
            errors.StorageFull,
            errors.StorageUnavailable,
        )
    ),
)
"""Codes with which attempts end."""


def build_task(job: ProfilePhotoJob) -> GenerationTask:
    return GenerationTask(
        job_id=job.job_id,
        customer_id=job.customer_id,
        attempt=job.attempt,
        original=job.original,
        parameters=job.parameters,
        missing=job.missing,
        traceparent=traces.traceparent(),
    )


def attempt_identity(job: ProfilePhotoJob) -> dict[str, str | int]:
    """Return the ids that name the attempt in logs and traces."""
    return {"job_id": job.job_id, "customer_id": job.customer_id, "attempt": job.attempt}


class _ImageRefused(Exception):
    """An image could not be published: no fault of the worker's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


async def run_attempt(
    job: ProfilePhotoJob,
    reservation: Reservation,
    *,
    lease_seconds: float,
    on_progress: Callable[[GenerationProgress], None],
    on_image: Callable[[AvatarImage], Awaitable[None]],
) -> AttemptEnd:
    """Generate in the reserved slot and return the attempt's end.

    Every item of the stream renews the lease; when it runs out the generation is stopped. So it is when
    `on_image`, which gets each of several images but the last, raises, and that is raised here.
    """
    try:
        with traces.span("attempt", job.parameters.traceparent, "client", attempt_identity(job)):
            async with aclosing(reservation.generate(build_task(job))) as updates:
                return await _read_end(updates, lease_seconds, on_progress, on_image)
    except _ImageRefused as refused:
        raise refused.error from None
    except TimeoutError:
        log.warning("replica fell silent", seconds=lease_seconds, **attempt_identity(job))
        return _lose_worker(LEASE_EXPIRED, f"The worker was silent for {lease_seconds:g} seconds.")
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        # Ours was not cancelled: the replica cancelled its side, and Ray tells it in this way.
        return _lose_worker(WORKER_LOST, "The worker gave the generation up.")
    except Exception as error:
        # The edge of a job: whatever breaks the stream (a dead actor, a dead node, a cut connection) loses
        # this attempt and nothing else.
        log.warning("worker lost", exc_info=error, **attempt_identity(job))
        return _lose_worker(WORKER_LOST, f"The worker was lost ({type(error).__name__}).")


async def _read_end(
    updates: AsyncGenerator[GenerationUpdate, None],
    lease_seconds: float,
    on_progress: Callable[[GenerationProgress], None],
    on_image: Callable[[AvatarImage], Awaitable[None]],
) -> AttemptEnd:
    while True:
        try:
            # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with an update.
            async with asyncio.timeout(lease_seconds):
                update = await anext(updates)
        except StopAsyncIteration:
            return _lose_worker(WORKER_LOST, "The worker ended its stream without a result.")
        if isinstance(update, GenerationProgress):
            on_progress(update)
        elif isinstance(update, GenerationImage):
            try:
                await on_image(update.image)
            except Exception as error:
                raise _ImageRefused(error) from error
        else:
            return update


def _lose_worker(code: str, message: str) -> GenerationFailed:
    return GenerationFailed(error=JobError(code=code, message=message), retryable=True)
