"""Redis, in which Ray's head keeps its record (GCS fault tolerance)."""

import os
import socket
import ssl
from collections.abc import Mapping
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from avatarforge.diagnosis.findings import Finding, State, make_failure

ADDRESS = "RAY_REDIS_ADDRESS"
"""Ray's own variable, as are those of user name and password."""


def check_redis(environ: Mapping[str, str] = os.environ) -> Finding:
    """Ask each server that Ray is told to use for a PONG."""
    addresses = environ.get(ADDRESS)
    if not addresses:
        return Finding(State.ABSENT, f"{ADDRESS} is not set")
    shown = []
    for address in addresses.split(","):
        try:
            shown.append(_ping(address.strip(), environ))
        except (OSError, ValueError) as error:
            return make_failure(
                f"{address}: {error}",
                f"Is it running, and can this machine reach it? Look at {ADDRESS} (host:port or "
                "rediss://host:port), RAY_REDIS_USERNAME and RAY_REDIS_PASSWORD.",
            )
    return Finding(State.OK, "; ".join(shown))


def _ping(address: str, environ: Mapping[str, str]) -> str:
    """Ping the server and return its answer. Raises `OSError`, and `ValueError` for a refusal."""
    parts = urlsplit(address if "://" in address else f"redis://{address}")
    host, port = parts.hostname or "127.0.0.1", parts.port or 6379
    connection = socket.create_connection((host, port), timeout=5)
    if parts.scheme == "rediss":
        connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    with connection, cast(BinaryIO, connection.makefile("rwb")) as stream:
        if password := environ.get("RAY_REDIS_PASSWORD"):
            user = environ.get("RAY_REDIS_USERNAME")
            _send_command(stream, "AUTH", *([user] if user else []), password)
        return f"{host}:{port} {_send_command(stream, 'PING')}"


def _send_command(stream: BinaryIO, *words: str) -> str:
    """Send one command in Redis' protocol (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    encoded = [word.encode() for word in words]
    parts = [b"*%d\r\n" % len(encoded), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)]
    stream.write(b"".join(parts))
    stream.flush()
    answer = stream.readline(1000).decode(errors="replace").strip()
    if not answer.startswith("+"):
        raise ValueError(answer.removeprefix("-") or "it closed the connection")
    return answer.removeprefix("+")
