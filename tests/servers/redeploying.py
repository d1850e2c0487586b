"""The service from a Serve config, changed while it runs as `serve deploy` changes it.

`python -m tests.servers.redeploying` deploys and goes on; each line on its standard input is another
model and number of replicas, as JSON.
"""

import json
import subprocess
import sys
from contextlib import suppress
from typing import Any, ClassVar

from avatarforge.cli.terminal import terminating_like_ctrl_c
from avatarforge.embedded import running
from avatarforge.settings import Settings, load_settings
from tests.servers.avatarforge import AvatarForgeServer


class RedeployedServer(AvatarForgeServer):
    """Its checkpoint and its number of replicas can be changed."""

    COMMAND: ClassVar[tuple[str, ...]] = ("-m", "tests.servers.redeploying")
    STDIN: ClassVar[int | None] = subprocess.PIPE

    def stop(self, seconds: float = 30) -> None:
        """As its base, and the pipe is closed."""
        process = self._process
        super().stop(seconds)
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def deploy(self, model: str, replicas: int) -> None:
        """Have it applied; returns at once."""
        assert self._process is not None, "the service does not run"
        assert self._process.stdin is not None, "a pipe"
        line = json.dumps({"model": model, "replicas": replicas})
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()


def config_of(settings: Settings, model: str, replicas: int) -> dict[str, Any]:
    """As `serve_config.yaml` has it: what changes while running stands in `user_config`."""
    application = {
        "name": "avatarforge",
        "route_prefix": "/",
        "import_path": "avatarforge.app:build",
        "args": settings.as_arguments(),
        "deployments": [
            {"name": "Ingress", "user_config": {"model": model}},
            {"name": "StableDiffusion", "num_replicas": replicas, "user_config": {"model": model}},
        ],
    }
    return {"applications": [application]}


def main() -> None:
    settings = load_settings()
    with (
        terminating_like_ctrl_c(),
        suppress(KeyboardInterrupt),
        running(settings, config=config_of(settings, settings.diffusion.model, 1)),
    ):
        for line in sys.stdin:
            _deploy(config_of(settings, **json.loads(line)))


def _deploy(config: dict[str, Any]) -> None:
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    client = _get_global_client()
    assert client is not None, "it raises instead"
    client.deploy_apps(ServeDeploySchema.model_validate(config))


if __name__ == "__main__":
    main()
