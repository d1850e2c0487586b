"""Limits of a batch that ran out of memory."""

from avatarforge.diffusion.buckets import Buckets

SHAPE = (4, 16, 16)


def steps(buckets: Buckets, images: int, times: int = Buckets.QUIET) -> int:
    for _ in range(times):
        buckets.note(SHAPE, images, 0.1)
    return buckets.limit(SHAPE)


def found() -> Buckets:
    buckets = Buckets(8)
    buckets.found(SHAPE, {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3})
    return buckets


def test_a_lowered_limit_is_raised_again_after_a_quiet_while() -> None:
    buckets = found()
    buckets.lower(SHAPE, 8)
    assert steps(buckets, 4, Buckets.QUIET - 1) == 4
    assert steps(buckets, 4, 1) == 8
    assert steps(buckets, 8) == 8


def test_each_failure_makes_the_next_try_come_later() -> None:
    buckets = found()
    buckets.lower(SHAPE, 8)
    steps(buckets, 4)
    buckets.lower(SHAPE, 8)
    assert steps(buckets, 4) == 4
    assert steps(buckets, 4) == 8


def test_it_is_never_raised_above_what_was_found() -> None:
    buckets = Buckets(8)
    buckets.found(SHAPE, {1: 1.0, 2: 1.1, 4: 1.2, 8: 9.0})
    buckets.lower(SHAPE, 4)
    assert steps(buckets, 2, 10 * Buckets.QUIET) == 4


def test_steps_that_do_not_fill_the_limit_say_nothing() -> None:
    buckets = found()
    buckets.lower(SHAPE, 8)
    assert steps(buckets, 2, 10 * Buckets.QUIET) == 4


def test_a_batch_that_is_not_full_halves_its_bucket() -> None:
    buckets = Buckets(8)
    buckets.lower(SHAPE, 3)
    assert buckets.limit(SHAPE) == 2
