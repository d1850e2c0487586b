"""An application of nothing but the Stable Diffusion deployment, and a walk through its life.

`python -m tests.replica FOLDER MODELS` prints what it saw as a line of JSON.
"""

import asyncio
import json
import sys
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from avatarforge.diffusion.replica.deployment import StableDiffusion
from avatarforge.settings import Settings
from avatarforge.storage import open_storage
from tests.generations import a_task
from tests.waiting import wait_until


def build(arguments: dict[str, Any]) -> Application:
    options = {"num_cpus": 0.5}
    return serve.deployment(StableDiffusion, ray_actor_options=options, max_ongoing_requests=3).bind(
        arguments
    )


def deploy(settings: Settings, **user_config: str) -> Any:
    """As `serve deploy` does it: a change of nothing but `user_config` leaves the replica running."""
    application = {
        "name": "t",
        "route_prefix": None,
        "import_path": "tests.replica:build",
        "args": settings.as_arguments(),
        "deployments": [{"name": "StableDiffusion", "user_config": user_config}],
    }
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]), _blocking=True)
    return serve.get_deployment_handle("StableDiffusion", "t")


async def walk(folder: str, models: str) -> dict[str, Any]:
    diffusion = {"device": "cpu", "models_dir": models}
    settings = Settings.model_validate({"data_dir": folder, "diffusion": diffusion})
    storage = open_storage(settings)
    handle = await asyncio.to_thread(deploy, settings, modle="avatar-mini")

    async def described() -> dict[str, Any]:
        return dict(await handle.describe.remote())

    async def described_with_failure() -> dict[str, Any] | None:
        answer = await described()
        return answer if answer["failure"] else None

    def stream(**parameters: Any) -> Any:
        return handle.options(stream=True).generate.remote(a_task(storage, **parameters))

    ends = [[update async for update in stream()][-1]]
    served = await described()
    handle = await asyncio.to_thread(deploy, settings, model="nosuch", modle="avatar-mini")
    after = await wait_until(described_with_failure, deadline=60)
    ends.append([update async for update in stream()][-1])
    long = stream(steps=800, strength=None)
    async for update in long:
        if update.step >= 1:
            break
    long.cancel()
    ends.append([update async for update in stream()][-1])
    avatars = [entry.key for entry in storage.list("customers/") if "avatar" in entry.key]
    told = sorted(end.outcome.avatar.key for end in ends)
    return {"served": served, "after": after, "avatars": avatars, "told": told}


def main() -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start()
        print("ANSWER", json.dumps(asyncio.run(walk(*sys.argv[1:]))))
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
