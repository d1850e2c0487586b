"""Keeps the servers of Ray Serve's processes to one interface.

Serve binds its gRPC servers to every interface, and has no setting for it: those of ingress replicas and of
the fallback proxy, which only HAProxy calls, and where there is no HAProxy the proxy that clients call. Their
HTTP servers listen where clients' do, though HAProxy alone calls them. Before their servers start these
processes call what `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names: `keep`.
"""

import os
import socket
from types import SimpleNamespace
from typing import Any

CALLBACK = f"{__name__}:keep"
VARIABLE = "RAY_SERVE_GRPC_HOST"
"""Names the interface's address. Not a variable of Ray's own."""


def keep() -> list[object]:
    """Serve takes the answer for HTTP middlewares to add."""
    import ray.serve._private.default_impl as serve
    from ray.serve._private import http_util

    host = os.environ[VARIABLE]

    def add_grpc_address(grpc_server: Any, server_address: str) -> None:
        port = server_address.rpartition(":")[2]
        grpc_server.add_insecure_port(f"{host_in_address(host)}:{port}")

    serve.add_grpc_address = add_grpc_address
    # Not the function that starts the server: Ray sends the proxy's class with its own reference to that.
    sockets: Any = SimpleNamespace(**{**vars(socket), "socket": _Narrow})
    http_util.socket = sockets  # type: ignore[attr-defined]
    return []


class _Narrow(socket.socket):
    """A socket for a server, whatever host it is told."""

    def bind(self, address: Any) -> None:
        host = os.environ[VARIABLE]
        if self.family == socket.AF_INET6 and ":" not in host:
            host = f"::ffff:{host}"
        super().bind((host, address[1]))


def host_in_address(host: str) -> str:
    """Return the host for use before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
