"""What the trackers say of their jobs, added up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avatarforge.autoscaling.rule import Targets

Told = Mapping[str, Any]
"""An answer of `JobTracker.describe`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What all trackers said at one time."""

    waiting: int
    """Jobs that wait for a replica."""
    running: int
    """Jobs that our own replicas have."""
    backlog_seconds: float | None
    """Seconds that one replica would need for them; `None` while a tracker with jobs cannot tell."""
    accepted: int
    """Jobs that have ever come, to the trackers' knowledge and ours; only its growth means something."""
    finished: int
    """Jobs that our own replicas have ever done; likewise."""
    targets: Targets
    at: float
    """Seconds of the steady clock that the policy uses."""


class Counting:
    """Adds up the shards' answers, over the restarts of trackers, which begin to count anew."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], int] = {}
        self._totals = {"accepted": 0, "localFinished": 0}

    def of(self, answers: Sequence[Told], at: float) -> Counts:
        """The counts of all shards' answers, in order. The first shard's targets hold.

        Raises `KeyError`, `TypeError`, `ValueError` and `IndexError` for answers that are none.
        """
        running = sum(int(told["localRunning"]) for told in answers)
        waiting = sum(int(told["waiting"]) for told in answers)
        targets = Targets.told(answers[0]["scaling"])
        for name in self._totals:
            grown = [self._growth(shard, name, int(told[name])) for shard, told in enumerate(answers)]
            self._totals[name] += sum(grown)
        busy = [told["backlogSeconds"] for told in answers if told["waiting"] or told["localRunning"]]
        return Counts(
            waiting=waiting,
            running=running,
            backlog_seconds=None if None in busy else float(sum(busy)),
            accepted=self._totals["accepted"],
            finished=self._totals["localFinished"],
            targets=targets,
            at=at,
        )

    def _growth(self, shard: int, name: str, count: int) -> int:
        before = self._last.get((shard, name), count)
        self._last[shard, name] = count
        return count - before if count >= before else count
