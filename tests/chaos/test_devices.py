"""A device that hangs or dies under the service: the replica is replaced, and every job ends.

`tests/integration/test_device_faults.py` has the short form, without Ray.
"""

import os
from pathlib import Path
from typing import Any

import pytest

import tests.servers
from avatarforge.client import Client
from benchmarks.photos import noisy_jpeg
from tests.chaos.conftest import IS_LONG, told
from tests.chaos.crowd import now, soon
from tests.checkpoints import tiny_models
from tests.servers.avatarforge import AvatarForgeServer

pytestmark = [
    pytest.mark.skipif(not IS_LONG, reason="it starts the service anew: `make chaos`"),
    pytest.mark.timeout(400),
]

JOBS = 12
STALL_SECONDS = 5
REPLICA = "ray::ServeReplica:avatarforge:StableDiffusion"


def service_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> AvatarForgeServer:
    """The service, whose replicas look for a fault in `folder`."""
    faults = Path(tests.servers.__file__).parent / "device_faults"
    path = os.pathsep.join(filter(None, [str(faults), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("DEVICE_FAULT", str(folder / "fault"))
    models = {"DIFFUSION_MODELS_DIR": str(tiny_models())}
    stall = {"DIFFUSION_STALL_TIMEOUT_SECONDS": str(STALL_SECONDS)}
    return AvatarForgeServer(folder / "data", **models, **stall, **variables)


def model_of(service: AvatarForgeServer) -> dict[str, Any]:
    with service.client() as client:
        answer: dict[str, Any] = client.get("/models").json()
    return answer


@pytest.mark.parametrize("kind", ["hang", "die"])
def test_jobs_of_a_device_that_fails_under_them_are_done_by_a_new_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with service_of(tmp_path, monkeypatch) as service, Client(service.url, timeout=90) as forge:
        jobs = [forge.submit("ana", noisy_jpeg(20_000, 256), steps=40) for _ in range(JOBS)]
        soon(lambda: "serving" in str(model_of(service)["replicas"]), 120, "a replica that serves")
        before = {process.pid for process in service.processes(REPLICA)}
        (tmp_path / "fault").write_text(kind)
        soon(lambda: not (tmp_path / "fault").exists(), 90, "the fault is met")
        met_at = now()
        ended = [forge.wait(job, seconds=120) for job in jobs]
        told(f"device: {kind}", "the last of the jobs is done after", (now() - met_at).total_seconds(), "s")
        assert {job.status for job in ended} == {"DONE"}
        assert max(job.attempt for job in ended) == 2
        after = {process.pid for process in service.processes(REPLICA)}
        assert after
        assert not after & before


def test_a_device_that_dies_before_any_model_serves_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fault").write_text("die")
    with service_of(tmp_path, monkeypatch) as service, Client(service.url, timeout=90) as forge:
        job = forge.submit("ana", noisy_jpeg(20_000, 256))
        assert forge.wait(job, seconds=120).status == "DONE"
        assert not (tmp_path / "fault").exists()
