"""The methods of `grpc.health.v1.Health`: whether a promise can be kept now, as `/readyz` says it.

The protocol is https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import cached_property

import grpc
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from avatarforge.domain.errors import truncate_repr
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.ingress.grpc.errors import CallContext, handle_errors, set_error
from avatarforge.ingress.grpc.serving import UnknownCallers
from avatarforge.ingress.service import ProfilePhotoService

SERVICES = ("", pb.DESCRIPTOR.services_by_name["ProfilePhotoJobService"].full_name)
"""What may be asked for; the empty name is the server as a whole."""

WATCH_SECONDS = 1.0
"""From one look at our health to the next; all who watch share it."""


class HealthMethods:
    """Named as the calls are."""

    _photos: ProfilePhotoService

    @cached_property
    def _callers(self) -> UnknownCallers:
        return UnknownCallers()

    async def Check(
        self, requests: AsyncIterator[HealthCheckRequest], grpc_context: CallContext
    ) -> HealthCheckResponse:
        with handle_errors(grpc_context, "Check"):
            request = await self._callers.read(requests, grpc_context.peer())
            if request.service in SERVICES:
                return HealthCheckResponse(status=await self._health())
            known = ", ".join(map(repr, SERVICES))
            details = f"There is no service {truncate_repr(request.service)} here; there are {known}."
            set_error(grpc_context, grpc.StatusCode.NOT_FOUND, details, "service_not_found")
        return HealthCheckResponse()

    async def List(
        self, requests: AsyncIterator[HealthListRequest], grpc_context: CallContext
    ) -> HealthListResponse:
        with handle_errors(grpc_context, "List"):
            health = HealthCheckResponse(status=await self._health())
            return HealthListResponse(statuses=dict.fromkeys(SERVICES, health))
        return HealthListResponse()

    async def Watch(
        self, requests: AsyncIterator[HealthCheckRequest], grpc_context: CallContext
    ) -> AsyncIterator[HealthCheckResponse]:
        """Like every stream it ends after a while; the protocol has clients call again."""
        with handle_errors(grpc_context, "Watch"):
            request = await self._callers.read(requests, grpc_context.peer())
            clock = asyncio.get_running_loop().time
            end = clock() + self._photos.settings.ingress.max_stream_seconds
            told = None
            while clock() < end:
                health = await self._health(request.service)
                if health != told:
                    yield HealthCheckResponse(status=health)
                    told = health
                await asyncio.sleep(WATCH_SECONDS)

    async def _health(self, service: str = "") -> int:
        """One of `HealthCheckResponse.ServingStatus`."""
        health: int = HealthCheckResponse.SERVICE_UNKNOWN
        if service in SERVICES:
            ready = (await self._photos.health.readiness()).ready
            health = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        return health
