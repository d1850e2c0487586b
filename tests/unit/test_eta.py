"""When jobs will be done, by measured times and what stands before them."""

import time
from typing import Any

import pytest

from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import GenerationParameters, ProfilePhotoJob
from avatarforge.tracker.eta import EtaModel, Forecast
from avatarforge.tracker.queue.dispatcher import RunningJob
from tests.factories import a_job, a_model, a_report, an_outcome


def job_of(steps: int = 10, **parameters: Any) -> ProfilePhotoJob:
    return a_job(parameters=GenerationParameters(seed=1, steps=steps, strength=1.0, **parameters))


def running(job: ProfilePhotoJob, step: int = 0, total_steps: int = 0, backend: str = "local") -> RunningJob:
    progress = GenerationProgress(step=step, total_steps=total_steps) if total_steps else None
    return RunningJob(job=job, backend=backend, progress=progress)


def forecast(estimates: EtaModel, *active: RunningJob, waiting: Any = (), **given: Any) -> Forecast:
    values = {"queue_length": len(waiting), "reports": [a_report()], "seconds_per_image": None} | given
    return estimates.forecast(active, waiting, **values)


def test_nothing_is_foretold_before_anything_was_measured() -> None:
    job = job_of()
    assert forecast(EtaModel(), waiting=[job], reports=[]) == Forecast(order=(job.job_id,))


def test_a_running_job_takes_its_remaining_steps() -> None:
    job = job_of()
    told = forecast(EtaModel(), running(job, 4, 10))
    assert told.seconds == {job.job_id: pytest.approx(6 * 0.1)}


def test_a_job_takes_time_in_proportion_to_its_pixels() -> None:
    small, large = job_of(width=256, height=512), job_of(width=1024, height=512)
    told = forecast(EtaModel(), running(small, 4, 10), reports=[a_report(limit=1)], waiting=[large])
    assert told.seconds == pytest.approx({small.job_id: 3 * 0.1, large.job_id: 3 * 0.1 + 20 * 0.1})


def test_images_share_their_steps_and_those_left_go_faster() -> None:
    first, second = job_of(), job_of()
    told = forecast(EtaModel(), running(first, 5, 10), running(second, 0, 10))
    assert told.seconds[first.job_id] == pytest.approx(5 * 0.15)
    assert told.seconds[second.job_id] == pytest.approx(5 * 0.15 + 5 * 0.1)


def test_a_job_of_several_images_is_done_with_the_last_and_costs_as_many() -> None:
    eight = job_of(variants=8)
    singles = [job_of() for _ in range(8)]
    given: dict[str, Any] = {"reports": [a_report(limit=4)], "queue_length": 8}
    told, alike = (
        forecast(EtaModel(), waiting=[eight], **given),
        forecast(EtaModel(), waiting=singles, **given),
    )
    assert told.seconds == {eight.job_id: pytest.approx(2 * 10 * 0.2)}
    assert told.seconds[eight.job_id] == max(alike.seconds.values())
    assert (told.backlog_seconds, told.estimated_wait_seconds) == (
        alike.backlog_seconds,
        alike.estimated_wait_seconds,
    )
    # Half of its steps are done, in all images together.
    running_one = forecast(EtaModel(), running(job_of(variants=4), 20, 40))
    assert list(running_one.seconds.values()) == [pytest.approx(5 * 0.2)]


def test_images_are_counted_where_only_the_throughput_is_known() -> None:
    four, single = job_of(variants=4), job_of()
    told = forecast(
        EtaModel(),
        running(job_of(variants=2)),
        waiting=[four, single],
        queue_length=9,
        reports=[],
        seconds_per_image=3.0,
    )
    assert [told.seconds[job.job_id] for job in (four, single)] == [18.0, 21.0]
    assert (told.estimated_wait_seconds, told.backlog_seconds) == (36.0, 33.0)


def test_a_waiting_job_takes_the_slot_that_becomes_free_first() -> None:
    long, short = [running(job_of(), 0, 20) for _ in range(3)], running(job_of(), 0, 5)
    next_one = job_of(steps=3)
    told = forecast(EtaModel(), *long, short, waiting=[next_one])
    assert told.order == (next_one.job_id,)
    assert told.seconds[next_one.job_id] == pytest.approx((5 + 3) * 0.2)


def test_a_job_in_a_replica_whose_turn_has_not_come_stands_before_the_queue() -> None:
    estimates = EtaModel()
    one = a_report(limit=1, step_seconds={1: 0.1})
    making, fetched, waiting = job_of(), job_of(), job_of()
    told = forecast(estimates, running(fetched), running(making, 5, 10), waiting=[waiting], reports=[one])
    seconds = [told.seconds[job.job_id] for job in (making, fetched, waiting)]
    assert seconds == pytest.approx([0.5, 1.5, 2.5])


def test_replicas_share_the_queue() -> None:
    jobs = [job_of() for _ in range(8)]
    told = forecast(EtaModel(), waiting=jobs, reports=[a_report("a"), a_report("b")])
    assert list(told.seconds.values()) == pytest.approx([10 * 0.2] * 8)


def test_what_a_picture_costs_beside_its_steps_is_learned_from_the_reports() -> None:
    estimates = EtaModel()
    estimates.learn_from_report(a_report(images_generated=10, busy_seconds=100.0, busy_step_seconds=90.0))
    estimates.learn_from_report(a_report(images_generated=20, busy_seconds=107.0, busy_step_seconds=95.0))
    job = job_of()
    # Steps took 5 of the 7 seconds: 0.2 are left for each of the ten pictures.
    assert forecast(estimates, running(job, 5, 10)).seconds[job.job_id] == pytest.approx(5 * 0.1 + 0.2)


def test_a_report_of_another_model_begins_anew() -> None:
    estimates = EtaModel()
    estimates.learn_from_report(a_report(images_generated=10, busy_seconds=100.0))
    estimates.learn_from_report(
        a_report(images_generated=11, busy_seconds=900.0, model=a_model("second", minute=1))
    )
    job = job_of()
    assert forecast(estimates, running(job, 5, 10)).seconds[job.job_id] == pytest.approx(0.5)


def test_fetching_and_storing_are_learned_from_finished_jobs() -> None:
    estimates = EtaModel()
    outcome = an_outcome(timings={"fetch": 0.3, "encode": 0.1, "steps": 1, "decode": 0.1, "upload": 0.2})
    estimates.learn_from_outcome(outcome)
    making, coming = job_of(), job_of()
    told = forecast(estimates, running(making, 5, 10))
    assert told.seconds[making.job_id] == pytest.approx(0.5 + 0.2)
    # One that starts at once is fetched first; later ones are fetched while they wait.
    assert forecast(estimates, waiting=[coming]).seconds[coming.job_id] == pytest.approx(0.3 + 1.0 + 0.2)


def test_the_part_of_the_queue_that_is_not_looked_at_counts_as_the_rest() -> None:
    jobs = [job_of() for _ in range(8)]
    whole = forecast(EtaModel(), waiting=jobs)
    part = forecast(EtaModel(), waiting=jobs[:4], queue_length=8)
    assert part.backlog_seconds == pytest.approx(whole.backlog_seconds)
    assert part.backlog_seconds == pytest.approx(8 * 10 * 0.2 / 4)
    assert whole.estimated_wait_seconds is not None
    assert part.estimated_wait_seconds == pytest.approx(whole.estimated_wait_seconds, rel=0.3)


def test_a_backlog_is_what_one_replica_would_need() -> None:
    jobs = [job_of() for _ in range(8)]
    reports = [a_report("a"), a_report("b")]
    assert forecast(EtaModel(), waiting=jobs, reports=reports).backlog_seconds == pytest.approx(4.0)


def test_the_last_known_speed_counts_while_no_replica_serves() -> None:
    estimates, job = EtaModel(), job_of()
    before = forecast(estimates, waiting=[job])
    assert forecast(estimates, waiting=[job], reports=[]) == before


def test_trackers_that_share_the_replicas_count_on_their_part() -> None:
    jobs = [job_of() for _ in range(4)]
    busy = a_report(active=4, waiting=0)
    alone = EtaModel().forecast([], jobs, queue_length=4, reports=[busy], seconds_per_image=None)
    shared = EtaModel(shards=2).forecast([], jobs, queue_length=4, reports=[busy], seconds_per_image=None)
    assert max(shared.seconds.values()) == pytest.approx(2 * max(alone.seconds.values()))


def test_a_tracker_with_one_job_of_several_has_the_part_that_its_images_take() -> None:
    waiting = [job_of() for _ in range(8)]
    busy = a_report(limit=8, active=8)
    of_several = [running(job_of(variants=8), 40, 80)]
    singles = [running(job_of(), 5, 10) for _ in range(8)]
    told, alike = (
        forecast(EtaModel(shards=2), *active, waiting=waiting, reports=[busy])
        for active in (of_several, singles)
    )
    assert told.estimated_wait_seconds == alike.estimated_wait_seconds
    assert [told.seconds[job.job_id] for job in waiting] == [alike.seconds[job.job_id] for job in waiting]


def test_the_pace_counts_where_most_jobs_go_to_a_remote_server() -> None:
    estimates = EtaModel()
    for _ in range(3):
        estimates.learn_from_outcome(an_outcome(backend="remote"))
    making, waiting = job_of(), job_of()
    told = forecast(estimates, running(making, 5, 10, "remote"), waiting=[waiting], seconds_per_image=4.0)
    assert told == Forecast(
        order=(waiting.job_id,),
        seconds={waiting.job_id: 8.0, making.job_id: 2.0},
        estimated_wait_seconds=12.0,
        backlog_seconds=8.0,
    )


def test_a_long_queue_is_forecast_in_a_moment() -> None:
    jobs = [job_of(steps=5 + number % 20) for number in range(1000)]
    begun = time.perf_counter()
    told = forecast(EtaModel(), waiting=jobs, queue_length=100_000)
    assert time.perf_counter() - begun < 0.5
    assert len(told.seconds) == 1000
    assert told.estimated_wait_seconds is not None
    assert told.estimated_wait_seconds > 90 * max(told.seconds.values())
