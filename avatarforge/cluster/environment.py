"""The variables that Ray reads when it is imported: how one private cluster keeps to itself."""

import os
import resource
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from avatarforge.cluster import grpc_interface, haproxy_guard
from avatarforge.cluster.ports import PortBlock

PATIENCE = {
    # All cores may be busy: a late answer is no reason to give up or to start a process again.
    "RAY_agent_register_timeout_ms": "150000",
    "RAY_worker_register_timeout_seconds": "150",
    "RAY_health_check_failure_threshold": "20",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60",
    # A private cluster's GCS never comes back: without it Ray's agents need not wait for a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    # Nobody else sends requests to a private cluster that stops: nothing to drain for 30 s.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "0.1",
    # HAProxy starts anew when replicas come or go. The old process is left to the streams that it carries,
    # which end by themselves (`ingress.max_stream_seconds`).
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "330",
    # Ports of replicas that have gone are kept for so long; by default for longer than the old process lives,
    # lest it talks to another application. There is only one.
    "RAY_SERVE_PORT_QUARANTINE_S": "35",
    # Unless told so, Ray lets the files of its processes' output, which hold our log, grow for ever.
    "RAY_ROTATION_MAX_BYTES": "100000000",
    "RAY_ROTATION_BACKUP_COUNT": "4",
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
    # A connection to a replica carries one gRPC call at a time: on a shared one a client that does not read
    # its stream stops everybody else's.
    "RAY_SERVE_HAPROXY_H2_BE_MAX_CONCURRENT_STREAMS": "1",
    # Calls that one client connection may have open; more would wait in the client without a word.
    "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": "1000",
}
"""Whoever runs AvatarForge may set these otherwise."""

MOST_CONNECTIONS = 16_384


def ray_environment(
    run: Path, ports: PortBlock, host: str = "127.0.0.1", environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Build the environment of a cluster that has its files under `run` and serves on `host`.

    Writes Ray's token and HAProxy's guard into `run`.
    """
    ours = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # A call that comes late, while the cluster stops, would start another one.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        **_authentication(run),
        **_ports(ports),
        **{name: environ.get(name, value) for name, value in PATIENCE.items()},
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": grpc_interface.CALLBACK,
        grpc_interface.VARIABLE: host,
    }
    if sys.platform == "linux":
        ours |= _haproxy(run, environ)
    return ours


def _ports(ports: PortBlock) -> dict[str, str]:
    numbers = {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": ports.fallback_proxy,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": ports.fallback_proxy_grpc,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": ports.replicas_http[0],
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": ports.replicas_http[-1],
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": ports.replicas_grpc[0],
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": ports.replicas_grpc[-1],
        "RAY_SERVE_HAPROXY_STATS_PORT": ports.statistics,
        "RAY_SERVE_HAPROXY_METRICS_PORT": ports.metrics,
    }
    return {name: str(number) for name, number in numbers.items()}


def _authentication(run: Path) -> dict[str, str]:
    """Ray would write its token into the user's home, where every cluster of the user shares it."""
    token = run / "ray-token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def _haproxy(run: Path, environ: Mapping[str, str]) -> dict[str, str]:
    variables = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # HAProxy serves the clients; what is behind it is its own affair.
        grpc_interface.VARIABLE: "127.0.0.1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run / "server-state"),
        "RAY_SERVE_HAPROXY_MAXCONN": environ.get("RAY_SERVE_HAPROXY_MAXCONN", str(_connections())),
    }
    guard = run / "haproxy"
    haproxy_guard.write(str(guard))
    # On a file system that forbids programs Ray runs HAProxy itself, unguarded.
    return variables | ({"RAY_SERVE_HAPROXY_BINARY_PATH": str(guard)} if os.access(guard, os.X_OK) else {})


def _connections() -> int:
    """Most clients at a time: long polls and streams outnumber ordinary requests.

    HAProxy refuses to start unless it may open two files for each and one pipe for every fourth.
    """
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most_files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(100, min(MOST_CONNECTIONS, int((most_files - 200) / 2.5)))
