"""Commands on jobs on record: cancel, keep an image, erase, deliver the webhook again."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

import structlog

from avatarforge.background import BackgroundTasks
from avatarforge.domain.changes import IdempotencyKey, JobChange
from avatarforge.domain.deliveries import DeliveryState, WebhookDelivery
from avatarforge.domain.errors import (
    AvatarForgeError,
    CustomerNotFound,
    DeliveryNotFound,
    IllegalTransition,
    JobNotFound,
)
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.persistence.database import limit_wait
from avatarforge.settings import TrackerSettings
from avatarforge.tracker.availability import DatabaseOutage, StartupGate
from avatarforge.tracker.cleanup.janitor import Janitor
from avatarforge.tracker.jobs.committer import Committer
from avatarforge.tracker.jobs.job_table import JobFinished, JobTable
from avatarforge.tracker.ports import Ports
from avatarforge.tracker.submissions import SubmissionHandler

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class JobCommands:
    """Carries commands out, one after the other where they concern the same job.

    Each command but those for deliveries raises `DatabaseUnavailable` when an outage holds it up: it is then
    carried out once the database is back, and can be asked for again.
    """

    PAGE = 1000
    """Jobs of a customer that are erased at a time."""
    CLEANING_TIMEOUT_SECONDS = 5.0
    """How long an erasure waits for storage before it answers; what is left then goes later."""

    def __init__(
        self,
        ports: Ports,
        settings: TrackerSettings,
        job_table: JobTable,
        committer: Committer,
        submissions: SubmissionHandler,
        gate: StartupGate,
        outage: DatabaseOutage,
        tasks: BackgroundTasks,
        janitor: Janitor,
        now: Callable[[], datetime],
    ) -> None:
        self._store = ports.store
        self._deliveries = ports.deliveries
        self._webhooks = ports.webhooks
        self._outage_check_seconds = settings.commit_timeout_seconds
        self._job_table = job_table
        self._committer = committer
        self._submissions = submissions
        self._gate = gate
        self._outage = outage
        self._tasks = tasks
        self._janitor = janitor
        self._now = now
        self._under_way = BackgroundTasks(self._log_error)
        self._rejected: set[str] = set()
        """Ids of jobs that are about to be erased since their callers were told that they are not kept. They
        are on record and not in the job table, so that another erasure may find them too."""

    async def stop(self) -> None:
        """Cancel the commands that still wait for their commit."""
        await self._under_way.stop()

    async def cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        """End the job, whether it waits or runs. Cancelling it again changes nothing.

        Raises `JobNotFound`, and `IllegalTransition` for a job that is DONE or FAILED.
        """
        return await self._execute(self._cancel, customer_id, job_id)

    async def keep(self, customer_id: str, job_id: str, index: int) -> ProfilePhotoJob:
        """Take this image as the one that the client keeps, in place of an earlier choice.

        Raises `JobNotFound`, and `InvalidRequest` for an image that is not there.
        """
        return await self._execute(self._keep, customer_id, job_id, index)

    async def erase(self, customer_id: str, job_id: str) -> None:
        """Remove the job with its images and deliveries; ids and numbers of its events stay.

        A generation under way publishes nothing. Raises `JobNotFound`.
        """
        await self._execute(self._erase, customer_id, job_id)
        await self._janitor.clean(self.CLEANING_TIMEOUT_SECONDS)

    async def erase_customer(self, customer_id: str) -> None:
        """Remove the customer with every job. Raises `CustomerNotFound`."""
        await self._execute(self._erase_with_jobs, customer_id)
        await self._janitor.clean(self.CLEANING_TIMEOUT_SECONDS)

    async def retract(self, customer_id: str, job_id: str) -> None:
        """Erase the job, and accept it no more: its client was told that it is not kept."""
        self._submissions.reject(job_id)
        await self._submissions.wait_until_settled(job_id)
        self._committer.check_outcome(job_id)
        await self._execute(self._erase_if_present, customer_id, job_id)

    async def erase_all(self, jobs: Sequence[ProfilePhotoJob]) -> None:
        """Remove the jobs; those that are gone already are passed over. Objects go by and by."""
        await asyncio.gather(*(self._erase_if_present(job.customer_id, job.job_id) for job in jobs))

    async def redeliver(
        self, customer_id: str, job_id: str, delivery_id: str, key: IdempotencyKey | None = None
    ) -> WebhookDelivery:
        """Send the webhook again, at once, and keep the key. Raises `DeliveryNotFound`."""
        await self._gate.wait_in_time()
        # A task of its own: what is on record as due must be sent, whoever gives up.
        task = self._under_way.spawn(self._redeliver(customer_id, job_id, delivery_id, key), "command")
        return await limit_wait(asyncio.shield(task))

    async def resume_delivery(self, customer_id: str, delivery_id: str) -> None:
        """Have a delivery sent that waits on record: `redeliver` may have kept it and heard of an outage."""
        await self._gate.wait_in_time()
        delivery = await limit_wait(asyncio.to_thread(self._deliveries.find_delivery, delivery_id))
        if delivery is None or delivery.customer_id != customer_id:
            return
        if delivery.state is DeliveryState.PENDING:
            self._webhooks.resume(delivery)

    async def _redeliver(
        self, customer_id: str, job_id: str, delivery_id: str, key: IdempotencyKey | None
    ) -> WebhookDelivery:
        delivery = await asyncio.to_thread(
            self._deliveries.reschedule,
            customer_id,
            job_id,
            delivery_id,
            self._now(),
            self._committer.fence,
            key,
        )
        if delivery is None:
            raise DeliveryNotFound(job_id, delivery_id)
        self._webhooks.expect(delivery)
        return delivery

    def on_rejected(self, change: JobChange) -> None:
        """Erase a job that turned out to be committed after its caller was told that it is not kept."""
        self._tasks.spawn(self._erase_rejected(change.job), "erase")

    async def _erase_rejected(self, job: ProfilePhotoJob) -> None:
        """Erase the job unless somebody erases it before."""
        self._rejected.add(job.job_id)
        async with self._job_table.lock_for(job.job_id):
            if job.job_id in self._rejected:
                self._rejected.discard(job.job_id)
                await self._job_table.write(job.erase(), EventKind.ERASED)

    async def _cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        try:
            self._check_owner(customer_id, job_id)
            return await self._job_table.update(
                job_id, lambda current: current.cancel(self._now()), EventKind.CANCELLED
            )
        except JobFinished:
            job = await self._load(customer_id, job_id)
        if job.status is not ProcessingStatus.CANCELLED:
            raise IllegalTransition(job.status, ProcessingStatus.CANCELLED)
        return job

    async def _keep(self, customer_id: str, job_id: str, index: int) -> ProfilePhotoJob:
        async with self._job_table.lock_for(job_id):
            self._check_owner(customer_id, job_id)
            job = self._job_table.get(job_id) or await self._load(customer_id, job_id)
            return job if job.kept == index else await self._job_table.write(job.keep(index), EventKind.KEPT)

    async def _erase_with_jobs(self, customer_id: str) -> None:
        found = False
        while jobs := await limit_wait(
            asyncio.to_thread(self._store.list_jobs, customer_id, None, self.PAGE)
        ):
            found = True
            await self.erase_all(jobs)
        was_known = await self._committer.run_fenced(self._store.forget_customer, customer_id)
        if not found and not was_known:
            raise CustomerNotFound(customer_id)

    async def _erase(self, customer_id: str, job_id: str) -> None:
        async with self._job_table.lock_for(job_id):
            self._check_owner(customer_id, job_id)
            job = self._job_table.get(job_id) or await self._load(customer_id, job_id)
            await self._job_table.write(job.erase(), EventKind.ERASED)
            self._rejected.discard(job_id)

    async def _erase_if_present(self, customer_id: str, job_id: str) -> None:
        try:
            await self._erase(customer_id, job_id)
        except JobNotFound:
            return

    async def _execute(
        self, command: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what the command returns. Raises what it raises, and `DatabaseUnavailable` in an outage."""
        await self._gate.wait_in_time()
        self._outage.check()
        # A task of its own: a change that is being committed must come into the table, whoever gives up.
        task = self._under_way.spawn(command(*args, **kwargs), "command")
        while not task.done():
            await asyncio.wait({task}, timeout=self._outage_check_seconds)
            if not task.done():
                self._outage.check()
        return task.result()

    def _check_owner(self, customer_id: str, job_id: str) -> None:
        job = self._job_table.get(job_id)
        if job is not None and job.customer_id != customer_id:
            raise JobNotFound(customer_id, job_id)

    async def _load(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        job = await limit_wait(asyncio.to_thread(self._store.find_job, customer_id, job_id))
        if job is None:
            raise JobNotFound(customer_id, job_id)
        return job

    def _log_error(self, _: str, error: Exception) -> None:
        shard = self._committer.fence.shard
        if isinstance(error, AvatarForgeError):
            log.info("command refused", shard=shard, reason=str(error))
        else:
            log.error("command broke", shard=shard, exc_info=error)
