"""The messages between the tracker and a Stable Diffusion replica: the task there, its updates back.

The updates are also the replica's heartbeats: a replica that works, or holds a task in its queue, sends
one every few seconds.
"""

from dataclasses import dataclass

from avatarforge.domain.jobs import AvatarImage, GenerationParameters, JobError, Outcome, StoredImage
from avatarforge.domain.pickling import pickle_by_name

ORIGINAL_MISSING, WORKER_STOPPING = "original_missing", "worker_stopping"
"""Codes of failures that are no error of a caller: the original is not in storage; the worker stops."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationTask:
    """One attempt at one job."""

    job_id: str
    customer_id: str
    attempt: int
    original: StoredImage
    parameters: GenerationParameters
    missing: tuple[int, ...] = (0,)
    """The indices of the images that are still to be made, at least one."""
    traceparent: str | None = None
    """The attempt's place in a trace; `None` unless it is traced."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationProgress:
    """Steps done of `total_steps`, of all the job's images together; 0 of 0 while the task waits in the
    replica. Images that earlier attempts made count as done."""

    step: int = 0
    total_steps: int = 0
    preview: bytes | None = None
    """A small picture (WebP) of how far an image has come."""
    preview_index: int = 0
    """The index of the image that `preview` shows."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationImage:
    """One of several images is in storage, and others are still being made."""

    image: AvatarImage


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationFinished:
    """All is in storage under the attempt's keys. The stream's last item."""

    outcome: Outcome
    """Its avatar is the image that was made last."""
    image: AvatarImage | None = None
    """That image, of a job that makes several."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationFailed:
    """The generation cannot succeed. The stream's last item.

    `retryable` when the trouble is the worker's or its surroundings', not the request's: the job then
    waits for another attempt.
    """

    error: JobError
    retryable: bool = False
    counts_as_failure: bool = True
    """Whether the attempt counts as one of those that a job may lose: not where the work was taken back, as
    from a worker that is about to be stopped."""
    away_seconds: float | None = None
    """Set where the worker's server did not even begin: the attempt is not held against the job, and the
    worker should get no other for so many seconds."""


GenerationUpdate = GenerationProgress | GenerationImage | GenerationFinished | GenerationFailed
