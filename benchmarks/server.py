"""The measured service, in a process of its own: `python -m benchmarks.server [--bare]`.

Settings come from the environment, as for `avatarforge up`. One line of JSON on standard output says that
it is ready; each line on its standard input asks for another, with what the tracker says of itself. It
stops when its standard input is closed, so it does not outlive who started it.
"""

import json
import sys
from dataclasses import asdict
from typing import Any

from avatarforge.cluster.local import NAMESPACE
from avatarforge.embedded import run_locally
from avatarforge.settings import Settings, load_settings


def main() -> None:
    settings = load_settings()
    with run_locally(settings) as instance:
        if "--bare" in sys.argv:
            _deploy_bare_ingress(settings)
        ready = {
            "url": instance.url,
            "seconds": instance.timings.total_seconds,
            "phases": [asdict(phase) for phase in instance.timings.phases],
        }
        print(json.dumps(ready), flush=True)
        for _ in sys.stdin:
            print(json.dumps(_tracker()), flush=True)


def _tracker() -> dict[str, int]:
    import ray

    actor: Any = ray.get_actor("JobTracker:0", namespace=NAMESPACE)
    described: dict[str, int] = ray.get(actor.describe.remote())
    return described


def _deploy_bare_ingress(settings: Settings) -> None:
    from ray import serve

    from benchmarks.bare import PREFIX, bare_application

    serve.run(bare_application(settings.ingress), name="bare", route_prefix=PREFIX)


if __name__ == "__main__":
    main()
