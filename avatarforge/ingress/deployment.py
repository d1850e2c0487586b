"""The ingress as a Serve deployment: a few lines around the plain parts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve

from avatarforge.diffusion.catalogue import Catalogue
from avatarforge.ingress.api import create_api
from avatarforge.ingress.service import ProfilePhotos
from avatarforge.ingress.view import LiveJobs
from avatarforge.persistence.database import open_engine
from avatarforge.persistence.jobs import JobRecords
from avatarforge.settings import load_settings
from avatarforge.storage import open_storage
from avatarforge.telemetry.logs import configure
from avatarforge.tracker.client import JobTrackers

READ_BACK_SECONDS = 30.0
"""How long an upload waits for a tracker that died with its answer: restart, recovery and a commit."""


@serve.ingress()
class Ingress:
    """Answers REST. Stateless but for its view of live jobs, which the trackers feed."""

    def __init__(self, arguments: dict[str, Any], _stable_diffusion: object) -> None:
        """`_stable_diffusion` is bound only so that Serve deploys it with us: the trackers call it."""
        settings = load_settings(arguments)
        configure(settings.log)
        trackers = JobTrackers(arguments, settings.tracker.shards, patience=READ_BACK_SECONDS)
        self._live = LiveJobs(trackers)
        self._photos = ProfilePhotos(
            settings=settings,
            records=JobRecords(open_engine(settings.database, settings.database_url)),
            storage=open_storage(settings),
            trackers=trackers,
            live=self._live,
            catalogue=Catalogue(settings.diffusion.models_dir),
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Which model's styles and defaults count: the one that the replicas are told to serve."""
        if (model := user_config.get("model")) is not None:
            self._photos.use_model(str(model))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._photos, self._open)

    @asynccontextmanager
    async def _open(self, api: FastAPI) -> AsyncIterator[None]:
        self._live.start()
        yield
        await self._photos.close()
        await self._live.stop()
