"""The ingress as a Serve deployment: a few lines around the plain parts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY

from avatarforge.access.opening import opened_gate
from avatarforge.diffusion.catalogue import Catalogue
from avatarforge.ingress.aiming import Aiming
from avatarforge.ingress.api import create_api
from avatarforge.ingress.grpc import HealthMethods, JobMethods
from avatarforge.ingress.service import ProfilePhotos
from avatarforge.ingress.view import LiveJobs
from avatarforge.persistence.api_keys import ApiKeyRecords
from avatarforge.persistence.database import meter_engine, open_engine
from avatarforge.persistence.deliveries import DeliveryRecords
from avatarforge.persistence.jobs import JobRecords
from avatarforge.settings import load_settings
from avatarforge.storage import open_storage
from avatarforge.storage.metered import MeteredStorage
from avatarforge.telemetry.beginning import begin
from avatarforge.telemetry.figures import Figures
from avatarforge.tracker.client import JobTrackers
from avatarforge.tracker.succession import running_tracker, tracker_actor

READ_BACK_SECONDS = 30.0
"""How long an upload waits for a tracker that died with its answer: restart, recovery and a commit."""


@serve.ingress()
class Ingress(JobMethods, HealthMethods):
    """Answers REST and gRPC. Stateless but for its view of live jobs, which the trackers feed."""

    def __init__(self, arguments: dict[str, Any], *_backends: object) -> None:
        """`_backends` are bound only so that Serve deploys them with us: the trackers call them."""
        settings = load_settings(arguments)
        begin(settings, "ingress")
        actors = [tracker_actor(arguments, shard) for shard in range(settings.tracker.shards)]
        trackers = JobTrackers(actors, patience=READ_BACK_SECONDS, successor=running_tracker)
        self._trackers = trackers
        self._live = LiveJobs(trackers, settings.ingress)
        self._aiming = Aiming(settings.scaling, trackers.aim)
        engine = open_engine(settings.database, settings.database_url)
        figures = Figures()
        meter_engine(engine, figures, "ingress")
        photos = ProfilePhotos(
            settings=settings,
            records=JobRecords(engine),
            deliveries=DeliveryRecords(engine),
            storage=MeteredStorage(open_storage(settings), figures, "ingress"),
            trackers=trackers,
            live=self._live,
            catalogue=Catalogue(settings.diffusion.models_dir),
            figures=figures,
        )
        gate = opened_gate(settings, ApiKeyRecords(engine))
        # Serve's own proxy, where HAProxy is not in front, forgets the status that a stream is given after
        # its last message, but keeps that of an error.
        super().__init__(photos, gate, raising=not RAY_SERVE_ENABLE_HA_PROXY)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Which model's styles and defaults count: the one that the replicas are told to serve; and what
        autoscaling aims at."""
        if (model := user_config.get("model")) is not None:
            self._photos.model.wish_for(str(model))
        if (targets := user_config.get("scaling")) is not None:
            self._aiming.at(targets)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._photos, self._gate, self._open)

    @asynccontextmanager
    async def _open(self, api: FastAPI) -> AsyncIterator[None]:
        self._live.start()
        self._aiming.start()
        self._photos.scrapes.start()
        self._gate.start()
        yield
        await self._gate.stop()
        await self._photos.close()
        await self._photos.scrapes.stop()
        await self._aiming.stop()
        await self._live.stop()
        await self._trackers.close()
