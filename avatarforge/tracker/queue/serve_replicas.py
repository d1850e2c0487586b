"""The replicas of a Serve deployment: slots are reserved before a job is picked."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import structlog
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from avatarforge.background import Backoff, retry
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.tracker.ports import Reservation

log = structlog.get_logger(__name__)


class ServeReplicas:
    """The replicas of a Serve deployment.

    `choose_replica()` reserves and `dispatch()` consumes the reservation, so that several shards share
    the replicas without overfilling them.
    """

    BACKOFF = Backoff(0.5, 0.5)
    """Serve that is away (its controller starts again, the deployment is replaced or not there yet) is asked
    again for as long as it takes."""

    def __init__(self, deployment: str, application: str) -> None:
        self._deployment = deployment
        self._application = application
        self._handle: DeploymentHandle[Any] | None = None

    @asynccontextmanager
    async def reserve(self) -> AsyncIterator[Reservation]:
        if self._handle is None:
            # KeyError: not deployed (yet).
            errors = (RayServeException, RayError, KeyError)
            self._handle = await retry(self._find_deployment, errors, self.BACKOFF, on_error=_log_missing)
        async with AsyncExitStack() as stack:
            choose = partial(self._choose_replica, self._handle, stack)
            selection = await retry(choose, (RayServeException, RayError), self.BACKOFF, on_error=_log_away)
            yield _ServeReservation(self._handle, selection)

    async def _choose_replica(self, handle: "DeploymentHandle[Any]", stack: AsyncExitStack) -> Any:
        return await stack.enter_async_context(handle.choose_replica())

    async def _find_deployment(self) -> "DeploymentHandle[Any]":
        # Blocks, on Serve's controller.
        handle = await asyncio.to_thread(serve.get_deployment_handle, self._deployment, self._application)
        return handle.options(method_name="generate", stream=True)


def _log_missing(error: Exception, _: float) -> None:
    log.info("no deployment to send jobs to", reason=str(error))


def _log_away(error: Exception, _: float) -> None:
    log.warning("no replica could be chosen", reason=str(error))


class _ServeReservation:
    def __init__(self, handle: "DeploymentHandle[Any]", selection: Any) -> None:
        self._handle = handle
        self._selection = selection
        self.replica_id: str = selection.replica_id

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        response = self._handle.dispatch(self._selection, task)
        assert isinstance(response, DeploymentResponseGenerator), "the handle was made with stream=True"
        finished = False
        try:
            async for update in response:
                finished = isinstance(update, GenerationFinished | GenerationFailed)
                yield update
        finally:
            if not finished:
                response.cancel()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
