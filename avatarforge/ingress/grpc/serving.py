"""Registers the service with a gRPC server, so that methods run before their requests are read.

A lone message is a stream of one on the wire, and a server leaves a stream's messages there until it is asked
for them: a caller without a key fills no memory. Undecodable requests reach their methods, too; with the
generated function the server itself answers them, with `UNKNOWN` and the decoder's words.

Reflection is `v1`, which clients ask for first; Serve adds `v1alpha`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import _base, reflection, reflection_pb2

from avatarforge.domain.errors import InvalidRequest
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["ProfilePhotoJobService"]

READ_TIMEOUT_SECONDS = 30.0
"""How long a client may take to send a message other than a photo's pieces."""

REFLECTION = "grpc.reflection.v1.ServerReflection"

T = TypeVar("T")


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
    handlers = {
        method.name: _make_handler(getattr(servicer, method.name), method) for method in SERVICE.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    server.add_registered_method_handlers(SERVICE.full_name, handlers)


async def read_request(requests: AsyncIterator[T]) -> T:
    """Return the only message. Raises `InvalidRequest` if it does not come in time, or is none."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            async for request in requests:
                return require_decoded(request)
    except TimeoutError:
        pass
    raise InvalidRequest("The message", "nothing", f"one that comes within {READ_TIMEOUT_SECONDS:g} seconds")


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
    _base._POOL = _Pool(_base._POOL) if not isinstance(_base._POOL, _Pool) else _base._POOL
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    text = text_format.MessageToString(file)
    v1 = text_format.Parse(re.sub(r"(grpc[._]reflection[./]v1)alpha", r"\1", text), FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(v1.SerializeToString())
    known = {path.split("/")[1] for each in server.generic_rpc_handlers for path in each[0]._method_handlers}
    names = {name for name in known if not name.startswith("ray.")} | {REFLECTION, reflection.SERVICE_NAME}
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
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
