"""Traces, from the client's request to the receiver of the webhook, as a collector gets them."""

import asyncio
import http.server
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from pydantic import ValidationError

from avatarforge.diffusion.engines.batching import BatchingEngine
from avatarforge.diffusion.models.loader import LoadedModel
from avatarforge.diffusion.replica.task_worker import GenerationWorker
from avatarforge.settings import LogSettings, SettingsError, TelemetrySettings, load_settings
from avatarforge.storage.folder import FolderStorage
from avatarforge.telemetry import logs, traces
from tests.checkpoints import img2img, img2img_manifest
from tests.generations import a_task, all_of, serving
from tests.integration.rest import a_jpeg
from tests.integration.service import Service, running_service
from tests.receivers import Receiver
from tests.waiting import wait_until

CLIENTS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""A client's own span: the example of the W3C's recommendation."""


class Collector:
    """A server that speaks OTLP over HTTP and keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.authorizations: set[str | None] = set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                collector.authorizations.add(self.headers["Authorization"])
                for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                    named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                    collector.services.add(named["service.name"])
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, name: str) -> Span | None:
        return next((span for span in self.spans if span.name == name), None)


@pytest.fixture(scope="module")
def exporting() -> Iterator[Collector]:
    """This process's traces, which OpenTelemetry lets be set up once."""
    collector = Collector()
    settings = TelemetrySettings.model_validate(
        {
            "otlp_endpoint": collector.url,
            "otlp_headers": "Authorization=Bearer of-the-collector",
            "export_interval_seconds": 0.1,
        }
    )
    traces.configure(settings, "test")
    yield collector
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.shutdown()
    traces._tracer = None
    collector.close()


@pytest.fixture
def collector(exporting: Collector) -> Collector:
    exporting.spans.clear()
    return exporting


@pytest.fixture
async def service(collector: Collector, tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path) as service:
        yield service


async def uploaded(
    service: Service, traceparent: str | None, callback_url: str = "", request_id: str | None = None
) -> str:
    answer = await service.client.post(
        "/customers/ana",
        files={"photo": ("portrait.jpg", a_jpeg(), "image/jpeg")},
        data={"callbackUrl": callback_url},
        headers={
            name: value
            for name, value in (("traceparent", traceparent), ("x-request-id", request_id))
            if value is not None
        },
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["jobId"])


def tree(spans: list[Span]) -> dict[str, str]:
    """Each span's parent, by name."""
    names = {span.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent_span_id, span.parent_span_id.hex()) for span in spans}


async def test_one_trace_leads_from_the_clients_request_to_the_receiver(
    service: Service, collector: Collector
) -> None:
    async with Receiver().serving() as receiver:
        job_id = await uploaded(service, CLIENTS, receiver.url())
        await service.ended(job_id)
        await wait_until(lambda: collector.of("webhook"))
        [called] = receiver.received
    _, trace_id, clients_span, _ = CLIENTS.split("-")
    assert {span.trace_id.hex() for span in collector.spans} == {trace_id}
    assert tree(collector.spans) == {
        "upload": clients_span,
        "store original": "upload",
        "submit": "upload",
        "commit": "upload",
        "wait": "upload",
        "attempt": "upload",
        "publish": "upload",
        "webhook": "upload",
    }
    webhook = collector.of("webhook")
    assert webhook is not None
    assert called.headers["traceparent"] == f"00-{trace_id}-{webhook.span_id.hex()}-01"
    [task] = service.replicas.tasks
    attempt = collector.of("attempt")
    assert attempt is not None
    assert task.traceparent == f"00-{trace_id}-{attempt.span_id.hex()}-01"
    named = {pair.key: pair.value.string_value or pair.value.int_value for pair in attempt.attributes}
    assert named == {"avatarforge.job_id": job_id, "avatarforge.customer_id": "ana", "avatarforge.attempt": 1}
    assert collector.services == {"avatarforge"}
    assert collector.authorizations == {"Bearer of-the-collector"}


async def test_every_change_of_a_job_is_one_line_that_names_its_request_and_its_trace(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    logs.configure(LogSettings())
    service.script(service.generations.lost, service.generations.done)
    async with Receiver().serving() as receiver:
        job_id = await uploaded(service, CLIENTS, receiver.url(), request_id="of-the-client")
        await service.ended(job_id)

        def list_lines() -> list[dict[str, Any]]:
            lines = [record.msg for record in caplog.records if record.levelno == logging.INFO]
            return [line for line in lines if isinstance(line, dict) and line.get("job_id") == job_id]

        await wait_until(lambda: list_lines()[-1]["event"] == "webhook delivered")
    about_job = list_lines()
    assert [(line["event"], line.get("attempt"), line.get("replica")) for line in about_job] == [
        ("job submitted", 0, None),
        ("job started", 1, "twin"),
        ("job requeued", 1, None),
        ("job started", 2, "twin"),
        ("job done", 2, None),
        ("webhook delivered", None, None),
    ]
    ids = {(line["request_id"], line["trace_id"]) for line in about_job}
    assert ids == {("of-the-client", CLIENTS.split("-")[1])}


async def test_an_upload_without_a_trace_begins_one(service: Service, collector: Collector) -> None:
    await service.ended(await uploaded(service, None))
    await wait_until(lambda: collector.of("publish"))
    assert tree(collector.spans)["upload"] == ""
    assert len({span.trace_id for span in collector.spans}) == 1


async def test_a_malformed_context_is_passed_over(service: Service, collector: Collector) -> None:
    await uploaded(service, "00-zzz-not-a-trace")
    await wait_until(lambda: collector.of("upload"))
    assert tree(collector.spans)["upload"] == ""


async def test_a_client_that_does_not_trace_is_not_traced(service: Service, collector: Collector) -> None:
    job_id = await uploaded(service, CLIENTS.removesuffix("01") + "00")
    await service.ended(job_id)
    await service.ended(await uploaded(service, CLIENTS))
    await wait_until(lambda: collector.of("publish"))
    jobs = {pair.value.string_value for span in collector.spans for pair in span.attributes}
    assert job_id not in jobs


async def test_a_trace_goes_on_after_a_restart(service: Service, collector: Collector) -> None:
    puppet = service.puppet()
    job_id = await uploaded(service, CLIENTS)
    await asyncio.wait_for(puppet.runs.wait(), 10)
    await service.kill_trackers()
    await service.start_trackers()
    await service.ended(job_id)
    publish = await wait_until(lambda: collector.of("publish"))
    assert publish.trace_id.hex() == CLIENTS.split("-")[1]
    assert [task.attempt for task in service.replicas.tasks] == [1, 2]


async def test_a_generation_tells_its_stages(collector: Collector, tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    task = replace(a_task(storage), traceparent=CLIENTS)
    with BatchingEngine(img2img(), "img2img", threads=1) as engine:
        model = LoadedModel(manifest=img2img_manifest(), engine=engine, dtype="float32", seconds={})
        await all_of(GenerationWorker(storage, serving(model), storage_retry_seconds=5), task)
    generate = await wait_until(lambda: collector.of("generate"))
    stages = {"fetch", "encode", "steps", "decode", "upload"}
    assert tree(collector.spans) == {"generate": CLIENTS.split("-")[2], **dict.fromkeys(stages, "generate")}
    spans = {span.name: span for span in collector.spans}
    for span in spans.values():
        # Wall clock and steady clock differ by microseconds.
        slack = 20_000_000
        assert generate.start_time_unix_nano - slack <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= generate.end_time_unix_nano + slack
    assert spans["encode"].end_time_unix_nano <= spans["steps"].start_time_unix_nano + 1000
    assert spans["steps"].end_time_unix_nano <= spans["decode"].start_time_unix_nano + 1000


def test_a_header_that_is_none_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsError) as refusal:
        load_settings({"telemetry": {"otlp_headers": "secret-without-a-name"}}, environ={})
    assert "Name=value" in str(refusal.value)
    assert "secret-without" not in str(refusal.value)


def test_an_endpoint_is_an_address() -> None:
    with pytest.raises(ValidationError, match="otlp_endpoint"):
        TelemetrySettings(otlp_endpoint="collector:4318")


IN_SERVES_TRACE = """
from opentelemetry import trace
from ray.serve._private.common import ServeComponentType
from ray.serve._private.tracing_utils import TraceContextManager, setup_tracing
from ray.serve.schema import TracingConfig
from avatarforge.settings import load_settings
from avatarforge.telemetry import traces

config = TracingConfig(
    enabled=True, exporter_import_path="avatarforge.telemetry.traces:serve_exporter", sampling_ratio=1
)
assert setup_tracing("Ingress", "r1", ServeComponentType.REPLICA, config)
traces.configure(load_settings().telemetry, "ingress")
with TraceContextManager("of serve"), traces.upload("%s"):
    pass
trace.get_tracer_provider().force_flush()
"""


async def test_where_serve_traces_too_its_spans_and_ours_make_one_trace(collector: Collector) -> None:
    """In a process of its own, since OpenTelemetry is set up once in each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        IN_SERVES_TRACE % CLIENTS,
        env={**os.environ, "AVATARFORGE_TELEMETRY_OTLP_ENDPOINT": collector.url},
    )
    assert await process.wait() == 0
    assert tree(collector.spans) == {"of serve": "", "upload": "of serve"}
    assert len({span.trace_id for span in collector.spans}) == 1
