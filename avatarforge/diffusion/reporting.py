"""Tells the trackers how a replica is: what serves, what failed, and figures."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import structlog

from avatarforge.diffusion.engine import EngineReport
from avatarforge.diffusion.loading import LoadedModel
from avatarforge.diffusion.switch import ModelSwitch
from avatarforge.domain.replicas import ReplicaReport, ServedModel

log = structlog.get_logger(__name__)

Tell = Callable[[ReplicaReport], Awaitable[str | None]]
"""Sends a report to one tracker; its answer is the last good model, if that tracker knows it."""


class Reporter:
    """Sends a report every few seconds, and at once when something has changed.

    A tracker that is away hears the next report; nothing is kept for it, and nothing is raised here.
    """

    INTERVAL = 2.0
    """Seconds between two reports."""
    PATIENCE = 5.0
    """Seconds that a tracker may take to answer."""

    def __init__(
        self,
        trackers: Sequence[Tell],
        report: Callable[[], ReplicaReport],
        changed: asyncio.Event | None = None,
    ) -> None:
        """The first of the trackers knows the last good model."""
        self._trackers = trackers
        self._report = report
        self._changed = changed or asyncio.Event()
        self._away: set[int] = set()
        self._last_good: str | None = None
        self._answered = asyncio.Event()
        self._telling: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to report. Needs a running event loop; `close` ends it."""
        self._telling = [asyncio.get_running_loop().create_task(self._tell_forever(), name="reports")]

    async def close(self) -> None:
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)

    async def last_good(self, seconds: float = 60.0) -> str | None:
        """The model that served last as it was wished, anywhere. Waits so long for the first answer.

        `None` if there is none, or no answer.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._answered.wait()
        except TimeoutError:
            log.warning("no tracker has told the last good model", seconds=seconds)
        return self._last_good

    async def _tell_forever(self) -> None:
        while True:
            self._changed.clear()
            await self.tell()
            try:
                async with asyncio.timeout(self.INTERVAL):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def tell(self) -> None:
        """Report once, to all trackers."""
        try:
            report = self._report()
        except Exception:
            # The edge of a report: the replica goes on, whatever its figures are.
            log.exception("no report could be made")
            return
        await asyncio.gather(*(self._tell(number, report) for number in range(len(self._trackers))))

    async def _tell(self, number: int, report: ReplicaReport) -> None:
        try:
            async with asyncio.timeout(self.PATIENCE):
                answer = await self._trackers[number](report)
        except Exception as error:
            # The edge of a report: whatever keeps a tracker from answering, it hears the next one.
            if number not in self._away:
                log.warning("tracker hears no reports", shard=number, exc_info=error)
            self._away.add(number)
            return
        self._away.discard(number)
        if number == 0:
            self._last_good = answer or self._last_good
            self._answered.set()


def report_of(
    replica_id: str, switch: ModelSwitch, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> ReplicaReport:
    """What there is to tell of a replica of our own."""
    model, since = switch.serving, switch.since
    figures = EngineReport(limit=1, active=0, waiting=0) if model is None else model.engine.report()
    return ReplicaReport(
        replica_id=replica_id,
        backend="local",
        at=now(),
        state=switch.state,
        wish=switch.wished,
        model=None if model is None or since is None else _served(model, since),
        failure=switch.failure,
        device=None if model is None else model.engine.device,
        limit=figures.limit,
        active=figures.active,
        waiting=figures.waiting,
        step_seconds=figures.step_seconds,
        steps_by_images=figures.steps_by_images,
        pictures=figures.pictures,
        busy_seconds=figures.busy_seconds,
        memory=figures.memory,
        cached_embeddings=figures.cached_embeddings,
    )


def _served(model: LoadedModel, since: datetime) -> ServedModel:
    manifest, defaults = model.manifest, model.manifest.defaults
    return ServedModel(
        name=manifest.name,
        fingerprint=manifest.fingerprint,
        since=since,
        load_seconds=sum(model.seconds.values()),
        dtype=model.dtype,
        steps=defaults.steps,
        strength=defaults.strength,
        guidance=defaults.guidance,
        strength_counts=model.strength_counts,
    )
