"""The JobTracker as a detached, named Ray actor: a few lines around the plain class."""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
import structlog
from ray.actor import ActorHandle

from avatarforge.domain.changes import NewJob
from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.errors import AvatarForgeError
from avatarforge.domain.idempotency import KnownKey
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.persistence.database import open_engine
from avatarforge.persistence.deletions import DeletionRecords
from avatarforge.persistence.deliveries import DeliveryRecords
from avatarforge.persistence.jobs import JobRecords
from avatarforge.settings import Settings, load_settings
from avatarforge.storage import open_storage
from avatarforge.telemetry.logs import configure
from avatarforge.tracker.backends import Remote
from avatarforge.tracker.feed import FeedBatch, FeedCursor
from avatarforge.tracker.serve_replicas import ServeReplicas
from avatarforge.tracker.tracker import JobTracker
from avatarforge.webhooks.sender import WebhookSender

log = structlog.get_logger(__name__)

T = TypeVar("T")

NAMESPACE = "avatarforge"
APPLICATION = "avatarforge"
"""Name of the Serve application whose replicas generate."""
DEPLOYMENT = "StableDiffusion"
REMOTE_DEPLOYMENT = "RemoteStableDiffusion"
PAUSE_BEFORE_RESTART = 2.0
"""Seconds, so that a fault that stays does not keep a core busy."""
MANY = 10_000
"""Calls that one tracker answers at a time: they wait, they do not work."""


class JobTrackerActor:
    """Starts by itself, also when Ray starts it again after a crash."""

    def __init__(self, arguments: dict[str, Any], shard: int) -> None:
        settings = load_settings(arguments)
        configure(settings.log)
        engine = open_engine(settings.database, settings.database_url)
        records, deliveries = JobRecords(engine), DeliveryRecords(engine)
        self._tracker = JobTracker(
            shard,
            records,
            ServeReplicas(DEPLOYMENT, APPLICATION),
            settings.tracker,
            storage=open_storage(settings),
            deletions=DeletionRecords(engine),
            deliveries=deliveries,
            remote=_remote(settings),
            webhooks=WebhookSender(deliveries, records.job, settings.webhook, shard),
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

    async def describe(self) -> dict[str, int]:
        return self._tracker.describe()

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


def tracker_actor(arguments: dict[str, Any], shard: int) -> "ActorHandle[JobTrackerActor]":
    """The shard's tracker, started if it is not running."""
    actor: Any = ray.remote(JobTrackerActor)
    handle: ActorHandle[JobTrackerActor] = actor.options(
        name=f"JobTracker:{shard}",
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=MANY,
        num_cpus=0,
    ).remote(arguments, shard)
    return handle
