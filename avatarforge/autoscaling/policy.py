"""The policy that Ray Serve asks for the number of replicas.

Serve pickles the class with this module by value, so what needs threads and Ray lives beside it. Serve calls
it in its controller's event loop, some ten times a second: it must never wait, and never raise.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import structlog
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

from avatarforge.autoscaling.backlog_poller import BacklogPoller, Counts, make_tracker_poll
from avatarforge.autoscaling.desired_replicas import Load, StabilizationWindow, clamp, compute_replicas
from avatarforge.autoscaling.load_estimator import LoadEstimator
from avatarforge.settings import ScalingSettings

log = structlog.get_logger(__name__)

PATH = "avatarforge.autoscaling.policy:BacklogPolicy"
"""As `policy_function` names it."""


class BacklogPolicy:
    """Replicas by the trackers' backlog; by Serve's own rule for as long as the trackers are silent.

    Serve's rule counts requests at replicas and handles. A job only reaches those once a slot is reserved
    for it, so Serve's rule does not see the line, but it keeps what works.
    """

    DEFAULT_HOLD_SECONDS = 600.0
    """Seconds that replicas are kept before any targets were told: Serve's own default."""

    def __init__(
        self,
        *,
        shards: int = 1,
        newest: Callable[[], Counts | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shards` says how many trackers to ask (`policy_kwargs`). `newest` gives counts from elsewhere, by
        the same clock; it returns at once."""
        self._newest = newest or BacklogPoller(make_tracker_poll(shards), clock).newest
        self._clock = clock
        self._estimator = LoadEstimator()
        self._measured_at = float("-inf")
        self._load: Load | None = None
        self._window = StabilizationWindow()
        self._targets: ScalingSettings | None = None
        """The last that were told: they hold while the trackers are silent."""
        self._fault = ""
        """The last fault of ours that was logged; the same is not told ten times a second."""

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        try:
            return self._decide(ctx), {}
        except Exception as error:
            # The edge to Serve: its controller would stop working on every deployment.
            if repr(error) != self._fault:
                log.error("replicas stay as they are", exc_info=error)
            self._fault = repr(error)
            return ctx.target_num_replicas, {}

    def _decide(self, ctx: AutoscalingContext) -> int:
        desired = self._desire(ctx)
        seconds = self.DEFAULT_HOLD_SECONDS if self._targets is None else self._targets.scale_down_seconds
        now = self._clock()
        if not self._window:
            # A new policy, or a controller that has started again, has not seen why there are so many.
            self._window.add(ctx.target_num_replicas, now, seconds)
        return self._window.add(desired, now, seconds)

    def _desire(self, ctx: AutoscalingContext) -> int:
        counts = self._newest()
        if counts is None:
            told, _ = replica_queue_length_autoscaling_policy(ctx)
            replicas = math.ceil(told)
            return replicas if self._targets is None else clamp(replicas, self._targets)
        if self._load is None or counts.at > self._measured_at:
            self._load = self._estimator.load(counts, ctx.current_num_replicas)
            self._measured_at = counts.at
        self._targets = counts.targets
        return compute_replicas(self._load, ctx.current_num_replicas, counts.targets)
