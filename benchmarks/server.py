"""The measured service, in a process of its own: `python -m benchmarks.server [--bare]`.

Settings come from the environment, as for `avatarforge up`. One line of JSON on standard output says that
it is ready; it stops when its standard input is closed, so it does not outlive who started it.
"""

import json
import sys
from dataclasses import asdict

from avatarforge.embedded import running
from avatarforge.settings import Settings, load_settings


def main() -> None:
    settings = load_settings()
    with running(settings) as instance:
        if "--bare" in sys.argv:
            _deploy_bare_ingress(settings)
        ready = {
            "url": instance.url,
            "seconds": instance.timings.elapsed,
            "phases": [asdict(phase) for phase in instance.timings.phases],
        }
        print(json.dumps(ready), flush=True)
        sys.stdin.read()


def _deploy_bare_ingress(settings: Settings) -> None:
    from ray import serve

    from benchmarks.bare import PREFIX, bare_application

    serve.run(bare_application(settings.ingress), name="bare", route_prefix=PREFIX)


if __name__ == "__main__":
    main()
