"""What the tracker keeps of the replicas' reports, and what it does with them."""

from avatarforge.domain.replicas import ReplicaState
from avatarforge.tracker.queue.replica_registry import ReplicaRegistry
from tests.factories import a_model, a_report, empty


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_newest_report_of_each_replica_is_kept() -> None:
    reports = ReplicaRegistry(Clock())
    for report in (a_report("b"), a_report("a", active=1), a_report("a", active=2)):
        reports.add(report)
    assert reports.all() == (a_report("a", active=2), a_report("b"))


def test_a_replica_that_falls_silent_is_forgotten() -> None:
    clock = Clock()
    reports = ReplicaRegistry(clock)
    reports.add(a_report("a"))
    clock.now = ReplicaRegistry.TIMEOUT_SECONDS - 1
    reports.add(a_report("b"))
    clock.now = ReplicaRegistry.TIMEOUT_SECONDS + 1
    assert reports.all() == (a_report("b"),)


def test_a_model_that_serves_as_desired_is_the_last_good_one() -> None:
    reports = ReplicaRegistry(Clock(), last_good="before")
    reports.add(a_report(model=None, state=ReplicaState.LOADING))
    assert reports.last_good == "before"
    reports.add(a_report())
    assert reports.last_good == "first"


def test_a_model_that_serves_instead_of_the_desired_one_is_not() -> None:
    reports = ReplicaRegistry(Clock(), last_good="second")
    reports.add(a_report(desired_model="broken"))
    assert reports.last_good == "second"


def test_the_newest_of_several_as_desired_counts() -> None:
    reports = ReplicaRegistry(Clock())
    reports.add(a_report("a", desired_model="second", model=a_model("second", minute=5)))
    reports.add(a_report("b"))
    assert reports.last_good == "second"


def test_a_remote_replica_says_nothing_of_our_models() -> None:
    reports = ReplicaRegistry(Clock())
    reports.add(a_report(backend="remote"))
    assert (reports.last_good, reports.serving_count, reports.is_local_empty) == (None, 0, False)


def test_jobs_wait_only_while_no_replica_of_our_own_has_a_model_or_is_about_to() -> None:
    reports = ReplicaRegistry(Clock())
    assert not reports.is_local_empty
    reports.add(empty("a"))
    assert reports.is_local_empty
    reports.add(a_report("b", model=None, state=ReplicaState.LOADING))
    assert not reports.is_local_empty


def test_the_real_batch_size_is_a_mean_over_steps() -> None:
    assert a_report().mean_images is None
    assert a_report(steps_by_images={1: 1, 4: 3}).mean_images == 13 / 4


def test_the_steps_of_a_request_take_the_models_defaults() -> None:
    model = a_model()
    assert [model.steps_of(*said) for said in [(None, None), (10, None), (10, 0.25), (None, 1.0)]] == [
        10, 5, 2, 20,
    ]  # fmt: skip
    assert a_model(strength_skips_steps=False).steps_of(10, 0.5) == 10
