"""A day of a fleet of GPUs, second by second: bursty traffic, cold starts, a policy that is asked.

Policies are the real ones, each behind the wrapper through which Serve asks it. Only time is made up.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from avatarforge.autoscaling.backlog_poller import BacklogAggregator, Counts
from avatarforge.settings import ScalingSettings

DAY = 86_400
DEPLOYMENT = DeploymentID("StableDiffusion", "avatarforge")

Policy = Callable[[AutoscalingContext], tuple[int, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What is the same for every policy."""

    job_seconds: float = 3.0
    """Of one GPU, for one job among many: it does them one after the other here, as fast as in batches."""
    cold_start: int = 60
    most: int = 64
    """GPUs that can be had."""
    look_back: int = 30
    """Seconds over which Serve averages requests, by default."""


def traffic(seed: int) -> list[int]:
    """Jobs that come in each second of a day: a night with hardly any, a day that rises and falls, bursts."""
    chance = random.Random(seed)
    rates = [max(0.0, 5 * math.sin(math.pi * (second / DAY * 24 - 6) / 16)) for second in range(DAY)]
    rates = [rate + 0.002 for rate in rates]
    for _ in range(30):
        start, lasts, more = chance.randrange(DAY), chance.randint(30, 600), chance.uniform(3, 15)
        for second in range(start, min(DAY, start + lasts)):
            rates[second] += more
    return [_poisson(chance, rate) for rate in rates]


def _poisson(chance: random.Random, mean: float) -> int:
    """Knuth's method; means are small here."""
    limit, product, count = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        count += 1
    return count


@dataclass(kw_only=True, slots=True)
class Day:
    """What became of it."""

    waits: list[float] = field(default_factory=list)
    """Seconds from each job's arrival to its start."""
    replicas: list[int] = field(default_factory=list)
    """That were paid for, by second."""
    backlog: list[int] = field(default_factory=list)
    """Jobs waiting, by second."""

    @property
    def gpu_hours(self) -> float:
        return sum(self.replicas) / 3600


class Fleet:
    """Replicas and a line before them."""

    def __init__(self, world: World, targets: ScalingSettings) -> None:
        self.now = 0.0
        self.target = 0
        self._world = world
        self._targets = targets
        self._starting: deque[float] = deque()
        self._free = 0
        """Replicas without a job."""
        self._busy: list[float] = []
        """When those with a job are done."""
        self._line: deque[float] = deque()
        self._accepted = self._finished = 0
        self._recent: deque[int] = deque(maxlen=world.look_back)
        self._aggregator = BacklogAggregator()
        self.day = Day()

    @property
    def running(self) -> int:
        return self._free + len(self._busy)

    def counts(self) -> Counts:
        """What the trackers would tell."""
        seconds = self._world.job_seconds
        answer = {
            "unfinished": len(self._line) + len(self._busy),
            "waiting": len(self._line),
            "localRunning": len(self._busy),
            "backlogSeconds": len(self._line) * seconds + sum(done - self.now for done in self._busy),
            "accepted": self._accepted,
            "localFinished": self._finished,
            "scaling": self._targets.model_dump(),
        }
        return self._aggregator.add([answer], self.now)

    def context(self, config: AutoscalingConfig, state: dict[str, Any]) -> AutoscalingContext:
        """What Serve would tell if every job were a request to it: those that wait and those that run."""
        requests = sum(self._recent) / max(1, len(self._recent))
        return AutoscalingContext(
            deployment_id=DEPLOYMENT,
            deployment_name=DEPLOYMENT.name,
            app_name=DEPLOYMENT.app_name,
            current_num_replicas=self.running,
            target_num_replicas=self.target,
            running_replicas=[],
            total_num_requests=requests,
            total_queued_requests=float(len(self._line)),
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=config.min_replicas,
            capacity_adjusted_max_replicas=config.max_replicas,
            policy_state=state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self.now,
            config=config,
        )

    def second(self, arriving: int) -> None:
        """One second goes by."""
        self._line.extend([self.now] * arriving)
        self._accepted += arriving
        self._start_and_stop()
        end = self.now + 1
        self._begin_jobs()
        while self._busy and self._busy[0] <= end:
            at = heappop(self._busy)
            self._finished += 1
            self._free += 1
            self._begin_jobs(at)
        self._recent.append(len(self._line) + len(self._busy))
        self.day.replicas.append(self.running + len(self._starting))
        self.day.backlog.append(len(self._line))
        self.now = end

    def _start_and_stop(self) -> None:
        missing = self.target - self.running - len(self._starting)
        self._starting.extend([self.now + self._world.cold_start] * max(0, missing))
        for _ in range(-missing):
            # As Serve does: those that have not started yet first; no job is cut short.
            if self._starting:
                self._starting.pop()
            elif self._free:
                self._free -= 1
        while self._starting and self._starting[0] <= self.now:
            self._starting.popleft()
            self._free += 1

    def _begin_jobs(self, at: float | None = None) -> None:
        begin = self.now if at is None else at
        while self._free and self._line:
            self._free -= 1
            self.day.waits.append(begin - self._line.popleft())
            heappush(self._busy, begin + self._world.job_seconds)


def played(
    fleet: Fleet, arrivals: Sequence[int], config: AutoscalingConfig, policy: Policy, first: int = 0
) -> Day:
    """The day, with Serve asking the policy every second. It begins with `first` replicas."""
    asked = autoscaling_policy._apply_autoscaling_config(policy)
    fleet.target = first
    state: dict[str, Any] = {}
    # Serve's delays read the wall clock.
    with patch.object(
        autoscaling_policy, "time", SimpleNamespace(time=lambda: fleet.now, monotonic=time.monotonic)
    ):
        for arriving in arrivals:
            fleet.second(arriving)
            desired, state = asked(fleet.context(config, state))
            fleet.target = max(config.min_replicas, min(config.max_replicas, math.ceil(desired)))
    return fleet.day
