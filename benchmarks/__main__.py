"""`python -m benchmarks`: all of them; `python -m benchmarks NAME…`: those."""

import argparse
import importlib
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks import machine, report
from benchmarks.options import Options

NAMES = ("start", "demo", "accept", "throughput", "overhead")
"""A benchmark is a module of its name with `run(options: Options) -> Report`."""

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    arguments = _arguments()
    console = Console()
    for name in arguments.names or NAMES:
        folder = Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir=arguments.work))
        options = Options(folder=folder, quick=arguments.quick, rounds=arguments.rounds)
        console.print(f"[bold]{name}[/] runs; its logs are in {folder}", highlight=False)
        here = machine.describe(folder)
        outcome = importlib.import_module(f"benchmarks.{name}").run(options)
        report.show(console, outcome, here)
        path = arguments.results / f"{name}.json"
        report.write(path, name, outcome, here, arguments.quick)
        console.print(f"written to {path}\n", highlight=False)
        # Only now: what went wrong is to be read in there.
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*NAMES, []], help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="only see whether they work")
    parser.add_argument("--rounds", type=int, help="repetitions, in place of each benchmark's own number")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    parser.add_argument("--work", type=Path, help="folder for data while measuring; not one in memory")
    return parser.parse_args()


if __name__ == "__main__":
    main()
