"""The ingress as a Serve deployment: a few lines around the plain parts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from ray import serve
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY

from avatarforge.access.authorizer import create_authorizer
from avatarforge.actors import INGRESS_DEPLOYMENT
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.ingress.app import create_api
from avatarforge.ingress.grpc import HealthMethods, JobMethods
from avatarforge.ingress.live.job_cache import JobCache
from avatarforge.ingress.scaling_targets import ScalingTargets
from avatarforge.ingress.service import ProfilePhotoService
from avatarforge.persistence.api_keys import ApiKeyRepository
from avatarforge.persistence.database import meter_engine, open_engine
from avatarforge.persistence.deliveries import DeliveryRepository
from avatarforge.persistence.jobs import JobRepository
from avatarforge.storage import open_storage
from avatarforge.storage.metered import MeteredStorage
from avatarforge.telemetry.logs import set_up_process
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.actor_handle import find_tracker, get_or_start_tracker
from avatarforge.tracker.client import TrackerClient
from avatarforge.user_config import UserConfigReader

log = structlog.get_logger(__name__)

READ_BACK_SECONDS = 30.0
"""How long an upload waits for a tracker that died with its answer: restart, recovery and a commit."""


@serve.ingress()
class Ingress(JobMethods, HealthMethods):
    """Answers REST and gRPC. Stateless but for its view of live jobs, which the trackers feed."""

    def __init__(self, arguments: dict[str, Any], *_backends: object) -> None:
        """`_backends` are bound only so that Serve deploys them with us: the trackers call them."""
        settings = set_up_process(arguments, "ingress")
        engine = open_engine(settings.database, settings.database_url)
        # Before any tracker is replaced by one that may not write.
        _check_shard_count(JobRepository(engine), settings.tracker.shards)
        actors = [get_or_start_tracker(arguments, shard) for shard in range(settings.tracker.shards)]
        trackers = TrackerClient(actors, retry_timeout=READ_BACK_SECONDS, find_successor=find_tracker)
        self._trackers = trackers
        self._live = JobCache(trackers, settings.ingress)
        self._scaling_targets = ScalingTargets(trackers.set_scaling)
        self._user_config = UserConfigReader(INGRESS_DEPLOYMENT, settings.scaling)
        registry = MetricsRegistry()
        meter_engine(engine, registry, "ingress")
        photos = ProfilePhotoService(
            settings=settings,
            records=JobRepository(engine),
            deliveries=DeliveryRepository(engine),
            storage=MeteredStorage(open_storage(settings), registry, "ingress"),
            trackers=trackers,
            live=self._live,
            catalogue=Catalogue(settings.diffusion.models_dir),
            registry=registry,
        )
        authorizer = create_authorizer(settings, ApiKeyRepository(engine))
        # Serve's own proxy, where HAProxy is not in front, forgets the status that a stream is given after
        # its last message, but keeps that of an error.
        super().__init__(photos, authorizer, reraise=not RAY_SERVE_ENABLE_HA_PROXY)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Set whose styles and defaults count, those of the model that the replicas are told to serve, and
        what autoscaling aims at."""
        config = self._user_config.read(user_config)
        self._photos.user_config_faults = config.faults
        if config.model is not None:
            self._photos.model.set_desired(config.model)
        if config.scaling is not None:
            self._scaling_targets.update(config.scaling)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(
            self._photos, self._authorizer, self._open, behind_haproxy=bool(RAY_SERVE_ENABLE_HA_PROXY)
        )

    @asynccontextmanager
    async def _open(self, api: FastAPI) -> AsyncIterator[None]:
        self._live.start()
        self._scaling_targets.start()
        self._photos.metrics_endpoint.start()
        self._authorizer.start()
        yield
        await self._authorizer.stop()
        await self._photos.close()
        await self._photos.metrics_endpoint.stop()
        await self._scaling_targets.stop()
        await self._live.stop()
        await self._trackers.close()


def _check_shard_count(records: JobRepository, shards: int) -> None:
    try:
        records.check_shard_count(shards)
    except DatabaseUnavailable as error:
        # The trackers look themselves before they write.
        log.warning("the number of shards could not be read", reason=error.reason)
