"""The rule: from a load and targets to a number of replicas. No clock, no Ray."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

NEXT_TO_NOTHING = 0.01
"""Replicas' worth of work below which nothing is being asked for: averages never come down to 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What is to be held, and at what cost. `scaling` in the settings."""

    wait_seconds: float
    """A job that comes now is to begin within so many seconds."""
    min_replicas: int
    """0 lets the last one go when nothing is asked for."""
    max_replicas: int
    cold_start_seconds: float
    """From the wish for a replica to its first step."""
    scale_down_seconds: float
    """A replica goes when it has not been wanted for so long."""

    @classmethod
    def told(cls, plain: Mapping[str, Any]) -> Self:
        """From what `JobTracker.describe` tells. Raises `KeyError`, `TypeError` and `ValueError`."""
        return cls(
            wait_seconds=float(plain["targetWaitSeconds"]),
            min_replicas=int(plain["minReplicas"]),
            max_replicas=int(plain["maxReplicas"]),
            cold_start_seconds=float(plain["coldStartSeconds"]),
            scale_down_seconds=float(plain["scaleDownSeconds"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What there is to do, of all shards together."""

    unfinished: int
    """Jobs that wait or run."""
    backlog_seconds: float | None
    """Seconds that one replica would work on them; `None` while nobody knows how long a job takes."""
    demand: float = 0.0
    """Seconds of work that arrive in a second: so many replicas are busy in the long run."""


def wanted(load: Load, running: int, targets: Targets) -> int:
    """Replicas that hold the target wait, when `running` of them work now.

    What arrives must be worked off, so there are never fewer than the demand. What waits must be worked off
    within the target wait. A replica that is started now begins after the cold start, so what counts is the
    backlog that will be left by then: one that the running replicas will have worked off needs no others.
    """
    demand = math.ceil(load.demand) if load.demand >= NEXT_TO_NOTHING else 0
    if load.backlog_seconds is None:
        # The first job of all: one replica will show how long it takes.
        backlog = 1 if load.unfinished else 0
    else:
        growth = (load.demand - running) * targets.cold_start_seconds
        left = max(0.0, load.backlog_seconds + growth)
        backlog = max(math.ceil(left / targets.wait_seconds), 1 if load.unfinished else 0)
    return within(max(demand, backlog), targets)


def within(replicas: int, targets: Targets) -> int:
    """The number nearest to it that the targets allow."""
    return max(targets.min_replicas, min(targets.max_replicas, replicas))


class Hold:
    """The most that was wanted in the last seconds: replicas come at once and go late.

    A burst is often followed by another, and a replica that is started again costs a cold start.
    """

    def __init__(self) -> None:
        self._wishes: deque[tuple[float, int]] = deque()
        """Falling from the left: what was wished before a higher wish no longer counts."""

    def __bool__(self) -> bool:
        return bool(self._wishes)

    def most(self, wish: int, at: float, seconds: float) -> int:
        """Note the wish at `at` seconds of a steady clock, and return the highest of the last `seconds`."""
        while self._wishes and self._wishes[-1][1] <= wish:
            self._wishes.pop()
        self._wishes.append((at, wish))
        while at - self._wishes[0][0] > seconds:
            self._wishes.popleft()
        return self._wishes[0][1]
