"""The messages between the tracker and a Stable Diffusion replica: the task there, its updates back.

The updates are also the replica's heartbeats: a replica that works, or holds a task in its queue, sends
one every few seconds.
"""

from dataclasses import dataclass

from avatarforge.domain.jobs import GenerationParameters, JobError, Outcome, StoredImage
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
    traceparent: str | None = None
    """The attempt's place in a trace; `None` unless it is traced."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationProgress:
    """Steps done of `total_steps`; 0 of 0 while the task waits in the replica."""

    step: int = 0
    total_steps: int = 0
    preview: bytes | None = None
    """A small image (WebP) of how far it has come."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationFinished:
    """The avatar is in storage under the attempt's key. The stream's last item."""

    outcome: Outcome


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


GenerationUpdate = GenerationProgress | GenerationFinished | GenerationFailed
