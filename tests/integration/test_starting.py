"""What `avatarforge up` says while it waits."""

import asyncio
from pathlib import Path

import httpx

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
