"""Metrics of an ingress replica: it reports them to the trackers, and answers scrapes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import structlog

from avatarforge.background import PeriodicTask
from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.telemetry import metrics
from avatarforge.telemetry.aggregation import MetricsReporter
from avatarforge.telemetry.exposition import expose
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.client import TrackerClient

log = structlog.get_logger(__name__)


class MetricsEndpoint:
    """Tells the same whichever replica answers: the trackers add up the metrics of all replicas."""

    REPORT_INTERVAL_SECONDS = 2.0
    REPORT_TIMEOUT_SECONDS = 2.0
    """How long a scrape waits until our own metrics are reported: Prometheus gives up after ten, and is to
    hear of a tracker that hangs."""

    def __init__(self, registry: MetricsRegistry, trackers: TrackerClient) -> None:
        self._registry = registry
        self._trackers = trackers
        self._reporter = MetricsReporter("ingress", registry, trackers.add_metrics)
        self._task = PeriodicTask("metrics", self._report, self.REPORT_INTERVAL_SECONDS)

    def start(self) -> None:
        """Begin to report. Needs a running event loop."""
        self._task.start()

    async def stop(self) -> None:
        """Report for the last time, if a tracker is there."""
        await self._task.stop()
        await self._report()

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that `accept` asks for, and its media type."""
        # First our own: whoever has just asked us for something finds it counted.
        with suppress(TimeoutError):
            async with asyncio.timeout(self.REPORT_TIMEOUT_SECONDS):
                await self._report()
        shards = await self._trackers.read_metrics()
        # It adds up what has no shard; while it is away a 0 would look like a counter that was reset.
        if (first := shards.get(0)) is not None:
            reported = self._registry.zeros()
            reported.add(first.reported)
            reported.gauges = first.reported.gauges
            shards = {**shards, 0: replace(first, reported=reported)}
        return expose(shards, accept)

    async def _report(self) -> None:
        try:
            await self._reporter.send_new()
        except TrackerUnavailable as error:
            # What was counted waits for the next time.
            log.debug("metrics wait for the tracker", reason=error.reason)
        except Exception:
            log.exception("metrics could not be reported")


class OpenStreams:
    """Number of open streams, by channel."""

    def __init__(self, registry: MetricsRegistry) -> None:
        self._open = dict.fromkeys(("sse", "grpc"), 0)
        for channel in self._open:
            registry.register_gauge(metrics.SUBSCRIBERS, partial(self._open.__getitem__, channel), channel)

    @contextmanager
    def track(self, channel: str) -> Iterator[None]:
        """Count a stream as open as long as the context is."""
        self._open[channel] += 1
        try:
            yield
        finally:
            self._open[channel] -= 1
