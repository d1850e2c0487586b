"""What `avatarforge up` says while it waits."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from avatarforge.cluster.timings import Timings, WaitingNotices
from avatarforge.embedded import describe_waiting
from avatarforge.settings import load_settings
from tests.integration.service import running_service
from tests.servers.mariadb import free_port
from tests.waiting import wait_until


async def test_the_start_says_what_it_waits_for_and_why(tmp_path: Path) -> None:
    def ask(url: str) -> str:
        with httpx.Client(base_url=url) as client:
            return describe_waiting(client, settings)

    key = {"access_key_id": "key", "secret_access_key": "secret"}
    elsewhere = {"bucket": "avatars", "endpoint_url": f"http://127.0.0.1:{free_port()}", "timeout": 1, **key}
    settings = load_settings({"storage": elsewhere}, environ={})
    async with running_service(tmp_path) as service:
        assert await asyncio.to_thread(ask, service.url) == ""
        service.storage.away = True
        said = await wait_until(lambda: asyncio.to_thread(ask, service.url))
    assert said.startswith("storage: Could not connect to the endpoint URL")


def test_the_start_says_what_takes_long_before_anything_answers(tmp_path: Path) -> None:
    """The database's server takes the connection, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [sys.executable, "-m", "avatarforge", "up"],
            env={
                **os.environ,
                "AVATARFORGE_DATA_DIR": str(tmp_path),
                "AVATARFORGE_HTTP_PORT": str(free_port()),
                "AVATARFORGE_GRPC_PORT": str(free_port()),
                "AVATARFORGE_DATABASE_URL": f"mysql+pymysql://a:b@127.0.0.1:{silent.getsockname()[1]}/c",
                "AVATARFORGE_DATABASE_CONNECT_TIMEOUT": "60",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None, "a pipe"
        try:
            assert process.stderr.readline() == "Still upgrading the database …\n"
        finally:
            process.kill()
            process.communicate()


async def test_each_phase_is_named_once_and_its_detail_when_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WaitingNotices, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(WaitingNotices, "CHECK_INTERVAL_SECONDS", 0.001)
    timings, said = Timings(), list[str]()
    with WaitingNotices(timings, said.append) as notices:
        with timings.phase("starting Ray"):
            await wait_until(lambda: said)
        with timings.phase("waiting for /readyz"):
            await wait_until(lambda: "Still waiting for /readyz …" in said)
            notices.detail = "storage: no such bucket"
            await wait_until(lambda: "Waiting: storage: no such bucket" in said)
        notices.stop()
        notices.detail = "nothing any more"
    assert said == ["Still starting Ray …", "Still waiting for /readyz …", "Waiting: storage: no such bucket"]
