"""The typed client of the JobTracker actors."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from ray.exceptions import RayActorError, RayError, RayTaskError

from avatarforge.domain.changes import NewJob
from avatarforge.domain.customers import shard_of
from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.errors import AvatarForgeError, TrackerUnavailable
from avatarforge.domain.idempotency import KnownKey
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.settings import ScalingSettings
from avatarforge.telemetry.exposition import TrackerFigures
from avatarforge.telemetry.reports import Report
from avatarforge.tracker.disowned import Disowned
from avatarforge.tracker.feed import FeedBatch, FeedCursor

log = structlog.get_logger(__name__)

SubmitMany = Callable[[list[NewJob]], Awaitable[list[ProfilePhotoJob | AvatarForgeError]]]


class JobTrackers:
    """All shards' trackers, as one."""

    RETRY = 0.2
    """Seconds between two questions to a tracker that is starting again."""
    SILENCE = 10.0
    """Seconds beyond what it was asked to wait after which a tracker counts as away."""
    ANSWER = 30.0
    """Seconds after which the answer to a submission or a command counts as lost: a tracker's own limits are
    shorter, but for the erasure of a very large customer, which goes on."""
    FIGURES = 3.0
    """Seconds that a tracker has to take or tell figures: Prometheus waits for ten."""

    def __init__(
        self,
        actors: Sequence[Any],
        *,
        patience: float,
        successor: Callable[[int], Any | None] = lambda _: None,
    ) -> None:
        """`actors` are the handles of all shards' `JobTrackerActor`s, in order. `successor` finds that of
        the tracker that a shard has now, if it has one; it blocks."""
        self.shards = len(actors)
        self._patience = patience
        """Seconds that a lost answer is looked for, in the tracker's next life if need be."""
        self._actors = list(actors)
        self._successor = successor
        self._disowned = [Disowned(self._disown) for _ in range(self.shards)]
        self._gatherers = [Gatherer(self._submitting(shard)) for shard in range(self.shards)]

    async def submit(self, new: NewJob) -> ProfilePhotoJob:
        """Have the job accepted: committed, with its `seq`. Raises `Unavailable`; then it was not kept."""
        return await self._gatherers[shard_of(new.job.customer_id, self.shards)].submit(new)

    def disown(self, customer_id: str, job_id: str) -> None:
        """Have the job erased, whose client was told that it is not kept, should it be on record after all.

        Returns at once; a tracker that is away is asked again, until `close`.
        """
        self._disowned[shard_of(customer_id, self.shards)].add(customer_id, job_id)

    async def close(self) -> None:
        """End what goes on by itself."""
        await asyncio.gather(*(disowned.close() for disowned in self._disowned))

    async def _disown(self, customer_id: str, job_id: str) -> None:
        await self._asked("disown", customer_id, job_id)

    async def hold_key(self, customer_id: str, key: str) -> KnownKey | None:
        """See `JobTracker.hold_key`."""
        known: KnownKey | None = await self._asked("hold_key", customer_id, key)
        return known

    async def free_key(self, customer_id: str, key: str) -> None:
        """See `JobTracker.free_key`."""
        await self._asked("free_key", customer_id, key)

    async def cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        """See `JobTracker.cancel`."""
        job: ProfilePhotoJob = await self._asked("cancel", customer_id, job_id)
        return job

    async def erase(self, customer_id: str, job_id: str) -> None:
        """See `JobTracker.erase`."""
        await self._asked("erase", customer_id, job_id)

    async def erase_customer(self, customer_id: str) -> None:
        """See `JobTracker.erase_customer`."""
        await self._asked("erase_customer", customer_id)

    async def redeliver(self, customer_id: str, job_id: str, delivery_id: str) -> WebhookDelivery:
        """See `JobTracker.redeliver`."""
        delivery: WebhookDelivery = await self._asked("redeliver", customer_id, job_id, delivery_id)
        return delivery

    async def feed(self, shard: int, cursor: FeedCursor, wait: float) -> FeedBatch:
        """News of one shard; see `Feed.read`. Raises `TrackerUnavailable` while the tracker is away."""
        try:
            async with asyncio.timeout(wait + self.SILENCE):
                batch: FeedBatch = await self._actors[shard].feed.remote(cursor, wait)
        except RayError as error:
            await self._follow(shard)
            raise TrackerUnavailable(str(error)) from error
        except TimeoutError as error:
            raise TrackerUnavailable(f"it was silent for {wait + self.SILENCE:g} seconds") from error
        return batch

    async def report(self, report: Report) -> None:
        """Tell what a process has counted. The first shard's tracker adds up for the whole application.

        Raises `TrackerUnavailable`; it may then have been counted all the same, and can be told again.
        """
        await self._answered(0, "report", report)

    async def figures(self) -> dict[int, TrackerFigures | None]:
        """What each shard's tracker has counted; `None` of one that does not answer."""
        answers = await asyncio.gather(
            *(self._answered(shard, "figures") for shard in range(self.shards)), return_exceptions=True
        )
        told: dict[int, TrackerFigures | None] = {}
        for shard, answer in enumerate(answers):
            if isinstance(answer, BaseException) and not isinstance(answer, TrackerUnavailable):
                raise answer
            told[shard] = answer if isinstance(answer, TrackerFigures) else None
        return told

    async def aim(self, scaling: ScalingSettings) -> None:
        """Tell all trackers the targets of autoscaling. Raises `TrackerUnavailable`; it can be told again."""
        await asyncio.gather(*(self._answered(shard, "aim", scaling) for shard in range(self.shards)))

    async def _answered(self, shard: int, method: str, *arguments: object) -> Any:
        """A tracker's answer, soon. Raises `TrackerUnavailable`."""
        try:
            async with asyncio.timeout(self.FIGURES):
                return await getattr(self._actors[shard], method).remote(*arguments)
        except RayTaskError:
            raise  # A fault of ours, not an outage.
        except RayError as error:
            raise TrackerUnavailable(str(error)) from error
        except TimeoutError as error:
            raise TrackerUnavailable(f"it was silent for {self.FIGURES:g} seconds") from error

    async def _asked(self, method: str, customer_id: str, *arguments: str) -> Any:
        """The answer of the customer's tracker. Raises the errors that it tells, and `TrackerUnavailable`;
        what was asked may then have been done, and can be asked again."""
        shard = shard_of(customer_id, self.shards)
        try:
            async with asyncio.timeout(self.ANSWER):
                answer = await getattr(self._actors[shard], method).remote(customer_id, *arguments)
        except RayTaskError:
            raise  # A fault of ours, not an outage.
        except RayError as error:
            await self._follow(shard)
            raise TrackerUnavailable(str(error)) from error
        except TimeoutError as error:
            raise TrackerUnavailable(f"it was silent for {self.ANSWER:g} seconds") from error
        if isinstance(answer, AvatarForgeError):
            raise answer
        return answer

    async def _follow(self, shard: int) -> None:
        """Turn to the tracker that has taken the shard over, where the last one has ended for good."""
        try:
            async with asyncio.timeout(self.FIGURES):
                successor = await asyncio.to_thread(self._successor, shard)
        except (RayError, TimeoutError) as error:
            log.info("no successor of a tracker is known", shard=shard, reason=str(error))
            return
        if successor is not None:
            self._actors[shard] = successor

    def _submitting(self, shard: int) -> SubmitMany:
        async def submit(jobs: list[NewJob]) -> list[ProfilePhotoJob | AvatarForgeError]:
            answers: list[ProfilePhotoJob | AvatarForgeError]
            try:
                async with asyncio.timeout(self.ANSWER):
                    answers = await self._actors[shard].submit.remote(jobs)
            except (RayActorError, TimeoutError) as error:
                reason = str(error) or f"it was silent for {self.ANSWER:g} seconds"
                log.warning("answer to a submission was lost", shard=shard, jobs=len(jobs), reason=reason)
                return list(await asyncio.gather(*(self._read_back(shard, new) for new in jobs)))
            return answers

        return submit

    async def _read_back(self, shard: int, new: NewJob) -> ProfilePhotoJob | AvatarForgeError:
        """The answer was lost, as a rule with the tracker: ask it, or its next life, whether the job was
        kept, and submit it if not."""
        job = new.job
        answer: ProfilePhotoJob | AvatarForgeError
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    actor = self._actors[shard]
                    try:
                        kept: ProfilePhotoJob | None = await actor.find.remote(job.customer_id, job.job_id)
                        if kept is not None:
                            return kept
                        [answer] = await actor.submit.remote([new])
                    except RayActorError:
                        await self._follow(shard)
                        await asyncio.sleep(self.RETRY)
                    else:
                        return answer
        except TimeoutError:
            return TrackerUnavailable(f"it did not answer within {self._patience:g} more seconds")


class Gatherer:
    """Sends what is submitted while a call is under way together in the next call."""

    CALLS = 1
    """Calls under way at a time. With one, groups grow with the load, and their costs are shared by more:
    a call and its commit take several times as long as one more job in them."""

    def __init__(self, submit_many: SubmitMany) -> None:
        self._submit_many = submit_many
        self._waiting: list[tuple[NewJob, asyncio.Future[ProfilePhotoJob]]] = []
        self._senders: set[asyncio.Task[None]] = set()

    async def submit(self, new: NewJob) -> ProfilePhotoJob:
        future: asyncio.Future[ProfilePhotoJob] = asyncio.get_running_loop().create_future()
        self._waiting.append((new, future))
        if len(self._senders) < self.CALLS:
            sender = asyncio.create_task(self._send(), name="submit")
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return await future

    async def _send(self) -> None:
        while self._waiting:
            gathered, self._waiting = self._waiting, []
            try:
                answers = await self._submit_many([new for new, _ in gathered])
            except Exception as error:
                # The edge of a call: each of its submitters hears of it.
                log.exception("submission call broke", jobs=len(gathered))
                answers = [TrackerUnavailable(f"the call broke ({type(error).__name__})")] * len(gathered)
            for (_, future), answer in zip(gathered, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, AvatarForgeError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
