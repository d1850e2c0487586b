"""The simulated fleet of the benchmark `autoscaling`, and what it shows of the policies."""

import pytest
from ray.serve.autoscaling_policy import default_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from avatarforge.settings import ScalingSettings
from benchmarks.autoscaling import _default, _ours
from benchmarks.fleet import DAY, Fleet, World, played, traffic
from benchmarks.report import percentile

WORLD = World()


@pytest.fixture(scope="module")
def morning() -> list[int]:
    """Two hours with some bursts."""
    return traffic(seed=1)[DAY // 3 : DAY // 3 + 7200]


def test_the_same_seed_makes_the_same_day() -> None:
    assert traffic(seed=7) == traffic(seed=7)
    assert traffic(seed=7) != traffic(seed=8)


def test_a_replica_begins_after_its_cold_start_and_does_one_job_after_the_other() -> None:
    fleet = Fleet(WORLD, ScalingSettings())
    fleet.target = 1
    fleet.second(3)
    for _ in range(70):
        fleet.second(0)
    assert fleet.day.waits == [60, 63, 66]
    assert fleet.day.replicas == [1] * 71


def test_a_replica_that_is_not_wanted_any_more_finishes_its_job() -> None:
    fleet = Fleet(World(cold_start=0, job_seconds=10), ScalingSettings())
    fleet.target = 1
    fleet.second(1)
    fleet.target = 0
    for _ in range(12):
        fleet.second(0)
    assert fleet.day.waits == [0]
    assert fleet.day.replicas == [1] * 10 + [0] * 3


def test_every_job_is_done_under_every_policy(morning: list[int]) -> None:
    quiet_end = [*morning, *[0] * 300]
    for play in (_ours(0), _ours(1), _default(min_replicas=1)):
        assert len(play(WORLD, quiet_end).waits) == sum(morning)


def test_scale_to_zero_pays_for_nothing_at_night() -> None:
    night = [0] * 600 + [1] + [0] * 1800
    day = _ours(0)(WORLD, night)
    assert day.replicas[:600] == [0] * 600
    assert max(day.replicas) == 1
    assert day.replicas[-1] == 0
    assert day.waits == [pytest.approx(WORLD.cold_start, abs=2)]


def test_our_policy_waits_hardly_longer_than_serves_own_and_pays_for_far_less(morning: list[int]) -> None:
    ours, default = _ours(1)(WORLD, morning), _default(min_replicas=1)(WORLD, morning)
    assert ours.gpu_hours < 0.75 * default.gpu_hours
    assert percentile(ours.waits, 0.99) <= 1.1 * percentile(default.waits, 0.99)


def test_serve_is_asked_with_its_delays_in_simulated_time() -> None:
    fleet = Fleet(WORLD, ScalingSettings())
    config = AutoscalingConfig(min_replicas=1, max_replicas=9, upscale_delay_s=30)
    day = played(fleet, [50] + [0] * 120, config, default_autoscaling_policy, first=1)
    # A minute until the first one runs, and thirty seconds of asking for more.
    assert day.replicas.index(9) == pytest.approx(91, abs=2)
