"""From a load and targets to a number of replicas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatarforge.autoscaling.backlog_poller import BacklogAggregator, Counts
from avatarforge.autoscaling.desired_replicas import Load, StabilizationWindow, compute_replicas
from avatarforge.autoscaling.load_estimator import LoadEstimator
from avatarforge.settings import ScalingSettings
from tests.autoscaling import told


def targets(**changes: float) -> ScalingSettings:
    values = {
        "target_wait_seconds": 30.0,
        "min_replicas": 1,
        "max_replicas": 64,
        "cold_start_seconds": 60.0,
        "scale_down_seconds": 300.0,
    }
    return ScalingSettings(**{**values, **changes})


def load(seconds: float | None, demand: float = 0.0, unfinished: int | None = None) -> Load:
    # By default they take a second each.
    jobs = unfinished if unfinished is not None else math.ceil(seconds or 0)
    return Load(unfinished=jobs, backlog_seconds=seconds, demand=demand)


class TestWanted:
    def test_a_backlog_is_shared_so_that_it_is_done_within_the_target_wait(self) -> None:
        assert compute_replicas(load(600), running=0, targets=targets()) == 20

    def test_what_the_running_replicas_will_have_done_before_another_begins_needs_no_other(self) -> None:
        assert compute_replicas(load(600), running=10, targets=targets()) == 1
        assert compute_replicas(load(900), running=10, targets=targets()) == 10

    def test_what_arrives_during_the_cold_start_counts(self) -> None:
        # Ten seconds of work arrive in a second; in a minute the two running replicas leave 480 of them.
        assert compute_replicas(load(120, demand=10), running=2, targets=targets()) == 20

    def test_there_are_never_fewer_than_the_demand(self) -> None:
        assert compute_replicas(load(5, demand=7.2), running=30, targets=targets()) == 8

    def test_a_job_wants_one_replica_however_many_images_it_has(self) -> None:
        assert compute_replicas(load(160, unfinished=1), running=0, targets=targets()) == 1
        assert compute_replicas(load(160, unfinished=2), running=0, targets=targets()) == 2
        # Beside those for what arrives meanwhile.
        assert compute_replicas(load(160, demand=1, unfinished=1), running=0, targets=targets()) == 3

    def test_one_replica_is_started_for_the_first_job_of_all(self) -> None:
        unknown = load(None, unfinished=50)
        assert compute_replicas(unknown, running=0, targets=targets(min_replicas=0)) == 1

    def test_a_single_job_gets_a_replica_however_little_work_it_is(self) -> None:
        assert compute_replicas(load(0.01), running=0, targets=targets(min_replicas=0)) == 1

    def test_a_running_job_keeps_its_replica(self) -> None:
        assert compute_replicas(load(0.01), running=5, targets=targets(min_replicas=0)) == 1

    def test_nothing_to_do_wants_the_least(self) -> None:
        assert compute_replicas(load(0), running=3, targets=targets(min_replicas=2)) == 2

    def test_with_a_least_of_zero_the_last_replica_goes(self) -> None:
        assert compute_replicas(load(0, demand=0.001), running=1, targets=targets(min_replicas=0)) == 0

    @given(
        seconds=st.none() | st.floats(0, 1e9),
        demand=st.floats(0, 1e6),
        running=st.integers(0, 200),
        least=st.integers(0, 4),
    )
    def test_the_bounds_hold_whatever_the_load(
        self, seconds: float | None, demand: float, running: int, least: int
    ) -> None:
        held = targets(min_replicas=least, max_replicas=8)
        assert least <= compute_replicas(load(seconds, demand), running, held) <= 8

    @given(seconds=st.floats(0, 1e6), more=st.floats(0, 1e6), running=st.integers(0, 64))
    def test_more_work_never_wants_fewer_replicas(self, seconds: float, more: float, running: int) -> None:
        few, many = load(seconds), load(seconds + more)
        assert compute_replicas(few, running, targets()) <= compute_replicas(many, running, targets())


class TestHold:
    def test_more_is_wanted_at_once(self) -> None:
        window = StabilizationWindow()
        window.add(1, 0, 300)
        assert window.add(5, 1, 300) == 5

    def test_less_is_wanted_only_after_the_delay(self) -> None:
        window = StabilizationWindow()
        window.add(5, 0, 300)
        assert window.add(1, 300, 300) == 5
        assert window.add(1, 301, 300) == 1

    def test_a_lower_number_in_between_counts_once_the_higher_is_old(self) -> None:
        window = StabilizationWindow()
        window.add(5, 0, 300)
        window.add(3, 200, 300)
        window.add(1, 290, 300)
        assert window.add(1, 301, 300) == 3

    @given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
    def test_it_is_the_most_of_the_last_seconds(self, numbers: list[int]) -> None:
        window = StabilizationWindow()
        held = [window.add(number, at, 5) for at, number in enumerate(numbers)]
        assert held == [max(numbers[max(0, at - 5) : at + 1]) for at in range(len(numbers))]


class TestCounting:
    def test_shards_are_added_up(self) -> None:
        counts = BacklogAggregator().add([told(3, running=1), told(2, running=2)], at=1.0)
        assert (counts.unfinished, counts.waiting, counts.running) == (8, 5, 3)

    def test_targets_are_the_trackers(self) -> None:
        assert BacklogAggregator().add([told(0)], at=1.0).targets == ScalingSettings(
            target_wait_seconds=30,
            min_replicas=0,
            max_replicas=8,
            cold_start_seconds=60,
            scale_down_seconds=120,
        )

    def test_a_tracker_without_jobs_need_not_tell_their_seconds(self) -> None:
        aggregator = BacklogAggregator()
        assert aggregator.add([told(2, backlog=9.0), told(0)], at=1.0).backlog_seconds == 9
        assert aggregator.add([told(2, backlog=9.0), told(1)], at=2.0).backlog_seconds is None

    def test_a_tracker_that_started_again_counts_from_zero_and_the_total_goes_on(self) -> None:
        aggregator = BacklogAggregator()
        aggregator.add([told(0, accepted=100), told(0, accepted=7)], at=0)
        aggregator.add([told(0, accepted=110), told(0, accepted=7)], at=1)
        assert aggregator.add([told(0, accepted=4), told(0, accepted=9)], at=2).accepted == 16

    def test_what_was_before_the_first_look_says_nothing(self) -> None:
        assert BacklogAggregator().add([told(0, accepted=5000, finished=5000)], at=0).accepted == 0


class Shop:
    """Counts as they would be told, one second after the other."""

    def __init__(self) -> None:
        self.work = LoadEstimator()
        self.waiting = self.running = self.remote = self.accepted = self.finished = 0
        self.at = 0.0
        self.told: float | None = None

    def after(self, seconds: float, replicas: int) -> Load:
        self.at += seconds
        counts = Counts(
            unfinished=self.waiting + self.running + self.remote,
            waiting=self.waiting,
            running=self.running,
            backlog_seconds=self.told if self.waiting or self.running else 0.0,
            accepted=self.accepted,
            finished=self.finished,
            targets=targets(),
            at=self.at,
        )
        return self.work.load(counts, replicas)


class TestWork:
    def test_nothing_is_known_of_the_first_jobs(self) -> None:
        shop = Shop()
        shop.waiting, shop.accepted = 9, 9
        assert shop.after(1, 0) == Load(unfinished=9, backlog_seconds=None)

    def test_jobs_that_another_server_makes_want_no_replica(self) -> None:
        shop = Shop()
        shop.remote = 3
        assert shop.after(1, 0) == Load(unfinished=0, backlog_seconds=0.0)

    def test_nothing_to_do_is_known_to_be_nothing(self) -> None:
        assert Shop().after(1, 0) == Load(unfinished=0, backlog_seconds=0.0)

    def test_a_job_takes_the_time_of_its_replica_divided_by_its_batch(self) -> None:
        shop = Shop()
        shop.running = 16
        shop.after(1, 2)
        for _ in range(30):
            shop.finished += 8
            load = shop.after(2, 2)
        # Two replicas for two seconds: eight jobs.
        assert shop.work.job_seconds == pytest.approx(0.5)
        assert load.backlog_seconds == pytest.approx(8 * 0.5)

    def test_what_the_trackers_measure_counts_before_what_is_counted_here(self) -> None:
        shop = Shop()
        shop.running = 1
        shop.after(1, 1)
        shop.finished = 1
        shop.waiting, shop.told = 9, 28.5
        assert shop.after(1, 1).backlog_seconds == 28.5
        assert shop.work.job_seconds == 3

    def test_replicas_without_jobs_do_not_count_as_work(self) -> None:
        shop = Shop()
        shop.running = 1
        shop.after(1, 5)
        shop.finished = 1
        shop.after(4, 5)
        assert shop.work.job_seconds == pytest.approx(4)

    def test_a_slower_model_shows_after_some_jobs(self) -> None:
        shop = Shop()
        shop.running = 1
        shop.after(1, 1)
        for seconds in (1, 3):
            for _ in range(200):
                shop.finished += 1
                shop.after(seconds, 1)
        assert shop.work.job_seconds == pytest.approx(3, rel=0.05)

    def test_the_demand_comes_to_what_arrives(self) -> None:
        shop = Shop()
        shop.running = 4
        for _ in range(600):
            load = shop.after(1, 4)
            shop.finished += 2
            shop.accepted += 2
        # Two jobs a second of two seconds each.
        assert load.demand == pytest.approx(4, rel=0.05)

    def test_the_demand_falls_when_nothing_arrives_any_more(self) -> None:
        shop = Shop()
        shop.running = 1
        for _ in range(100):
            shop.after(1, 1)
            shop.finished += 1
            shop.accepted += 1
        busy = shop.after(1, 1)
        shop.running = 0
        later = shop.after(30, 1)
        assert later.demand == pytest.approx(busy.demand * 0.607, rel=0.1)

    def test_nothing_is_expected_after_a_minute_without_arrivals(self) -> None:
        shop = Shop()
        shop.running = 1
        for _ in range(100):
            shop.after(1, 1)
            shop.finished += 1
            shop.accepted += 1
        shop.after(1, 1)
        shop.running = 0
        assert shop.after(59, 1).demand > 0
        assert shop.after(2, 1).demand == 0

    def test_the_same_counts_twice_change_nothing(self) -> None:
        shop = Shop()
        shop.running, shop.accepted = 1, 1
        shop.after(1, 1)
        shop.finished = 1
        assert shop.after(1, 1) == shop.after(0, 1)
