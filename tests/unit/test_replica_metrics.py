"""Replicas' reports as sums of the whole fleet."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from avatarforge.domain.replicas import ModelFailure, ReplicaReport, ReplicaState, ServedModel
from avatarforge.telemetry import metrics
from avatarforge.tracker.metrics import ReplicaMetrics

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
MODEL = ServedModel(
    name="mini",
    fingerprint="f",
    since=NOON,
    dtype="float32",
    steps=20,
    strength=0.6,
    guidance=5,
    size=512,
    load_phases={"read": 2.0},
)
FRESH = ReplicaReport(
    replica_id="a",
    backend="local",
    reported_at=NOON,
    state=ReplicaState.SERVING,
    desired_model="mini",
    model=MODEL,
)


def pictures(fleet: ReplicaMetrics, model: str = "mini") -> float:
    return fleet.counters().get((metrics.IMAGES_GENERATED.name, (model,)), 0.0)


def test_what_replicas_make_is_added_up() -> None:
    fleet = ReplicaMetrics()
    other = replace(FRESH, replica_id="b")
    fleet.add(FRESH)
    fleet.add(other)
    fleet.add(replace(FRESH, images_generated=3, busy_seconds=1.5, steps_by_images={1: 10, 4: 20}))
    fleet.add(replace(other, images_generated=2, busy_seconds=0.5, steps_by_images={4: 5}))
    fleet.add(replace(FRESH, images_generated=4, busy_seconds=2.0, steps_by_images={1: 11, 4: 20}))
    assert fleet.counters() == {
        (metrics.IMAGES_GENERATED.name, ("mini",)): 6,
        (metrics.DEVICE_BUSY.name, ("mini",)): 2.5,
        (metrics.STEP_IMAGES.name, ("mini",)): 111,
        (metrics.STEPS.name, ("mini", "1")): 11,
        (metrics.STEPS.name, ("mini", "4")): 25,
    }


def test_the_past_of_a_replica_that_is_heard_for_the_first_time_does_not_count() -> None:
    fleet = ReplicaMetrics()
    fleet.add(replace(FRESH, images_generated=1000))
    fleet.add(replace(FRESH, images_generated=1001))
    assert pictures(fleet) == 1


def test_a_model_that_takes_over_begins_at_nought_and_the_sum_of_the_other_stays() -> None:
    fleet = ReplicaMetrics()
    fleet.add(FRESH)
    fleet.add(replace(FRESH, images_generated=7))
    later = replace(MODEL, name="big", since=NOON + timedelta(hours=1))
    fleet.add(replace(FRESH, model=later, desired_model="big", images_generated=2))
    assert (pictures(fleet), pictures(fleet, "big")) == (7, 2)


def test_a_replica_that_loads_its_first_model_loses_no_picture() -> None:
    fleet = ReplicaMetrics()
    fleet.add(replace(FRESH, model=None, state=ReplicaState.LOADING))
    fleet.add(replace(FRESH, images_generated=5))
    assert pictures(fleet) == 5


def test_what_stands_is_told_of_those_that_are_there() -> None:
    failure = ModelFailure(model="big", reason="no such file", at=NOON)
    reports = [
        replace(
            FRESH,
            active=2,
            waiting=1,
            memory_bytes=100,
            step_seconds={1: 0.1, 2: 0.2},
            compile_failure="no compiler",
        ),
        replace(FRESH, replica_id="b", active=3, memory_bytes=50, step_seconds={1: 0.3}, failure=failure),
        replace(
            FRESH,
            replica_id="c",
            backend="remote",
            model=None,
            circuit="open",
            user_config_faults=("wrong", "too"),
        ),
    ]
    assert ReplicaMetrics().gauges(reports) == {
        (metrics.REPLICAS.name, ("local", "mini", "serving")): 2,
        (metrics.REPLICAS.name, ("remote", "", "serving")): 1,
        (metrics.MODEL_LOAD_FAILURES.name, ()): 1,
        (metrics.USER_CONFIG_FAULTS.name, ()): 1,
        (metrics.COMPILE_FAILURES.name, ()): 1,
        (metrics.CIRCUITS_OPEN.name, ()): 1,
        (metrics.IMAGES.name, ("mini", "active")): 5,
        (metrics.IMAGES.name, ("mini", "waiting")): 1,
        (metrics.IMAGES.name, ("", "active")): 0,
        (metrics.IMAGES.name, ("", "waiting")): 0,
        (metrics.DEVICE_MEMORY.name, ("mini",)): 150,
        (metrics.STEP_SECONDS.name, ("mini", "1")): 0.3,
        (metrics.STEP_SECONDS.name, ("mini", "2")): 0.2,
    }
