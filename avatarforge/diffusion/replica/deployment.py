"""The Serve deployment: a thin shell around the worker and the model manager."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from avatarforge.actors import DEPLOYMENT
from avatarforge.diffusion.models.loader import ModelLoader
from avatarforge.diffusion.models.manager import ModelManager
from avatarforge.diffusion.replica.draining import DrainMonitor, ServeInternals
from avatarforge.diffusion.replica.reporter import Reporter, build_report, connect_trackers, get_replica_id
from avatarforge.diffusion.replica.task_worker import GenerationWorker
from avatarforge.domain.generations import GenerationTask, GenerationUpdate
from avatarforge.imaging.provenance import open_content_credentials
from avatarforge.storage import open_storage
from avatarforge.telemetry.logs import set_up_process
from avatarforge.user_config import UserConfigReader


class StableDiffusion:
    """A replica: one process, one device, one model at a time.

    The model loads in threads, so that the replica answers meanwhile. Raises `SettingsError` if avatars are
    to be signed and cannot be.
    """

    def __init__(self, settings_arguments: dict[str, Any]) -> None:
        settings = set_up_process(settings_arguments, "replica")
        self._models = ModelManager(settings.diffusion.model, ModelLoader(settings.diffusion))
        self._worker = GenerationWorker(
            open_storage(settings),
            self._models.lease,
            settings.diffusion.storage_retry_seconds,
            open_content_credentials(settings.provenance),
        )
        self._user_config = UserConfigReader(DEPLOYMENT, settings.scaling)
        self._drain_monitor = DrainMonitor(ServeInternals(), time.monotonic)
        self._reporter = Reporter(
            connect_trackers(settings.tracker.shards),
            partial(build_report, get_replica_id(), self._models, self._user_config),
            self._models.changed,
        )
        # Serve calls constructors in its event loop.
        self._drain_monitor.start()
        self._models.start(self._reporter.wait_for_last_good)
        self._reporter.start()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Record the desired model and return. A change of any other key has its manifest read anew.

        Serve stops a replica whose `reconfigure` raises, so a name that makes no sense is recorded as a model
        that cannot be loaded.
        """
        config = self._user_config.read(user_config)
        if config.model is not None:
            self._models.set_desired(config.model)

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """Run `GenerationWorker.generate`; give the task back if this replica is about to be stopped."""
        async with aclosing(self._drain_monitor.guard(self._worker.generate(task))) as updates:
            async for update in updates:
                yield update

    async def check_health(self) -> None:
        """Raise if this process cannot use its device any more: Serve then replaces the replica."""
        self._models.check_health()

    async def describe(self) -> dict[str, Any]:
        """Return `ModelManager.describe`."""
        return self._models.describe()
