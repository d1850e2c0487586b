"""One task from its original in storage to its avatar there, made by another server."""

import asyncio
from collections.abc import Callable
from time import perf_counter

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.diffusion.provenance import Marking
from avatarforge.diffusion.remote.breaker import CircuitBreaker
from avatarforge.diffusion.remote.client import RemoteServer
from avatarforge.diffusion.tasks import Generation, Made, TaskWorker
from avatarforge.domain.errors import RemoteRefused
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import Stage
from avatarforge.storage import ObjectStorage


class RemoteWorker(TaskWorker):
    """Has pictures made by a server, with the styles, defaults and size of our own model's manifest."""

    BACKEND = "remote"
    UNNAMED = "unknown"
    """The model of a server that tells none, where none is configured."""

    def __init__(
        self,
        storage: ObjectStorage,
        server: RemoteServer,
        breaker: CircuitBreaker,
        manifest: Callable[[], Manifest],
        storage_patience: float,
        *,
        model: str | None = None,
        marking: Marking | None = None,
    ) -> None:
        """`manifest` may block; `model` is recorded where the server does not tell what it used."""
        super().__init__(storage, storage_patience, marking)
        self._server = server
        self._breaker = breaker
        self._manifest = manifest
        self._model = model or self.UNNAMED

    async def _made(self, generation: Generation, original: bytes) -> Made:
        if not generation.task.parameters.allow_remote:
            # The tracker does not send such a task; a photo must not leave by a mistake there.
            raise RemoteRefused("the photo may not leave the house")

        def tell(step: int, total_steps: int) -> None:
            generation.progress = GenerationProgress(step=step, total_steps=total_steps)

        manifest = await asyncio.to_thread(self._manifest)
        request, crop = await self._request(generation, original, manifest)
        begun = perf_counter()
        with self._breaker.guarded():
            made = await self._server.picture(request, tell)
        return Made(
            image=made.image,
            crop=crop,
            model=made.model or self._model,
            timings={Stage.STEPS: perf_counter() - begun},
        )
