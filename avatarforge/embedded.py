"""AvatarForge, whole, on this machine: database, Ray, Serve and the application."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from avatarforge.cluster import ClusterError, LocalCluster, NotEnoughGpus
from avatarforge.cluster.timings import Timings, WaitingNotices
from avatarforge.serve_config import Config, arguments_of, validate_config
from avatarforge.settings import Settings, load_settings
from avatarforge.webhooks.signing import new_secret

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

APPLICATION = "avatarforge"
LINK_SECRET_FILE = "link-secret"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""What programs on this machine call it."""
MESSAGE_BYTES = 4 * 1024 * 1024
"""Largest gRPC message; photos may come in several. gRPC refuses a larger one before it fills the memory."""
READY_SECONDS = 600.0
"""A large checkpoint from a slow disk takes its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A running AvatarForge."""

    url: str
    grpc_address: str | None
    signing: str
    """With what webhooks are signed, in words."""
    needs_keys: bool
    """Whether requests need an API key."""
    timings: Timings


@contextmanager
def run_locally(
    settings: Settings,
    *,
    config: Config | None = None,
    grpc: bool = True,
    timings: Timings | None = None,
    on_waiting: Callable[[str], None] = lambda _: None,
) -> Iterator[Instance]:
    """Start AvatarForge, hand it out once `/readyz` says 200 and gRPC `SERVING`, and stop it at the end.

    The database is upgraded first. `config`, from `read_config`, is deployed instead of the settings alone.
    `on_waiting` gets a sentence about what keeps it from being ready, after some seconds and whenever that
    changes, in another thread.
    Raises `ClusterError` and its like, `DataFolderInUse`, `DatabaseUnavailable`, `ShardCountChanged` where
    the database is of another number of shards, and `NoApiKeys` where keys are needed and there are none.
    """
    timings = timings or Timings()
    with (
        WaitingNotices(timings, on_waiting) as notices,
        _start(settings, config, grpc, timings, notices) as instance,
    ):
        notices.stop()
        yield instance


@contextmanager
def _start(
    settings: Settings, config: Config | None, grpc: bool, timings: Timings, notices: WaitingNotices
) -> Iterator[Instance]:
    if _needs_keys(settings):
        # Before anything starts: without a key it would be in vain.
        with timings.phase("looking for an API key"):
            _check_keys(settings)

    def prepare_database() -> None:
        with timings.phase("upgrading the database"):
            from avatarforge.persistence.upgrade import upgrade

            upgrade(settings.database_url)
            _check_shard_count(settings)

    if settings.database.url is not None:
        # Before Ray, whose start cannot be cut short: a database elsewhere may refuse us, or not answer.
        prepare_database()

    def meanwhile() -> None:
        if settings.database.url is None:
            prepare_database()
        with timings.phase("importing the application"):
            import avatarforge.app  # noqa: F401  # most of the time of building it

    cluster = LocalCluster(
        settings.data_dir,
        host=settings.http.host,
        port=settings.http.port,
        grpc_port=settings.grpc.port if grpc else None,
        variables={
            # Workers may have another working folder.
            "AVATARFORGE_DATA_DIR": str(settings.data_dir.resolve()),
            "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MESSAGE_BYTES),
            **_webhook_secret(settings),
            **_link_secret(settings),
            **access_variables(settings),
        },
        timings=timings,
        meanwhile=meanwhile,
    )
    with cluster:
        schema = None if config is None else validate_config(config, settings)
        _check_gpus(cluster, settings, schema)
        cluster.wait_for_controller()
        with timings.phase("deploying"):
            _deploy(settings, schema)
        with timings.phase("waiting for /readyz"):
            _wait_until_ready(cluster, settings, notices)
        yield Instance(
            url=cluster.url,
            grpc_address=cluster.grpc_address,
            signing=_describe_signing(settings),
            needs_keys=_needs_keys(settings),
            timings=timings,
        )


def redeploy(config: Config) -> None:
    """Apply a changed config to what `run_locally` started, as `serve deploy` does it, and return at once.

    Raises `SettingsError`, and `ClusterError` for one that Serve does not take; then all goes on as it was.
    """
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    schema = validate_config(config, load_settings(arguments_of(config)))
    try:
        _apply(schema)
    except (RayError, RayServeException, ValueError) as error:
        raise ClusterError(f"Serve does not take the config file: {error}") from error


def _webhook_secret(settings: Settings) -> dict[str, str]:
    """A secret of this data folder's own, made at its first start, where no other is set."""
    if settings.webhook.secrets is not None:
        return {}
    return {"AVATARFORGE_WEBHOOK_SECRETS": _keep_secret(settings.webhook_secret_file, new_secret)}


def _link_secret(settings: Settings) -> dict[str, str]:
    """The same for links to images."""
    if settings.access.link_secrets is not None:
        return {}
    path = settings.data_dir.resolve() / LINK_SECRET_FILE
    return {"AVATARFORGE_ACCESS_LINK_SECRETS": _keep_secret(path, lambda: secrets.token_hex(32))}


def _keep_secret(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whole or not at all, whatever dies meanwhile.
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(make(), encoding="ascii")
        fresh.rename(path)
    return path.read_text(encoding="ascii").strip()


def access_variables(settings: Settings) -> dict[str, str]:
    """Return the variables by which replicas know whether keys are needed, wherever we listen."""
    if _needs_keys(settings):
        return {"AVATARFORGE_ACCESS_REQUIRED": "always"}
    open_to_all = {"AVATARFORGE_ACCESS_REQUIRED": "never"}
    if settings.access.required == "never" or settings.access.allowed_hosts:
        return open_to_all
    names = dict.fromkeys((*LOCAL_NAMES, settings.http.host))
    return {**open_to_all, "AVATARFORGE_ACCESS_ALLOWED_HOSTS": ",".join(names)}


def _needs_keys(settings: Settings) -> bool:
    """Here it is known who can reach the server: gRPC listens on the same address as REST."""
    match settings.access.required:
        case "always":
            return True
        case "never":
            return False
    return not settings.http.is_local


def _check_keys(settings: Settings) -> None:
    from avatarforge.access.authorizer import check_keys
    from avatarforge.persistence import ApiKeyRepository, open_engine
    from avatarforge.persistence.upgrade import upgrade

    upgrade(settings.database_url)
    engine = open_engine(settings.database, settings.database_url)
    try:
        check_keys(ApiKeyRepository(engine))
    finally:
        engine.dispose()


def _check_shard_count(settings: Settings) -> None:
    from avatarforge.persistence import JobRepository, open_engine

    records = JobRepository(open_engine(settings.database, settings.database_url))
    try:
        records.check_shard_count(settings.tracker.shards)
    finally:
        records.close()


def _describe_signing(settings: Settings) -> str:
    if settings.webhook.secrets is not None:
        return "signed with AVATARFORGE_WEBHOOK_SECRETS"
    return f"signed with the secret in {settings.webhook_secret_file}"


def _check_gpus(cluster: LocalCluster, settings: Settings, schema: "ServeDeploySchema | None") -> None:
    """Serve would wait without end for a machine with a GPU to join the cluster."""
    wanted = [settings.diffusion.num_gpus]
    for application in schema.applications if schema else []:
        # Ray's schemas give only what the file says; a default there stands for "as in the code".
        for deployment in application.model_dump(exclude_unset=True).get("deployments", []):
            wanted.append(deployment.get("ray_actor_options", {}).get("num_gpus") or 0)
    if max(wanted) > (found := cluster.gpus):
        raise NotEnoughGpus(max(wanted), found)


def _deploy(settings: Settings, schema: "ServeDeploySchema | None") -> None:
    from ray import serve

    if schema is not None:
        _apply(schema)
        return
    from avatarforge.app import build

    target = serve.RunTarget(build(settings.as_arguments()), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)


def _apply(schema: "ServeDeploySchema") -> None:
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "it raises instead"
    client.deploy_apps(schema)  # as `serve run` does it


def _wait_until_ready(cluster: LocalCluster, settings: Settings, notices: WaitingNotices) -> None:
    deadline, look_at = time.monotonic() + READY_SECONDS, 0.0
    with httpx.Client(base_url=cluster.url, timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            if _answers(client) and _grpc_answers(cluster.grpc_address):
                return
            if time.monotonic() >= look_at:
                cluster.check_serve()
                _check_applications()
                notices.detail = describe_waiting(client, settings)
                look_at = time.monotonic() + 1
            time.sleep(0.05)
    logs = settings.data_dir / "run" / "ray" / "session_latest" / "logs"
    raise ClusterError(f"AvatarForge was not ready within {READY_SECONDS:g} s. The logs are in {logs}.")


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def describe_waiting(client: httpx.Client, settings: Settings) -> str:
    """Return what is not ready yet, by `/readyz`, or by Serve as long as no replica answers."""
    try:
        parts = client.get("/readyz").json()["parts"]
    except (httpx.TransportError, ValueError, KeyError):
        from ray import serve

        return "; ".join(
            f"{name} is {deployment.status.lower()}" + (f": {message[0]}" if message else "")
            for application in serve.status().applications.values()
            for name, deployment in application.deployments.items()
            if deployment.status != "HEALTHY"
            for message in [deployment.message.strip().splitlines()]
        )
    details = {name: part["detail"] for name, part in parts.items() if not part["ok"]}
    if "storage" in details:
        # Strangers are not told the reason; whoever starts us is.
        details["storage"] = _find_storage_fault(settings) or details["storage"]
    return "; ".join(f"{name}: {detail}" for name, detail in details.items())


def _find_storage_fault(settings: Settings) -> str | None:
    from avatarforge.domain.errors import Unavailable
    from avatarforge.storage import open_storage

    try:
        open_storage(settings).check()
    except Unavailable as error:
        return error.reason
    return None


def _grpc_answers(address: str | None) -> bool:
    if address is None:
        return True
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    # As with `trust_env`: the way to this machine leads through no proxy.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            health = HealthStub(channel).Check(HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
    return bool(health.status == HealthCheckResponse.SERVING)


def _check_applications() -> None:
    from ray import serve

    for name, application in serve.status().applications.items():
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ClusterError(f"The application {name} did not start: {application.message.strip()}")
