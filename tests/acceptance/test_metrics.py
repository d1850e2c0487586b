"""`/metrics` of the whole service on Ray."""

import asyncio
import subprocess

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.conftest import Installation, submitted
from tests.waiting import wait_until


def values(client: httpx.Client) -> dict[str, float]:
    """Sums over all series, by name."""
    told: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            told[sample.name] = told.get(sample.name, 0.0) + sample.value
    return told


def test_trackers_ingress_and_replicas_are_told_of_and_promtool_finds_no_fault(
    installation: Installation, client: httpx.Client, portrait: bytes
) -> None:
    before = values(client)
    accepted = submitted(client, "metered", portrait).json()
    path = f"/customers/metered/photos/{accepted['jobId']}/status"
    assert client.get(path, params={"waitSeconds": 60}).json()["status"] == "DONE"

    def risen(*names: str) -> bool:
        now = values(client)
        return all(now.get(name, 0.0) > before.get(name, 0.0) for name in names)

    asyncio.run(
        wait_until(
            lambda: risen(
                "avatarforge_job_events_total",
                "avatarforge_upload_accept_duration_seconds_count",
                "avatarforge_steps_total",
                "avatarforge_device_busy_seconds_total",
            ),
            deadline=20,
        )
    )
    now = values(client)
    assert now["avatarforge_replicas"] >= 1
    assert now["avatarforge_tracker_up"] == 1
    text = client.get("/metrics").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_replicas_write_json_lines(installation: Installation, client: httpx.Client) -> None:
    """They reach the log even though Serve puts a logger of its own in the place of stderr."""
    logs = (installation.service.data_dir / "run" / "ray" / "session_latest" / "logs").glob("worker-*.err")
    assert any('"event": "model serves"' in path.read_text(errors="replace") for path in logs)
