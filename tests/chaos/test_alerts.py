"""Each alert, provoked before a real Prometheus that watches the service: it fires, and ends.

The times and windows of the rules are shortened. In a short run some of the alerts are provoked.
"""

import asyncio
import re
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from avatarforge.domain.errors import PipelineFailed, RemoteUnavailable
from avatarforge.domain.generations import GenerationFailed
from avatarforge.domain.jobs import JobError
from avatarforge.domain.replicas import ModelFailure
from tests.chaos.conftest import IS_LONG
from tests.factories import a_report
from tests.integration.service import Service, running_service
from tests.receivers import Receiver, answer
from tests.servers.http_proxy import HttpProxy
from tests.waiting import wait_until

ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yaml"
SHARDS = 2
WINDOW_SECONDS, OLD_SECONDS, LAG_SECONDS = 8, 3, 2
PATIENCE_SECONDS = 60


class Prometheus:
    """A server with the rules in a short form, which scrapes through a proxy."""

    def __init__(self, folder: Path, proxy: HttpProxy) -> None:
        folder.mkdir()
        self.proxy = proxy
        rules = re.sub(r"^ *for: \d+m\n", "", ALERTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
        rules = re.sub(r"\[\d+[mh]\]", f"[{WINDOW_SECONDS}s]", rules)
        rules = rules.replace("waiting_seconds) > 600", f"waiting_seconds) > {OLD_SECONDS}")
        rules = rules.replace("lag_seconds > 10", f"lag_seconds > {LAG_SECONDS}")
        (folder / "alerts.yaml").write_text(rules)
        target = {"job_name": "avatarforge", "static_configs": [{"targets": [f"127.0.0.1:{proxy.port}"]}]}
        times = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        config = {"global": times, "rule_files": ["alerts.yaml"], "scrape_configs": [target]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Prometheus"]:
        with (self._folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                "prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self._address}",
                stdout=log,
                stderr=log,
            )
        try:
            async with httpx.AsyncClient(base_url=f"http://{self._address}", timeout=10) as self._client:
                await wait_until(self._is_ready, PATIENCE_SECONDS)
                yield self
        finally:
            process.terminate()
            await process.wait()

    async def list_firing(self) -> dict[str, dict[str, Any]]:
        """Return the alerts that fire, by name."""
        answered = (await self._client.get("/api/v1/alerts")).json()["data"]["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in answered if alert["state"] == "firing"}

    async def _is_ready(self) -> bool:
        try:
            return (await self._client.get("/-/ready")).status_code == 200
        except httpx.TransportError:
            return False


def render(template: str, alert: dict[str, Any]) -> str:
    """Fill in the alert's own value, in its unit, and its labels, as Prometheus does for our templates."""
    value = float(alert["value"])
    forms = {
        "$value": f"{value:g}",
        "$value | humanize": f"{value:.4g}",
        "$value | humanizePercentage": f"{value * 100:.4g}%",
        "$value | humanizeDuration": f"{value * 1000:.4g}ms" if value < 1 else f"{value:.4g}s",
        **{f"$labels.{name}": label for name, label in alert["labels"].items()},
    }
    return re.sub(r"\{\{ (.*?) \}\}", lambda field: forms[field[1]], template)


Fault = AbstractAsyncContextManager[None]
FAULTS: dict[str, Callable[[Service, Prometheus], Fault]] = {}
"""What provokes each alert, by the alert's name without the prefix."""


def provokes(*alerts: str) -> Callable[[Callable[[Service, Prometheus], AsyncIterator[None]]], None]:
    def add(fault: Callable[[Service, Prometheus], AsyncIterator[None]]) -> None:
        FAULTS.update(dict.fromkeys(alerts, asynccontextmanager(fault)))

    return add


@asynccontextmanager
async def repeated(call: Callable[[], Awaitable[object]], pause: float = 0.2) -> AsyncIterator[None]:
    """Call again and again meanwhile."""

    async def repeat() -> None:
        while True:
            await call()
            await asyncio.sleep(pause)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@provokes("Absent")
async def _cut_off(service: Service, prometheus: Prometheus) -> AsyncIterator[None]:
    with prometheus.proxy.down():
        yield


@provokes("TrackerDown", "FeedLags")
async def _kill_tracker(service: Service, _: Prometheus) -> AsyncIterator[None]:
    # Not the first one's, who tells of the ingress replicas.
    await service.actors[1].kill()
    yield
    await service.actors[1].start()


@provokes("TrackerRestarts")
async def _restart_tracker(service: Service, _: Prometheus) -> AsyncIterator[None]:
    for _number in range(5):
        await service.actors[0].kill()
        await service.actors[0].start()
        # Each is seen by a scrape.
        await asyncio.sleep(1)
    yield


@provokes("TrackerIdle")
async def _change_shard_count(service: Service, _: Prometheus) -> AsyncIterator[None]:
    await service.actors[0].kill()
    _execute(service, "UPDATE tracker_shards SET shards = 5")
    starting = asyncio.create_task(service.actors[0].start())
    yield
    _execute(service, f"UPDATE tracker_shards SET shards = {SHARDS}")
    await starting


@provokes("DatabaseDown", "DatabaseDefect")
async def _rename_table(service: Service, _: Prometheus) -> AsyncIterator[None]:
    _execute(service, "ALTER TABLE job_events RENAME TO job_events_away")
    async with repeated(service.post):
        yield
    _execute(service, "ALTER TABLE job_events_away RENAME TO job_events")


@provokes("StorageFailing")
async def _take_storage_away(service: Service, _: Prometheus) -> AsyncIterator[None]:
    service.storage.away = True
    async with repeated(service.post):
        yield
    service.storage.away = False


@provokes("OldJobs", "NothingStarts")
async def _take_slots(service: Service, _: Prometheus) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for _number in range(2):
            await stack.enter_async_context(service.replicas.reserve())
        await service.submitted()
        await service.submitted()
        yield


def _failing(code: str, **options: Any) -> Any:
    async def fail(_: object) -> AsyncIterator[GenerationFailed]:
        yield GenerationFailed(error=JobError(code=code, message="Provoked by the test."), **options)

    return fail


@asynccontextmanager
async def _scripted(service: Service, script: Any) -> AsyncIterator[None]:
    before, service.replicas.script = service.replicas.script, script
    async with repeated(service.submitted):
        yield
    service.replicas.script = before


@provokes("JobsFail")
async def _fail_jobs(service: Service, _: Prometheus) -> AsyncIterator[None]:
    async with _scripted(service, _failing(PipelineFailed.code)):
        yield


@provokes("AttemptsLost")
async def _lose_workers(service: Service, _: Prometheus) -> AsyncIterator[None]:
    async with _scripted(service, service.generations.lost):
        yield


@provokes("BackendLeftAlone")
async def _leave_alone(service: Service, _: Prometheus) -> AsyncIterator[None]:
    service.script(_failing(RemoteUnavailable.code, retryable=True, away_seconds=4.0))
    await service.submitted()
    yield


@provokes("ModelNotServed")
async def _report_failure(service: Service, _: Prometheus) -> AsyncIterator[None]:
    tracker = service.actors[0].tracker
    assert tracker is not None
    failure = ModelFailure(model="broken", reason="Provoked by the test.", at=service.clock())
    await tracker.record_replica_report(a_report(failure=failure))
    yield
    await tracker.record_replica_report(a_report())


@provokes("UserConfigWrong")
async def _report_user_config(service: Service, _: Prometheus) -> AsyncIterator[None]:
    tracker = service.actors[0].tracker
    assert tracker is not None
    await tracker.record_replica_report(a_report(user_config_faults=("Provoked by the test.",)))
    yield
    await tracker.record_replica_report(a_report())


@provokes("WebhooksGivenUp")
async def _refuse_webhook(service: Service, _: Prometheus) -> AsyncIterator[None]:
    async with Receiver(answer(410)).serving() as receiver:
        await service.submitted(callbackUrl=receiver.url())
        yield


@provokes("Errors")
async def _break_call(service: Service, _: Prometheus) -> AsyncIterator[None]:
    whole = service.photos.customers
    service.photos.customers = None  # type: ignore[method-assign,assignment]
    assert (await service.client.get("/customers")).status_code == 500
    service.photos.customers = whole  # type: ignore[method-assign]
    yield


def _execute(service: Service, statement: str) -> None:
    with closing(sqlite3.connect(service.settings.data_dir / "avatarforge.db", timeout=10)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[tuple[Service, Prometheus]]:
    async with running_service(tmp_path, tracker={"shards": SHARDS}) as service:
        with HttpProxy(int(service.url.rpartition(":")[2])) as proxy:
            async with Prometheus(tmp_path / "prometheus", proxy).running() as prometheus:
                await service.ended(await service.submitted())
                yield service, prometheus


@pytest.mark.timeout(900)
async def test_each_alert_fires_and_ends(watched: tuple[Service, Prometheus]) -> None:
    service, prometheus = watched
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
    named = [rule["alert"].removeprefix("AvatarForge") for rule in rules]
    assert set(FAULTS) == set(named)
    for name in named if IS_LONG else ("TrackerDown", "DatabaseDefect"):
        alert = f"AvatarForge{name}"

        async def has(alert: str = alert, *, firing: bool = True) -> bool:
            return (alert in await prometheus.list_firing()) is firing

        await wait_until(lambda: has(firing=False), PATIENCE_SECONDS, f"{alert} is silent before")
        async with FAULTS[name](service, prometheus):
            await wait_until(has, PATIENCE_SECONDS, f"{alert} fires")
            fired, [rule] = (await prometheus.list_firing())[alert], [r for r in rules if r["alert"] == alert]
            for part, template in rule["annotations"].items():
                assert fired["annotations"][part] == render(template, fired)
        await wait_until(lambda: has(firing=False), PATIENCE_SECONDS, f"{alert} ends")
