"""A Ray cluster of our own on this machine, with Serve, for as long as a `with` block lasts."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from avatarforge.cluster.environment import ray_environment
from avatarforge.cluster.grpc_interface import host_in_address
from avatarforge.cluster.ports import PortBlock, reserve_ports
from avatarforge.cluster.run_folder import RunFolder
from avatarforge.cluster.timings import Timings
from avatarforge.domain.errors import FormattedError

NAMESPACE = "avatarforge"

LOGICAL_CPUS = 8
"""Ray's CPUs are bookkeeping, not cores: an actor is placed where enough of them are left. Ours share the
cores by priority (`diffusion.niceness`) instead, and all must find a place on a machine with two."""

OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Photos go through object storage, not through Ray: tasks and updates are all that travels here."""

NODE_SECONDS = 150.0
"""How long Ray's own processes may take to start."""

GRPC_SERVICES = (
    "avatarforge.ingress.grpc.serving.add_job_service_to_server",
    "avatarforge.ingress.grpc.serving.add_health_service_to_server",
    "avatarforge.ingress.grpc.serving.add_reflection_to_server",
)
"""What Serve's gRPC servers offer. The ingress has a method of each call's name, but for reflection's."""

STOP_SECONDS = 3.0
"""How long replicas may take to end by themselves. Jobs that are cut short go on at the next start."""


class ClusterError(Exception):
    """The cluster or an application on it did not start; the text says why."""


class PortInUse(ClusterError, FormattedError):
    """Something else listens on a port that we need."""

    message = (
        "Port {port} on {host} is in use by another program. Choose another with {variable} or {option}."
    )
    host: str
    port: int
    variable: str
    option: str


class OnePortForTwo(ClusterError, FormattedError):
    """REST and gRPC were given the same port."""

    message = (
        "REST and gRPC cannot both listen on port {port}. Choose another for one of them with "
        "AVATARFORGE_HTTP_PORT or --port, or with AVATARFORGE_GRPC_PORT or --grpc-port."
    )
    port: int


class NotEnoughGpus(ClusterError, FormattedError):
    """The application wants more GPUs than Ray has found here."""

    message = (
        "StableDiffusion wants {wanted:g} GPU(s), but Ray finds {found:g} on this machine. "
        "To run on the CPU leave --config away (`avatarforge up`), or set num_gpus to 0 in the file. "
        "To use a cluster with GPUs, start it with cluster.yaml and apply the file with `serve deploy`."
    )
    wanted: float
    found: float


class LocalCluster:
    """Starts Ray and Serve on entering, and stops them, and nothing else, on leaving.

    Raises `PortInUse`, `DataFolderInUse` and `ClusterError`. One at a time in a process; any number side
    by side on a machine, each with a data folder and ports of its own. Ray's files lie in `data_dir/run`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        grpc_port: int | None = None,
        variables: Mapping[str, str] | None = None,
        timings: Timings | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Without `grpc_port` there is no gRPC.

        `variables` are set for all of the cluster's processes. `meanwhile` runs in a thread while Ray
        starts: for imports and the like; it is over when `__enter__` returns, and may raise.
        """
        self._host, self._port, self._grpc_port = host, port, grpc_port
        self._variables = dict(variables or {})
        self._timings = timings or Timings()
        self._meanwhile = meanwhile
        self._folder = RunFolder(data_dir)
        self._ports: PortBlock | None = None
        self._environ_before: dict[str, str] = {}
        self._serve_start: _Background | None = None

    @property
    def url(self) -> str:
        """Where clients on this machine reach it."""
        return f"http://{self._reachable_host}:{self._port}"

    @property
    def grpc_address(self) -> str | None:
        """Where gRPC clients on this machine reach it."""
        return None if self._grpc_port is None else f"{self._reachable_host}:{self._grpc_port}"

    @property
    def _reachable_host(self) -> str:
        return host_in_address("127.0.0.1" if self._host in ("0.0.0.0", "::") else self._host)

    def __enter__(self) -> Self:
        check_port(self._host, self._port, "AVATARFORGE_HTTP_PORT", "--port")
        if self._grpc_port is not None:
            if self._grpc_port == self._port:
                raise OnePortForTwo(self._port)
            check_port(self._host, self._grpc_port, "AVATARFORGE_GRPC_PORT", "--grpc-port")
        self._folder.open()
        self._environ_before = dict(os.environ)
        try:
            self._ports = reserve_ports()
            os.environ.update(self._variables | ray_environment(self._folder.path, self._ports, self._host))
            self._start_ray()
            self._serve_start = _Background(self._start_serve)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def gpus(self) -> float:
        """GPUs that Ray has found."""
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own
        return resources.get("GPU", 0.0)

    def wait_for_controller(self, seconds: float = 60) -> None:
        """Return when applications can be deployed: seconds before Serve's proxies are up."""
        import ray
        from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check_serve()
            try:
                ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
                return
            except ValueError:
                time.sleep(0.02)
        raise ClusterError(f"Ray Serve's controller did not start within {seconds:g} s.")

    def check_serve(self) -> None:
        """Raise `ClusterError` when Serve has failed to start."""
        if self._serve_start is not None and (error := self._serve_start.error) is not None:
            raise ClusterError(f"Ray Serve did not start: {_cause(error)}") from error

    def stop(self) -> None:
        """End applications, Serve and Ray. May be called more than once."""
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            _end_applications(STOP_SECONDS)
            ray.shutdown()
        if self._environ_before:
            os.environ.clear()
            os.environ.update(self._environ_before)
            self._environ_before = {}
        if self._ports is not None:
            self._ports.release()
        self._folder.close()

    def _start_ray(self) -> None:
        with self._timings.phase("importing Ray"):
            import ray
        aside = _Background(self._meanwhile) if self._meanwhile is not None else None
        with self._timings.phase("starting Ray"), _only_what_is_needed():
            terminate = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(
                    address="local",
                    namespace=NAMESPACE,
                    num_cpus=max(LOGICAL_CPUS, os.cpu_count() or 1),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(self._folder.path / "ray"),
                )
            except Exception as error:  # Ray raises it bare when a process of its does not come up
                raise ClusterError(f"Ray did not start: {_cause(error)}") from error
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in its place.
        if aside is not None:
            aside.result()

    def _start_serve(self) -> None:
        with self._timings.phase("starting Serve"):
            from ray import serve
            from ray.serve.config import HTTPOptions, gRPCOptions
            from ray.serve.schema import LoggingConfig

            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            serve.start(
                proxy_location="HeadOnly",
                http_options=HTTPOptions(host=self._host, port=self._port),
                grpc_options=None
                if self._grpc_port is None
                else gRPCOptions(port=self._grpc_port, grpc_servicer_functions=list(GRPC_SERVICES)),
                logging_config=LoggingConfig(enable_access_log=False),
            )


class _Background:
    """A call in a thread of its own, and how it went."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"start-{call}", daemon=True)
        self._thread.start()

    def result(self) -> None:
        """Wait, and raise what the call raised."""
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # kept for whoever asks, in another thread
            self.error = error


def _cause(error: BaseException) -> str:
    """Ray's errors carry the traces of every process on the way; the cause comes last."""
    return (str(error).strip() or repr(error)).splitlines()[-1]


def check_port(host: str, port: int, variable: str, option: str) -> None:
    """Raise `PortInUse` when a server could not listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections that wait for their end (TIME_WAIT) are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise ClusterError(f"This user may not listen on port {port}; set {variable}.") from error
        except OSError as error:
            raise PortInUse(host, port, variable, option) from error


@contextmanager
def _only_what_is_needed() -> Iterator[None]:
    """Let `ray.init` leave away what a private cluster has no use for: half of its time is theirs.

    The autoscaler's monitor, the log monitor (we read no workers' logs here) and the dashboard's API
    server, which `include_dashboard=False` still starts and waits for. The agent's port is otherwise 52365
    for every cluster of the machine, and the second one tries it for seconds before it goes on without.
    `ray.init` has no arguments for these; where Ray's inner names change, the start only takes longer.
    """
    from ray._private import node, parameter, services

    lean = {"no_monitor": True, "include_log_monitor": False, "dashboard_agent_listen_port": 0}
    with (
        _replace(parameter, "RayParams", lambda original: partial(original, **lean)),
        _replace(node.Node, "start_api_server", lambda _: lambda *_args, **_options: None),
        _replace(services, "get_node", _patient),
    ):
        yield


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """`ray.init` gives its processes 30 s, without a setting for it: too little on a busy small machine."""

    def patiently(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + NODE_SECONDS
        while True:
            try:
                return get_node(*arguments, **options)
            except RuntimeError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.05)

    return patiently


@contextmanager
def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _end_applications(seconds: float) -> None:
    """Let replicas end in order, as far as the time allows; the rest ends with Ray."""
    # `serve.shutdown()` would kill the controller while it answers, and Ray would print an error about it.
    ended = _Background(_delete_applications)
    ended._thread.join(seconds)


def _delete_applications() -> None:
    from ray import serve

    names = list(serve.status().applications)
    for name in names:
        serve.delete(name, _blocking=False)
    while any(name in serve.status().applications for name in names):
        time.sleep(0.05)
