from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from avatarforge.domain.errors import IllegalTransition, InvalidRequest
from avatarforge.domain.jobs import MAX_SEED, GenerationParameters, JobError, ProfilePhotoJob, Vary
from avatarforge.domain.status import NEXT, EventKind, ProcessingStatus
from tests.factories import NOON, a_job, a_variant, an_outcome

LATER = NOON + timedelta(seconds=3)
ERROR = JobError(code="worker_lost", message="Gone.")


class JobMachine(RuleBasedStateMachine):
    """Whatever is tried in whatever order, a job keeps its rules."""

    def __init__(self) -> None:
        super().__init__()
        self.job = a_job()
        self.story: list[ProfilePhotoJob] = [self.job]

    @rule(move=st.sampled_from(["started", "requeued", "taken back", "done", "failed", "cancelled"]))
    def move(self, move: str) -> None:
        job = self.job
        moves = {
            "started": (ProcessingStatus.PROCESSING, lambda: job.start(LATER)),
            "requeued": (ProcessingStatus.PENDING, lambda: job.requeue(lost=True)),
            "taken back": (ProcessingStatus.PENDING, lambda: job.requeue(lost=False)),
            "done": (ProcessingStatus.DONE, lambda: job.complete(an_outcome(), LATER)),
            "failed": (ProcessingStatus.FAILED, lambda: job.fail(ERROR, LATER)),
            "cancelled": (ProcessingStatus.CANCELLED, lambda: job.cancel(LATER)),
        }
        wanted, attempted = moves[move]
        if wanted in NEXT[job.status]:
            self.job = attempted()
            self.story.append(self.job)
        else:
            with pytest.raises(IllegalTransition):
                attempted()

    @invariant()
    def revisions_count_the_changes(self) -> None:
        assert [job.revision for job in self.story] == list(range(1, len(self.story) + 1))

    @invariant()
    def the_attempt_counts_the_starts(self) -> None:
        starts = sum(
            after.status is ProcessingStatus.PROCESSING and before.status is not after.status
            for before, after in zip(self.story, self.story[1:], strict=False)
        )
        assert self.job.attempt == starts

    @invariant()
    def nothing_leaves_a_terminal_state(self) -> None:
        assert sum(job.status.is_terminal for job in self.story) <= 1
        assert all(not job.status.is_terminal for job in self.story[:-1])

    @precondition(lambda self: self.job.status.is_terminal)
    @rule()
    def a_terminal_job_has_ended(self) -> None:
        assert self.job.finished_at == LATER


TestJobMachine = JobMachine.TestCase


def test_a_finished_job_tells_its_times_and_what_made_it() -> None:
    done = a_job().start(LATER).complete(an_outcome(), LATER + timedelta(seconds=2))
    assert done.timings == {"queued": 3.0, **an_outcome().timings}
    assert done.outcome == an_outcome()


def test_the_time_in_the_line_ends_with_the_first_start() -> None:
    again = a_job().start(LATER).requeue(lost=True).start(LATER + timedelta(hours=1))
    assert again.started_at == LATER


def test_an_event_says_what_its_job_has_become() -> None:
    started = a_job().start(LATER)
    event = started.event(EventKind.STARTED, LATER)
    assert (event.status, event.attempt, event.revision, event.seq) == (ProcessingStatus.PROCESSING, 1, 2, 0)


def test_a_cancelled_job_cannot_be_done() -> None:
    with pytest.raises(IllegalTransition, match="CANCELLED cannot become DONE"):
        a_job().cancel(LATER).complete(an_outcome(), LATER)


# --- several images -----------------------------------------------------------------------------------


def of_three() -> ProfilePhotoJob:
    return a_job(parameters=GenerationParameters(seed=7, variants=3)).start(LATER)


def test_a_single_image_is_there_once_its_job_is_done() -> None:
    job = a_job()
    assert (job.images, job.missing) == ((), (0,))
    done = job.start(LATER).complete(an_outcome(), LATER)
    [image] = done.images
    assert (image.index, image.seed, image.style) == (0, 7, "watercolor")
    assert image.stored == an_outcome().avatar
    assert (done.missing, done.variant_images) == ((), ())


def test_images_are_published_in_any_order_and_the_last_one_ends_the_job() -> None:
    job = of_three()
    two, zero, one = (a_variant(job, index) for index in (2, 0, 1))
    job = job.publish(two, 1).publish(zero, 1)
    assert (job.status, job.images, job.missing) == (ProcessingStatus.PROCESSING, (zero, two), (1,))
    done = job.complete(an_outcome(avatar=one.stored), LATER, one)
    assert (done.status, done.images) == (ProcessingStatus.DONE, (zero, one, two))
    assert done.outcome == an_outcome(avatar=zero.stored), "the first image stands for all"
    assert done.object_keys == {done.original.key, *(image.stored.key for image in (zero, one, two))}


def test_images_survive_a_lost_attempt_which_publishes_nothing_more() -> None:
    first = of_three()
    late = a_variant(first, 2)
    again = first.publish(a_variant(first, 1), 1).requeue(lost=True).start(LATER)
    assert again.missing == (0, 2)
    with pytest.raises(IllegalTransition, match="image 2 of attempt 1"):
        again.publish(late, 1)
    with pytest.raises(IllegalTransition):
        again.requeue(lost=False).publish(late, 2)


def test_no_image_is_published_twice_and_no_job_is_done_without_all() -> None:
    job = of_three()
    job = job.publish(a_variant(job, 0), 1)
    for index in (0, 3):
        with pytest.raises(IllegalTransition):
            job.publish(a_variant(job, index), 1)
    with pytest.raises(IllegalTransition, match=r"DONE without images \(1,\)"):
        job.complete(an_outcome(), LATER, a_variant(job, 2))
    with pytest.raises(IllegalTransition, match="image 2 and no outcome"):
        job.publish(a_variant(job, 1), 1).publish(a_variant(job, 2), 1)


def test_a_job_of_several_that_an_older_release_ended_has_the_one_image_that_it_made() -> None:
    job = of_three()
    done = replace(job, status=ProcessingStatus.DONE, outcome=an_outcome())
    assert [(image.index, image.stored) for image in done.images] == [(0, an_outcome().avatar)]
    assert done.find_image() == done.images[0]
    assert done.object_keys == {done.original.key, an_outcome().avatar.key}
    later = replace(done, variant_images=(a_variant(job, 2),))
    assert [image.index for image in later.images] == [0, 2]


def test_what_was_published_stays_when_the_job_fails_or_is_cancelled() -> None:
    job = of_three()
    job = job.publish(a_variant(job, 1), 1)
    for ended in (job.fail(ERROR, LATER), job.cancel(LATER)):
        assert [image.index for image in ended.images] == [1]


def test_the_client_keeps_an_image_that_there_is_and_may_choose_again() -> None:
    job = of_three()
    job = job.publish(a_variant(job, 1), 1)
    kept = job.keep(1)
    assert (kept.kept, kept.status, kept.revision) == (1, job.status, job.revision + 1)
    assert kept.find_image() == kept.find_image(1) == job.images[0]
    with pytest.raises(InvalidRequest, match="index is 2, but it must be that of an image that there is: 1"):
        job.keep(2)
    done = kept.publish(a_variant(job, 0), 1).complete(an_outcome(), LATER, a_variant(job, 2))
    assert done.keep(2).keep(0).kept == 0


def test_without_a_choice_the_first_image_stands_for_the_job() -> None:
    job = of_three()
    job = job.publish(a_variant(job, 1), 1)
    assert job.find_image() is None
    assert job.publish(first := a_variant(job, 0), 1).find_image() == first


def test_seeds_count_up_and_begin_anew_after_the_last() -> None:
    parameters = GenerationParameters(seed=MAX_SEED, variants=3, style="neon")
    images = [parameters.for_image(index, ["neon", "pencil"]) for index in range(3)]
    assert [(image.seed, image.style) for image in images] == [(MAX_SEED, "neon"), (0, "neon"), (1, "neon")]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, ["a", "b", "c", "a"]),
        ("b", ["b", "c", "a", "b"]),
        # The model has changed since; the worker refuses it by name.
        ("gone", ["gone"] * 4),
    ],
)
def test_styles_go_round_and_then_the_seed_counts_up(asked: str | None, expected: list[str]) -> None:
    parameters = GenerationParameters(seed=5, variants=4, style=asked, vary=Vary.STYLE)
    images = [parameters.for_image(index, ["a", "b", "c"]) for index in range(4)]
    assert [image.style for image in images] == expected
    assert [image.seed for image in images] == ([5, 6, 7, 8] if asked == "gone" else [5, 5, 5, 6])


def test_a_model_without_styles_varies_the_seed_and_a_single_image_nothing() -> None:
    parameters = GenerationParameters(seed=5, variants=2, vary=Vary.STYLE)
    assert [parameters.for_image(index, []).seed for index in range(2)] == [5, 6]
    single = GenerationParameters(seed=5, vary=Vary.STYLE)
    assert single.for_image(0, ["a", "b"]) == single
