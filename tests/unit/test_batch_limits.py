"""Limits of a batch that ran out of memory."""

from avatarforge.diffusion.engines.batch_limits import BatchLimits

SHAPE = (4, 16, 16)


def steps(limits: BatchLimits, images: int, times: int = BatchLimits.QUIET_STEPS) -> int:
    for _ in range(times):
        limits.record_step(SHAPE, images, 0.1)
    return limits.limit(SHAPE)


def found() -> BatchLimits:
    limits = BatchLimits(8)
    limits.set_from_measurements(SHAPE, {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3})
    return limits


def test_a_lowered_limit_is_raised_again_after_a_quiet_while() -> None:
    limits = found()
    limits.lower(SHAPE, 8)
    assert steps(limits, 4, BatchLimits.QUIET_STEPS - 1) == 4
    assert steps(limits, 4, 1) == 8
    assert steps(limits, 8) == 8


def test_each_failure_makes_the_next_try_come_later() -> None:
    limits = found()
    limits.lower(SHAPE, 8)
    steps(limits, 4)
    limits.lower(SHAPE, 8)
    assert steps(limits, 4) == 4
    assert steps(limits, 4) == 8


def test_it_is_never_raised_above_what_was_found() -> None:
    limits = BatchLimits(8)
    limits.set_from_measurements(SHAPE, {1: 1.0, 2: 1.1, 4: 1.2, 8: 9.0})
    limits.lower(SHAPE, 4)
    assert steps(limits, 2, 10 * BatchLimits.QUIET_STEPS) == 4


def test_steps_that_do_not_fill_the_limit_say_nothing() -> None:
    limits = found()
    limits.lower(SHAPE, 8)
    assert steps(limits, 2, 10 * BatchLimits.QUIET_STEPS) == 4


def test_a_batch_that_is_not_full_halves_its_bucket() -> None:
    limits = BatchLimits(8)
    limits.lower(SHAPE, 3)
    assert limits.limit(SHAPE) == 2


def test_a_larger_shape_gets_less_in_proportion_and_the_measured_times_stay() -> None:
    limits = found()
    larger, smaller = (4, 32, 24), (4, 8, 8)
    assert [limits.limit(shape) for shape in (SHAPE, larger, smaller, (4, 64, 64))] == [8, 2, 8, 1]
    limits.record_step(larger, 1, 9.0)
    assert limits.step_seconds() == {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3}
    limits.lower(larger, 2)
    assert (limits.limit(larger), limits.limit(SHAPE), limits.limit()) == (1, 8, 8)


def test_before_anything_is_measured_larger_shapes_get_less_than_the_reference() -> None:
    limits = BatchLimits(8)
    limits.set_reference((1, 3, 512, 512))
    assert [limits.limit((1, 3, side, side)) for side in (256, 512, 1024)] == [8, 8, 2]
