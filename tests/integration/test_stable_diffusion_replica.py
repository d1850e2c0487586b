"""The deployment under a real Serve: one replica, started once for the file."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, json, sys
from io import BytesIO
from pathlib import Path

import ray
from ray import serve

from avatarforge.diffusion.deployment import StableDiffusion
from avatarforge.domain.generations import GenerationFinished
from avatarforge.settings import Settings
from avatarforge.storage import open_storage
from tests.integration.test_worker import a_task
from tests.waiting import wait_until

settings = Settings.model_validate({"data_dir": sys.argv[1], "diffusion": {"device": "cpu"}})
storage = open_storage(settings)
deployment = serve.deployment(StableDiffusion, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=3)


def run(wish):
    plain = settings.as_arguments()
    return serve.run(deployment.options(user_config={"model": wish}).bind(plain), name="t", route_prefix=None)


async def told(handle):
    return await handle.describe.remote()


async def main():
    handle = await asyncio.to_thread(run, "avatar-mini")
    task = a_task(storage)
    first = [update async for update in handle.options(stream=True).generate.remote(task)]
    served = await told(handle)
    handle = await asyncio.to_thread(run, "nosuch")

    async def failed():
        return (await told(handle))["failure"]

    await wait_until(failed, deadline=30)
    after = await told(handle)
    second = [update async for update in handle.options(stream=True).generate.remote(a_task(storage))]
    long = handle.options(stream=True).generate.remote(a_task(storage, steps=800, strength=1.0))
    async for update in long:
        if update.step >= 1:
            break
    long.cancel()
    third = [update async for update in handle.options(stream=True).generate.remote(a_task(storage))]
    keys = sorted(entry.key for entry in storage.list("customers/") if "avatar" in entry.key)
    outcomes = [updates[-1].outcome.avatar.key for updates in (first, second, third)]
    print("ANSWER", json.dumps({"served": served, "after": after, "keys": keys, "told": sorted(outcomes)}))


ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
try:
    asyncio.run(main())
finally:
    serve.shutdown()
    ray.shutdown()
"""


def test_a_replica_generates_survives_a_wrong_wish_and_stops_when_cancelled(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, done.stderr[-4000:]
    answer = json.loads(answers[0].removeprefix("ANSWER "))
    assert (answer["served"]["model"], answer["served"]["failure"]) == ("avatar-mini", None)
    assert (answer["after"]["model"], answer["after"]["wish"]) == ("avatar-mini", "nosuch")
    # The cancelled one left nothing.
    assert answer["keys"] == answer["told"]
