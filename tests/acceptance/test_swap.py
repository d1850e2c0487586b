"""Checkpoints are changed, broken ones named, replicas killed and added, with a hundred jobs in flight."""

import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.checkpoints import img2img_checkpoint, write_manifest
from tests.events import EventReader
from tests.servers.redeploying import RedeployedServer

JOBS = 100
"""In all, at least."""
AT_A_TIME = 24
"""As many wait and run at any moment."""
CUSTOMERS = 4
FIELDS = {"steps": "20", "strength": "1", "seed": "1"}
LONGEST = 150.0
"""Seconds that anything here may take."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedeployedServer]:
    models = tmp_path_factory.mktemp("models")
    for name in ("first", "second"):
        write_manifest(
            models, name, folder=str(img2img_checkpoint()), pipeline="StableDiffusionImg2ImgPipeline"
        )
    shutil.copytree(img2img_checkpoint(), models / "hollow", ignore=shutil.ignore_patterns("diffusion_*"))
    write_manifest(models, "broken", folder="hollow", pipeline="StableDiffusionImg2ImgPipeline")
    folder = tmp_path_factory.mktemp("swap")
    with RedeployedServer(
        folder,
        "first",
        DIFFUSION_MODELS_DIR=str(models),
        DIFFUSION_MODEL="first",
        DIFFUSION_THREADS="1",
        DIFFUSION_NICENESS="0",
    ) as service:
        yield service


class Steps:
    """When a step was told anywhere, by the streams of all customers."""

    def __init__(self, service: RedeployedServer) -> None:
        self._service = service
        self._times: list[float] = []
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(f"customer-{number}",), daemon=True)
            for number in range(CUSTOMERS)
        ]

    def __enter__(self) -> "Steps":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def await_first(self) -> float:
        """When the first step was told."""
        deadline = time.monotonic() + LONGEST
        while not self._times:
            assert time.monotonic() < deadline, "no step was told"
            time.sleep(0.05)
        return self._times[0]

    def longest_gap(self, since: float, until: float) -> float:
        """Seconds without a step anywhere."""
        times = [since, *(at for at in sorted(self._times) if since < at < until), until]
        return max(after - before for before, after in pairwise(times))

    def _follow(self, customer: str) -> None:
        with httpx.Client(base_url=self._service.url, timeout=2) as client:
            while not self._ended.is_set():
                try:
                    self._listen(client, customer)
                except httpx.TransportError:
                    # Silent, or at its end: it is opened again.
                    continue

    def _listen(self, client: httpx.Client, customer: str) -> None:
        reader = EventReader()
        with client.stream("GET", f"/customers/{customer}/photos/stream") as answer:
            for line in answer.iter_lines():
                if self._ended.is_set():
                    return
                event = reader.read(line)
                if event is not None and event.kind == "progress":
                    self._times.append(time.monotonic())


def replicas(client: httpx.Client) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = client.get("/models").json()["replicas"]
    return told


def await_replicas(client: httpx.Client, **expected: Any) -> list[dict[str, Any]]:
    """Return once so many replicas (`number`) serve the `model` with the `desired` model, failed or not."""
    deadline = time.monotonic() + LONGEST
    told: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        told = replicas(client)
        seen = [
            (one["model"] and one["model"]["name"], one["desiredModel"], one["failure"] is not None)
            for one in told
        ]
        wanted = (expected["model"], expected["desired"], expected["model"] != expected["desired"])
        if seen == [wanted] * expected["number"]:
            return told
        time.sleep(0.1)
    raise AssertionError(f"not {expected}, but {json.dumps(told, indent=1)}")


class Crowd:
    """Uploads photos, so that there is work at any moment."""

    def __init__(self, service: RedeployedServer, portrait: bytes) -> None:
        self._service = service
        self._portrait = portrait
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._upload, daemon=True)
        self.accepted: list[str] = []
        """The paths of the jobs' status."""

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more than have to be there in all."""
        self._ended.set()
        self._thread.join()

    def _upload(self) -> None:
        unfinished: list[str] = []
        with self._service.client() as client:
            while not self._ended.wait(0.2) or len(self.accepted) < JOBS:
                unfinished = [path for path in unfinished if not client.get(path).json()["isTerminal"]]
                new = [self._uploaded(client) for _ in range(AT_A_TIME - len(unfinished))]
                unfinished += new
                self.accepted += new

    def _uploaded(self, client: httpx.Client) -> str:
        customer = f"customer-{random.randrange(CUSTOMERS)}"
        answer = client.post(f"/customers/{customer}", files={"photo": self._portrait}, data=FIELDS)
        return str(answer.raise_for_status().headers["location"])


def loading(told: list[dict[str, Any]]) -> list[float]:
    """What loading took each replica, with the first picture."""
    return [one["model"]["loadSeconds"] for one in told]


def test_a_hundred_jobs_outlive_swaps_a_broken_checkpoint_and_a_killed_replica(
    service: RedeployedServer, portrait: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    gaps: dict[str, float] = {}
    loads: list[float] = []
    with service.client() as client, Steps(service) as steps, Crowd(service, portrait) as crowd:
        await_replicas(client, number=1, model="first", desired="first")
        at = steps.await_first()

        service.deploy("second", 1)
        loads += loading(await_replicas(client, number=1, model="second", desired="second"))
        gaps["swap"] = steps.longest_gap(at, at := time.monotonic())

        service.write("applications: [{name: avatarforge, import_path: 7}]")
        service.await_log("Not applied")

        service.deploy("broken", 1)
        [before] = await_replicas(client, number=1, model="second", desired="broken")
        assert "'broken' cannot be used" in before["failure"]["reason"]
        gaps["broken"] = steps.longest_gap(at, at := time.monotonic())

        [process] = service.processes("ray::ServeReplica:avatarforge:StableDiffusion")
        process.kill()
        deadline = time.monotonic() + LONGEST
        while before["replicaId"] in [one["replicaId"] for one in replicas(client)]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        await_replicas(client, number=1, model="second", desired="broken")
        gaps["killed"] = steps.longest_gap(at, at := time.monotonic())

        service.deploy("broken", 2)
        loads += loading(await_replicas(client, number=2, model="second", desired="broken"))
        gaps["scaled up"] = steps.longest_gap(at, at := time.monotonic())

        service.deploy("first", 2)
        loads += loading(await_replicas(client, number=2, model="first", desired="first"))
        gaps["swapped back"] = steps.longest_gap(at, time.monotonic())

        crowd.stop()
        ends = [client.get(path, params={"waitSeconds": "60"}).json() for path in crowd.accepted]
    with capsys.disabled():
        told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in gaps.items())
        print(f"\nlongest time without a step: {told}; slowest load {max(loads):.2f} s; ", end="")
        print(f"{len(ends)} jobs")
    assert [end["status"] for end in ends] == ["DONE"] * len(ends)
    assert {end["model"] for end in ends} >= {"first", "second"}
    # A killed replica that was alone leaves nobody; all other changes go on beside the work.
    assert max(gaps[name] for name in gaps.keys() - {"killed"}) <= max(loads) + 1
