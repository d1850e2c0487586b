"""Reports a replica's state to the trackers: what serves, what failed, and statistics."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import ray
import structlog
from ray import serve
from ray.exceptions import RayActorError

from avatarforge.actors import NAMESPACE, tracker_name
from avatarforge.background import PeriodicTask, wait_for_event
from avatarforge.diffusion.engines.engine import EngineReport
from avatarforge.diffusion.models.loader import LoadedModel
from avatarforge.diffusion.models.manager import ModelManager
from avatarforge.domain.replicas import ReplicaReport, ServedModel
from avatarforge.user_config import UserConfigReader

log = structlog.get_logger(__name__)

SendReport = Callable[[ReplicaReport], Awaitable[str | None]]
"""Sends a report to one tracker; returns the last good model, if that tracker knows it."""


class Reporter:
    """Sends a report every few seconds, and at once when something has changed.

    A tracker that is away gets the next report; nothing is kept for it, and nothing is raised here.
    """

    INTERVAL_SECONDS = 2.0
    TIMEOUT_SECONDS = 5.0
    """For a tracker's answer."""

    def __init__(
        self,
        trackers: Sequence[SendReport],
        build: Callable[[], ReplicaReport],
        changed: asyncio.Event | None = None,
    ) -> None:
        """The first of the trackers knows the last good model."""
        self._trackers = trackers
        self._build = build
        self._away: set[int] = set()
        self._last_good: str | None = None
        self._answered = asyncio.Event()
        self._task = PeriodicTask("replica reports", self._report, self.INTERVAL_SECONDS, wake=changed)

    def start(self) -> None:
        """Begin to report. Needs a running event loop; `close` ends it."""
        self._task.start()

    async def close(self) -> None:
        await self._task.stop()

    async def wait_for_last_good(self, timeout_seconds: float = 60.0) -> str | None:
        """Return the model that last served as desired on any replica, once the first tracker has answered.

        `None` if there is none, or no answer.
        """
        if not await wait_for_event(self._answered, timeout_seconds):
            log.warning("no tracker has named the last good model", seconds=timeout_seconds)
        return self._last_good

    async def _report(self) -> None:
        report = self._build()
        await asyncio.gather(*(self._send(number, report) for number in range(len(self._trackers))))

    async def _send(self, number: int, report: ReplicaReport) -> None:
        try:
            async with asyncio.timeout(self.TIMEOUT_SECONDS):
                answer = await self._trackers[number](report)
        except Exception as error:
            # The edge of a report: whatever keeps a tracker from answering, it gets the next one.
            if number not in self._away:
                log.warning("tracker gets no reports", shard=number, exc_info=error)
            self._away.add(number)
            return
        self._away.discard(number)
        if number == 0:
            self._last_good = answer or self._last_good
            self._answered.set()


def build_report(replica_id: str, models: ModelManager, user_config: UserConfigReader) -> ReplicaReport:
    model, since = models.serving_model, models.since
    engine = EngineReport(limit=1, active=0, waiting=0) if model is None else model.engine.report()
    return ReplicaReport(
        replica_id=replica_id,
        backend="local",
        reported_at=datetime.now(UTC),
        state=models.state,
        desired_model=models.desired_model,
        model=None if model is None or since is None else _describe_model(model, since),
        failure=models.failure,
        user_config_faults=user_config.faults,
        device=None if model is None else model.engine.device,
        **asdict(engine),
    )


def _describe_model(model: LoadedModel, since: datetime) -> ServedModel:
    manifest, defaults = model.manifest, model.manifest.defaults
    return ServedModel(
        name=manifest.name,
        fingerprint=manifest.fingerprint,
        since=since,
        load_phases=dict(model.seconds),
        dtype=model.dtype,
        steps=defaults.steps,
        strength=defaults.strength,
        guidance=defaults.guidance,
        size=manifest.size,
        strength_skips_steps=model.strength_skips_steps,
    )


def get_replica_id() -> str:
    """Return Serve's id of the replica that this process is."""
    return str(serve.get_replica_context().replica_id.unique_id)


def connect_trackers(shards: int) -> list[SendReport]:
    """Return, for each shard, a function that sends a report to its tracker."""
    return [partial(_send_to_tracker, {}, shard) for shard in range(shards)]


async def _send_to_tracker(actors: dict[int, Any], shard: int, report: ReplicaReport) -> str | None:
    """Send the report. Raises Ray's errors, and `ValueError` for a tracker that was never started."""
    actor: Any = actors.get(shard)
    if actor is None:
        # Asks Ray's control store, and blocks.
        actor = await asyncio.to_thread(ray.get_actor, tracker_name(shard), namespace=NAMESPACE)
        actors[shard] = actor
    try:
        last_good: str | None = await actor.report_replica.remote(report)
    except RayActorError:
        del actors[shard]
        raise
    return last_good
