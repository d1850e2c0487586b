"""The rule: from a load and targets to a number of replicas. No clock, no Ray."""

import math
from collections import deque
from dataclasses import dataclass

from avatarforge.settings import ScalingSettings

NEXT_TO_NOTHING = 0.01
"""Replicas' worth of work below which nothing is being asked for: averages never come down to 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """The work that all shards have, together."""

    unfinished: int
    """Jobs that wait or that our own replicas have."""
    backlog_seconds: float | None
    """Seconds that one replica would work on them; `None` while nobody knows how long a job takes."""
    demand: float = 0.0
    """Seconds of work that arrive in a second: so many replicas are busy in the long run."""


def compute_replicas(load: Load, running: int, targets: ScalingSettings) -> int:
    """Return how many replicas hold the target wait, when `running` of them work now.

    What arrives must be worked off, so there are never fewer than the demand. What waits must be worked off
    within the target wait. A replica that is started now begins after the cold start, so what counts is the
    backlog that will be left by then: one that the running replicas will have worked off needs no others.
    """
    demand = math.ceil(load.demand) if load.demand >= NEXT_TO_NOTHING else 0
    if load.backlog_seconds is None:
        # The first job of all: one replica will show how long it takes.
        backlog = 1 if load.unfinished else 0
    else:
        arriving = load.demand * targets.cold_start_seconds
        left = max(0.0, load.backlog_seconds + arriving - running * targets.cold_start_seconds)
        # More could not help: all images of a job are made by one replica.
        most = load.unfinished + math.ceil(arriving / targets.target_wait_seconds)
        backlog = min(math.ceil(left / targets.target_wait_seconds), most)
        backlog = max(backlog, 1 if load.unfinished else 0)
    return clamp(max(demand, backlog), targets)


def clamp(replicas: int, targets: ScalingSettings) -> int:
    """Return the nearest number that the targets allow."""
    return max(targets.min_replicas, min(targets.max_replicas, replicas))


class StabilizationWindow:
    """The most that was wanted in the last seconds: replicas come at once and go late.

    A burst is often followed by another, and a replica that is started again costs a cold start.
    """

    def __init__(self) -> None:
        self._desired: deque[tuple[float, int]] = deque()
        """Falling from the left: what was desired before a higher number no longer counts."""

    def __bool__(self) -> bool:
        return bool(self._desired)

    def add(self, desired: int, at: float, seconds: float) -> int:
        """Note what is desired at `at` seconds of a steady clock; return the most of the last `seconds`."""
        while self._desired and self._desired[-1][1] <= desired:
            self._desired.pop()
        self._desired.append((at, desired))
        while at - self._desired[0][0] > seconds:
            self._desired.popleft()
        return self._desired[0][1]
