"""The JobTracker of one shard, without Ray: it accepts, orders, dispatches and records jobs."""

import asyncio
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from avatarforge.background import BackgroundTasks, Backoff, monotonic, retry
from avatarforge.domain.changes import JobChange, LoggedChange
from avatarforge.domain.customers import shard_of
from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.errors import DatabaseUnavailable, StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.settings import TrackerSettings
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.availability import DatabaseOutage, StartupGate
from avatarforge.tracker.cleanup.janitor import Janitor
from avatarforge.tracker.cleanup.retention import ConfirmedClock, EventRetention, JobRetention
from avatarforge.tracker.cleanup.sweeper import Sweeper
from avatarforge.tracker.commands import JobCommands
from avatarforge.tracker.eta import Forecaster
from avatarforge.tracker.feed import Feed
from avatarforge.tracker.jobs.committer import Committer
from avatarforge.tracker.jobs.deadlines import Deadlines
from avatarforge.tracker.jobs.job_table import JobFinished, JobTable
from avatarforge.tracker.metrics import TrackerMetrics
from avatarforge.tracker.ports import Ports
from avatarforge.tracker.queue.admission import AdmissionControl
from avatarforge.tracker.queue.dispatcher import Dispatcher
from avatarforge.tracker.queue.replica_registry import ReplicaRegistry
from avatarforge.tracker.submissions import SubmissionHandler

log = structlog.get_logger(__name__)


class JobTracker:
    """A shard's jobs. All of its state can be rebuilt from the database; only committed changes are told.

    Its public parts are `submissions`, `commands`, `feed`, `replicas` and `metrics`.
    """

    PAGE = 1000
    """Events read from the database, and jobs taken up, at once."""
    RECOVERY_BACKOFF = Backoff(0.1, 0.1)
    MODEL_BACKOFF = Backoff(2.0, 2.0)
    REQUEUE_TIMEOUT_SECONDS = 10.0
    """How long the start waits until interrupted jobs are taken back to the queue."""

    def __init__(
        self,
        shard: int,
        settings: TrackerSettings,
        ports: Ports,
        *,
        on_broken: Callable[[Exception], None],
        registry: MetricsRegistry | None = None,
        cluster_id: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`on_broken` gets an error after which this tracker can do nothing more: a new one must recover from
        the database. Of several clusters that are started on one database, the youngest serves."""
        self._shard, self._settings, self._ports = shard, settings, ports
        self._on_broken, self._now = on_broken, now
        registry = registry or MetricsRegistry()
        tasks = self._tasks = BackgroundTasks(self._break)
        outage = DatabaseOutage(shard)
        gate = self._gate = StartupGate(settings.commit_timeout_seconds, outage)
        self._committer = Committer(ports.store, shard, settings, outage, on_broken, registry, cluster_id)
        table = self._job_table = JobTable(self._committer, now)
        replicas = self.replicas = ReplicaRegistry(monotonic)
        clock = self._clock = ConfirmedClock(ports.store, now)
        janitor = self._janitor = Janitor(self._committer, ports.deletions, ports.storage, tasks, clock)
        self._deadlines = Deadlines(table, tasks, now)
        dispatcher = self._dispatcher = Dispatcher(
            ports, settings, table, replicas, tasks, outage, janitor.discard, registry, now
        )
        admission = self._admission = AdmissionControl(settings, dispatcher.throughput)
        forecaster = self._forecaster = Forecaster(settings.shards, table, dispatcher, replicas)
        recent, load = settings.recent_events, self._load_changes
        feed = self.feed = Feed(gate, recent, load, table.all, forecaster.forecast, replicas.all)
        self.metrics = TrackerMetrics(registry, table, feed, forecaster, None if shard else replicas, now)
        self.submissions = SubmissionHandler(
            ports.store, self._committer, table, admission, gate, ports.storage, now
        )
        self.commands = JobCommands(
            ports, settings, table, self._committer, self.submissions, gate, outage, tasks, janitor, now
        )
        self._connect_parts()

    def _connect_parts(self) -> None:
        """Let each part hear of the changes that concern it."""
        self._job_table.subscribe(
            self.feed.on_change,
            self.metrics.on_change,
            self._forecaster.on_change,
            self._admission.on_change,
            self._dispatcher.on_change,
            self._deadlines.on_change,
            self._janitor.on_change,
            self._notify_webhooks,
        )
        self._committer.subscribe_rejected(self.feed.on_change, self.commands.on_rejected)
        self._dispatcher.subscribe(self.feed.on_progress)

    # --- starting and stopping ----------------------------------------------------------------------

    async def start(self) -> None:
        """Take the shard over: claim its epoch, load what is unfinished, and begin to dispatch."""
        epoch = await self._committer.start()
        jobs, seq, now = await retry(
            self._recover, DatabaseUnavailable, self.RECOVERY_BACKOFF, on_error=self._log_waiting
        )
        self.feed.start_after(f"{epoch}-{secrets.token_hex(4)}", seq)
        self._job_table.load(jobs)
        self._admission.load(jobs)
        interrupted = [job for job in jobs if job.status is ProcessingStatus.PROCESSING]
        requeuing = [self._tasks.spawn(self._requeue(job), "requeue") for job in interrupted]
        if requeuing:
            # One that cannot be written holds the others up no longer.
            await asyncio.wait(requeuing, timeout=self.REQUEUE_TIMEOUT_SECONDS)
        for place, job in enumerate(self._job_table.all()):
            self._deadlines.add(job, now)
            self._dispatcher.enqueue(job)
            if place % self.PAGE == 0:
                # However many they are, the lease is renewed meanwhile.
                await asyncio.sleep(0)
        await self._ports.webhooks.start(self._committer.fence)
        self._gate.open()
        self._dispatcher.start()
        self._tasks.spawn(self._deadlines.run(), "deadlines")
        self._start_cleanup()
        log.info(
            "tracker ready", shard=self._shard, epoch=epoch, jobs=len(jobs), interrupted=len(interrupted)
        )

    async def stop(self) -> None:
        """Stop dispatching and finish the commit under way. Unfinished jobs go on with the next start."""
        await self._ports.webhooks.stop()
        await self._tasks.stop()
        await self._committer.stop()
        # What still waits for a commit would wait for ever.
        await self.commands.stop()
        await self.submissions.stop()

    async def _recover(self) -> tuple[list[ProfilePhotoJob], int, datetime]:
        """Load the last good model, and return the unfinished jobs, the last `seq` and the time."""
        store, shard = self._ports.store, self._shard
        self.replicas.last_good = await asyncio.to_thread(store.get_last_model, shard)
        jobs = await asyncio.to_thread(store.list_unfinished, shard)
        seq = await asyncio.to_thread(store.get_latest_seq, shard)
        return jobs, seq, await self._clock.read()

    def _log_waiting(self, error: DatabaseUnavailable, _: float) -> None:
        log.warning("recovery waits for the database", shard=self._shard, reason=error.reason)

    async def _requeue(self, job: ProfilePhotoJob) -> None:
        """Take a job back to the queue whose generation the last tracker followed: nobody does now."""
        try:
            requeued = await self._job_table.update(
                job.job_id, lambda current: current.requeue(lost=False), EventKind.REQUEUED
            )
        except JobFinished:
            return
        except StaleEpoch:
            raise
        except Exception as error:
            await self._dispatcher.give_up(job.job_id, error)
        else:
            self._dispatcher.enqueue(requeued)

    def _start_cleanup(self) -> None:
        settings, store, now = self._settings, self._ports.store, self._now
        sweeper = Sweeper(
            store,
            self._ports.storage,
            owns_customer=lambda customer_id: shard_of(customer_id, settings.shards) == self._shard,
            interval=timedelta(hours=settings.sweep_interval_hours),
            age=timedelta(hours=settings.sweep_age_hours),
            now=now,
        )
        job_age, event_age = (
            timedelta(days=settings.job_retention_days),
            timedelta(days=settings.event_retention_days),
        )
        jobs = JobRetention(self._shard, store, age=job_age, erase=self.commands.erase_all, clock=self._clock)
        events = EventRetention(store, self._committer, age=event_age, clock=self._clock)
        self._tasks.spawn(self._janitor.run(), "janitor")
        self._tasks.spawn(sweeper.run(), "sweeper")
        self._tasks.spawn(jobs.run(), "retention of jobs")
        self._tasks.spawn(events.run(), "retention of events")

    def _break(self, task: str, error: Exception) -> None:
        log.error("task broke", task=task, shard=self._shard, exc_info=error)
        self._on_broken(error)

    # --- changes --------------------------------------------------------------------------------------

    async def _load_changes(self, seq: int) -> list[LoggedChange]:
        return await asyncio.to_thread(self._ports.store.list_shard_events, self._shard, seq, self.PAGE)

    def _notify_webhooks(self, change: JobChange) -> None:
        if change.is_erasure:
            self._ports.webhooks.forget(change.job.job_id)
        elif (delivery := WebhookDelivery.for_change(change)) is not None:
            self._ports.webhooks.expect(delivery)

    # --- replicas -------------------------------------------------------------------------------------

    async def record_replica_report(self, report: ReplicaReport) -> str | None:
        """Take in what a replica reports of itself, once the tracker is ready.

        Returns the model that served last as desired, if this is the first shard, which keeps it on
        record. Raises what stands in the way of being ready: replicas report again and again, and all that
        they told in a long outage would wait here.
        """
        await self._gate.wait_in_time()
        before = self.replicas.last_good
        self.replicas.add(report)
        self._forecaster.learn_from_report(report)
        if self._shard:
            return None
        self.metrics.replicas.add(report)
        last_good = self.replicas.last_good
        if last_good is not None and last_good != before:
            self._tasks.spawn(self._keep_model(last_good), "last good model")
        return last_good

    async def _keep_model(self, model: str) -> None:
        await retry(
            partial(self._try_to_keep_model, model),
            DatabaseUnavailable,
            self.MODEL_BACKOFF,
            on_error=lambda error, _: log.warning(
                "last good model is not on record yet", model=model, reason=error.reason
            ),
        )

    async def _try_to_keep_model(self, model: str) -> None:
        if self.replicas.last_good == model:
            await self._committer.run_fenced(self._ports.store.keep_model, model)
            log.info("last good model", model=model)

    def describe(self) -> dict[str, float | None]:
        """Return numbers for operators and for the autoscaler.

        `unfinished` jobs, of which some are `running`; `backlogSeconds`, the time of one replica for all of
        them, and `estimatedWaitSeconds`, the time until a job that came now would be done (null while nothing
        was measured); `replicas` of our own that serve; how many images are waited for, how many these are
        making and have made, and how many `accepted` jobs asked for, since this tracker started; and how
        often the feed was read.
        """
        forecast = self._forecaster.forecast()
        return {
            "unfinished": len(self._job_table.all()),
            "running": len(self._dispatcher.running_jobs),
            "waiting": self._dispatcher.queue.image_count,
            "backlogSeconds": forecast.backlog_seconds,
            "estimatedWaitSeconds": forecast.estimated_wait_seconds,
            "replicas": self.replicas.serving_count,
            "localRunning": self._dispatcher.local.image_count,
            "localFinished": self._dispatcher.local.finished,
            "accepted": self.metrics.accepted,
            "feedReads": self.feed.reads,
        }
