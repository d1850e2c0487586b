"""AvatarForge, whole, on this machine: database, Ray, Serve and the application."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from avatarforge.cluster import ClusterError, LocalCluster, NotEnoughGpus
from avatarforge.cluster.timings import Timings
from avatarforge.settings import Settings

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

APPLICATION = "avatarforge"
READY_SECONDS = 600.0
"""A large checkpoint from a slow disk takes its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A running AvatarForge."""

    url: str
    timings: Timings


@contextmanager
def running(
    settings: Settings, *, config: "ServeDeploySchema | None" = None, timings: Timings | None = None
) -> Iterator[Instance]:
    """Start AvatarForge, hand it out once `/readyz` says 200, and stop it at the end.

    The database is upgraded first. `config` deploys a `serve_config.yaml` instead of the settings alone.
    Raises `ClusterError` and its like, `DataFolderInUse`, and `DatabaseUnavailable`.
    """
    timings = timings or Timings()

    def meanwhile() -> None:
        with timings.phase("upgrade the database"):
            from avatarforge.persistence.upgrade import upgrade

            upgrade(settings.database_url)
        with timings.phase("import the application"):
            import avatarforge.app  # noqa: F401  # most of the time of building it

    cluster = LocalCluster(
        settings.data_dir,
        host=settings.http.host,
        port=settings.http.port,
        # Workers may have another working folder.
        variables={"AVATARFORGE_DATA_DIR": str(settings.data_dir.resolve())},
        timings=timings,
        meanwhile=meanwhile,
    )
    with cluster:
        _check_gpus(cluster, settings, config)
        cluster.wait_for_controller()
        with timings.phase("deploy"):
            _deploy(settings, config)
        with timings.phase("wait for /readyz"):
            _wait_until_ready(cluster)
        yield Instance(url=cluster.url, timings=timings)


def read_config(path: Path) -> "tuple[ServeDeploySchema, dict[str, Any]]":
    """A Serve config file, and the arguments of its first application with the file's HTTP address.

    Raises `ClusterError` when the file cannot be read or is not one.
    """
    import yaml
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise ClusterError(f"{path} is not a Serve config file: {error}") from error
    if not config.applications:
        raise ClusterError(f"{path} names no application.")
    address = {"host": config.http_options.host, "port": config.http_options.port}
    return config, {"http": address, **config.applications[0].args}


def _check_gpus(cluster: LocalCluster, settings: Settings, config: "ServeDeploySchema | None") -> None:
    """Serve would wait without end for a machine with a GPU to join the cluster."""
    wanted = settings.diffusion.num_gpus
    if config is not None:
        options = (
            deployment.ray_actor_options
            for application in config.applications
            for deployment in application.deployments
        )
        wanted = max([wanted, *(option.num_gpus or 0 for option in options if hasattr(option, "num_gpus"))])
    if wanted > cluster.gpus:
        raise NotEnoughGpus(wanted, cluster.gpus)


def _deploy(settings: Settings, config: "ServeDeploySchema | None") -> None:
    from ray import serve

    if config is not None:
        from ray.serve.context import _get_global_client

        client = _get_global_client()
        assert client is not None, "it raises instead"
        client.deploy_apps(config)  # as `serve run` does it
        return
    from avatarforge.app import build

    target = serve.RunTarget(build(settings.as_arguments()), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)


def _wait_until_ready(cluster: LocalCluster) -> None:
    deadline = time.monotonic() + READY_SECONDS
    look_at = 0.0
    with httpx.Client(base_url=cluster.url, timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            if _answers(client):
                return
            if time.monotonic() >= look_at:
                cluster.check_serve()
                _check_applications()
                look_at = time.monotonic() + 1
            time.sleep(0.05)
    raise ClusterError(f"AvatarForge was not ready within {READY_SECONDS:g} s. Its logs are in data/run/ray.")


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _check_applications() -> None:
    from ray import serve

    for name, application in serve.status().applications.items():
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ClusterError(f"The application {name} did not start: {application.message.strip()}")
