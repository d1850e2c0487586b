"""The JobTracker as a detached, named Ray actor: a few lines around the plain class."""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any, TypeVar

import structlog

from avatarforge import __version__
from avatarforge.actors import APPLICATION, DEPLOYMENT, REMOTE_DEPLOYMENT
from avatarforge.domain.changes import NewJob
from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.errors import AvatarForgeError
from avatarforge.domain.idempotency import KnownKey
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.persistence.database import meter_engine, open_engine
from avatarforge.persistence.deletions import DeletionRecords
from avatarforge.persistence.deliveries import DeliveryRecords
from avatarforge.persistence.jobs import JobRecords
from avatarforge.settings import ScalingSettings, Settings, load_settings
from avatarforge.storage import open_storage
from avatarforge.storage.metered import MeteredStorage
from avatarforge.telemetry.beginning import begin
from avatarforge.telemetry.exposition import TrackerFigures
from avatarforge.telemetry.figures import Figures
from avatarforge.telemetry.reports import Report
from avatarforge.tracker.backends import Remote
from avatarforge.tracker.feed import FeedBatch, FeedCursor
from avatarforge.tracker.serve_replicas import ServeReplicas
from avatarforge.tracker.tracker import JobTracker
from avatarforge.webhooks.sender import WebhookSender

log = structlog.get_logger(__name__)

T = TypeVar("T")

PAUSE_BEFORE_RESTART = 2.0
"""Seconds, so that a fault that stays does not keep a core busy."""


class JobTrackerActor:
    """Starts by itself, also when Ray starts it again after a crash."""

    def __init__(self, arguments: dict[str, Any], shard: int) -> None:
        self._arguments = arguments
        settings = load_settings(arguments)
        begin(settings, "tracker")
        self._scaling = settings.scaling
        engine = open_engine(settings.database, settings.database_url)
        records, deliveries = JobRecords(engine), DeliveryRecords(engine)
        figures = Figures()
        meter_engine(engine, figures, "tracker")
        self._tracker = JobTracker(
            shard,
            records,
            ServeReplicas(DEPLOYMENT, APPLICATION),
            settings.tracker,
            storage=MeteredStorage(open_storage(settings), figures, "tracker"),
            deletions=DeletionRecords(engine),
            deliveries=deliveries,
            remote=_remote(settings),
            webhooks=WebhookSender(deliveries, records.job, settings.webhook, shard, figures=figures),
            figures=figures,
            on_broken=self._give_up,
        )
        self._starting = asyncio.get_running_loop().create_task(self._start(), name="start")

    async def _start(self) -> None:
        try:
            await self._tracker.start()
        except Exception as error:
            # The edge of the actor: a wrong password, a database that was never upgraded.
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """End this process, and only it: Ray starts the actor again, and it recovers from the database."""
        log.critical("tracker gives up", pause=PAUSE_BEFORE_RESTART, exc_info=error)
        asyncio.get_running_loop().call_later(PAUSE_BEFORE_RESTART, os._exit, 1)

    # Errors of ours travel as answers: as exceptions Ray would wrap them.

    async def submit(self, jobs: list[NewJob]) -> list[ProfilePhotoJob | AvatarForgeError]:
        return await self._tracker.submit(jobs)

    async def find(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        return await self._tracker.find(customer_id, job_id)

    async def hold_key(self, customer_id: str, key: str) -> KnownKey | AvatarForgeError | None:
        return await _answered(self._tracker.hold_key(customer_id, key))

    async def free_key(self, customer_id: str, key: str) -> None:
        await self._tracker.free_key(customer_id, key)

    async def disown(self, customer_id: str, job_id: str) -> AvatarForgeError | None:
        return await _answered(self._tracker.disown(customer_id, job_id))

    async def cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob | AvatarForgeError:
        return await _answered(self._tracker.cancel(customer_id, job_id))

    async def erase(self, customer_id: str, job_id: str) -> AvatarForgeError | None:
        return await _answered(self._tracker.erase(customer_id, job_id))

    async def erase_customer(self, customer_id: str) -> AvatarForgeError | None:
        return await _answered(self._tracker.erase_customer(customer_id))

    async def redeliver(
        self, customer_id: str, job_id: str, delivery_id: str
    ) -> WebhookDelivery | AvatarForgeError:
        return await _answered(self._tracker.redeliver(customer_id, job_id, delivery_id))

    async def feed(self, cursor: FeedCursor, wait: float) -> FeedBatch:
        return await self._tracker.feed(cursor, wait)

    async def report(self, report: Report) -> None:
        await self._tracker.report(report)

    async def figures(self) -> TrackerFigures:
        return await self._tracker.figures()

    async def describe(self) -> dict[str, Any]:
        return {**self._tracker.describe(), "scaling": self._scaling.told()}

    async def aim(self, scaling: ScalingSettings) -> None:
        """The targets of autoscaling from now on."""
        self._scaling = scaling

    async def report_replica(self, report: ReplicaReport) -> str | None:
        return await self._tracker.report_replica(report)

    async def reports(self) -> tuple[ReplicaReport, ...]:
        return self._tracker.reports()

    async def was_started_with(self, arguments: dict[str, Any], release: str = "") -> bool:
        """Whether a tracker that these arguments and this release started would be no other. Earlier releases
        do not name themselves."""
        return arguments == self._arguments and release == __version__

    async def stop(self) -> None:
        """Finish the commit under way; the actor may then be killed without losing anything."""
        await self._tracker.stop()


def _remote(settings: Settings) -> Remote | None:
    if settings.remote.policy == "local":
        return None
    return Remote(replicas=ServeReplicas(REMOTE_DEPLOYMENT, APPLICATION), settings=settings.remote)


async def _answered(call: Awaitable[T]) -> T | AvatarForgeError:
    try:
        return await call
    except AvatarForgeError as error:
        return error
