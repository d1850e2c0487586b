"""The replicas of a Serve deployment: slots are reserved before a job is picked."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from avatarforge.domain.generations import GenerationProgress, GenerationTask, GenerationUpdate
from avatarforge.tracker.replicas import Reservation

log = structlog.get_logger(__name__)


class ServeReplicas:
    """The replicas of a Serve deployment.

    `choose_replica()` reserves and `dispatch()` consumes the reservation, so that several shards share
    the replicas without overfilling them.
    """

    RETRY = 0.5
    """Seconds until Serve is asked again for an application that is not deployed yet."""

    def __init__(self, deployment: str, application: str) -> None:
        self._deployment = deployment
        self._application = application
        self._handle: DeploymentHandle[Any] | None = None

    @asynccontextmanager
    async def reserve(self) -> AsyncIterator[Reservation]:
        handle = await self._deployed()
        async with AsyncExitStack() as stack:
            yield _ServeReservation(handle, await self._selected(handle, stack))

    async def _selected(self, handle: "DeploymentHandle[Any]", stack: AsyncExitStack) -> Any:
        """A held slot. Serve that is away (its controller starts again, the deployment is replaced) is
        asked again."""
        while True:
            try:
                return await stack.enter_async_context(handle.choose_replica())
            except (RayServeException, RayError) as error:
                log.warning("no replica could be chosen", reason=str(error))
                await asyncio.sleep(self.RETRY)

    async def _deployed(self) -> "DeploymentHandle[Any]":
        while self._handle is None:
            try:
                # Blocks, on Serve's controller.
                handle = await asyncio.to_thread(
                    serve.get_deployment_handle, self._deployment, self._application
                )
            except (RayServeException, RayError, KeyError) as error:  # KeyError: not deployed (yet)
                log.info("no deployment to send jobs to", reason=str(error))
                await asyncio.sleep(self.RETRY)
            else:
                self._handle = handle.options(method_name="generate", stream=True)
        return self._handle


class _ServeReservation:
    def __init__(self, handle: "DeploymentHandle[Any]", selection: Any) -> None:
        self._handle = handle
        self._selection = selection

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        response = self._handle.dispatch(self._selection, task)
        assert isinstance(response, DeploymentResponseGenerator), "the handle was made with stream=True"
        finished = False
        try:
            async for update in response:
                finished = not isinstance(update, GenerationProgress)
                yield update
        finally:
            if not finished:
                response.cancel()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
