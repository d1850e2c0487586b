"""What clients may ask of a job that is kept: cancel it, erase it, tell its end again."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import structlog

from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.errors import (
    AvatarForgeError,
    CustomerNotFound,
    DatabaseUnavailable,
    DeliveryNotFound,
    IllegalTransition,
    JobNotFound,
)
from avatarforge.domain.events import EventKind
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.tracker.board import Board, Gone
from avatarforge.tracker.committer import Committer
from avatarforge.tracker.janitor import Janitor
from avatarforge.tracker.readiness import Readiness
from avatarforge.tracker.records import Deliveries, TrackerRecords, Webhooks

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Commands:
    """Carries commands out, one after the other where they concern the same job."""

    PAGE = 1000
    """Jobs of a customer that are erased at a time."""
    CLEAN_SECONDS = 5.0
    """How long an erasure waits for storage before it answers; what is left then goes later."""

    def __init__(
        self,
        shard: int,
        records: TrackerRecords,
        board: Board,
        committer: Committer,
        readiness: Readiness,
        *,
        janitor: Janitor,
        deliveries: Deliveries,
        webhooks: Webhooks,
        patience: float,
        now: Callable[[], datetime],
    ) -> None:
        """`patience` is in seconds: how often an outage of the database is looked for meanwhile."""
        self._shard = shard
        self._records = records
        self._board = board
        self._committer = committer
        self._readiness = readiness
        self._janitor = janitor
        self._deliveries = deliveries
        self._webhooks = webhooks
        self._patience = patience
        self._now = now
        self._under_way: set[asyncio.Task[Any]] = set()
        self._written_off: set[str] = set()
        """Ids of jobs that are about to be erased since their callers were told that they are not kept. They
        are on record and not on the board, so that another erasure may find them too."""

    @property
    def under_way(self) -> tuple[asyncio.Task[Any], ...]:
        """Commands that are being carried out."""
        return tuple(self._under_way)

    async def cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob:
        """End the job, whether it waits or runs. Cancelling it again changes nothing.

        Raises `JobNotFound`, `IllegalTransition` for a job that is DONE or FAILED, and as `_carried_out`.
        """
        await self._readiness.in_time()
        return await self._carried_out(self._cancel(customer_id, job_id))

    async def erase(self, customer_id: str, job_id: str) -> None:
        """Remove the job with its images and deliveries; ids and numbers of its events stay.

        A generation under way publishes nothing. Raises `JobNotFound`, and as `_carried_out`.
        """
        await self._readiness.in_time()
        await self._carried_out(self._erase(customer_id, job_id))
        await self._janitor.clean(self.CLEAN_SECONDS)

    async def erase_customer(self, customer_id: str) -> None:
        """Remove the customer with every job. Raises `CustomerNotFound`, and as `_carried_out`."""
        await self._readiness.in_time()
        await self._carried_out(self._erase_customer(customer_id))
        await self._janitor.clean(self.CLEAN_SECONDS)

    async def disown(self, customer_id: str, job_id: str) -> None:
        """Erase the job if it is on record: its client was told that it is not kept.

        Raises as `_carried_out`.
        """
        await self._readiness.in_time()
        await self._carried_out(self._disown(customer_id, job_id))

    async def erase_all(self, jobs: Sequence[ProfilePhotoJob]) -> None:
        """Remove the jobs; those that are gone already are passed over. Objects go by and by."""
        await asyncio.gather(*map(self._erase_if_there, jobs))

    async def redeliver(self, customer_id: str, job_id: str, delivery_id: str) -> WebhookDelivery:
        """Send the webhook again, at once. Raises `DeliveryNotFound`."""
        await self._readiness.in_time()
        delivery = await asyncio.to_thread(
            self._deliveries.again, customer_id, job_id, delivery_id, self._now(), self._committer.fence
        )
        if delivery is None:
            raise DeliveryNotFound(job_id, delivery_id)
        self._webhooks.expect(delivery)
        return delivery

    async def write_off(self, job: ProfilePhotoJob) -> None:
        """Erase a job whose caller was told that it is not kept, unless somebody erases it before."""
        self._written_off.add(job.job_id)
        async with self._board.turn(job.job_id):
            if job.job_id in self._written_off:
                self._written_off.discard(job.job_id)
                await self._board.write(job.erased(), EventKind.ERASED)

    async def _disown(self, customer_id: str, job_id: str) -> None:
        with suppress(JobNotFound):
            await self._erase(customer_id, job_id)

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

    async def _erase_customer(self, customer_id: str) -> None:
        found = False
        while jobs := await asyncio.to_thread(self._records.jobs_of, customer_id, None, self.PAGE):
            found = True
            await self.erase_all(jobs)
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
            self._written_off.discard(job_id)

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
        self._under_way.add(task)
        task.add_done_callback(self._concluded)
        while not task.done():
            await asyncio.wait({task}, timeout=self._patience)
            if not task.done() and self._committer.outage is not None:
                raise DatabaseUnavailable(self._committer.outage.reason)
        return task.result()

    def _concluded(self, command: asyncio.Task[Any]) -> None:
        self._under_way.discard(command)
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
