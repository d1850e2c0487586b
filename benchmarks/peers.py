"""32 requests through the service, through LitServe around the same checkpoint, and in the pipeline alone."""

import base64
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from PIL import Image

from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.imaging.crop import square
from avatarforge.imaging.decode import load_upright
from avatarforge.settings import load_settings
from benchmarks.cpu import CpuMeter
from benchmarks.engine import EDITING_STEPS, GUIDANCES, IMAGE_GUIDANCES, STYLES
from benchmarks.litserve_server import BATCH, BATCH_TIMEOUT_SECONDS, Wishes, call_pipeline, load_pipeline
from benchmarks.options import Options
from benchmarks.photos import SAMPLE_PORTRAIT
from benchmarks.report import Figure, Report, Table
from benchmarks.service import ROOT, service, stop
from tests.servers.mariadb import free_port

CUSTOMER = "bench"
UNLIMITED = httpx.Limits(max_connections=None)


@dataclass(frozen=True)
class Turn:
    """What one side took for one load."""

    seconds: float
    latencies: Sequence[float]
    """Seconds from each request's sending until its avatar's bytes were there."""


Side = Callable[[Sequence[Sequence[Wishes]]], Turn]
"""Makes the images of some bursts, one burst after the other."""


def run(options: Options) -> Report:
    number, rounds = options.size(32, 4), options.repeat(3)
    settings = load_settings(environ={}).diffusion
    loads = make_loads(number, options.size(6, 2))
    turns: dict[tuple[str, str], list[Turn]] = {}
    cpu: dict[tuple[str, str], list[tuple[str, float]]] = {}
    with (
        service(options.folder / "service") as running,
        litserve(settings.model, settings.threads, options.folder) as (litserve_url, litserve_pid),
        httpx.Client(base_url=running.url, timeout=900, limits=UNLIMITED) as ours,
        httpx.Client(base_url=litserve_url, timeout=900, limits=UNLIMITED) as theirs,
    ):
        manifest = Catalogue().read(settings.model)
        photo, _ = square(load_upright(SAMPLE_PORTRAIT.read_bytes()), manifest.size)
        in_service = InService(ours)
        sides: dict[str, Side] = {
            "AvatarForge": partial(send, in_service.ask),
            "LitServe": partial(send, partial(ask_litserve, theirs)),
            "pipeline": InPipeline(settings.model, settings.threads, photo).run,
        }
        for side in sides.values():
            side(loads["single"])
            side(loads["equal"])
        alone: list[Mapping[str, float]] = []
        for _ in range(rounds):
            for name, load in loads.items():
                for title, side in sides.items():
                    in_service.phases.clear()
                    meter = CpuMeter({"AvatarForge": running.pid, "LitServe": litserve_pid}.get(title))
                    turns.setdefault((title, name), []).append(side(load))
                    cpu[title, name] = meter.milliseconds_each(sum(map(len, load)), least=2)
                    alone += in_service.phases if name == "single" else ()
    return report(turns, cpu, alone, number, rounds)


def make_loads(number: int, singles: int) -> dict[str, list[list[Wishes]]]:
    """Return bursts by name, one after the other: `equal` requests differ in their seed alone."""
    random = np.random.default_rng(0)
    defaults = Catalogue().read(load_settings(environ={}).diffusion.model).defaults
    equal = [
        Wishes(
            prompt=f"{STYLES[0]} portrait of a person",
            seed=seed,
            steps=defaults.steps,
            guidance=defaults.guidance,
            image_guidance=defaults.image_guidance,
        )
        for seed in range(1, number + 1)
    ]
    mixed = [
        replace(
            wishes,
            prompt=f"{random.choice(STYLES)} portrait of a person",
            steps=int(random.choice(EDITING_STEPS)),
            guidance=float(random.choice(GUIDANCES)),
            image_guidance=float(random.choice(IMAGE_GUIDANCES)),
        )
        for wishes in equal
    ]
    return {"equal": [equal], "mixed": [mixed], "single": [[wishes] for wishes in equal[:singles]]}


# --- sides ----------------------------------------------------------------------------------------------


def send(ask: Callable[[Wishes], bytes], bursts: Sequence[Sequence[Wishes]]) -> Turn:
    """Ask for the images of a burst at once; then for those of the next one."""

    def take(wishes: Wishes) -> float:
        begun = time.perf_counter()
        Image.open(io.BytesIO(ask(wishes))).verify()
        return time.perf_counter() - begun

    begun, latencies = time.perf_counter(), list[float]()
    for burst in bursts:
        with ThreadPoolExecutor(len(burst)) as clients:
            latencies += clients.map(take, burst)
    return Turn(time.perf_counter() - begun, latencies)


class InService:
    """AvatarForge's REST interface: uploads the photo, waits for its job's end, and fetches the avatar."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.phases: list[Mapping[str, float]] = []
        """Seconds of each request: as the client sees them, and `timings` of the job's status."""

    def ask(self, wishes: Wishes) -> bytes:
        fields = {
            "prompt": wishes.prompt,
            "seed": wishes.seed,
            "steps": wishes.steps,
            "guidance": wishes.guidance,
            # Unguided ones have no use for it, and the service says so.
            **({"imageGuidance": wishes.image_guidance} if wishes.guidance > 1 else {}),
        }
        photo = ("portrait.png", SAMPLE_PORTRAIT.read_bytes(), "image/png")
        begun = time.perf_counter()
        accepted = self._client.post(f"/customers/{CUSTOMER}", files={"photo": photo}, data=fields)
        location = accepted.raise_for_status().headers["location"]
        accepted_at = time.perf_counter()
        while not (status := self._get(location, {"waitSeconds": 60}).json())["isTerminal"]:
            pass
        done_at = time.perf_counter()
        avatar = self._get(f"{location.removesuffix('/status')}/generated").content
        fetched_at = time.perf_counter()
        stages = status["timings"]
        self.phases.append(
            {
                "upload to 202": accepted_at - begun,
                **{f"job: {stage}": seconds for stage, seconds in stages.items()},
                "job: in between": done_at - accepted_at - sum(stages.values()),
                "fetch the avatar": fetched_at - done_at,
            }
        )
        return avatar

    def _get(self, path: str, query: Mapping[str, int] | None = None) -> httpx.Response:
        return self._client.get(path, params=query).raise_for_status()


def ask_litserve(client: httpx.Client, wishes: Wishes) -> bytes:
    photo = base64.b64encode(SAMPLE_PORTRAIT.read_bytes()).decode()
    return client.post("/predict", json={"photo": photo, **asdict(wishes)}).raise_for_status().content


class InPipeline:
    """diffusers' pipeline in this process, called with as many equal requests as it may have."""

    def __init__(self, model: str, threads: int, photo: Image.Image) -> None:
        self._pipeline, self._photo = load_pipeline(model, threads), photo

    def run(self, bursts: Sequence[Sequence[Wishes]]) -> Turn:
        begun, latencies = time.perf_counter(), list[float]()
        for burst in bursts:
            burst_begun = time.perf_counter()
            for batch in split_by_likeness(burst):
                call_pipeline(self._pipeline, [(self._photo, wishes) for wishes in batch])
                latencies += [time.perf_counter() - burst_begun] * len(batch)
        return Turn(time.perf_counter() - begun, latencies)


def split_by_likeness(burst: Sequence[Wishes]) -> Iterator[list[Wishes]]:
    """Yield batches of which one call can make all: somebody who has all requests before him sorts them."""

    def likeness(wishes: Wishes) -> tuple[float, ...]:
        return wishes.steps, wishes.guidance, wishes.image_guidance

    for _, group in groupby(sorted(burst, key=likeness), likeness):
        same = list(group)
        for start in range(0, len(same), BATCH):
            yield same[start : start + BATCH]


@contextmanager
def litserve(model: str, threads: int, folder: Path) -> Iterator[tuple[str, int]]:
    """LitServe in processes of its own; yields its address, and the id of the first process."""
    port, log = free_port(), folder / "litserve.log"
    command = [sys.executable, "-m", "benchmarks.litserve_server", model, str(threads), str(port)]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=output, stderr=output) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            await_health(url, process, log)
            yield url, process.pid
        finally:
            stop(process)


def await_health(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            raise RuntimeError(f"LitServe ended:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)


# --- report ---------------------------------------------------------------------------------------------


def report(
    turns: Mapping[tuple[str, str], Sequence[Turn]],
    cpu: Mapping[tuple[str, str], Sequence[tuple[str, float]]],
    alone: Sequence[Mapping[str, float]],
    number: int,
    rounds: int,
) -> Report:
    def seconds(side: str, load: str) -> float:
        return median(turn.seconds for turn in turns[side, load])

    def latency(side: str, load: str) -> float:
        return median(median(turn.latencies) for turn in turns[side, load])

    def gain(over: str, load: str) -> float:
        return seconds(over, load) / seconds("AvatarForge", load)

    return Report(
        title=f"Peers: {number} requests through AvatarForge, LitServe and diffusers' pipeline",
        figures=[
            Figure(
                name="equal: AvatarForge / LitServe",
                value=gain("LitServe", "equal"),
                unit="x",
                wanted="≥ 1.0",
            ),
            Figure(
                name="mixed: AvatarForge / LitServe",
                value=gain("LitServe", "mixed"),
                unit="x",
                wanted="≥ 1.3",
            ),
            *(
                Figure(
                    name=f"{load}: p50 latency beside LitServe's",
                    value=latency("AvatarForge", load) / latency("LitServe", load),
                    unit="",
                    wanted="≤ 1.0",
                )
                for load in ("equal", "mixed")
            ),
            Figure(
                name="one at a time: time beside the pipeline's",
                value=seconds("AvatarForge", "single") / seconds("pipeline", "single"),
                unit="",
                wanted="≤ 1.15",
            ),
            Figure(
                name="one at a time: time beside LitServe's",
                value=seconds("AvatarForge", "single") / seconds("LitServe", "single"),
                unit="",
            ),
            Figure(name="equal: AvatarForge / pipeline", value=gain("pipeline", "equal"), unit="x"),
            Figure(name="mixed: AvatarForge / pipeline", value=gain("pipeline", "mixed"), unit="x"),
        ],
        conditions={
            "AvatarForge": "each client uploads the sample portrait, waits by long poll and fetches the "
            "avatar: photo examined and stored, face found, moves committed to SQLite",
            "LitServe": f"{version('litserve')}, max_batch_size {BATCH}, "
            f"batch_timeout {BATCH_TIMEOUT_SECONDS} s, one worker; gets the portrait, cuts the square "
            "around the face with the same code, answers with the PNG and keeps nothing; a batch is split by "
            "what one call of the pipeline cannot mix",
            "pipeline": f"diffusers' own, called with up to {BATCH} requests that it can make together, "
            "sorted beforehand; the square is cut, nothing is encoded",
            "burst": f"{number} clients at once; equal ones differ in their seed, mixed ones in prompt, "
            "steps and both guidances too",
            "turns": f"{rounds} of each load on each side in turn, the other sides idle; medians",
        },
        tables=[
            Table(
                title="Seconds by turn",
                columns=("load", "side", *(f"turn {turn}" for turn in range(1, rounds + 1)), "p50 latency"),
                rows=[
                    (load, side, *(turn.seconds for turn in taken), latency(side, load))
                    for (side, load), taken in turns.items()
                ],
            ),
            Table(
                title="Milliseconds of one request through AvatarForge, one at a time: medians",
                columns=("phase", "ms"),
                rows=[(name, 1000 * median(one[name] for one in alone)) for name in alone[0]],
            ),
            Table(
                title="Milliseconds of CPU for one request, in the last turn",
                columns=("load", "side", "process", "ms"),
                rows=[(load, side, *row) for (side, load), rows in cpu.items() for row in rows],
            ),
        ],
    )
