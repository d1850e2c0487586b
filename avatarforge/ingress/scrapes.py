"""What an ingress replica counts, how it tells that to the trackers, and the answer to a scrape."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol

import structlog

from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.telemetry import metrics
from avatarforge.telemetry.exposition import TrackerFigures, exposed
from avatarforge.telemetry.figures import Figures
from avatarforge.telemetry.reports import Report, Reporter

log = structlog.get_logger(__name__)


class Trackers(Protocol):
    """Who adds figures up; `tracker.client.JobTrackers` keeps it."""

    async def report(self, report: Report) -> None: ...

    async def figures(self) -> dict[int, TrackerFigures | None]: ...


class Scrapes:
    """One truth whichever replica answers: the figures are the trackers', where all replicas' add up."""

    EVERY = 2.0
    """Seconds between two reports."""
    PATIENCE = 2.0
    """Seconds that a scrape waits until our own figures are told: Prometheus gives up after ten, and is to
    hear of a tracker that hangs."""

    def __init__(self, figures: Figures, trackers: Trackers) -> None:
        self._trackers = trackers
        self._reporter = Reporter("ingress", figures, trackers.report)
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to report. Needs a running event loop."""
        self._telling = asyncio.create_task(self._tell_forever(), name="figures")

    async def stop(self) -> None:
        """Tell the last figures, if there is somebody to hear them."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
            await self._told()

    async def answer(self, accept: str) -> tuple[bytes, str]:
        """What Prometheus asked for, in the form that it accepts, and its media type."""
        # First our own: whoever has just asked us for something finds it counted.
        with suppress(TimeoutError):
            async with asyncio.timeout(self.PATIENCE):
                await self._told()
        return exposed(await self._trackers.figures(), accept)

    async def _tell_forever(self) -> None:
        while True:
            await self._told()
            await asyncio.sleep(self.EVERY)

    async def _told(self) -> None:
        try:
            await self._reporter.tell()
        except TrackerUnavailable as error:
            # What was counted waits for the next time.
            log.debug("figures wait for the tracker", reason=error.reason)
        except Exception:
            log.exception("figures could not be told")


class Clients:
    """Open streams, by channel."""

    def __init__(self, figures: Figures) -> None:
        self._open = dict.fromkeys(("sse", "grpc"), 0)
        for channel in self._open:
            figures.watch(metrics.SUBSCRIBERS, partial(self._open.__getitem__, channel), channel)

    @contextmanager
    def following(self, channel: str) -> Iterator[None]:
        """Around the life of one stream."""
        self._open[channel] += 1
        try:
            yield
        finally:
            self._open[channel] -= 1
