"""What outlives the processes that made it, under a real Ray and Serve: slots, streams, trackers.

Prints `ANSWER` and what was seen, as JSON.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray
from ray import serve

from avatarforge import __version__
from avatarforge.diffusion.replica.draining import DrainMonitor, ServeInternals
from avatarforge.domain.customers import shard_of
from avatarforge.domain.generations import GenerationProgress, GenerationTask, GenerationUpdate
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import load_settings
from avatarforge.tracker.actor_handle import find_tracker, get_or_start_tracker
from avatarforge.tracker.client import TrackerClient
from avatarforge.tracker.feed import FeedCursor
from avatarforge.tracker.queue.attempts import build_task
from avatarforge.tracker.queue.serve_replicas import ServeReplicas
from tests.factories import a_job
from tests.waiting import wait_until

APPLICATION = "slow"


@serve.deployment(max_ongoing_requests=1, graceful_shutdown_timeout_s=10)
class Slow:
    """One slot; a generation goes on until it is stopped."""

    def __init__(self) -> None:
        self._monitor = DrainMonitor(ServeInternals(), time.monotonic)
        self._monitor.SLOT_TIMEOUT_SECONDS = 1.0
        self._monitor.CHECK_INTERVAL_SECONDS = 0.1
        self._monitor.start()

    async def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        async with aclosing(self._monitor.guard(self._steps())) as updates:
            async for update in updates:
                yield update

    async def _steps(self) -> AsyncGenerator[GenerationUpdate, None]:
        while True:
            yield GenerationProgress(step=1, total_steps=2)
            await asyncio.sleep(0.1)


@ray.remote(num_cpus=0)
class Holder:
    """Reserves a slot and dies with it."""

    async def hold(self) -> None:
        self._held = ServeReplicas("Slow", APPLICATION).reserve()
        await self._held.__aenter__()


async def slots_and_streams() -> dict[str, Any]:
    """The slot of a holder that was killed is free again; a replica that stops gives its generation back."""
    replicas = ServeReplicas("Slow", APPLICATION)
    holder: Any = Holder.remote()  # type: ignore[attr-defined]  # Ray adds it
    await holder.hold.remote()
    ray.kill(holder)
    begun = time.monotonic()
    updates: list[GenerationUpdate] = []
    async with asyncio.timeout(30), replicas.reserve() as slot:
        freed_after = time.monotonic() - begun
        async with aclosing(slot.generate(build_task(a_job()))) as stream:
            async for update in stream:
                if not updates:
                    deleting = asyncio.create_task(asyncio.to_thread(serve.delete, APPLICATION))
                updates.append(update)
    await deleting
    return {"freedAfter": freed_after, "last": repr(updates[-1])}


async def trackers(folder: Path) -> dict[str, Any]:
    """A tracker is kept for the same arguments, replaced for others, and its clients follow."""
    arguments = {"data_dir": str(folder)}
    settings = load_settings(arguments, environ={})
    await asyncio.to_thread(upgrade, settings.database_url)
    first = await asyncio.to_thread(get_or_start_tracker, arguments, 0)
    clients = TrackerClient([first], retry_timeout=10, find_successor=find_tracker)
    assert shard_of("ana", clients.shards) == 0
    batch = await clients.read_feed(0, FeedCursor(), 0)
    same = await asyncio.to_thread(get_or_start_tracker, arguments, 0)
    others = {**arguments, "tracker": {"lease_seconds": 20}}
    other = await asyncio.to_thread(get_or_start_tracker, others, 0)

    async def follows() -> bool:
        try:
            told = await clients.read_feed(0, FeedCursor(), 0)
        except Exception:
            return False
        return told.cursor.tracker != batch.cursor.tracker

    followed = bool(await wait_until(follows, 20))
    told: Any = other
    answer = {
        "kept": same == first,
        "replaced": other != first,
        "followed": followed,
        "lastArguments": await told.is_current.remote(others, __version__),
        "isOfAnotherRelease": not await told.is_current.remote(others, "another"),
        "epochs": [
            batch.cursor.tracker.split("-")[0],
            (await clients.read_feed(0, FeedCursor(), 0)).cursor.tracker.split("-")[0],
        ],
    }
    await clients.close()
    return answer


def main() -> None:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    serve.run(Slow.bind(), name=APPLICATION, route_prefix=None)
    seen = asyncio.run(slots_and_streams())
    seen |= asyncio.run(trackers(Path(sys.argv[1])))
    print("ANSWER", json.dumps(seen), flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
