"""The process that has the nodes: `python -m tests.cluster.host`. Commands come on standard input, one JSON
line each, answers go to standard output.

Ray reads its variables once for a process, so that a cluster needs one of its own.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._common.utils import get_default_ray_temp_dir
from ray._private import services
from ray.cluster_utils import Cluster
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig, ServeDeploySchema

from avatarforge.actors import NAMESPACE
from avatarforge.cluster.local import _patient

STORE = 100 * 1024 * 1024
QUESTIONS = {"replicas", "application", "tracker"}
"""Asked again and again; they leave no lines in the log."""


class Host:
    """A head without CPUs for actors of ours, and workers."""

    def __init__(self) -> None:
        # As the service starts its own: 30 s are too little for a node on a busy small machine.
        services.get_node = _patient(services.get_node)
        self._cluster = Cluster(shutdown_at_exit=True)
        self._workers: dict[str, Any] = {}

    def start_head(self, gcs_port: int, temp_dir: str, redis_password: str | None) -> None:
        # Ray writes the head's address into the default folder, which only a head without its own makes.
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
        self._cluster.add_node(
            **({} if redis_password is None else {"redis_password": redis_password}),
            num_cpus=0,
            object_store_memory=STORE,
            gcs_server_port=gcs_port,
            temp_dir=temp_dir,
            include_dashboard=False,
            include_log_monitor=False,
            dashboard_agent_listen_port=0,
        )

    def add_worker(self, name: str, cpus: int, gpus: int) -> None:
        """Its GPUs are counted, not there."""
        self._workers[name] = self._cluster.add_node(
            num_cpus=cpus,
            num_gpus=gpus,
            resources={name: 1},
            object_store_memory=STORE,
            dashboard_agent_listen_port=0,
        )

    def kill_worker(self, name: str) -> None:
        """SIGKILL to the node's processes; those of its actors end with their raylet."""
        self._cluster.remove_node(self._workers.pop(name), allow_graceful=False)

    def kill_head(self) -> None:
        """The head with GCS, Serve's controller and its proxy."""
        ray.shutdown()
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)

    def connect(self) -> None:
        if ray.is_initialized():
            ray.shutdown()
        ray.init(
            address=self._cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR"
        )

    def start_serve(self, port: int) -> None:
        serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(host="127.0.0.1", port=port),
            logging_config=LoggingConfig(enable_access_log=False),
        )

    def deploy(self, config: dict[str, Any]) -> None:
        """What `serve deploy` has the dashboard do."""
        client = _get_global_client()
        assert client is not None, "it raises instead"
        client.deploy_apps(ServeDeploySchema.model_validate(config))

    def replicas(self, deployment: str) -> dict[str, str]:
        """Ids of the running replicas, each with the name of its worker."""
        client = _get_global_client()
        assert client is not None, "it raises instead"
        details = client.get_serve_details()
        told = details["applications"].get("avatarforge", {}).get("deployments", {}).get(deployment)
        nodes = {node.node_id: name for name, node in self._workers.items()}
        replicas = [] if told is None else told["replicas"]
        return {
            replica["replica_id"]: nodes.get(replica["node_id"], "head")
            for replica in replicas
            if replica["state"] == "RUNNING"
        }

    def application(self) -> dict[str, Any]:
        """Its state, and those of its deployments."""
        told = serve.status().applications.get("avatarforge")
        if told is None:
            return {"status": None}
        return {
            "status": str(told.status),
            "message": told.message,
            "deployments": {name: str(state.status) for name, state in told.deployments.items()},
        }

    def tracker_node(self) -> str:
        """The name of the worker that the first shard's tracker runs on, or `head`. Raises `KeyError`."""
        actor = ray.get_actor("JobTracker:0", namespace=NAMESPACE)
        node_id: str = ray.get(actor.__ray_call__.remote(_node_id), timeout=10)
        return self._names()[node_id]

    def _names(self) -> dict[str, str]:
        workers = {node.node_id: name for name, node in self._workers.items()}
        return {self._cluster.head_node.node_id: "head", **workers}

    def tracker(self) -> dict[str, Any]:
        """What the first shard's tracker says."""
        actor = ray.get_actor("JobTracker:0", namespace=NAMESPACE)
        told: dict[str, Any] = ray.get(actor.describe.remote(), timeout=10)
        return told

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            ray.shutdown()
        self._cluster.shutdown()


def _node_id(actor: object) -> str:
    """Called in an actor: where it runs."""
    return ray.get_runtime_context().get_node_id()


def main() -> None:
    # Whatever prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    host = Host()
    for line in sys.stdin:
        command = json.loads(line)
        call: Callable[..., Any] = getattr(host, command["call"])
        began = time.monotonic()
        try:
            answer = {"value": call(**command["arguments"])}
        except Exception as error:
            # The edge of a command: the test hears of it.
            answer = {"error": f"{type(error).__name__}: {error}"}
        if command["call"] not in QUESTIONS:
            print(f"{command} took {time.monotonic() - began:.1f} s: {answer}", file=sys.stderr, flush=True)
        print(json.dumps(answer), file=answers)
        if command["call"] == "stop":
            return


if __name__ == "__main__":
    main()
