"""List the files and functions of `avatarforge/` that an upload and a job cross, in the order of first entry.

PYTHONPATH=. python .ci/trace_paths.py [--write] [-v]   # --write puts the lists into docs/architecture.md

A function counts if it is entered from another file, or by the event loop or a thread: these are the places
to which a reader jumps. Lambdas, comprehensions and generated methods do not count. The service runs in this
process, on SQLite and a folder, and the replica has the carried checkpoint. Ray's own calls do not happen
here, so the functions that only they lead through are named here and counted too.
"""

import argparse
import asyncio
import inspect
import re
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType

from avatarforge.diffusion.models.loader import ModelLoader
from avatarforge.diffusion.models.manager import ModelManager
from avatarforge.diffusion.models.pipelines import import_libraries
from avatarforge.diffusion.replica.deployment import StableDiffusion
from avatarforge.diffusion.replica.draining import DrainMonitor
from avatarforge.diffusion.replica.task_worker import GenerationWorker
from avatarforge.domain.generations import GenerationTask, GenerationUpdate
from avatarforge.imaging.provenance import open_content_credentials
from avatarforge.tracker.queue.serve_replicas import ServeReplicas, _ServeReservation
from tests.integration.service import EventStream, Service, running_service

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
MARKED = re.compile(r"(<!-- paths -->\n).*(<!-- end -->)", re.DOTALL)
PACKAGE = str(ROOT / "avatarforge") + "/"
THROUGH_RAY = [ServeReplicas.reserve, _ServeReservation.generate, StableDiffusion.generate]
IMAGE_ROOMS = ("diffusion/engines/", "imaging/")
"""Where the image itself is made."""
BY_THE_CLOCK = ("janitor", "sweeper", "retention of jobs", "retention of events", "engine checks")
"""Tasks that run beside."""
BESIDE_FILES = (
    *("telemetry/", "storage/metered.py", "tracker/metrics.py", "ingress/middleware/request_metrics.py"),
    *("domain/", "background.py", "persistence/tables.py"),
)
BESIDE_FUNCTIONS = (".on_change", "._notify_webhooks")
"""What the way passes without depending on it: telemetry, plain values and helpers, listeners to a change."""
LONGEST_SECONDS = 300

Calls = dict[tuple[str, str], str]
"""File and function; the task or thread that it first ran in."""


class Recorder:
    """Notes which of our functions begin while it records, in every thread that starts after it."""

    def __init__(self) -> None:
        self._calls: Calls | None = None
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, frame: FrameType, event: str, _argument: object) -> None:
        calls, code = self._calls, frame.f_code
        if calls is None or event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        name = code.co_qualname.replace("<locals>.", "")
        if "<" not in name and find_caller(frame) != code.co_filename:
            calls.setdefault((code.co_filename.removeprefix(PACKAGE), name), find_runner())

    @contextmanager
    def record(self) -> Iterator[Calls]:
        self._calls = calls = {}
        try:
            yield calls
        finally:
            self._calls = None


def find_caller(frame: FrameType) -> str:
    """Return the file of the nearest function of ours that called this one."""
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
        caller = caller.f_back
    return "" if caller is None else caller.f_code.co_filename


def find_runner() -> str:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return threading.current_thread().name
    return "callback" if task is None else task.get_name()


@asynccontextmanager
async def open_service(folder: Path) -> AsyncIterator[Service]:
    """The service with the carried checkpoint; its slots are taken."""
    async with running_service(folder) as service:
        settings = service.settings
        models = ModelManager(settings.diffusion.model, ModelLoader(settings.diffusion))
        models.start()
        worker = GenerationWorker(
            service.storage, models.lease, 5, open_content_credentials(settings.provenance)
        )
        drain_monitor = DrainMonitor(NeverStopped(), lambda: 0.0)

        async def generate(task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
            async with aclosing(drain_monitor.guard(worker.generate(task))) as updates:
                async for update in updates:
                    yield update

        service.replicas.script = generate
        await service.photos.metrics_endpoint.stop()  # It reports by the clock.
        await hold_slots(service)
        yield service
        await models.close()


class NeverStopped:
    """A replica that Serve does not stop."""

    is_stopping, stop_timeout_seconds, reserved_slots = False, 60.0, frozenset[str]()

    def release(self, slot: str) -> None: ...


async def hold_slots(service: Service) -> None:
    for _ in range(2):
        await service.replicas._slots.acquire()


def free_slots(service: Service) -> None:
    for _ in range(2):
        service.replicas._slots.release()


async def trace_upload(service: Service, recorder: Recorder) -> Calls:
    """From a photo's first byte at the ingress to its 202, every cache warm."""
    await service.submitted(steps="4")
    await service.live.stop()  # The change reaches the ingress' cache at the same time, which is another way.
    await asyncio.sleep(1)
    with recorder.record() as calls:
        await service.submitted(steps="4")
    service.live.start()
    return calls


async def trace_job(service: Service, recorder: Recorder) -> Calls:
    """From a free slot to DONE at a client that follows the customer."""
    async with service.stream() as stream:
        free_slots(service)
        for _ in range(2):
            await read_until_done(stream)
        await hold_slots(service)
        await service.submitted(steps="4")
        await asyncio.sleep(1)
        with recorder.record() as calls:
            free_slots(service)
            await read_until_done(stream)
    return calls


async def read_until_done(stream: EventStream) -> None:
    while (await stream.next(LONGEST_SECONDS)).data.get("status") != "DONE":
        continue


def select(calls: Calls, *, is_image: bool) -> Calls:
    """Return the calls inside, or outside, of where the image is made."""
    return {place: run for place, run in calls.items() if place[0].startswith(IMAGE_ROOMS) == is_image}


def write_list(title: str, calls: Calls, through_ray: Sequence[Callable[..., object]] = ()) -> str:
    files: dict[str, list[str]] = {}
    for (file, name), runner in calls.items():
        if not runner.startswith(BY_THE_CLOCK) and file != "persistence/deletions.py":  # the janitor's thread
            files.setdefault(file, []).append(name)
    for function in through_ray:
        file = (inspect.getsourcefile(inspect.unwrap(function)) or "").removeprefix(PACKAGE)
        files.setdefault(file, []).append(function.__qualname__)
    rows = [f"| `{file}` | {', '.join(f'`{name}`' for name in names)} |" for file, names in files.items()]
    head = (
        f"**{title}**: {count(files)}; without what stands beside the way {count(leave_out_beside(files))}."
    )
    return "\n".join([head, "", "| file | functions |", "| --- | --- |", *rows]) + "\n"


def count(files: dict[str, list[str]]) -> str:
    return f"{len(files)} files, {sum(len(names) for names in files.values())} functions"


def leave_out_beside(files: dict[str, list[str]]) -> dict[str, list[str]]:
    on_the_way = {
        file: [name for name in names if not name.endswith(BESIDE_FUNCTIONS)]
        for file, names in files.items()
        if not file.startswith(BESIDE_FILES)
    }
    return {file: names for file, names in on_the_way.items() if names}


async def trace(is_verbose: bool) -> str:
    import_libraries(threads=1)  # Before the recorder, which would make it take minutes.
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        async with open_service(Path(folder)) as service:
            upload = await trace_upload(service, recorder)
            print_calls(upload, is_verbose)
            job = await trace_job(service, recorder)
            print_calls(job, is_verbose)
    return "\n".join(
        [
            write_list("An upload to its 202", upload),
            write_list("A job to DONE and to an SSE client", select(job, is_image=False), THROUGH_RAY),
            write_list("Inside it, an original to its avatar", select(job, is_image=True)),
        ]
    )


def print_calls(calls: Calls, is_verbose: bool) -> None:
    for (file, name), runner in calls.items() if is_verbose else ():
        print(f"{runner:30} {file} {name}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    lists = asyncio.run(trace(options.verbose))
    if options.write:
        DOCUMENT.write_text(MARKED.sub(lambda marked: marked[1] + lists + marked[2], DOCUMENT.read_text()))
    else:
        print(lists)


if __name__ == "__main__":
    main()
