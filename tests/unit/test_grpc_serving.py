"""What Ray Serve is told about gRPC, here and in the file for clusters."""

import socket
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from grpc_health.v1 import health_pb2
from ray.serve._private import default_impl
from ray.serve.schema import ServeDeploySchema

import avatarforge
from avatarforge.cluster import ClusterError, LocalCluster, PortInUse, grpc_interface
from avatarforge.cluster.environment import ray_environment
from avatarforge.cluster.local import GRPC_SERVICES
from avatarforge.cluster.ports import reserve_ports
from avatarforge.grpc_generated import profile_photo_job_pb2
from avatarforge.ingress.grpc import HealthMethods, JobMethods
from avatarforge.serve_config import arguments_of, read_config
from avatarforge.settings import load_settings
from tests.servers.mariadb import free_port

TREE = Path(avatarforge.__file__).parents[1]
SERVE_CONFIG = TREE / "serve_config.yaml"


def test_the_serve_config_offers_the_same_services_as_one_machine() -> None:
    options = ServeDeploySchema.model_validate(read_config(SERVE_CONFIG)).grpc_options
    assert tuple(options.grpc_servicer_functions) == GRPC_SERVICES


def test_the_serve_configs_grpc_port_is_a_setting() -> None:
    config = read_config(SERVE_CONFIG)
    config["grpc_options"]["port"] = 9123
    assert load_settings(arguments_of(config), environ={}).grpc.port == 9123


def test_the_cluster_file_and_one_machine_agree_on_how_haproxy_carries_grpc_and_logs_rotate(
    tmp_path: Path,
) -> None:
    config = yaml.safe_load((TREE / "cluster.yaml").read_text(encoding="utf-8"))
    ports = reserve_ports()
    try:
        here = ray_environment(tmp_path, ports, environ={})
    finally:
        ports.release()
    for name in (
        "RAY_SERVE_HAPROXY_H2_BE_MAX_CONCURRENT_STREAMS",
        "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S",
        "RAY_ROTATION_MAX_BYTES",
        "RAY_ROTATION_BACKUP_COUNT",
    ):
        for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
            assert f"{name}={here[name]} " in config[commands][-1]


def test_the_ingress_has_a_method_of_each_calls_name() -> None:
    jobs = profile_photo_job_pb2.DESCRIPTOR.services_by_name["ProfilePhotoJobService"]
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    assert all(hasattr(JobMethods, name) for name in jobs.methods_by_name)
    assert all(hasattr(HealthMethods, name) for name in health.methods_by_name)


def test_a_grpc_port_in_use_is_told_with_the_option_that_changes_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"{port} .* AVATARFORGE_GRPC_PORT or --grpc-port"):
            LocalCluster(tmp_path, port=free_port(), grpc_port=port).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_one_port_for_rest_and_grpc_is_refused(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ClusterError, match=f"cannot both listen on port {port}"):
        LocalCluster(tmp_path, port=port, grpc_port=port).__enter__()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1:9000"),
        ("0.0.0.0", "127.0.0.1:9000"),
        ("::", "127.0.0.1:9000"),
        ("::1", "[::1]:9000"),
    ],
)
def test_clients_on_this_machine_are_told_an_address_that_they_reach(
    tmp_path: Path, host: str, address: str
) -> None:
    assert LocalCluster(tmp_path, host=host, grpc_port=9000).grpc_address == address
    assert LocalCluster(tmp_path, host=host).grpc_address is None


@pytest.mark.parametrize(
    ("host", "bound"), [("127.0.0.1", "127.0.0.1:4711"), ("0.0.0.0", "0.0.0.0:4711"), ("::1", "[::1]:4711")]
)
def test_serves_grpc_servers_are_bound_to_the_one_interface(
    monkeypatch: pytest.MonkeyPatch, host: str, bound: str
) -> None:
    # Set, so that it is put back afterwards.
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    monkeypatch.setenv(grpc_interface.VARIABLE, host)
    server = Mock()
    assert grpc_interface.keep() == []
    default_impl.add_grpc_address(server, "[::]:4711")
    server.add_insecure_port.assert_called_once_with(bound)
