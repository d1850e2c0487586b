"""The JobTracker of one shard, without Ray: it accepts, orders, dispatches, records and tells."""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import structlog

from avatarforge.domain.changes import JobChange, LoggedChange, NewJob
from avatarforge.domain.deliveries import WebhookDelivery, delivery_id_of
from avatarforge.domain.errors import (
    AvatarForgeError,
    CustomerNotFound,
    DatabaseUnavailable,
    DeliveryNotFound,
    IdempotencyKeyInFlight,
    IllegalTransition,
    JobNotFound,
    TrackerUnavailable,
)
from avatarforge.domain.events import EventKind
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.idempotency import KnownKey
from avatarforge.domain.jobs import ProfilePhotoJob, StoredImage
from avatarforge.domain.status import ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.storage.interface import ObjectStorage
from avatarforge.tracker.backends import Remote
from avatarforge.tracker.board import Board, Gone
from avatarforge.tracker.committer import ChangeLog, Committer
from avatarforge.tracker.dispatcher import Dispatcher
from avatarforge.tracker.feed import Feed, FeedBatch, FeedCursor
from avatarforge.tracker.janitor import Deletions, Janitor
from avatarforge.tracker.keys import KeysInFlight
from avatarforge.tracker.replicas import Replicas

log = structlog.get_logger(__name__)

T = TypeVar("T")


class TrackerRecords(ChangeLog, Protocol):
    """What a tracker needs of the database; `persistence.jobs.JobRecords` keeps it."""

    def unfinished(self, shard: int) -> list[ProfilePhotoJob]: ...

    def job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None: ...

    def jobs_of(self, customer_id: str, before: str | None, limit: int) -> list[ProfilePhotoJob]: ...

    def forget_customer(self, shard: int, epoch: int, customer_id: str) -> bool: ...

    def known_key(self, customer_id: str, key: str, now: datetime) -> KnownKey | None: ...

    def latest_seq(self, shard: int) -> int: ...

    def events_after(self, shard: int, seq: int, limit: int) -> list[LoggedChange]: ...

    def prune(self, shard: int, epoch: int, before: datetime, limit: int) -> int: ...


class Deliveries(Protocol):
    """Where a delivery is asked for again; `persistence.deliveries.DeliveryRecords` keeps it."""

    def again(
        self, customer_id: str, job_id: str, delivery_id: str, at: datetime
    ) -> WebhookDelivery | None: ...


class Webhooks(Protocol):
    """Who calls the receivers; `webhooks.sender.WebhookSender` does."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def expect(self, delivery: WebhookDelivery) -> None: ...

    def forget(self, job_id: str) -> None: ...


class JobTracker:
    """A shard's jobs. All of its state can be rebuilt from the database; only what is committed is told."""

    ORDER_SHOWN = 1000
    """Waiting jobs whose position is told."""
    PAGE = 1000
    """Events or jobs read from the database at once."""
    CLEAN_SECONDS = 5.0
    """How long an erasure waits for storage before it answers; what is left then goes later."""

    def __init__(
        self,
        shard: int,
        records: TrackerRecords,
        replicas: Replicas,
        settings: TrackerSettings,
        *,
        storage: ObjectStorage,
        deletions: Deletions,
        deliveries: Deliveries,
        webhooks: Webhooks,
        remote: Remote | None = None,
        on_broken: Callable[[Exception], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`on_broken` hears of an error after which this tracker can do nothing more: it must be replaced
        by a new one, which recovers from the database."""
        self._shard = shard
        self._records = records
        self._settings = settings
        self._deliveries = deliveries
        self._webhooks = webhooks
        self._on_broken = on_broken
        self._now = now
        self._ready = asyncio.Event()
        self._accepting: dict[str, asyncio.Task[ProfilePhotoJob]] = {}
        self._commands: set[asyncio.Task[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._feed: Feed | None = None
        self._keys = KeysInFlight(time.monotonic)
        self._committer = Committer(
            records,
            shard,
            batch=settings.commit_batch,
            accept_timeout=settings.accept_timeout,
            on_committed=lambda change: self._board.committed(change),
            on_disowned=self._erase_disowned,
            on_broken=on_broken,
        )
        self._board = Board(self._committer, self._tell, now)
        self._dispatcher = Dispatcher(
            self._board,
            replicas,
            settings,
            remote=remote,
            own=self._own,
            on_progress=self._progressed,
            on_unpublished=self._discard,
            now=now,
        )
        self._janitor = Janitor(shard, deletions, storage, prune=self._prune, now=now)

    # --- starting and stopping ----------------------------------------------------------------------

    async def start(self) -> None:
        """Take the shard over: claim its epoch, load what is unfinished, and begin to dispatch."""
        epoch = await self._committer.start()
        jobs, seq = await self._recovered()
        self._feed = Feed(
            f"{epoch}-{secrets.token_hex(4)}",
            seq,
            recent=self._settings.recent_events,
            load_changes=self._load_changes,
            jobs=self._board.jobs,
            order=lambda: self._dispatcher.order(self.ORDER_SHOWN),
            figures=lambda: self._dispatcher.figures,
        )
        self._board.load(jobs)
        interrupted = [job for job in jobs if job.status is ProcessingStatus.PROCESSING]
        await asyncio.gather(*(self._take_back(job) for job in interrupted))
        for job in self._board.jobs():
            self._dispatcher.enqueue(job)
        await self._webhooks.start()
        self._ready.set()
        self._dispatcher.start()
        self._own(self._janitor.work_forever(), "janitor")
        log.info(
            "tracker ready", shard=self._shard, epoch=epoch, jobs=len(jobs), interrupted=len(interrupted)
        )

    async def stop(self) -> None:
        """Stop dispatching and finish the commit under way. Unfinished jobs go on with the next start."""
        await self._webhooks.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._committer.stop()
        # What still waits for a commit would wait for ever.
        left = [*self._commands, *self._accepting.values()]
        for command in left:
            command.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _recovered(self) -> tuple[list[ProfilePhotoJob], int]:
        """Unfinished jobs and the last `seq`; asked until the database answers."""
        while True:
            try:
                jobs = await asyncio.to_thread(self._records.unfinished, self._shard)
                return jobs, await asyncio.to_thread(self._records.latest_seq, self._shard)
            except DatabaseUnavailable as error:
                log.warning("recovery waits for the database", shard=self._shard, reason=error.reason)
                await asyncio.sleep(Committer.FIRST_PAUSE)

    async def _take_back(self, job: ProfilePhotoJob) -> None:
        """A generation that the last tracker followed is followed by nobody now."""
        await self._board.change(job.job_id, lambda current: current.requeued(lost=False), EventKind.REQUEUED)

    # --- submitting -------------------------------------------------------------------------------------

    async def submit(self, jobs: Sequence[NewJob]) -> list[ProfilePhotoJob | AvatarForgeError]:
        """Accept new jobs. Each is committed when its entry of the answer is a job; else it was not kept.

        Submitting a job again (its first answer was lost) returns it as it stands.
        """
        try:
            await self._until_ready()
        except AvatarForgeError as error:
            return [error] * len(jobs)
        answers = await asyncio.gather(*(self._accept(new) for new in jobs), return_exceptions=True)
        return [_told(answer) for answer in answers]

    async def hold_key(self, customer_id: str, key: str) -> KnownKey | None:
        """What is on record under the idempotency key; if nothing is, it is the caller's until it is freed.

        Raises `IdempotencyKeyInFlight` while it is another caller's.
        """
        await self._until_ready()
        self._keys.hold(customer_id, key)
        try:
            known = await asyncio.to_thread(self._records.known_key, customer_id, key, self._now())
            if known is not None and not await self._stands(customer_id, known.job_id):
                raise IdempotencyKeyInFlight(key)
        except BaseException:
            self._keys.free(customer_id, key)
            raise
        if known is not None:
            self._keys.free(customer_id, key)
        return known

    async def _stands(self, customer_id: str, job_id: str) -> bool:
        """Whether the job on record is a promise. One that was committed after its caller had been told 503
        is unfinished and not on the board: it is about to be erased."""
        if self._board.get(job_id) is not None:
            return True
        job = await asyncio.to_thread(self._records.job, customer_id, job_id)
        return job is not None and job.status.is_terminal

    async def free_key(self, customer_id: str, key: str) -> None:
        """The caller's upload has come to its end."""
        self._keys.free(customer_id, key)

    async def find(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        """The job as it stands, unfinished or not: how a lost answer to `submit` is read back."""
        await self._ready.wait()
        return self._board.get(job_id) or await asyncio.to_thread(self._records.job, customer_id, job_id)

    async def _until_ready(self) -> None:
        """Raises what stands in the way after `accept_timeout` seconds."""
        try:
            await asyncio.wait_for(self._ready.wait(), self._settings.accept_timeout)
        except TimeoutError:
            raise self._committer.outage or TrackerUnavailable("it is still starting") from None

    async def _accept(self, new: NewJob) -> ProfilePhotoJob:
        job_id = new.job.job_id
        known = self._board.get(job_id)
        if known is not None:
            return known
        accepting = self._accepting.get(job_id)
        if accepting is None:
            accepting = asyncio.create_task(self._accept_new(new), name="accept")
            self._accepting[job_id] = accepting
            accepting.add_done_callback(lambda _: self._accepting.pop(job_id))
        return await asyncio.shield(accepting)

    async def _accept_new(self, new: NewJob) -> ProfilePhotoJob:
        try:
            job = await self._board.accept(new)
        except AvatarForgeError:
            raise
        except Exception:
            # Kept twice at the same time, through a tracker that started in between: the first one counts.
            if new.idempotency_key is not None and await self._is_known(new):
                raise IdempotencyKeyInFlight(new.idempotency_key.key) from None
            raise
        self._dispatcher.enqueue(job)
        return job

    async def _is_known(self, new: NewJob) -> bool:
        assert new.idempotency_key is not None, "asked only of jobs with a key"
        known = await asyncio.to_thread(
            self._records.known_key, new.job.customer_id, new.idempotency_key.key, self._now()
        )
        return known is not None

    # --- cancelling and erasing ---------------------------------------------------------------------------

    async def cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        """End the job, whether it waits or runs. Cancelling it again changes nothing.

        Raises `JobNotFound`, `IllegalTransition` for a job that is DONE or FAILED, and as `_carried_out`.
        """
        await self._until_ready()
        return await self._carried_out(self._cancel(customer_id, job_id))

    async def _cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        try:
            self._check_owner(customer_id, job_id)
            return await self._board.change(
                job_id, lambda current: current.cancelled(self._now()), EventKind.CANCELLED
            )
        except Gone:
            job = await self._recorded(customer_id, job_id)
        if job.status is not ProcessingStatus.CANCELLED:
            raise IllegalTransition(job.status, ProcessingStatus.CANCELLED)
        return job

    async def erase(self, customer_id: str, job_id: str) -> None:
        """Remove the job with its images and deliveries; ids and numbers of its events stay.

        A generation under way publishes nothing. Raises `JobNotFound`, and as `_carried_out`.
        """
        await self._until_ready()
        await self._carried_out(self._erase(customer_id, job_id))
        await self._janitor.clean(self.CLEAN_SECONDS)

    async def erase_customer(self, customer_id: str) -> None:
        """Remove the customer with every job. Raises `CustomerNotFound`, and as `_carried_out`."""
        await self._until_ready()
        await self._carried_out(self._erase_customer(customer_id))
        await self._janitor.clean(self.CLEAN_SECONDS)

    async def _erase_customer(self, customer_id: str) -> None:
        found = False
        while jobs := await asyncio.to_thread(self._records.jobs_of, customer_id, None, self.PAGE):
            found = True
            erasures = (self._erase_if_there(job) for job in jobs)
            await asyncio.gather(*erasures)
        gone = await self._committer.beside(
            lambda epoch: self._records.forget_customer(self._shard, epoch, customer_id)
        )
        if not found and not gone:
            raise CustomerNotFound(customer_id)

    async def _erase(self, customer_id: str, job_id: str) -> None:
        async with self._board.turn(job_id):
            self._check_owner(customer_id, job_id)
            job = self._board.get(job_id) or await self._recorded(customer_id, job_id)
            await self._board.write(job.erased(), EventKind.ERASED)

    async def _erase_if_there(self, job: ProfilePhotoJob) -> None:
        try:
            await self._erase(job.customer_id, job.job_id)
        except JobNotFound:
            return

    async def _carried_out(self, command: Coroutine[None, None, T]) -> T:
        """What the command returns or raises. `DatabaseUnavailable` when an outage holds it up: it is then
        carried out once the database is back, and can be asked for again.
        """
        if (outage := self._committer.outage) is not None:
            command.close()
            raise DatabaseUnavailable(outage.reason)
        # A task of its own: a move that is being committed must be shown on the board, whoever gives up.
        task = asyncio.create_task(command, name="command")
        self._commands.add(task)
        task.add_done_callback(self._concluded)
        while not task.done():
            await asyncio.wait({task}, timeout=self._settings.accept_timeout)
            if not task.done() and self._committer.outage is not None:
                raise DatabaseUnavailable(self._committer.outage.reason)
        return task.result()

    def _concluded(self, command: asyncio.Task[Any]) -> None:
        self._commands.discard(command)
        error = None if command.cancelled() else command.exception()
        if isinstance(error, AvatarForgeError):
            log.info("command refused", shard=self._shard, reason=str(error))
        elif error is not None:
            log.error("command broke", shard=self._shard, exc_info=error)

    def _check_owner(self, customer_id: str, job_id: str) -> None:
        job = self._board.get(job_id)
        if job is not None and job.customer_id != customer_id:
            raise JobNotFound(customer_id, job_id)

    async def _recorded(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        job = await asyncio.to_thread(self._records.job, customer_id, job_id)
        if job is None:
            raise JobNotFound(customer_id, job_id)
        return job

    def _erase_disowned(self, change: JobChange) -> None:
        """A submission turned out to be committed after its caller was told that it was not."""
        self._own(self._write_off(change.job), "erase")

    async def _write_off(self, job: ProfilePhotoJob) -> None:
        async with self._board.turn(job.job_id):
            await self._board.write(job.erased(), EventKind.ERASED)

    # --- webhooks -----------------------------------------------------------------------------------------

    async def redeliver(self, customer_id: str, job_id: str, delivery_id: str) -> WebhookDelivery:
        """Send the webhook again, at once. Raises `DeliveryNotFound`."""
        await self._until_ready()
        delivery = await asyncio.to_thread(
            self._deliveries.again, customer_id, job_id, delivery_id, self._now()
        )
        if delivery is None:
            raise DeliveryNotFound(job_id, delivery_id)
        self._webhooks.expect(delivery)
        return delivery

    # --- telling ------------------------------------------------------------------------------------------

    async def feed(self, cursor: FeedCursor, wait: float) -> FeedBatch:
        """News for an ingress replica; see `Feed.read`."""
        await self._ready.wait()
        assert self._feed is not None, "set before ready"
        return await self._feed.read(cursor, wait)

    def describe(self) -> dict[str, int]:
        """Figures for operators: unfinished and running jobs, and how often the feed was read."""
        _, running = self._dispatcher.figures
        return {
            "unfinished": len(self._board.jobs()),
            "running": running,
            "feedAnswers": 0 if self._feed is None else self._feed.answers,
        }

    def _tell(self, change: JobChange) -> None:
        job = change.job
        assert self._feed is not None, "nothing is committed before the feed is there"
        self._feed.changed(change)
        if change.is_erasure:
            self._dispatcher.drop(job.job_id)
            self._webhooks.forget(job.job_id)
        elif job.status.is_terminal:
            self._dispatcher.drop(job.job_id)
            if job.callback_url is not None:
                self._webhooks.expect(_delivery_of(change, job.callback_url))

    def _progressed(self, job_id: str, progress: GenerationProgress) -> None:
        assert self._feed is not None, "nothing runs before the tracker is ready"
        self._feed.progressed(job_id, progress)

    async def _load_changes(self, seq: int) -> list[LoggedChange]:
        return await asyncio.to_thread(self._records.events_after, self._shard, seq, self.PAGE)

    # --- cleaning -----------------------------------------------------------------------------------------

    def _discard(self, avatar: StoredImage) -> None:
        self._own(self._janitor.discard(avatar.key), "discard")

    async def _prune(self) -> None:
        before = self._now() - timedelta(days=self._settings.keep_events_days)
        while await self._committer.beside(
            lambda epoch: self._records.prune(self._shard, epoch, before, self.PAGE)
        ):
            log.info("old events were removed", shard=self._shard, before=before.isoformat())

    # --- tasks --------------------------------------------------------------------------------------------

    def _own(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run beside the rest; `stop` ends it. Nobody awaits it: what it raises breaks the tracker."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            log.error("task broke", task=task.get_name(), shard=self._shard, exc_info=error)
            self._on_broken(error)


def _delivery_of(change: JobChange, url: str) -> WebhookDelivery:
    """The delivery that was written with the change."""
    event = change.event
    return WebhookDelivery(
        delivery_id=delivery_id_of(event.job_id, event.seq),
        job_id=event.job_id,
        customer_id=event.customer_id,
        seq=event.seq,
        url=url,
        created_at=event.at,
        next_at=event.at,
    )


def _told(answer: ProfilePhotoJob | BaseException) -> ProfilePhotoJob | AvatarForgeError:
    """What the caller hears: anything but a kept job is an error of our family."""
    if isinstance(answer, ProfilePhotoJob | AvatarForgeError):
        return answer
    log.error("submission broke", exc_info=answer)
    return TrackerUnavailable(f"a submission broke ({type(answer).__name__})")
