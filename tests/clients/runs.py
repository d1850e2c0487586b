"""Runs clients that are installed beside us: npm's with Node, Python's in an environment of their own."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

HERE = Path(__file__).parent
PYTHON = HERE / ".venv" / "bin" / "python"
MODULES = HERE / "node_modules"
RESTARTS = int(os.environ.get("CLIENT_RESTARTS", "0"))
"""How often the service restarts below clients: twenty times in `make clients`."""

FOLLOWERS = {
    "httpx-sse": (str(PYTHON), str(HERE / "follow.py")),
    "eventsource": ("node", str(HERE / "follow.mjs"), "eventsource"),
    "fetch-event-source": ("node", str(HERE / "follow.mjs"), "fetch-event-source"),
}
"""Programs that follow the stream whose URL is their last argument."""


async def run(*command: str | Path, cwd: Path = HERE, seconds: float = 120) -> str:
    """What the program prints; it must end well."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), seconds)
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, f"{out.decode()}\n{errors.decode()}"
    return out.decode()


class Heard:
    """The events that a follower has printed."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    @property
    def changes(self) -> list[int]:
        """Numbers of the changes, in the order in which they came."""
        return [int(event["id"]) for event in self.events if event["kind"] == "status"]

    async def until(self, condition: Callable[[], bool], deadline: float = 30) -> None:
        await wait_until(condition, deadline=deadline)


@asynccontextmanager
async def following(client: str, url: str) -> AsyncIterator[Heard]:
    """Have the client follow the stream; it must not end by itself."""
    process = await asyncio.create_subprocess_exec(
        *FOLLOWERS[client], url, stdout=asyncio.subprocess.PIPE, limit=1 << 24
    )
    heard, lines = Heard(), process.stdout

    async def listen() -> None:
        assert lines is not None
        async for line in lines:
            heard.events.append(json.loads(line))

    listening = asyncio.create_task(listen())
    try:
        yield heard
        assert process.returncode is None, f"{client} has given up"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await listening
