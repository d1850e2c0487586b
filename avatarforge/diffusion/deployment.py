"""The Serve deployment: a thin shell around the worker and the switch."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from avatarforge.diffusion.loading import ModelLoader
from avatarforge.diffusion.provenance import open_marking
from avatarforge.diffusion.switch import ModelSwitch
from avatarforge.diffusion.worker import GenerationWorker
from avatarforge.domain.generations import GenerationTask, GenerationUpdate
from avatarforge.settings import load_settings
from avatarforge.storage import open_storage


class StableDiffusion:
    """A replica: one process, one device, one model at a time.

    The model loads in threads, so that the replica answers while it does. Raises `SettingsError` where
    avatars are to be signed and cannot be.
    """

    def __init__(self, settings_arguments: dict[str, Any]) -> None:
        settings = load_settings(settings_arguments)
        loader = ModelLoader(settings.diffusion)
        self._switch = ModelSwitch(settings.diffusion.model, loader.load, loader.prepare)
        self._worker = GenerationWorker(
            open_storage(settings),
            self._switch.model,
            settings.diffusion.storage_patience,
            open_marking(settings.provenance),
        )
        # Serve calls constructors in its event loop.
        self._switch.start()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Note which model is wished for and return.

        Serve stops a replica whose `reconfigure` raises, so a wish that makes no sense is recorded as one
        that cannot be fulfilled.
        """
        if (model := user_config.get("model")) is not None:
            self._switch.wish(str(model))

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """`GenerationWorker.generate`."""
        async with aclosing(self._worker.generate(task)) as updates:
            async for update in updates:
                yield update

    async def check_health(self) -> None:
        """Raises when this process's device cannot be used any more: Serve then replaces the replica."""
        self._switch.check()

    async def describe(self) -> dict[str, Any]:
        """`ModelSwitch.describe`."""
        return self._switch.describe()
