"""The service from a Serve config file that changes while it runs."""

import time
from pathlib import Path

import yaml

from tests.servers.avatarforge import AvatarForgeServer


class RedeployedServer(AvatarForgeServer):
    """Its checkpoint and its number of replicas can be changed, by its file, as its users do it."""

    def __init__(self, data_dir: Path, model: str, **variables: str) -> None:
        super().__init__(data_dir, **variables)
        self.config = data_dir / "serve_config.yaml"
        data_dir.mkdir(parents=True, exist_ok=True)
        self.deploy(model, replicas=1)

    @property
    def arguments(self) -> tuple[str, ...]:
        return (*super().arguments, "--config", str(self.config))

    def deploy(self, model: str, replicas: int) -> None:
        """Have it applied; returns at once."""
        application = {
            "name": "avatarforge",
            "route_prefix": "/",
            "import_path": "avatarforge.app:build",
            "deployments": [
                {"name": "Ingress", "user_config": {"model": model}},
                {"name": "StableDiffusion", "num_replicas": replicas, "user_config": {"model": model}},
            ],
        }
        self.write(yaml.safe_dump({"applications": [application]}))

    def await_log(self, words: str, seconds: float = 30) -> None:
        """Return once the service has said so."""
        deadline = time.monotonic() + seconds
        while words not in self.log:
            assert time.monotonic() < deadline, self.log[-2000:]
            time.sleep(0.1)

    def write(self, text: str) -> None:
        """The file as it is from now on: whole or not at all."""
        new = self.config.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.rename(self.config)
