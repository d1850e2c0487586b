"""`python -m benchmarks`: all of them; `python -m benchmarks NAME…`: those."""

import argparse
import importlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks import machine, report
from benchmarks.options import RESULTS, Options

NAMES = (
    *("start", "demo", "accept", "throughput", "overhead", "peers", "engine", "busy", "eta"),
    *("statuses", "latency", "fanout", "streams", "resuming", "webhooks"),
    *("autoscaling", "crowd", "cropping", "variants"),
)
"""A benchmark is a module of its name with `run(options: Options) -> Report`."""


def main() -> None:
    """Run what is asked for. One that breaks does not keep the others from running; then exit with 1."""
    arguments = _arguments()
    # As Ctrl-C does, so that servers are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    broken = [name for name in arguments.names or NAMES if not _succeeds(name, arguments, console)]
    if broken:
        sys.exit(f"Without a result: {', '.join(broken)}.")


def _succeeds(name: str, arguments: argparse.Namespace, console: Console) -> bool:
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=arguments.work))
    console.print(f"[bold]{name}[/] runs; its logs are in {folder}", highlight=False)
    here = machine.describe(folder)
    try:
        outcome = importlib.import_module(f"benchmarks.{name}").run(
            Options(
                folder=folder,
                results=arguments.results,
                quick=arguments.quick,
                rounds=arguments.rounds,
                portraits=arguments.portraits,
                faceless=arguments.faceless,
            )
        )
    except Exception:
        # The edge of one benchmark. Its folder stays, to be looked into.
        console.print_exception()
        return False
    report.show(console, outcome, here)
    path = arguments.results / f"{name}.json"
    report.write(path, name, outcome, here, arguments.quick)
    console.print(f"written to {path}\n", highlight=False)
    shutil.rmtree(folder)
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="only see whether they work")
    parser.add_argument("--rounds", type=int, help="repetitions, in place of each benchmark's own number")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    parser.add_argument("--work", type=Path, help="folder for data while measuring; not one in memory")
    parser.add_argument(
        "--portraits", type=Path, help="cropping: folder of portraits, of which every tenth is used"
    )
    parser.add_argument("--faceless", type=Path, help="cropping: folder of photos without faces to add")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}, but {', '.join(NAMES)}")
    return arguments


if __name__ == "__main__":
    main()
