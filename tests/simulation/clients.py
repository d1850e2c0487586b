"""Clients: they upload, repeat, cancel, erase and follow, through ingresses that may die."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from datetime import datetime
from io import BytesIO
from random import Random
from typing import Any, BinaryIO, TypeVar

from avatarforge.domain.changes import LogBounds, LoggedChange
from avatarforge.domain.customers import shard_of
from avatarforge.domain.errors import AvatarForgeError, BacklogFull, JobNotFound, Unavailable
from avatarforge.domain.jobs import GenerationParameters, StoredImage
from avatarforge.ingress.live.events import Changed, Erased
from avatarforge.ingress.live.job_cache import JobCache
from avatarforge.ingress.live.streams import JobStreams, Snapshot
from avatarforge.ingress.upload.form import Submission
from avatarforge.ingress.upload.submit import UploadSubmitter
from avatarforge.messages import LiveJob
from avatarforge.settings import IngressSettings, UploadSettings
from avatarforge.storage.keys import original_key
from avatarforge.tracker.actor import JobTrackerActor
from avatarforge.tracker.client import TrackerClient
from avatarforge.tracker.feed import FeedBatch, FeedCursor
from tests.factories import an_image
from tests.simulation.cluster import Cluster
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.storage import SimulatedStorage
from tests.simulation.trace import Trace
from tests.simulation.weather import Weather
from tests.simulation.witness import Witness

T = TypeVar("T")


class _WatchedTrackers(TrackerClient):
    """The real client; what it is told is checked."""

    witness: Witness

    async def read_feed(self, shard: int, cursor: FeedCursor, wait: float) -> FeedBatch:
        batch = await super().read_feed(shard, cursor, wait)
        self.witness.told(shard, cursor, batch)
        return batch


class _QuickSubmitter(UploadSubmitter):
    """The real one, but for the photo: it is not looked at."""

    async def _store(self, customer_id: str, job_id: str, photo: BinaryIO, filename: str) -> StoredImage:
        key = original_key(customer_id, job_id, "image/png")
        await self._pool.run(self._put, key, photo, "image/png")
        return an_image(key=key, media_type="image/png")


class _Events:
    """The record, as streams ask for it."""

    def __init__(self, records: Any, shards: int) -> None:
        self._records = records
        self._shards = shards

    async def job(self, customer_id: str, job_id: str) -> LiveJob:
        job = await asyncio.to_thread(self._records.find_job, customer_id, job_id)
        if job is None:
            raise JobNotFound(customer_id, job_id)
        return LiveJob(job=job)

    async def bounds(self, customer_id: str) -> LogBounds:
        shard = shard_of(customer_id, self._shards)
        bounds: LogBounds = await asyncio.to_thread(self._records.get_log_bounds, shard)
        return bounds

    async def page(self, customer_id: str, job_id: str | None, after: int, limit: int) -> list[LoggedChange]:
        page: list[LoggedChange] = await asyncio.to_thread(
            self._records.list_customer_events, customer_id, job_id, after, limit
        )
        return page


class Ingress:
    """One ingress process: the real view, streams, acceptance and client of the trackers."""

    def __init__(
        self,
        name: str,
        loop: SimulatedLoop,
        cluster: Cluster,
        storage: SimulatedStorage,
        records: Any,
        weather: Weather,
        chance: Random,
        witness: Witness,
        now: Callable[[], datetime],
    ) -> None:
        self.process = Process(name)
        self.trackers = _WatchedTrackers(cluster.handles(), retry_timeout=weather.patience)
        self.trackers.witness = witness
        self.submitter = _QuickSubmitter(storage, self.trackers, UploadSettings(), now)
        self.live = JobCache(self.trackers, IngressSettings(), loop.time)
        settings = IngressSettings(
            max_stream_seconds=chance.choice((3, 10, 300)), stream_buffer=chance.choice((1, 4, 256))
        )
        self.streams = JobStreams(self.live, _Events(records, weather.shards), settings)
        loop.spawn(self.process, self._begin())

    async def _begin(self) -> None:
        self.live.start()


class Clients:
    """Everybody outside. Each job has a client with a character of its own."""

    def __init__(
        self,
        loop: SimulatedLoop,
        weather: Weather,
        chance: Random,
        trace: Trace,
        witness: Witness,
        ingresses: list[Ingress],
    ) -> None:
        """`ingresses` are those that run; whoever replaces one replaces it there."""
        self._loop = loop
        self._weather = weather
        self._chance = chance
        self._trace = trace
        self._witness = witness
        self._ingresses = ingresses
        self.customers = [f"customer-{number}" for number in range(weather.customers)]
        self.acting: list[asyncio.Task[None]] = []
        self.followers: list[Follower] = []

    def begin(self) -> None:
        for number in range(self._weather.jobs):
            # The first customer sends as many as all others together.
            crowd = self._chance.random() < 0.5
            customer_id = self.customers[0] if crowd else self._chance.choice(self.customers)
            self._act(self._uploads(customer_id, f"key-{number}"))
        for customer_id in self.customers:
            self._act(self._follows(Follower(customer_id)))

    def _act(self, work: Coroutine[Any, Any, None]) -> None:
        self.acting.append(self._loop.spawn(self._loop.outside, work))

    # --- one job ------------------------------------------------------------------------------------

    async def _uploads(self, customer_id: str, key: str) -> None:
        chance = self._chance
        await asyncio.sleep(chance.uniform(0, self._weather.seconds * chance.choice((0.1, 0.8))))
        named = key if chance.random() < 0.6 else None
        submission = Submission(
            parameters=GenerationParameters(
                seed=1,
                allow_remote=chance.random() < 0.7,
                variants=chance.choice((1, 1, 1, 2, 4)),
                timeout_seconds=chance.choice((None, None, None, chance.uniform(1, 60))),
            ),
            priority=chance.choice((0, 0, 0, 1, -1)),
            callback_url="https://example.org/hook" if chance.random() < 0.3 else None,
        )
        job_id = await self._sends(customer_id, submission, named)
        if job_id is None:
            return
        if named is not None and chance.random() < 0.4:
            await asyncio.sleep(chance.expovariate(0.3))
            await self._sends(customer_id, submission, named)
        if submission.parameters.variants > 1 and chance.random() < 0.5:
            await asyncio.sleep(chance.expovariate(0.3))
            await self._keeps(customer_id, job_id, chance.randrange(submission.parameters.variants))
        roll = chance.random()
        if roll < 0.3:
            await asyncio.sleep(chance.expovariate(0.5))
            await self._cancels(customer_id, job_id)
        if roll > 0.8 or 0.1 < roll < 0.15:
            await asyncio.sleep(chance.expovariate(0.5))
            await self._erases(customer_id, job_id)

    async def _sends(self, customer_id: str, submission: Submission, key: str | None) -> str | None:
        """Upload until there is a 202, a few times; a client without patience sends again meanwhile."""
        for _ in range(self._chance.choice((1, 3, 8))):
            if key is not None and self._chance.random() < 0.15:
                answers = await asyncio.gather(
                    self._sent(customer_id, submission, key), self._sent(customer_id, submission, key)
                )
                answer = answers[0] or answers[1]
            else:
                answer = await self._sent(customer_id, submission, key)
            if answer is not None:
                return answer
            await asyncio.sleep(self._chance.uniform(0.1, 4))
        return None

    async def _sent(self, customer_id: str, submission: Submission, key: str | None) -> str | None:
        ingress = self._ingress()
        ids: list[str] = []
        try:
            answer = await self._through(ingress, self._upload(ingress, customer_id, submission, key, ids))
        except ConnectionError:
            self._note(f"{customer_id} {key} loses its connection; jobs {ids}")
            return None
        except AvatarForgeError as error:
            self._note(f"{customer_id} {key} hears {error.code}; jobs {ids}")
            # With another error the upload may go on under its key.
            if isinstance(error, Unavailable | BacklogFull):
                for job_id in ids:
                    self._witness.was_refused(customer_id, job_id, ingress.process)
            return None
        self._note(f"{customer_id} {key} hears 202 for {answer}")
        self._witness.accepted(customer_id, answer, key)
        return answer

    async def _upload(
        self, ingress: Ingress, customer_id: str, submission: Submission, key: str | None, ids: list[str]
    ) -> str:
        """`ids` takes the job's id as soon as there is one."""
        photo = BytesIO(b"photo")
        _IDS.set(ids)
        if key is None:
            return (await ingress.submitter.submit(customer_id, submission, photo, "me.png")).job_id
        answer = await ingress.submitter.submit_once(customer_id, submission, photo, "me.png", {}, key)
        return answer.job_id

    async def _cancels(self, customer_id: str, job_id: str) -> None:
        ingress = self._ingress()
        with self._patiently(f"cancelling {job_id}"):
            await self._through(
                ingress, ingress.trackers.execute(JobTrackerActor.cancel, customer_id, job_id)
            )
            self._note(f"{job_id} is cancelled")
            self._witness.was_cancelled(customer_id, job_id)

    async def _keeps(self, customer_id: str, job_id: str, index: int) -> None:
        ingress = self._ingress()
        with self._patiently(f"keeping image {index} of {job_id}"):
            await self._through(
                ingress, ingress.trackers.execute(JobTrackerActor.keep, customer_id, job_id, index)
            )
            self._note(f"image {index} of {job_id} is kept")
            self._witness.was_kept(customer_id, job_id, index)

    async def _erases(self, customer_id: str, job_id: str) -> None:
        ingress = self._ingress()
        self._witness.unwanted.add(job_id)
        with self._patiently(f"erasing {job_id}"):
            await self._through(ingress, ingress.trackers.execute(JobTrackerActor.erase, customer_id, job_id))
            self._note(f"{job_id} is erased")
            self._witness.was_erased(customer_id, job_id)

    # --- following ----------------------------------------------------------------------------------

    async def _follows(self, follower: "Follower") -> None:
        self.followers.append(follower)
        while True:
            ingress = self._ingress()
            with self._patiently(f"following {follower.customer_id}"):
                await self._through(ingress, follower.listen(ingress.streams))
            await asyncio.sleep(self._chance.uniform(0.01, 1))

    # --- talking ------------------------------------------------------------------------------------

    def _ingress(self) -> Ingress:
        return self._chance.choice(self._ingresses)

    async def _through(self, ingress: Ingress, work: Coroutine[Any, Any, T]) -> T:
        return await self._loop.outlived(ingress.process, work)

    @contextmanager
    def _patiently(self, what: str) -> Iterator[None]:
        try:
            yield
        except (AvatarForgeError, ConnectionError) as error:
            self._note(f"{what}: {error!r}")

    def _note(self, what: str) -> None:
        self._trace.note("clients", what)


class Follower:
    """A client that resumes from its last `seq`, on whatever ingress there is."""

    def __init__(self, customer_id: str) -> None:
        self.customer_id = customer_id
        self.seqs: list[int] = []
        self.excused_up_to = 0
        """It was told to begin anew, with a snapshot that stands for all before."""
        self.seen = 0

    async def listen(self, streams: JobStreams) -> None:
        async with aclosing(streams.follow(self.customer_id, None, self.seen, heartbeat_seconds=15)) as items:
            async for item in items:
                match item:
                    case Snapshot(seq=seq):
                        self.excused_up_to = self.seen = seq
                    case Changed(seq=seq) | Erased(seq=seq):
                        self.seqs.append(seq)
                        self.seen = seq


_IDS: ContextVar[list[str]] = ContextVar("ids")
"""Where the ids of the uploads go that are made in this context."""


class JobIds:
    """Ids that sort by the time they were made, as UUIDs of version 7 do, and can be read in a trace."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._count = 0
        self._last = 0

    def __call__(self) -> str:
        self._count += 1
        self._last = max(self._last + 1, int(self._now().timestamp() * 1000))
        time = f"{self._last:012x}"
        job_id = f"{time[:8]}-{time[8:]}-7000-8000-{self._count:012d}"
        _IDS.get([]).append(job_id)
        return job_id
