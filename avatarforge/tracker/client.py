"""The typed client of the JobTracker actors."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from ray.exceptions import RayActorError, RayError, RayTaskError

from avatarforge.background import Backoff, retry
from avatarforge.domain.changes import NewJob
from avatarforge.domain.customers import shard_of
from avatarforge.domain.errors import AvatarForgeError, TrackerUnavailable
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.settings import ScalingSettings
from avatarforge.telemetry.aggregation import MetricsReport
from avatarforge.telemetry.exposition import ShardMetrics
from avatarforge.tracker.actor import JobTrackerActor
from avatarforge.tracker.feed import FeedBatch, FeedCursor
from avatarforge.tracker.retractions import Retractions

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Method = Callable[Concatenate[JobTrackerActor, P], Coroutine[Any, Any, T]]
"""A method of the actor: named in code, so that a type checker holds callers to its parameters."""
Answer = ProfilePhotoJob | AvatarForgeError
SubmitBatch = Callable[[list[NewJob]], Awaitable[list[Answer]]]


class TrackerClient:
    """All shards' trackers, as one.

    Commands raise the errors of `tracker.commands.JobCommands`, and `TrackerUnavailable` if no answer comes:
    the command may then have been carried out, and can be sent again.
    """

    READ_BACK_BACKOFF = Backoff(0.2, 0.2)
    """Between two questions to a tracker that is starting again."""
    FEED_TIMEOUT_SECONDS = 10.0
    """Seconds beyond what it was asked to wait after which a tracker counts as away."""
    COMMAND_TIMEOUT_SECONDS = 30.0
    """Seconds after which the answer to a submission or a command counts as lost: a tracker's own limits are
    shorter, but for the erasure of a very large customer, which goes on."""
    METRICS_TIMEOUT_SECONDS = 3.0
    """Seconds that a tracker has to take or tell metrics: Prometheus waits for ten."""

    def __init__(
        self,
        actors: Sequence[Any],
        *,
        retry_timeout: float,
        find_successor: Callable[[int], Any | None] = lambda _: None,
    ) -> None:
        """`actors` are the handles of all shards' `JobTrackerActor`s, in order. A lost answer is looked for
        during `retry_timeout` seconds, in the tracker's next life if need be. `find_successor` returns the
        handle of the tracker that a shard has now, if it has one; it blocks."""
        self.shards = len(actors)
        self._retry_timeout = retry_timeout
        self._actors = list(actors)
        self._find_successor = find_successor
        self._retractions = [Retractions(self._retract) for _ in actors]
        self._batchers = [RequestBatcher(partial(self._submit, shard)) for shard in range(self.shards)]

    async def submit(self, new: NewJob) -> ProfilePhotoJob:
        """Have the job accepted: committed, with its `seq`. Raises `Unavailable`; then it was not kept."""
        return await self._batchers[shard_of(new.job.customer_id, self.shards)].submit(new)

    def retract(self, customer_id: str, job_id: str) -> None:
        """Have the job erased, whose client was told that it is not kept, should it be on record after all.

        Returns at once; a tracker that is away is asked again, until `close`.
        """
        self._retractions[shard_of(customer_id, self.shards)].add(customer_id, job_id)

    async def close(self) -> None:
        """Send no more retractions."""
        await asyncio.gather(*(retractions.close() for retractions in self._retractions))

    async def execute(
        self,
        command: Callable[Concatenate[JobTrackerActor, str, P], Coroutine[Any, Any, T | AvatarForgeError]],
        customer_id: str,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return the answer of the customer's tracker to the command, a method of the actor. Raises what it
        returns as an error, and `TrackerUnavailable` if nothing comes."""
        shard, timeout = shard_of(customer_id, self.shards), self.COMMAND_TIMEOUT_SECONDS
        answer = await self._call(shard, timeout, command, customer_id, *args, **kwargs)
        if isinstance(answer, AvatarForgeError):
            raise answer
        return answer

    async def read_feed(self, shard: int, cursor: FeedCursor, wait: float) -> FeedBatch:
        """Return one shard's updates after the cursor, waiting so many seconds for the first.

        Raises `TrackerUnavailable` while the tracker is away.
        """
        timeout = wait + self.FEED_TIMEOUT_SECONDS
        try:
            answer = await self._call(shard, timeout, JobTrackerActor.read_feed, cursor, wait)
        except RayTaskError as error:
            # Whatever broke there, the cursor holds: the follower asks again from where it is.
            raise TrackerUnavailable(str(error)) from error
        if isinstance(answer, TrackerUnavailable):
            raise answer
        if isinstance(answer, AvatarForgeError):
            raise TrackerUnavailable(str(answer)) from answer
        return answer

    async def add_metrics(self, report: MetricsReport) -> None:
        """Add what a process has counted. The first shard's tracker adds up for the whole application.

        Raises `TrackerUnavailable`; it may then have been counted all the same, and can be sent again.
        """
        await self._call(0, self.METRICS_TIMEOUT_SECONDS, JobTrackerActor.add_metrics, report)

    async def read_metrics(self) -> dict[int, ShardMetrics | None]:
        """Return what each shard's tracker has counted; `None` for one that does not answer."""
        answers = await asyncio.gather(*map(self._read_metrics, range(self.shards)))
        return dict(enumerate(answers))

    async def set_scaling(self, scaling: ScalingSettings) -> None:
        """Tell all trackers the targets of autoscaling. Raises `TrackerUnavailable`; it can be told again."""
        timeout = self.METRICS_TIMEOUT_SECONDS
        calls = (
            self._call(shard, timeout, JobTrackerActor.set_scaling, scaling) for shard in range(self.shards)
        )
        await asyncio.gather(*calls)

    # --- calls ----------------------------------------------------------------------------------------

    async def _call(
        self, shard: int, timeout_seconds: float, method: "Method[P, T]", *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return the tracker's answer. Raises `TrackerUnavailable` if none comes in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await _send(self._actors[shard], method, *args, **kwargs)
        except RayTaskError:
            raise  # A fault of ours, not an outage.
        except RayError as error:
            await self._follow(shard)
            raise TrackerUnavailable(str(error)) from error
        except TimeoutError as error:
            raise TrackerUnavailable(f"it was silent for {timeout_seconds:g} seconds") from error

    async def _read_metrics(self, shard: int) -> ShardMetrics | None:
        try:
            return await self._call(shard, self.METRICS_TIMEOUT_SECONDS, JobTrackerActor.read_metrics)
        except TrackerUnavailable:
            return None

    async def _retract(self, customer_id: str, job_id: str) -> None:
        await self.execute(JobTrackerActor.retract, customer_id, job_id)

    async def _follow(self, shard: int) -> None:
        """Turn to the tracker that has taken the shard over, where the last one has ended for good."""
        try:
            async with asyncio.timeout(self.METRICS_TIMEOUT_SECONDS):
                successor = await asyncio.to_thread(self._find_successor, shard)
        except (RayError, TimeoutError) as error:
            log.info("no successor of a tracker is known", shard=shard, reason=str(error))
            return
        if successor is not None:
            self._actors[shard] = successor

    # --- submissions ----------------------------------------------------------------------------------

    async def _submit(self, shard: int, jobs: list[NewJob]) -> list[Answer]:
        try:
            async with asyncio.timeout(self.COMMAND_TIMEOUT_SECONDS):
                return await _send(self._actors[shard], JobTrackerActor.submit, jobs)
        except (RayActorError, TimeoutError) as error:
            reason = str(error) or f"it was silent for {self.COMMAND_TIMEOUT_SECONDS:g} seconds"
            log.warning("answer to a submission was lost", shard=shard, jobs=len(jobs), reason=reason)
            return list(await asyncio.gather(*(self._read_back(shard, new) for new in jobs)))

    async def _read_back(self, shard: int, new: NewJob) -> Answer:
        """Ask the tracker, or its next life, whether the job was kept, and submit it if not.

        The answer was lost, as a rule with the tracker.
        """
        try:
            async with asyncio.timeout(self._retry_timeout):
                find_or_submit = partial(self._find_or_submit, shard, new)
                return await retry(find_or_submit, RayActorError, self.READ_BACK_BACKOFF)
        except TimeoutError:
            return TrackerUnavailable(f"it did not answer within {self._retry_timeout:g} more seconds")

    async def _find_or_submit(self, shard: int, new: NewJob) -> Answer:
        actor, job = self._actors[shard], new.job
        try:
            kept = await _send(actor, JobTrackerActor.find, job.customer_id, job.job_id)
            if kept is not None:
                return kept
            [answer] = await _send(actor, JobTrackerActor.submit, [new])
        except RayActorError:
            await self._follow(shard)
            raise
        return answer


async def _send(actor: Any, method: "Method[P, T]", *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the method of the actor behind the handle. Raises `RayError`."""
    answer: T = await getattr(actor, method.__name__).remote(*args, **kwargs)
    return answer


class RequestBatcher:
    """Sends what is submitted while a call is under way together in the next call."""

    MAX_CALLS = 1
    """Calls under way at a time. With one, groups grow with the load, and their costs are shared by more:
    a call and its commit take several times as long as one more job in them."""

    def __init__(self, submit_batch: SubmitBatch) -> None:
        self._submit_batch = submit_batch
        self._waiting: list[tuple[NewJob, asyncio.Future[ProfilePhotoJob]]] = []
        self._senders: set[asyncio.Task[None]] = set()

    async def submit(self, new: NewJob) -> ProfilePhotoJob:
        future: asyncio.Future[ProfilePhotoJob] = asyncio.get_running_loop().create_future()
        self._waiting.append((new, future))
        if len(self._senders) < self.MAX_CALLS:
            # In nobody's context: its lines of the log speak for every submission, not for the first one's.
            nobody = contextvars.Context()
            sender = asyncio.create_task(self._send(), name="submit", context=nobody)
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return await future

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                answers = await self._submit_batch([new for new, _ in batch])
            except Exception as error:
                # The edge of a call: each of its submitters hears of it.
                log.exception("submission call broke", jobs=len(batch))
                answers = [TrackerUnavailable(f"the call broke ({type(error).__name__})")] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, AvatarForgeError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
