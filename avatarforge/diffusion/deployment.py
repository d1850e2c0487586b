"""The Serve deployment: a thin shell around the worker and the switch."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from avatarforge.diffusion.loading import ModelLoader
from avatarforge.diffusion.provenance import open_marking
from avatarforge.diffusion.reporting import Reporter, report_of
from avatarforge.diffusion.serve_shell import ServeShell
from avatarforge.diffusion.stopping import Stopping
from avatarforge.diffusion.switch import ModelSwitch
from avatarforge.diffusion.trackers import replica_id, tracker_reports
from avatarforge.diffusion.worker import GenerationWorker
from avatarforge.domain.generations import GenerationTask, GenerationUpdate
from avatarforge.settings import load_settings
from avatarforge.storage import open_storage
from avatarforge.telemetry.beginning import begin


class StableDiffusion:
    """A replica: one process, one device, one model at a time.

    The model loads in threads, so that the replica answers while it does. Raises `SettingsError` where
    avatars are to be signed and cannot be.
    """

    def __init__(self, settings_arguments: dict[str, Any]) -> None:
        settings = load_settings(settings_arguments)
        begin(settings, "replica")
        self._switch = ModelSwitch(
            settings.diffusion.model, ModelLoader(settings.diffusion), lambda: self._reporter.last_good()
        )
        self._worker = GenerationWorker(
            open_storage(settings),
            self._switch.model,
            settings.diffusion.storage_patience,
            open_marking(settings.provenance),
        )
        self._stopping = Stopping(ServeShell(), time.monotonic)
        self._reporter = Reporter(
            tracker_reports(settings.tracker.shards),
            partial(report_of, replica_id(), self._switch),
            self._switch.changed,
        )
        # Serve calls constructors in its event loop.
        self._stopping.start()
        self._switch.start()
        self._reporter.start()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Note which model is wished for and return. Other keys may be there: a change of any of them has the
        model's manifest read again.

        Serve stops a replica whose `reconfigure` raises, so a wish that makes no sense is recorded as one
        that cannot be fulfilled.
        """
        if (model := user_config.get("model")) is not None:
            self._switch.wish(str(model))

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """`GenerationWorker.generate`, given back when this replica is to be stopped."""
        async with aclosing(self._stopping.heeding(self._worker.generate(task))) as updates:
            async for update in updates:
                yield update

    async def check_health(self) -> None:
        """Raises when this process's device cannot be used any more: Serve then replaces the replica."""
        self._switch.check()

    async def describe(self) -> dict[str, Any]:
        """`ModelSwitch.describe`."""
        return self._switch.describe()
