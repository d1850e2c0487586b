"""Finding out whether a running tracker is of this release."""

from avatarforge.tracker.actor_handle import _is_current


class TrackerOfAnEarlierRelease:
    """A handle as Ray gives it: asking for a method that the actor lacks is an `AttributeError`."""


def test_a_tracker_that_does_not_know_the_question_is_not_current() -> None:
    assert not _is_current(TrackerOfAnEarlierRelease(), {})
