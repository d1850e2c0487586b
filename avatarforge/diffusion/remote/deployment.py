"""The Serve deployment of the remote backend: a thin shell around its worker. It needs no GPU."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import structlog

from avatarforge.diffusion.catalogue import Catalogue, Manifest
from avatarforge.diffusion.provenance import open_marking
from avatarforge.diffusion.remote.breaker import CircuitBreaker
from avatarforge.diffusion.remote.client import RemoteServer
from avatarforge.diffusion.remote.worker import RemoteWorker
from avatarforge.diffusion.reporting import Reporter
from avatarforge.diffusion.serve_shell import ServeShell
from avatarforge.diffusion.stopping import Stopping
from avatarforge.diffusion.trackers import replica_id, tracker_reports
from avatarforge.domain.errors import ModelUnusable
from avatarforge.domain.generations import GenerationFinished, GenerationTask, GenerationUpdate
from avatarforge.domain.replicas import ReplicaReport, ReplicaState
from avatarforge.settings import load_settings
from avatarforge.storage import open_storage
from avatarforge.telemetry.beginning import begin

log = structlog.get_logger(__name__)


class WishedManifest:
    """The manifest whose styles and defaults count; one that breaks later leaves the last good one."""

    def __init__(self, catalogue: Catalogue, name: str) -> None:
        self.name = name
        self._catalogue = catalogue
        self._last: Manifest | None = None

    def __call__(self) -> Manifest:
        """Blocks. Raises `ModelUnusable` if there was no good one yet."""
        try:
            self._last = self._catalogue.manifest(self.name)
        except ModelUnusable as error:
            if self._last is None:
                raise
            log.warning("manifest cannot be read", model=error.model, reason=error.reason)
        return self._last


class RemoteStableDiffusion:
    """A replica that asks the remote server. It lives when the GPU does not."""

    def __init__(self, settings_arguments: dict[str, Any]) -> None:
        settings = load_settings(settings_arguments)
        begin(settings, "remote")
        remote = settings.remote
        self._manifest = WishedManifest(Catalogue(settings.diffusion.models_dir), settings.diffusion.model)
        self._breaker = CircuitBreaker(remote.failures, remote.seconds)
        self._worker = RemoteWorker(
            open_storage(settings),
            RemoteServer(remote),
            self._breaker,
            self._manifest,
            settings.diffusion.storage_patience,
            model=remote.model,
            marking=open_marking(settings.provenance),
        )
        self._limit, self._active, self._pictures = remote.concurrency, 0, 0
        self._replica_id = replica_id()
        self._reporter = Reporter(tracker_reports(settings.tracker.shards), self._report)
        self._stopping = Stopping(ServeShell(), time.monotonic)
        # Serve calls constructors in its event loop.
        self._stopping.start()
        self._reporter.start()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Which model's styles and defaults count."""
        if (model := user_config.get("model")) is not None:
            self._manifest.name = str(model)

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """`RemoteWorker.generate`, given back when this replica is to be stopped."""
        self._active += 1
        try:
            async with aclosing(self._stopping.heeding(self._worker.generate(task))) as updates:
                async for update in updates:
                    self._pictures += isinstance(update, GenerationFinished)
                    yield update
        finally:
            self._active -= 1

    def _report(self) -> ReplicaReport:
        return ReplicaReport(
            replica_id=self._replica_id,
            backend="remote",
            at=datetime.now(UTC),
            state=ReplicaState.SERVING,
            wish=self._manifest.name,
            limit=self._limit,
            active=self._active,
            pictures=self._pictures,
            circuit=self._breaker.circuit.value,
        )

    async def describe(self) -> dict[str, Any]:
        """The state of the circuit to the server."""
        return {"circuit": self._breaker.circuit.value}
