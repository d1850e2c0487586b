"""The policy as Serve calls it: quick, silent about every fault, and by Serve's own rule without trackers."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from structlog.testing import capture_logs

from avatarforge.autoscaling.backlog_poller import BacklogPoller
from avatarforge.autoscaling.policy import PATH, BacklogPolicy
from tests.autoscaling import TOLD_TARGETS, told
from tests.waiting import wait_until


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Trackers:
    """What the trackers would say; an exception is raised."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    def __call__(self) -> Sequence[Any]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


class Watched(BacklogPolicy):
    """Asks when the test says so."""

    def __init__(self, answer: Any, clock: Clock) -> None:
        self.trackers = Trackers(answer)
        self.poller = BacklogPoller(self.trackers, clock)
        super().__init__(newest=self.poller.newest, clock=clock)


def context(running: int, target: int | None = None, requests: float = 0.0) -> AutoscalingContext:
    config = AutoscalingConfig(
        min_replicas=0, max_replicas=64, target_ongoing_requests=2, upscale_delay_s=0, downscale_delay_s=0
    )
    return AutoscalingContext(
        deployment_id=DeploymentID("StableDiffusion", "avatarforge"),
        deployment_name="StableDiffusion",
        app_name="avatarforge",
        current_num_replicas=running,
        target_num_replicas=running if target is None else target,
        running_replicas=[],
        total_num_requests=requests,
        total_queued_requests=0.0,
        aggregated_metrics=None,
        raw_metrics=None,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=64,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=config,
    )


def read(policy: Watched) -> None:
    """Have it ask now, instead of in its thread."""
    policy.poller.refresh()


def learn(policy: Watched, clock: Clock, job_seconds: float) -> None:
    """Show it a replica that does one job after the other, and leave it with nothing to do."""
    trackers = policy.trackers
    after = trackers.answer
    for done in range(3):
        trackers.answer = [told(0, running=1, finished=done)]
        read(policy)
        policy(context(running=1, target=0))
        clock.now += job_seconds
    trackers.answer = after
    clock.now += TOLD_TARGETS["scale_down_seconds"] + 1
    read(policy)


@pytest.fixture
def clock() -> Clock:
    return Clock()


Made = Callable[[Any], Watched]


@pytest.fixture
def policy(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes policies whose thread never asks: the test does."""
    monkeypatch.setattr("avatarforge.autoscaling.backlog_poller._refresh", lambda *_: None)
    return lambda answer: Watched(answer, clock)


def test_the_backlog_decides(policy: Made, clock: Clock) -> None:
    made = policy([told(23, finished=2)])
    learn(made, clock, 8.0)
    # 184 seconds of work, to be begun within 30.
    decided, state = made(context(running=0, target=0))
    assert (decided, state) == (7, {})


def test_replicas_go_when_they_have_not_been_wanted_for_the_delay(policy: Made, clock: Clock) -> None:
    made = policy([told(0)])
    read(made)
    assert made(context(running=3))[0] == 3
    clock.now += 121
    read(made)
    assert made(context(running=3))[0] == 0


def test_a_policy_that_is_new_begins_with_what_is_there(policy: Made) -> None:
    made = policy([told(1)])
    read(made)
    assert made(context(running=7))[0] == 7


@pytest.mark.parametrize("answer", [RuntimeError("no actor"), [], [{}], [{"waiting": 1}], [None], "nonsense"])
def test_without_trackers_serves_own_rule_holds(policy: Made, answer: Any) -> None:
    made = policy(answer)
    read(made)
    # Twelve requests for two a replica.
    assert made(context(running=2, requests=12.0))[0] == 6


def test_a_reading_grows_stale(policy: Made, clock: Clock) -> None:
    made = policy([told(30)])
    read(made)
    clock.now += BacklogPoller.MAX_AGE_SECONDS + 1
    assert made(context(running=1, requests=4.0))[0] == 2


def test_the_last_targets_bound_serves_own_rule_too(policy: Made, clock: Clock) -> None:
    made = policy([told(0)])
    read(made)
    made(context(running=1))
    clock.now += BacklogPoller.MAX_AGE_SECONDS + 1
    assert made(context(running=2, requests=1000.0))[0] == TOLD_TARGETS["max_replicas"]


def test_targets_follow_the_trackers_without_a_new_policy(policy: Made, clock: Clock) -> None:
    made = policy([told(23, finished=2)])
    learn(made, clock, 8.0)
    made(context(running=0, target=0))
    tighter = {**TOLD_TARGETS, "max_replicas": 20, "target_wait_seconds": 15}
    made.trackers.answer = [{**told(23, finished=2), "scaling": tighter}]
    clock.now += 1
    read(made)
    assert made(context(running=0, target=0))[0] == 13


def test_a_context_that_breaks_keeps_the_present_target(policy: Made) -> None:
    broken = context(running=2, target=3)
    broken.config = None
    broken.current_num_replicas = None  # type: ignore[assignment]
    made = policy(RuntimeError())
    with capture_logs() as lines:
        assert [made(broken) for _ in range(3)] == [(3, {})] * 3
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["replicas stay as they are"]


def test_a_call_does_not_wait_for_trackers_that_hang() -> None:
    released = threading.Event()

    def hang() -> Sequence[Any]:
        released.wait(30)
        return []

    made = BacklogPolicy(newest=BacklogPoller(hang).newest)
    began = time.perf_counter()
    for _ in range(100):
        made(context(running=1, requests=2.0))
    took = time.perf_counter() - began
    released.set()
    assert took < 1


async def test_the_thread_keeps_the_reading_fresh() -> None:
    trackers = Trackers([told(30)])
    poller = BacklogPoller(trackers, interval=0.01)
    counts = await wait_until(poller.newest)
    assert counts.waiting == 30
    trackers.answer = [told(1)]
    await wait_until(lambda: (newest := poller.newest()) and newest.waiting == 1)


async def test_the_thread_outlives_a_fault_and_ends_with_its_gauge() -> None:
    trackers = Trackers(RuntimeError("away"))
    poller = BacklogPoller(trackers, interval=0.01)
    poller.newest()
    await wait_until(lambda: trackers.asked > 3)
    trackers.answer = [told(1)]
    await wait_until(poller.newest)
    thread = poller._thread
    assert thread is not None
    del poller
    await wait_until(lambda: not thread.is_alive())


def test_serve_makes_the_policy_from_its_path_and_arguments() -> None:
    made = _resolve_policy_callable(AutoscalingPolicy(policy_function=PATH, policy_kwargs={"shards": 2}))
    decided, _ = _apply_autoscaling_config(made)(context(running=2, requests=4.0))
    assert decided == 2


def test_serve_starts_one_replica_at_once_where_there_is_none() -> None:
    """Serve's own short cut, which does not ask the policy: a tracker waits for a slot, and that is seen."""
    made = _resolve_policy_callable(AutoscalingPolicy(policy_function=PATH))
    decided, _ = _apply_autoscaling_config(made)(context(running=0, target=0, requests=1.0))
    assert decided == 1
