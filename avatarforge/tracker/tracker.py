"""The JobTracker of one shard, without Ray: it accepts, orders, dispatches, records and tells."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from avatarforge.domain.changes import JobChange, LoggedChange, NewJob
from avatarforge.domain.customers import shard_of
from avatarforge.domain.deliveries import WebhookDelivery, delivery_id_of
from avatarforge.domain.errors import AvatarForgeError, DatabaseUnavailable
from avatarforge.domain.events import EventKind
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.idempotency import KnownKey
from avatarforge.domain.jobs import ProfilePhotoJob, StoredImage
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.domain.status import ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.storage.interface import ObjectStorage
from avatarforge.telemetry.exposition import TrackerFigures
from avatarforge.telemetry.figures import Figures
from avatarforge.telemetry.reports import Report
from avatarforge.tracker.backends import Remote
from avatarforge.tracker.backlog import Backlog
from avatarforge.tracker.board import Board
from avatarforge.tracker.clocks import steady
from avatarforge.tracker.commands import Commands
from avatarforge.tracker.committer import Committer
from avatarforge.tracker.deadlines import Deadlines
from avatarforge.tracker.dispatcher import Dispatcher
from avatarforge.tracker.feed import Feed, FeedBatch, FeedCursor
from avatarforge.tracker.intake import Intake
from avatarforge.tracker.janitor import Deletions, Janitor
from avatarforge.tracker.metering import Metering
from avatarforge.tracker.outlook import Outlook
from avatarforge.tracker.readiness import Readiness
from avatarforge.tracker.records import Deliveries, TrackerRecords, Webhooks
from avatarforge.tracker.replicas import Replicas
from avatarforge.tracker.retention import Retention
from avatarforge.tracker.sweeper import Sweeper

log = structlog.get_logger(__name__)


class JobTracker:
    """A shard's jobs. All of its state can be rebuilt from the database; only what is committed is told."""

    PAGE = 1000
    """Events read from the database at once."""

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
        figures: Figures | None = None,
        on_broken: Callable[[Exception], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`on_broken` hears of an error after which this tracker can do nothing more: it must be replaced
        by a new one, which recovers from the database. `figures` are what its own parts count into."""
        self._shard = shard
        self._records = records
        self._settings = settings
        self._webhooks = webhooks
        self._on_broken = on_broken
        self._now = now
        self._tasks: set[asyncio.Task[None]] = set()
        self._feed: Feed | None = None
        self._accepted = 0
        figures = figures or Figures()
        self._metering = Metering(figures, lambda: self._board.jobs(), now)
        self._committer = Committer(
            records,
            shard,
            batch=settings.commit_batch,
            accept_timeout=settings.accept_timeout,
            on_committed=lambda change: self._board.committed(change),
            on_disowned=self._erase_disowned,
            on_broken=on_broken,
            figures=figures,
        )
        self._readiness = Readiness(settings.accept_timeout, lambda: self._committer.outage)
        self._board = Board(self._committer, self._tell, now)
        self._dispatcher = Dispatcher(
            self._board,
            replicas,
            settings,
            remote=remote,
            own=self._own,
            on_progress=self._progressed,
            on_unpublished=self._discard,
            figures=figures,
            is_held=lambda: self._committer.outage is not None,
            local_is_empty=lambda: self._outlook.replicas.local_is_empty,
            now=now,
        )
        self._outlook = Outlook(
            settings.shards,
            steady,
            dispatching=lambda: self._dispatcher,
            job=self._board.get,
            progress=lambda job_id: None if self._feed is None else self._feed.progress_of(job_id),
        )
        self._janitor = Janitor(
            shard, deletions, storage, fence=lambda: self._committer.fence, prune=self._prune, now=now
        )
        self._sweeper = Sweeper(
            records,
            storage,
            owns=lambda customer_id: shard_of(customer_id, settings.shards) == shard,
            every=timedelta(hours=settings.sweep_hours),
            age=timedelta(hours=settings.sweep_age_hours),
            now=now,
        )
        self._deadlines = Deadlines(self._board, self._own, now)
        self._backlog = Backlog(
            settings.max_backlog,
            settings.max_backlog_per_customer,
            lambda: self._dispatcher.figures[0],
        )
        self._intake = Intake(
            records, self._board, self._backlog, self._readiness, storage, on_accepted=self._taken_up, now=now
        )
        self._commands = Commands(
            shard,
            records,
            self._board,
            self._committer,
            self._readiness,
            janitor=self._janitor,
            deliveries=deliveries,
            webhooks=webhooks,
            patience=settings.accept_timeout,
            now=now,
        )
        self._retention = Retention(
            shard,
            records,
            age=timedelta(days=settings.retention_days),
            erase=self._commands.erase_all,
            now=now,
        )

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
            forecast=self._outlook.forecast,
            reports=self._outlook.replicas.all,
        )
        self._board.load(jobs)
        self._backlog.load(jobs)
        interrupted = [job for job in jobs if job.status is ProcessingStatus.PROCESSING]
        await asyncio.gather(*(self._take_back(job) for job in interrupted))
        for job in self._board.jobs():
            self._taken_up(job)
        await self._webhooks.start(self._committer.fence)
        self._readiness.begin()
        self._dispatcher.start()
        self._own(self._deadlines.work_forever(), "deadlines")
        self._own(self._janitor.work_forever(), "janitor")
        self._own(self._sweeper.work_forever(), "sweeper")
        self._own(self._retention.work_forever(), "retention")
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
        left = [*self._commands.under_way, *self._intake.under_way]
        for waiting in left:
            waiting.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _recovered(self) -> tuple[list[ProfilePhotoJob], int]:
        """Unfinished jobs and the last `seq`; asked until the database answers."""
        while True:
            try:
                self._outlook.replicas.last_good = await asyncio.to_thread(
                    self._records.last_model, self._shard
                )
                jobs = await asyncio.to_thread(self._records.unfinished, self._shard)
                return jobs, await asyncio.to_thread(self._records.latest_seq, self._shard)
            except DatabaseUnavailable as error:
                log.warning("recovery waits for the database", shard=self._shard, reason=error.reason)
                await asyncio.sleep(Committer.FIRST_PAUSE)

    def _taken_up(self, job: ProfilePhotoJob) -> None:
        """A job that waits, from now on or again."""
        self._deadlines.watch(job)
        self._dispatcher.enqueue(job)

    async def _take_back(self, job: ProfilePhotoJob) -> None:
        """A generation that the last tracker followed is followed by nobody now."""
        await self._board.change(job.job_id, lambda current: current.requeued(lost=False), EventKind.REQUEUED)

    # --- submitting and commanding --------------------------------------------------------------------

    async def submit(self, jobs: Sequence[NewJob]) -> list[ProfilePhotoJob | AvatarForgeError]:
        """See `Intake.submit`."""
        return await self._intake.submit(jobs)

    async def find(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        """See `Intake.find`."""
        return await self._intake.find(customer_id, job_id)

    async def hold_key(self, customer_id: str, key: str) -> KnownKey | None:
        """See `Intake.hold_key`."""
        return await self._intake.hold_key(customer_id, key)

    async def free_key(self, customer_id: str, key: str) -> None:
        """See `Intake.free_key`."""
        self._intake.free_key(customer_id, key)

    async def disown(self, customer_id: str, job_id: str) -> None:
        """See `Commands.disown`."""
        self._intake.refuse(job_id)
        await self._intake.settled(job_id)
        self._committer.check_settled(job_id)
        await self._commands.disown(customer_id, job_id)

    async def cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        """See `Commands.cancel`."""
        return await self._commands.cancel(customer_id, job_id)

    async def erase(self, customer_id: str, job_id: str) -> None:
        """See `Commands.erase`."""
        await self._commands.erase(customer_id, job_id)

    async def erase_customer(self, customer_id: str) -> None:
        """See `Commands.erase_customer`."""
        await self._commands.erase_customer(customer_id)

    async def redeliver(self, customer_id: str, job_id: str, delivery_id: str) -> WebhookDelivery:
        """See `Commands.redeliver`."""
        return await self._commands.redeliver(customer_id, job_id, delivery_id)

    def _erase_disowned(self, change: JobChange) -> None:
        """A submission turned out to be committed after its caller was told that it was not."""
        assert self._feed is not None, "nothing is committed before the feed is there"
        # It is in the log, and stays there if this tracker comes to its end before the job is erased.
        self._feed.changed(change)
        self._own(self._commands.write_off(change.job), "erase")

    # --- telling ------------------------------------------------------------------------------------------

    async def feed(self, cursor: FeedCursor, wait: float) -> FeedBatch:
        """News for an ingress replica; see `Feed.read`."""
        await self._readiness.reached()
        assert self._feed is not None, "set before ready"
        return await self._feed.read(cursor, wait)

    async def report(self, report: Report) -> None:
        """Take what another process has counted."""
        self._metering.take(report)

    async def figures(self) -> TrackerFigures:
        """All that is counted here, for `/metrics`."""
        return self._metering.read(
            feed_answers=0 if self._feed is None else self._feed.answers,
            forecast=self._outlook.forecast(),
            # Every tracker hears of all replicas; the first one tells of them.
            replicas=self.reports() if self._shard == 0 else (),
        )

    def describe(self) -> dict[str, float | None]:
        """Figures for operators and for whoever decides how many replicas there should be.

        `unfinished` jobs, of which some are `running` and some are `waiting` in line; `backlogSeconds`, what
        one replica would need for all of them, and `lineSeconds`, when a job that came now would be done
        (null while nothing was measured); `replicas` of our own that serve; how many jobs these have and have
        done, and how many were `accepted`, since this tracker started; and how often the feed was read.
        """
        forecast = self._outlook.forecast()
        return {
            "unfinished": len(self._board.jobs()),
            "running": len(self._dispatcher.running),
            "waiting": self._dispatcher.waiting,
            "backlogSeconds": forecast.backlog_seconds,
            "lineSeconds": forecast.line_seconds,
            "replicas": self._outlook.replicas.serving,
            "localRunning": self._dispatcher.local.running,
            "localFinished": self._dispatcher.local.finished,
            "accepted": self._accepted,
            "feedAnswers": 0 if self._feed is None else self._feed.answers,
        }

    # --- replicas -----------------------------------------------------------------------------------------

    async def report_replica(self, report: ReplicaReport) -> str | None:
        """Take what a replica tells of itself, once the tracker is ready.

        Returns the model that served last as it was wished, if this is the first shard, which keeps it on
        record. Raises what stands in the way of being ready: replicas report again and again, and all that
        they told in a long outage would wait here.
        """
        await self._readiness.in_time()
        before = self._outlook.replicas.last_good
        self._outlook.reported(report)
        if self._shard == 0:
            self._metering.replica(report)
        last_good = self._outlook.replicas.last_good
        if self._shard == 0 and last_good is not None and last_good != before:
            self._own(self._keep_model(last_good), "last good model")
        return last_good if self._shard == 0 else None

    def reports(self) -> tuple[ReplicaReport, ...]:
        """The newest report of every replica that has not fallen silent, in the order of their ids."""
        return self._outlook.replicas.all()

    async def _keep_model(self, model: str) -> None:
        while self._outlook.replicas.last_good == model:
            try:
                await self._committer.beside(
                    lambda epoch: self._records.keep_model(self._shard, epoch, model)
                )
            except DatabaseUnavailable as error:
                log.warning("last good model is not on record yet", model=model, reason=error.reason)
                await asyncio.sleep(Committer.LONGEST_PAUSE)
            else:
                log.info("last good model", model=model)
                return

    def _tell(self, change: JobChange) -> None:
        job = change.job
        assert self._feed is not None, "nothing is committed before the feed is there"
        self._feed.changed(change)
        self._metering.changed(change)
        self._accepted += change.event.kind is EventKind.SUBMITTED
        if job.status is ProcessingStatus.DONE and not change.is_erasure:
            self._outlook.finished(job)
        if change.is_erasure or job.status.is_terminal:
            self._backlog.leave(job.job_id)
        if change.is_erasure:
            self._dispatcher.drop(job.job_id)
            self._webhooks.forget(job.job_id)
        elif job.status.is_terminal:
            self._dispatcher.drop(job.job_id)
            if job.attempt > 1 or (job.attempt and job.status is ProcessingStatus.FAILED):
                self._own(self._janitor.discard_stale(job), "discard")
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
