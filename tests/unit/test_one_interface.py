"""Serve's own servers, which bind every interface: kept to the one that `up` names."""

import asyncio
import socket

import grpc
import pytest
from ray.serve._private import default_impl, http_util
from ray.serve.config import HTTPOptions

from avatarforge.cluster import grpc_interface
from tests.servers.mariadb import free_port
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((default_impl, "add_grpc_address"), (http_util, "socket")):
        # Set first, so that the original comes back whatever `keep` puts there.
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setenv(grpc_interface.VARIABLE, "127.0.0.1")
    assert grpc_interface.keep() == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_http_listens_where_it_is_told_although_serve_would_listen_everywhere(host: str) -> None:
    options = HTTPOptions(host=host, port=free_port())

    async def app(scope: object, receive: object, send: object) -> None: ...

    loop = asyncio.get_running_loop()
    task, server = await http_util.start_asgi_http_server(app, options, event_loop=loop)
    try:
        await wait_until(lambda: server.started)
        assert _reaches("127.0.0.1", options.port)
        # The whole of 127/8 is this machine: an address that a server on every interface would answer at.
        assert not _reaches("127.0.0.2", options.port)
    finally:
        server.should_exit = True
        await task


async def test_grpc_listens_where_it_is_told() -> None:
    server, port = grpc.aio.server(), free_port()
    default_impl.add_grpc_address(server, f"[::]:{port}")
    await server.start()
    try:
        assert _reaches("127.0.0.1", port)
        assert not _reaches("127.0.0.2", port)
    finally:
        await server.stop(None)


def _reaches(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((address, port)) == 0
