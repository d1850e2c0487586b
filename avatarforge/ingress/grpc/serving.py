"""The service as a gRPC server is told of it: requests that cannot be read reach their methods, too.

With the generated function the server itself answers them, with `UNKNOWN` and the decoder's words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from avatarforge.domain.errors import InvalidRequest
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["ProfilePhotoJobService"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a request whose bytes are no message of its type."""

    size: int
    """Bytes."""
    wanted: str
    """Full name of the message's type."""


def add_job_service_to_server(servicer: Any, server: Any) -> None:
    """As `add_ProfilePhotoJobServiceServicer_to_server`. Methods put their requests through `readable`."""
    handlers = {method.name: _handler(getattr(servicer, method.name), method) for method in SERVICE.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    server.add_registered_method_handlers(SERVICE.full_name, handlers)


def readable(request: T) -> T:
    """The request. Raises `InvalidRequest` for one that could not be read."""
    if isinstance(request, Unreadable):
        raise InvalidRequest("The message", f"{request.size} bytes", f"a {request.wanted}")
    return request


def _handler(behaviour: Callable[..., Any], method: MethodDescriptor) -> Any:
    make = (
        grpc.unary_stream_rpc_method_handler
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(
        behaviour,
        request_deserializer=_reader(method),
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _reader(method: MethodDescriptor) -> Callable[[bytes], Any]:
    message_class = GetMessageClass(method.input_type)

    def read(content: bytes) -> Any:
        try:
            return message_class.FromString(content)
        except DecodeError:
            return Unreadable(len(content), method.input_type.full_name)

    return read
