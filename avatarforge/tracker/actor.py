"""The JobTracker as a detached, named Ray actor: a few lines around the plain class."""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
import structlog

from avatarforge import __version__
from avatarforge.actors import APPLICATION, DEPLOYMENT, REMOTE_DEPLOYMENT
from avatarforge.domain.changes import IdempotencyKey, KnownKey, NewJob
from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.errors import AvatarForgeError
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.replicas import ReplicaReport
from avatarforge.persistence.database import meter_engine, open_engine
from avatarforge.persistence.deletions import DeletionRepository
from avatarforge.persistence.deliveries import DeliveryRepository
from avatarforge.persistence.jobs import JobRepository
from avatarforge.settings import ScalingSettings, Settings
from avatarforge.storage import open_storage
from avatarforge.storage.metered import MeteredStorage
from avatarforge.telemetry.aggregation import MetricsReport
from avatarforge.telemetry.exposition import ShardMetrics
from avatarforge.telemetry.logs import set_up_process
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.feed import FeedBatch, FeedCursor
from avatarforge.tracker.ports import Ports, RemoteFallback
from avatarforge.tracker.queue.serve_replicas import ServeReplicas
from avatarforge.tracker.tracker import JobTracker
from avatarforge.webhooks.sender import WebhookSender

log = structlog.get_logger(__name__)

T = TypeVar("T")

RESTART_DELAY_SECONDS = 2.0
"""So that a fault that stays does not keep a core busy."""


class JobTrackerActor:
    """Starts by itself, also when Ray starts it again after a crash."""

    def __init__(self, arguments: dict[str, Any], shard: int) -> None:
        self._arguments = arguments
        settings = set_up_process(arguments, "tracker")
        self._scaling = settings.scaling
        registry = MetricsRegistry()
        self._tracker = JobTracker(
            shard,
            settings.tracker,
            _open_ports(settings, shard, registry),
            on_broken=self._give_up,
            registry=registry,
            # Only one service uses a folder: it takes its shards over at once.
            cluster_id="" if settings.database.url is None else _get_cluster_id(),
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
        log.critical("tracker gives up", pause=RESTART_DELAY_SECONDS, exc_info=error)
        asyncio.get_running_loop().call_later(RESTART_DELAY_SECONDS, os._exit, 1)

    # Errors of ours travel as answers: as exceptions Ray would wrap them.

    async def submit(self, jobs: list[NewJob]) -> list[ProfilePhotoJob | AvatarForgeError]:
        return await self._tracker.submissions.submit(jobs)

    async def find(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        return await self._tracker.submissions.find(customer_id, job_id)

    async def acquire_key(
        self, customer_id: str, key: str, fingerprint: str | None
    ) -> KnownKey | AvatarForgeError | None:
        return await _return_error(self._tracker.submissions.acquire_key(customer_id, key, fingerprint))

    async def release_key(self, customer_id: str, key: str) -> None:
        self._tracker.submissions.release_key(customer_id, key)

    async def retract(self, customer_id: str, job_id: str) -> AvatarForgeError | None:
        return await _return_error(self._tracker.commands.retract(customer_id, job_id))

    async def cancel(self, customer_id: str, job_id: str) -> ProfilePhotoJob | AvatarForgeError:
        return await _return_error(self._tracker.commands.cancel(customer_id, job_id))

    async def keep(self, customer_id: str, job_id: str, index: int) -> ProfilePhotoJob | AvatarForgeError:
        return await _return_error(self._tracker.commands.keep(customer_id, job_id, index))

    async def erase(self, customer_id: str, job_id: str) -> AvatarForgeError | None:
        return await _return_error(self._tracker.commands.erase(customer_id, job_id))

    async def erase_customer(self, customer_id: str) -> AvatarForgeError | None:
        return await _return_error(self._tracker.commands.erase_customer(customer_id))

    async def redeliver(
        self, customer_id: str, job_id: str, delivery_id: str, key: IdempotencyKey | None
    ) -> WebhookDelivery | AvatarForgeError:
        return await _return_error(self._tracker.commands.redeliver(customer_id, job_id, delivery_id, key))

    async def resume_delivery(self, customer_id: str, delivery_id: str) -> AvatarForgeError | None:
        return await _return_error(self._tracker.commands.resume_delivery(customer_id, delivery_id))

    async def read_feed(self, cursor: FeedCursor, wait: float) -> FeedBatch | AvatarForgeError:
        return await _return_error(self._tracker.feed.read(cursor, wait))

    async def add_metrics(self, report: MetricsReport) -> None:
        self._tracker.metrics.add(report)

    async def read_metrics(self) -> ShardMetrics:
        return self._tracker.metrics.read()

    async def describe(self) -> dict[str, Any]:
        return {**self._tracker.describe(), "scaling": self._scaling.model_dump()}

    async def set_scaling(self, scaling: ScalingSettings) -> None:
        """Take these as the autoscaler's targets from now on."""
        self._scaling = scaling

    async def report_replica(self, report: ReplicaReport) -> str | None:
        return await self._tracker.record_replica_report(report)

    async def is_current(self, arguments: dict[str, Any], release: str) -> bool:
        """Tell whether these arguments and this release would start the same tracker."""
        return arguments == self._arguments and release == __version__

    async def stop(self) -> None:
        """Finish the commit under way; the actor may then be killed without losing anything."""
        await self._tracker.stop()


def _open_ports(settings: Settings, shard: int, registry: MetricsRegistry) -> Ports:
    engine = open_engine(settings.database, settings.database_url)
    meter_engine(engine, registry, "tracker")
    jobs, deliveries = JobRepository(engine), DeliveryRepository(engine)
    is_local = settings.remote.policy == "local"
    remote = RemoteFallback(replicas=ServeReplicas(REMOTE_DEPLOYMENT, APPLICATION), settings=settings.remote)
    return Ports(
        store=jobs,
        deletions=DeletionRepository(engine),
        deliveries=deliveries,
        storage=MeteredStorage(open_storage(settings), registry, "tracker"),
        webhooks=WebhookSender(
            deliveries,
            jobs.find_job,
            settings.webhook,
            shard,
            registry=registry,
            root_path=settings.http.root_path,
        ),
        replicas=ServeReplicas(DEPLOYMENT, APPLICATION),
        remote=None if is_local else remote,
    )


def _get_cluster_id() -> str:
    """Return Ray's name of this cluster; it outlives the head where its record lies in Redis."""
    return str(ray.get_runtime_context().get_session_name())


async def _return_error(call: Awaitable[T]) -> T | AvatarForgeError:
    """Return what the call returns, or the error of ours that it raises."""
    try:
        return await call
    except AvatarForgeError as error:
        return error
