"""Spans of OpenTelemetry, from an upload to its webhook, for a collector that speaks OTLP over HTTP.

Off until `configure` is given an endpoint: nothing is imported then, and a span costs a comparison.
A context travels as its W3C `traceparent` (https://www.w3.org/TR/trace-context/): in the job, in the task
of an attempt, and in the headers of the webhook.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from avatarforge.settings import SettingsError, TelemetrySettings, load_settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer

Kind = Literal["internal", "server", "client"]
Attributes = Mapping[str, str | int]
NO_ATTRIBUTES: Attributes = {}

NANOSECONDS = 1_000_000_000

_tracer: "Tracer | None" = None
_serves_own = False
"""Whether Serve has taken our processor for its own spans."""


def configure(settings: TelemetrySettings, component: str) -> None:
    """Send this process's spans to `telemetry.otlp_endpoint`, if there is one; once is enough.

    Where Serve's own tracing is on, its provider and its sampling hold, and both kinds of spans make one
    trace. Raises `SettingsError` where the packages are missing.
    """
    global _tracer
    if settings.otlp_endpoint is None or _tracer is not None:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        processors = [] if _serves_own else [_processor(settings)]
    except ImportError as error:
        raise SettingsError(
            "The setting telemetry.otlp_endpoint (AVATARFORGE_TELEMETRY_OTLP_ENDPOINT) needs more packages: "
            f"install avatarforge[tracing] ({error})."
        ) from error
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(settings.sample_ratio),
            resource=Resource.create({"service.name": "avatarforge", "service.component": component}),
        )
        trace.set_tracer_provider(provider)
    for processor in processors:
        provider.add_span_processor(processor)
    _tracer = provider.get_tracer("avatarforge")


def serve_exporter() -> "list[SpanProcessor]":
    """For Serve's `tracing_config.exporter_import_path`: sends its spans where ours go."""
    global _serves_own
    _serves_own = True
    return [_processor(load_settings().telemetry)]


def span(
    name: str, parent: str | None = None, kind: Kind = "internal", attributes: Attributes = NO_ATTRIBUTES
) -> AbstractContextManager[None]:
    """A span that is open, and the current one, inside: a child of `parent`'s, else of the current one."""
    if _tracer is None:
        return nullcontext()
    return _open(_tracer, name, parent, kind, attributes)


def record(
    name: str, parent: str | None, begun: float, ended: float, attributes: Attributes = NO_ATTRIBUTES
) -> None:
    """A span that is over; the times are in seconds since 1970. Its parent is as with `span`."""
    if _tracer is None:
        return
    past = _tracer.start_span(
        name, _context_of(parent), attributes=_name(attributes), start_time=int(begun * NANOSECONDS)
    )
    past.end(int(ended * NANOSECONDS))


def upload(header: str | None) -> AbstractContextManager[None]:
    """The span of an upload: a child of Serve's own where that traces, else of the client's `traceparent`."""
    if _tracer is None:
        return nullcontext()
    return span("upload", traceparent() or header, "server")


def note(attributes: Attributes) -> None:
    """Add to the span that is open."""
    if _tracer is not None:
        from opentelemetry import trace

        trace.get_current_span().set_attributes(_name(attributes))


def traceparent() -> str | None:
    """The context of the span that is open, for those who go on with it elsewhere."""
    if _tracer is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


@contextmanager
def _open(
    tracer: "Tracer", name: str, parent: str | None, kind: Kind, attributes: Attributes
) -> Iterator[None]:
    from opentelemetry.trace import SpanKind

    with tracer.start_as_current_span(
        name, _context_of(parent), SpanKind[kind.upper()], attributes=_name(attributes)
    ):
        yield


def _context_of(parent: str | None) -> Any:
    """Its parent's; of one that is malformed, that of a span without a parent."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if parent is None:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _name(attributes: Attributes) -> dict[str, str | int]:
    return {f"avatarforge.{name}": value for name, value in attributes.items()}


def _processor(settings: TelemetrySettings) -> "SpanProcessor":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if settings.otlp_endpoint is None:
        raise SettingsError("Serve's tracing exports to telemetry.otlp_endpoint, which is not set.")
    endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint, headers=settings.headers(), timeout=settings.timeout)
    return BatchSpanProcessor(exporter, schedule_delay_millis=int(settings.export_interval_seconds * 1000))
