"""Machines for `ray up` without a cloud: what Ray would do on them by `ssh` and `docker` is done here.

Ray's own code makes the commands and calls `ssh`, `rsync` and, on the machine, `docker`. In the place of
`ssh` and `docker` are scripts that pass commands on: to this machine, and to a container, which is a process
with the files, the user and the variables that the Dockerfile gives, in a mount namespace of its own.
"""

import getpass
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler.node_provider import NodeProvider

from tests.terminal import TREE

HOME = "/home/avatarforge"
BIN = "/opt/avatarforge/bin"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

SSH = """#!/bin/bash
# ssh [OPTION …] HOST COMMAND …
while [[ $1 == -* ]]; do
  case $1 in -i|-l|-o) shift 2 ;; *) shift ;; esac
done
shift
exec bash -c "$*"
"""

DOCKER = """#!/bin/bash
# What Ray asks of Docker. The container's state lies in $MACHINE.
printf '%s\\n' "$*" >> "$MACHINE/docker.log"
case $1 in
  pull) ;;
  info) echo '{{"runc":{{}}}}' ;;
  inspect)
    case $3 in
      *Running*) [[ -e $MACHINE/running ]] && echo true || echo false ;;
      *Config.Env*) echo {environment} ;;
      *) echo "$3 is not known here" >&2; exit 1 ;;
    esac ;;
  run) touch "$MACHINE/running" ;;
  exec)
    shift
    while [[ $1 == -* ]]; do shift; done
    shift
    exec "$MACHINE/enter" "$@" ;;
  *) echo "docker $1 is not known here" >&2; exit 1 ;;
esac
"""

ENTER = """#!/bin/bash
exec unshare --mount bash -c '
  for place in home opt etc/profile.d etc/passwd; do mount --bind "$MACHINE/root/$place" "{base}/$place"; done
  for place in proc dev; do mount --rbind "/$place" "{base}/$place"; done
  exec chroot --userspec=1000:1000 --groups=1000 "{base}/" \\
    env --ignore-environment --chdir={home} HOME={home} {variables} "$@"
' enter "$@"
"""

RECORDER = """#!/bin/bash
{{ printf '%s ' "${{0##*/}}" "$@"; echo; env | grep ^RAY_ | sort; echo; }} >> {home}/calls
"""


class Dockerfile:
    """What `deploy/Dockerfile` says of the last image."""

    def __init__(self) -> None:
        text = (TREE / "deploy" / "Dockerfile").read_text(encoding="utf-8")
        self._lines = re.sub(r"\n *#.*", "", text).replace("\\\n", " ").splitlines()
        self._lines = self._lines[max(n for n, line in enumerate(self._lines) if line.startswith("FROM")) :]

    @property
    def variables(self) -> dict[str, str]:
        words = [word for line in self._lines if line.startswith("ENV ") for word in shlex.split(line)[1:]]
        return {
            name: value.replace("$PATH", SYSTEM_PATH) for name, _, value in (w.partition("=") for w in words)
        }

    @property
    def packages(self) -> set[str]:
        [command] = [line for line in self._lines if "apt-get install" in line]
        listed = command.partition("--no-install-recommends")[2].partition("&&")[0]
        return set(listed.split())

    def write_profile(self, root: Path) -> None:
        """Run the line that writes what login shells read, with the tree at `root` in the place of `/`."""
        [command] = [line.removeprefix("RUN ") for line in self._lines if "/etc/profile.d" in line]
        subprocess.run(["sh", "-c", command.replace("/etc/", f"{root}/etc/")], check=True)


def make_base(folder: Path) -> Path:
    """Make a Debian of the base's release with the packages that the Dockerfile adds. Takes minutes."""
    packages = ",".join(["ca-certificates", *sorted(Dockerfile().packages)])
    command = ["mmdebstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(folder)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return folder


class Machine:
    """A machine with a container of the image, whose `ray`, `serve` and `avatarforge` record their calls."""

    def __init__(self, folder: Path, base: Path = Path("/")) -> None:
        """`base` is the file tree of the image's base, with the packages that the Dockerfile adds."""
        self.folder, self.root = folder, folder / "root"
        image = Dockerfile()
        home, programs = self.root / HOME[1:], self.root / BIN[1:]
        for path in (home, programs, self.root / "etc" / "profile.d", folder / "home"):
            path.mkdir(parents=True)
        # The login shells there set PATH anew, and read this.
        (folder / "home" / ".bashrc").write_text("PATH=$MACHINE/bin:$PATH\n", encoding="utf-8")
        image.write_profile(self.root)
        # As `useradd --create-home` does.
        shutil.copytree(base / "etc" / "skel", home, dirs_exist_ok=True)
        passwd = (base / "etc" / "passwd").read_text(encoding="utf-8")
        (self.root / "etc" / "passwd").write_text(f"{passwd}avatarforge:x:1000:1000::{HOME}:/bin/sh\n")
        for name in ("ray", "serve", "avatarforge"):
            write_program(programs / name, RECORDER.format(home=HOME))
        variables = image.variables
        listed = json.dumps([f"{name}={value}" for name, value in variables.items()])
        write_program(folder / "bin" / "ssh", SSH)
        write_program(folder / "bin" / "docker", DOCKER.format(environment=shlex.quote(listed)))
        quoted = " ".join(shlex.quote(f"{name}={value}") for name, value in variables.items())
        write_program(folder / "enter", ENTER.format(base=str(base).rstrip("/"), home=HOME, variables=quoted))
        for path in (home, *home.rglob("*")):
            os.chown(path, 1000, 1000)

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which Ray's code reaches this machine."""
        return {
            "MACHINE": str(self.folder),
            "HOME": str(self.folder / "home"),
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
        }

    @property
    def docker_calls(self) -> list[str]:
        return (self.folder / "docker.log").read_text(encoding="utf-8").splitlines()

    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        """The programs' calls with their arguments, and the variables of Ray's that they had."""
        found = []
        for call in (self.home / "calls").read_text(encoding="utf-8").strip().split("\n\n"):
            command, *variables = call.splitlines()
            found.append((command.split(), dict(line.split("=", 1) for line in variables)))
        return found

    @property
    def home(self) -> Path:
        return self.root / HOME[1:]


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


class Provider(NodeProvider):  # type: ignore[misc]  # Ray leaves it untyped
    """A cloud of machines that are all this one."""

    nodes: dict[str, dict[str, str]] = {}
    """Their tags, by their ids."""

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        return [node for node, tags in self.nodes.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self.nodes

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self.nodes

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self.nodes[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self.nodes[node_id] |= tags

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        for _ in range(count):
            self.nodes[f"node-{len(self.nodes)}"] = dict(tags)

    def terminate_node(self, node_id: str) -> None:
        del self.nodes[node_id]

    def external_ip(self, node_id: str) -> str:
        return "127.0.0.1"

    internal_ip = external_ip


def write_cluster_file(folder: Path, name: str) -> Path:
    """Write `cluster.yaml` for these machines: all is as it stands there, but for the user of `ssh`."""
    config = yaml.safe_load((TREE / "cluster.yaml").read_text(encoding="utf-8"))
    key = folder / "key.pem"
    key.write_text("the key by which the head reaches its workers\n", encoding="utf-8")
    key.chmod(0o600)
    config |= {"cluster_name": name, "auth": {"ssh_user": getpass.getuser(), "ssh_private_key": str(key)}}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
