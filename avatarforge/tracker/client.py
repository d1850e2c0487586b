"""The typed client of the JobTracker actors."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from ray.exceptions import RayActorError, RayError

from avatarforge.domain.customers import shard_of
from avatarforge.domain.errors import AvatarForgeError, TrackerUnavailable
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.tracker.actor import tracker_actor
from avatarforge.tracker.feed import FeedBatch, FeedCursor

log = structlog.get_logger(__name__)

SubmitMany = Callable[[list[ProfilePhotoJob]], Awaitable[list[ProfilePhotoJob | AvatarForgeError]]]


class JobTrackers:
    """All shards' trackers, as one."""

    RETRY = 0.2
    """Seconds between two questions to a tracker that is starting again."""

    def __init__(self, arguments: dict[str, Any], shards: int, *, patience: float) -> None:
        self.shards = shards
        self._patience = patience
        """Seconds that an answer lost with its tracker is looked for in the tracker's next life."""
        self._actors = [tracker_actor(arguments, shard) for shard in range(shards)]
        self._gatherers = [Gatherer(self._submitting(shard)) for shard in range(shards)]

    async def submit(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        """Have the job accepted: committed, with its `seq`. Raises `Unavailable`; then it was not kept."""
        return await self._gatherers[shard_of(job.customer_id, self.shards)].submit(job)

    async def feed(self, shard: int, cursor: FeedCursor, wait: float) -> FeedBatch:
        """News of one shard; see `Feed.read`. Raises `TrackerUnavailable` while the tracker is away."""
        try:
            batch: FeedBatch = await self._actors[shard].feed.remote(cursor, wait)
        except RayError as error:
            raise TrackerUnavailable(str(error)) from error
        return batch

    def _submitting(self, shard: int) -> SubmitMany:
        async def submit(jobs: list[ProfilePhotoJob]) -> list[ProfilePhotoJob | AvatarForgeError]:
            try:
                answers: list[ProfilePhotoJob | AvatarForgeError] = await self._actors[shard].submit.remote(
                    jobs
                )
            except RayActorError as error:
                log.warning(
                    "tracker lost during a submission", shard=shard, jobs=len(jobs), reason=str(error)
                )
                return list(await asyncio.gather(*(self._read_back(shard, job) for job in jobs)))
            return answers

        return submit

    async def _read_back(self, shard: int, job: ProfilePhotoJob) -> ProfilePhotoJob | AvatarForgeError:
        """The tracker died with its answer: ask its next life whether the job was kept, submit it if not."""
        actor = self._actors[shard]
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    try:
                        kept: ProfilePhotoJob | None = await actor.find.remote(job.customer_id, job.job_id)
                        if kept is not None:
                            return kept
                        [answer] = await actor.submit.remote([job])
                    except RayActorError:
                        await asyncio.sleep(self.RETRY)
                    else:
                        return answer
        except TimeoutError:
            return TrackerUnavailable(f"it did not come back within {self._patience:g} seconds")


class Gatherer:
    """Sends what is submitted while a call is under way together in the next call."""

    CALLS = 1
    """Calls under way at a time. With one, groups grow with the load, and their costs are shared by more:
    a call and its commit take several times as long as one more job in them."""

    def __init__(self, submit_many: SubmitMany) -> None:
        self._submit_many = submit_many
        self._waiting: list[tuple[ProfilePhotoJob, asyncio.Future[ProfilePhotoJob]]] = []
        self._senders: set[asyncio.Task[None]] = set()

    async def submit(self, job: ProfilePhotoJob) -> ProfilePhotoJob:
        future: asyncio.Future[ProfilePhotoJob] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        if len(self._senders) < self.CALLS:
            sender = asyncio.create_task(self._send(), name="submit")
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return await future

    async def _send(self) -> None:
        while self._waiting:
            gathered, self._waiting = self._waiting, []
            try:
                answers = await self._submit_many([job for job, _ in gathered])
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
