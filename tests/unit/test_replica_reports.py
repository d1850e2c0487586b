"""What the tracker keeps of the replicas' reports, and what it does with them."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from avatarforge.domain.replicas import ModelFailure, ReplicaReport, ReplicaState, ServedModel
from avatarforge.tracker.reports import ReplicaReports
from tests.factories import NOON


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def a_model(name: str = "first", minute: int = 0, **changes: Any) -> ServedModel:
    model = ServedModel(
        name=name,
        fingerprint="0123456789abcdef",
        since=NOON + timedelta(minutes=minute),
        load_seconds=2.0,
        dtype="float32",
        steps=20,
        strength=0.5,
        guidance=3.0,
    )
    return replace(model, **changes)


def a_report(replica_id: str = "a", **changes: Any) -> ReplicaReport:
    report = ReplicaReport(
        replica_id=replica_id,
        backend="local",
        at=NOON,
        state=ReplicaState.SERVING,
        wish="first",
        model=a_model(),
        limit=4,
        step_seconds={1: 0.1, 2: 0.15, 4: 0.2},
    )
    return replace(report, **changes)


def empty(replica_id: str) -> ReplicaReport:
    failure = ModelFailure(model="broken", reason="It is broken.", at=NOON)
    return a_report(replica_id, state=ReplicaState.EMPTY, wish="broken", model=None, failure=failure)


def test_the_newest_report_of_each_replica_is_kept() -> None:
    reports = ReplicaReports(Clock())
    for report in (a_report("b"), a_report("a", active=1), a_report("a", active=2)):
        reports.take(report)
    assert reports.all() == (a_report("a", active=2), a_report("b"))


def test_a_replica_that_falls_silent_is_forgotten() -> None:
    clock = Clock()
    reports = ReplicaReports(clock)
    reports.take(a_report("a"))
    clock.now = ReplicaReports.SILENCE - 1
    reports.take(a_report("b"))
    clock.now = ReplicaReports.SILENCE + 1
    assert reports.all() == (a_report("b"),)


def test_a_model_that_serves_as_it_was_wished_is_the_last_good_one() -> None:
    reports = ReplicaReports(Clock(), last_good="before")
    reports.take(a_report(model=None, state=ReplicaState.LOADING))
    assert reports.last_good == "before"
    reports.take(a_report())
    assert reports.last_good == "first"


def test_a_model_that_serves_instead_of_the_wish_is_not() -> None:
    reports = ReplicaReports(Clock(), last_good="second")
    reports.take(a_report(wish="broken"))
    assert reports.last_good == "second"


def test_the_newest_of_several_fulfilled_wishes_counts() -> None:
    reports = ReplicaReports(Clock())
    reports.take(a_report("a", wish="second", model=a_model("second", minute=5)))
    reports.take(a_report("b"))
    assert reports.last_good == "second"


def test_a_remote_replica_says_nothing_of_our_models() -> None:
    reports = ReplicaReports(Clock())
    reports.take(a_report(backend="remote"))
    assert (reports.last_good, reports.serving, reports.local_is_empty) == (None, 0, False)


def test_jobs_wait_only_while_no_replica_of_our_own_has_a_model_or_is_about_to() -> None:
    reports = ReplicaReports(Clock())
    assert not reports.local_is_empty
    reports.take(empty("a"))
    assert reports.local_is_empty
    reports.take(a_report("b", model=None, state=ReplicaState.LOADING))
    assert not reports.local_is_empty


def test_the_real_batch_size_is_a_mean_over_steps() -> None:
    assert a_report().mean_images is None
    assert a_report(steps_by_images={1: 1, 4: 3}).mean_images == 13 / 4


def test_the_steps_of_a_request_take_the_models_defaults() -> None:
    model = a_model()
    assert [model.steps_of(*said) for said in [(None, None), (10, None), (10, 0.25), (None, 1.0)]] == [
        10, 5, 2, 20,
    ]  # fmt: skip
    assert a_model(strength_counts=False).steps_of(10, 0.5) == 10
