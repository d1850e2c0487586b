"""Registers the services with a gRPC server, so that methods run before their requests are read.

A lone message is a stream of one on the wire, and a server leaves a stream's messages there until it is asked
for them: a caller without a key fills no memory. Health and reflection ask for no key: of theirs few messages
are read at a time. Undecodable requests reach their methods, too; with the
generated function the server itself answers them, with `UNKNOWN` and the decoder's words.

Reflection is `v1`, which clients ask for first; Serve adds `v1alpha`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import _base, reflection, reflection_pb2

from avatarforge.domain.errors import InvalidRequest, TooManyCalls
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.ingress.grpc.errors import handle_errors

SERVICE = pb.DESCRIPTOR.services_by_name["ProfilePhotoJobService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

READ_TIMEOUT_SECONDS = 30.0
"""How long a client may take to send a message other than a photo's pieces."""

MAX_UNKNOWN_READS = 8
"""Messages of callers who need no key that are read at a time, of each service: each may have 4 MiB."""
MAX_UNKNOWN_READS_OF_PEER = 4
"""Of these, those from one address: so one host alone keeps nobody else out."""
MAX_UNKNOWN_BYTES = 64 * 1024
"""Of such a message that is looked at: names of services and files are short."""
UNKNOWN_READ_TIMEOUT_SECONDS = 0.5
"""How long such a caller may take to send a message once it is its turn: others wait for its place."""
UNKNOWN_QUEUE_TIMEOUT_SECONDS = 5.0
"""How long such a caller may wait until it is its turn."""

REFLECTION = "grpc.reflection.v1.ServerReflection"

T = TypeVar("T")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class UndecodableRequest:
    """Stands for a request whose bytes are no message of its type."""

    size: int
    """Bytes."""
    wanted: str
    """Full name of the message's type."""


def add_job_service_to_server(servicer: Any, server: Any) -> None:
    """Do the same as `add_ProfilePhotoJobServiceServicer_to_server`, with methods that all take a stream of
    requests; they call `read_request` or `require_decoded`."""
    _add_service(SERVICE, servicer, server)


def add_health_service_to_server(servicer: Any, server: Any) -> None:
    """Do the same as `add_HealthServicer_to_server`, with methods that take a stream of requests."""
    _add_service(HEALTH, servicer, server)


def _add_service(service: ServiceDescriptor, servicer: Any, server: Any) -> None:
    handlers = {
        method.name: _make_handler(getattr(servicer, method.name), method) for method in service.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    server.add_registered_method_handlers(service.full_name, handlers)


async def read_request(requests: AsyncIterator[T]) -> T:
    """Return the only message. Raises `InvalidRequest` if it does not come in time, or is none."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            async for request in requests:
                return require_decoded(request)
    except TimeoutError:
        pass
    raise InvalidRequest("The message", "nothing", f"one that comes within {READ_TIMEOUT_SECONDS:g} seconds")


class UnknownCallers:
    """Reads the messages of callers whose key is not asked for, few at a time."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MAX_UNKNOWN_READS)
        self._places_of_peers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def read(self, requests: AsyncIterator[M], peer: str) -> M:
        """Return the next message. Raises `TooManyCalls`, and `InvalidRequest` if it does not come in time,
        is large, or none."""
        async for request in self.iterate(requests, peer):
            return require_decoded(request)
        limits = f"at most {MAX_UNKNOWN_BYTES} bytes, within {UNKNOWN_READ_TIMEOUT_SECONDS:g} seconds"
        raise InvalidRequest("The message", "nothing, late, or large", limits)

    async def iterate(self, requests: AsyncIterator[M], peer: str) -> AsyncIterator[M]:
        """Yield the messages, until none comes in time, or one that is large.

        `peer` is the caller's address, as gRPC gives it. Raises `TooManyCalls` if its turn does not come.
        """
        while True:
            async with self._hold_place(peer):
                try:
                    async with asyncio.timeout(UNKNOWN_READ_TIMEOUT_SECONDS):
                        # Not asked for its iterator earlier: grpcio warns of one that is never read.
                        request = await anext(aiter(requests))
                except (StopAsyncIteration, TimeoutError):
                    return
            size = request.size if isinstance(request, UndecodableRequest) else request.ByteSize()
            if size > MAX_UNKNOWN_BYTES:
                return
            yield request

    @asynccontextmanager
    async def _hold_place(self, peer: str) -> AsyncIterator[None]:
        host = peer.rpartition(":")[0]
        of_peer = self._places_of_peers.setdefault(host, asyncio.Semaphore(MAX_UNKNOWN_READS_OF_PEER))
        limit = MAX_UNKNOWN_READS_OF_PEER
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(UNKNOWN_QUEUE_TIMEOUT_SECONDS):
                    await stack.enter_async_context(of_peer)
                    limit = MAX_UNKNOWN_READS
                    await stack.enter_async_context(self._places)
            except TimeoutError:
                raise TooManyCalls(limit) from None
            yield


class _ReflectionServicer(reflection.aio.ReflectionServicer):  # type: ignore[misc]  # it has no types
    """Reads few messages at a time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._callers = UnknownCallers()

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        with handle_errors(context, "ServerReflectionInfo"):
            messages = self._callers.iterate(requests, context.peer())
            async for response in super().ServerReflectionInfo(messages, context):
                yield response


class _Pool:
    """Finds methods too, which protobuf's own pool does not."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            return self._pool.FindServiceByName(service).methods_by_name[method].containing_service.file


def add_reflection_to_server(_servicer: Any, server: Any) -> None:
    """Add `grpc.reflection.v1`, whose messages are those of `v1alpha` under another name.

    Called by Serve after the other services were added.
    """
    # Of Serve's own servicer, too, which it makes after this.
    reflection.aio.ReflectionServicer = _ReflectionServicer
    _base._POOL = _Pool(_base._POOL) if not isinstance(_base._POOL, _Pool) else _base._POOL
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    text = text_format.MessageToString(file)
    v1 = text_format.Parse(re.sub(r"(grpc[._]reflection[./]v1)alpha", r"\1", text), FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(v1.SerializeToString())
    known = {path.split("/")[1] for each in server.generic_rpc_handlers for path in each[0]._method_handlers}
    names = {name for name in known if not name.startswith("ray.")} | {REFLECTION, reflection.SERVICE_NAME}
    handler = grpc.stream_stream_rpc_method_handler(
        _ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    # It is answered where the server is, not by a method of the ingress.
    server.add_passthrough_service(REFLECTION)
    handlers = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(REFLECTION, handlers),))
    server.add_registered_method_handlers(REFLECTION, handlers)


def require_decoded(request: T) -> T:
    """Return the request. Raises `InvalidRequest` if it could not be decoded."""
    if isinstance(request, UndecodableRequest):
        raise InvalidRequest("The message", f"{request.size} bytes", f"a {request.wanted}")
    return request


def _make_handler(behaviour: Callable[..., Any], method: MethodDescriptor) -> Any:
    make = (
        grpc.stream_stream_rpc_method_handler
        if method.server_streaming
        else grpc.stream_unary_rpc_method_handler
    )
    return make(
        behaviour,
        request_deserializer=_make_deserializer(method),
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _make_deserializer(method: MethodDescriptor) -> Callable[[bytes], Any]:
    message_class = GetMessageClass(method.input_type)

    def read(content: bytes) -> Any:
        try:
            return message_class.FromString(content)
        except DecodeError:
            return UndecodableRequest(len(content), method.input_type.full_name)

    return read
