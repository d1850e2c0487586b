from datetime import timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from avatarforge.domain.errors import IllegalTransition
from avatarforge.domain.jobs import JobError, ProfilePhotoJob
from avatarforge.domain.status import NEXT, EventKind, ProcessingStatus
from tests.factories import NOON, a_job, an_outcome

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
