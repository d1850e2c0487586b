"""The watchdog of an engine: what counts as silence, and how much of it as a stall."""

from avatarforge.diffusion.engines.watchdog import (
    COMPILATION_TIMEOUT_SECONDS,
    STALL_STEPS,
    UNMEASURED_TIMEOUT_SECONDS,
    Watchdog,
)


def checks_until_stall(
    watchdog: Watchdog, timeout_seconds: float, step_seconds: float | None, most: int = 5000
) -> int | None:
    for count in range(1, most + 1):
        if watchdog.check(timeout_seconds, step_seconds) is not None:
            return count
    return None


def test_silence_with_work_is_a_stall_after_the_timeout() -> None:
    watchdog = Watchdog()
    with watchdog.expect_beats():
        # The first check sees the beat of the beginning.
        assert checks_until_stall(watchdog, 10, 0.1) == 11


def test_slow_steps_are_given_as_long_as_twenty_of_them() -> None:
    watchdog = Watchdog()
    with watchdog.expect_beats():
        assert checks_until_stall(watchdog, 10, 4.0) == 1 + 4 * STALL_STEPS


def test_without_a_measured_step_it_waits_as_long_as_a_large_model_may_take() -> None:
    watchdog = Watchdog()
    with watchdog.expect_beats():
        assert checks_until_stall(watchdog, 10, None) == 1 + UNMEASURED_TIMEOUT_SECONDS


def test_a_model_may_be_compiled_for_half_an_hour_and_is_watched_as_others_then() -> None:
    watchdog = Watchdog()
    watchdog.is_compiling = True
    with watchdog.expect_beats():
        assert checks_until_stall(watchdog, 10, 0.1) == 1 + COMPILATION_TIMEOUT_SECONDS
        watchdog.is_compiling = False
        watchdog.beat()
        assert checks_until_stall(watchdog, 10, 0.1) == 11


def test_a_sign_of_life_starts_the_count_again() -> None:
    watchdog = Watchdog()
    with watchdog.expect_beats():
        assert checks_until_stall(watchdog, 10, 0.1, most=10) is None
        watchdog.beat()
        assert checks_until_stall(watchdog, 10, 0.1) == 11


def test_an_engine_without_work_is_silent_by_right() -> None:
    watchdog = Watchdog()
    assert checks_until_stall(watchdog, 10, 0.1) is None
    with watchdog.expect_beats():
        watchdog.check(10, 0.1)
    assert checks_until_stall(watchdog, 10, 0.1) is None
