"""`/metrics` of a running service, and what is built on it."""

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import Counter, Histogram
from tests.integration.service import Service, running_service
from tests.receivers import Receiver
from tests.waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "avatarforge.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
ALERT_TESTS = DEPLOY / "prometheus" / "alerts_test.yaml"


async def scraped(client: httpx.AsyncClient) -> str:
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return answer.text


async def value(client: httpx.AsyncClient, name: str, **labels: str) -> float:
    """The sum over all series of that name that have these labels."""
    families = text_string_to_metric_families(await scraped(client))
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path) as service:
        yield service


async def test_a_job_is_counted_from_its_upload_to_its_webhook(service: Service) -> None:
    get, client = value, service.client
    async with Receiver().serving() as receiver:
        await service.ended(await service.submitted(callbackUrl=receiver.url()))
        await wait_until(
            lambda: get(client, "avatarforge_webhook_attempts_total", outcome="delivered"), what="the call"
        )
    counted = [
        await get(client, "avatarforge_job_events_total", kind=kind)
        for kind in ("submitted", "started", "done", "failed")
    ]
    assert counted == [1, 1, 1, 0]
    assert await get(client, "avatarforge_jobs_ended_total", status="DONE", code="", shard="0") == 1
    assert await get(client, "avatarforge_job_wait_seconds_count") == 1
    assert await get(client, "avatarforge_job_seconds_count", status="DONE") == 1
    assert await get(client, "avatarforge_attempts_ended_total", backend="local", outcome="finished") == 1
    assert await get(client, "avatarforge_webhook_call_seconds_count") == 1
    assert await get(client, "avatarforge_upload_accept_duration_seconds_count") == 1
    assert await get(client, "avatarforge_accepted_bytes_total") > 1000
    assert await get(client, "avatarforge_commit_changes_sum") == 3
    put = {"component": "ingress", "operation": "put", "outcome": "ok"}
    assert await get(client, "avatarforge_storage_call_seconds_count", **put) == 1
    written = {"component": "tracker", "kind": "write", "outcome": "ok"}
    assert await get(client, "avatarforge_database_call_seconds_count", **written) >= 3


async def test_failures_are_counted_by_code_and_requests_by_route(service: Service) -> None:
    get, client = value, service.client
    service.script(service.generations.failing)
    await service.ended(await service.submitted())
    await service.get("no-such-job")
    await client.post("/customers/a%20b", files={"photo": b"x"})
    await client.get("/no/such/page")
    await client.request("PROPFIND", "/models")
    assert await get(client, "avatarforge_jobs_ended_total", status="FAILED", code="unsafe_content") == 1
    assert await get(client, "avatarforge_errors_total", code="job_not_found") == 1
    assert await get(client, "avatarforge_errors_total", code="invalid_customer_id") == 1
    status = {"method": "GET", "route": "/customers/{customerId}/photos/{jobId}/status"}
    assert await get(client, "avatarforge_http_requests_total", **status, status="200") == 1
    assert await get(client, "avatarforge_http_requests_total", **status, status="404") == 1
    submit = {"method": "POST", "route": "/customers/{customerId}"}
    assert await get(client, "avatarforge_http_requests_total", **submit, status="202") == 1
    assert await get(client, "avatarforge_http_requests_total", route="other", status="404") == 1
    assert await get(client, "avatarforge_http_requests_total", method="other") == 1


async def test_an_upload_under_a_key_is_timed_as_any_other_and_its_replay_is_not(service: Service) -> None:
    for _ in range(2):
        assert (await service.post(key="once")).status_code == 202
    assert await value(service.client, "avatarforge_upload_accept_duration_seconds_count") == 1


async def test_whichever_replica_answers_tells_the_same(service: Service) -> None:
    async with service.fresh_replica() as second:
        for replica in (service, second, second):
            await service.ended(await replica.submitted())
        assert await value(second.client, "avatarforge_upload_accept_duration_seconds_count") >= 2
        for client in (service.client, second.client):
            assert await value(client, "avatarforge_upload_accept_duration_seconds_count") == 3
            assert await value(client, "avatarforge_jobs_ended_total", status="DONE") == 3
            assert await value(client, "avatarforge_ingress_replicas") == 2
    # What the second one counted stays when it leaves.
    assert await value(service.client, "avatarforge_upload_accept_duration_seconds_count") == 3


async def test_followers_are_told_by_channel(service: Service) -> None:
    async with service.stream() as events:
        await events.next()
        waiting = asyncio.create_task(service.get(await service.running(), waitSeconds=5))
        get, client = value, service.client
        await wait_until(lambda: get(client, "avatarforge_subscribers", channel="long_poll"))
        assert await get(client, "avatarforge_subscribers", channel="sse") == 1
        assert await get(client, "avatarforge_subscribers", channel="grpc") == 0
        assert await get(client, "avatarforge_jobs", status="PROCESSING") == 1
        waiting.cancel()
    await wait_until_gone(service)


async def wait_until_gone(service: Service) -> None:
    async def nobody() -> bool:
        return await value(service.client, "avatarforge_subscribers") == 0

    await wait_until(nobody)


async def test_a_tracker_that_is_away_is_told_and_no_counter_of_its_next_life_holds_the_past(
    service: Service,
) -> None:
    await service.ended(await service.submitted())
    assert await value(service.client, "avatarforge_upload_accept_duration_seconds_count") == 1
    await service.kill_trackers()
    assert await value(service.client, "avatarforge_tracker_up", shard="0") == 0
    await service.start_trackers()
    assert await value(service.client, "avatarforge_tracker_up", shard="0") == 1
    assert await value(service.client, "avatarforge_tracker_epoch", shard="0") == 2
    assert await value(service.client, "avatarforge_upload_accept_duration_seconds_count") == 0


async def test_a_scrape_may_ask_for_openmetrics(service: Service) -> None:
    answer = await service.client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    families = openmetrics_families(answer.text)
    assert {f"{family.name}_total" for family in families if family.type == "counter"} == {
        metric.name for metric in metrics.ALL if isinstance(metric, Counter)
    }


async def test_promtool_finds_no_fault(service: Service) -> None:
    await service.ended(await service.submitted())
    text = await scraped(service.client)
    checked = await asyncio.to_thread(promtool, "check", "metrics", given=text)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# --- dashboard and alerts ---------------------------------------------------------------------------------


def promtool(*arguments: str | Path, given: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, timeout=60)


def test_alerts_are_valid_and_fire_when_they_should() -> None:
    checked = promtool("check", "rules", ALERTS)
    assert checked.returncode == 0, checked.stderr
    tested = promtool("test", "rules", ALERT_TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_test() -> None:
    rules = yaml.safe_load(ALERTS.read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    cases = yaml.safe_load(ALERT_TESTS.read_text())["tests"]
    tested = [case for test in cases for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in tested if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in tested if not case["exp_alerts"]} == alerts


async def test_all_counters_of_the_rule_tests_are_exported_with_0_from_the_start(service: Service) -> None:
    """But for statuses that are nobody's fault: those a client brings about."""
    exported = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(await scraped(service.client))
        for sample in family.samples
    }
    given = {
        series["series"]
        for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]
        for series in test["input_series"]
    }
    counters = {metric.name: metric for metric in metrics.ALL if isinstance(metric, Counter)}
    asked = [text for text in given if text.partition("{")[0] in counters]
    for text in asked:
        name, _, rest = text.partition("{")
        labels = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        assert set(labels) == set(counters[name].label_names), text
        if labels.get("status") not in ("503", "NOT_FOUND"):
            assert exported[name, frozenset(labels.items())] == 0, text
    assert len(asked) >= 9


def expressions() -> Iterator[str]:
    """All that the dashboard and the alerts ask Prometheus."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            # Grafana puts its own interval there.
            yield target["expr"].replace("$__rate_interval", "5m")
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def test_dashboard_and_alerts_know_only_metrics_that_there_are() -> None:
    told = {
        sample
        for metric in metrics.ALL
        for sample in (
            [f"{metric.name}_{part}" for part in ("bucket", "count", "sum")]
            if isinstance(metric, Histogram)
            else [metric.name]
        )
    }
    asked = {name for text in expressions() for name in re.findall(r"\bavatarforge_\w+", text)}
    assert asked - told == set()
    assert len(asked) > 25


async def test_a_prometheus_that_scrapes_the_service_answers_what_the_dashboard_asks(
    service: Service, tmp_path: Path
) -> None:
    await service.ended(await service.submitted())
    async with prometheus(tmp_path / "prometheus", service.url) as asked:
        answers = {text: await asked(text) for text in expressions()}
        assert await asked('avatarforge_jobs_ended_total{status="DONE"}') == ["1"]
    # A rate needs two scrapes with the series; gauges and the sums of what stands have values at once.
    assert answers["sum(avatarforge_backlog_jobs)"] == ["0"]


def configure(folder: Path, url: str) -> None:
    folder.mkdir()
    target = {"targets": [url.removeprefix("http://")]}
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "avatarforge", "static_configs": [target]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


@asynccontextmanager
async def prometheus(folder: Path, url: str) -> AsyncIterator[Callable[[str], Awaitable[list[str]]]]:
    """A real Prometheus that scrapes the service; gives a function that asks it for the values now."""
    configure(folder, url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}") as client:

            async def asked(text: str) -> list[str]:
                answer = await client.get("/api/v1/query", params={"query": text})
                assert answer.status_code == 200, answer.text
                result = answer.json()["data"]["result"]
                return [series["value"][1] for series in result]

            async def scraping() -> bool:
                try:
                    is_ready = (await client.get("/-/ready")).status_code == 200
                    return is_ready and await asked('up{job="avatarforge"}') == ["1"]
                except httpx.TransportError:
                    return False

            await wait_until(scraping, 30)
            yield asked
    finally:
        process.terminate()
        await process.wait()
