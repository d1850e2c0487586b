"""The Serve deployment of the remote backend: a thin shell around its worker. It needs no GPU."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import structlog

from avatarforge.actors import REMOTE_DEPLOYMENT
from avatarforge.diffusion.models.catalogue import Catalogue, Manifest
from avatarforge.diffusion.remote.breaker import CircuitBreaker
from avatarforge.diffusion.remote.client import RemoteServer
from avatarforge.diffusion.remote.worker import RemoteWorker
from avatarforge.diffusion.replica.draining import DrainMonitor, ServeInternals
from avatarforge.diffusion.replica.reporter import Reporter, connect_trackers, get_replica_id
from avatarforge.domain.errors import ModelUnusable
from avatarforge.domain.generations import (
    GenerationFinished,
    GenerationImage,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.replicas import ReplicaReport, ReplicaState
from avatarforge.imaging.provenance import open_content_credentials
from avatarforge.storage import open_storage
from avatarforge.telemetry.logs import set_up_process
from avatarforge.user_config import UserConfigReader

log = structlog.get_logger(__name__)


class DesiredManifest:
    """Reads the desired model's manifest; while it is unusable, returns the last good one."""

    def __init__(self, catalogue: Catalogue, name: str) -> None:
        self.name = name
        self._catalogue = catalogue
        self._last: Manifest | None = None

    def __call__(self) -> Manifest:
        """Read the manifest. Blocks. Raises `ModelUnusable` if there was no good one yet."""
        try:
            self._last = self._catalogue.read(self.name)
        except ModelUnusable as error:
            if self._last is None:
                raise
            log.warning("manifest cannot be read", model=error.model, reason=error.reason)
        return self._last


class RemoteStableDiffusion:
    """A replica that uses the remote server. It runs without a GPU."""

    def __init__(self, settings_arguments: dict[str, Any]) -> None:
        settings = set_up_process(settings_arguments, "remote")
        remote = settings.remote
        self._manifest = DesiredManifest(Catalogue(settings.diffusion.models_dir), settings.diffusion.model)
        self._breaker = CircuitBreaker(remote.breaker_threshold, remote.breaker_reset_seconds)
        self._worker = RemoteWorker(
            open_storage(settings),
            RemoteServer(remote),
            self._breaker,
            self._manifest,
            settings.diffusion.storage_retry_seconds,
            model=remote.model,
            content_credentials=open_content_credentials(settings.provenance),
        )
        self._limit, self._active, self._images_generated = remote.concurrency, 0, 0
        self._replica_id = get_replica_id()
        self._user_config = UserConfigReader(REMOTE_DEPLOYMENT, settings.scaling)
        self._reporter = Reporter(connect_trackers(settings.tracker.shards), self._build_report)
        self._drain_monitor = DrainMonitor(ServeInternals(), time.monotonic)
        # Serve calls constructors in its event loop.
        self._drain_monitor.start()
        self._reporter.start()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Set the model whose styles and defaults apply."""
        config = self._user_config.read(user_config)
        if config.model is not None:
            self._manifest.name = config.model

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """Run `RemoteWorker.generate`; give the task back if this replica is about to be stopped."""
        self._active += 1
        try:
            async with aclosing(self._drain_monitor.guard(self._worker.generate(task))) as updates:
                async for update in updates:
                    self._images_generated += isinstance(update, GenerationImage | GenerationFinished)
                    yield update
        finally:
            self._active -= 1

    def _build_report(self) -> ReplicaReport:
        return ReplicaReport(
            replica_id=self._replica_id,
            backend="remote",
            reported_at=datetime.now(UTC),
            state=ReplicaState.SERVING,
            desired_model=self._manifest.name,
            user_config_faults=self._user_config.faults,
            limit=self._limit,
            active=self._active,
            images_generated=self._images_generated,
            circuit=self._breaker.circuit.value,
        )

    async def describe(self) -> dict[str, Any]:
        return {"circuit": self._breaker.circuit.value}
