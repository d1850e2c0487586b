"""Readiness: what is asked, how long, and how often."""

import asyncio
import threading

import structlog

from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.ingress.health import HealthChecks, PartMessage
from tests.waiting import wait_until


class Part:
    """A part that counts its questions and may hang or fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.questions = 0
        self.error = error
        self.answers = threading.Event()
        self.answers.set()

    def ask(self) -> None:
        self.questions += 1
        self.answers.wait(10)
        if self.error is not None:
            raise self.error


def no_lag() -> float:
    return 0.0


async def test_all_parts_that_answer_make_a_ready_replica() -> None:
    readiness = await HealthChecks({"database": Part().ask, "storage": Part().ask}, no_lag).readiness()

    assert readiness.ready
    assert list(readiness.parts) == ["database", "storage", "tracker"]
    assert readiness.parts["database"].detail == "answers"


async def test_a_part_that_fails_is_told_without_its_secrets() -> None:
    part = Part(DatabaseUnavailable("no route to db-7.internal"))

    readiness = await HealthChecks({"database": part.ask}, no_lag).readiness()

    assert not readiness.ready
    assert readiness.parts["database"].detail == str(part.error)
    assert "db-7" not in str(readiness)


async def test_a_check_that_breaks_is_not_ready_either() -> None:
    readiness = await HealthChecks({"database": Part(ZeroDivisionError("secret")).ask}, no_lag).readiness()

    assert not readiness.ready
    assert "secret" not in str(readiness)


async def test_a_part_that_hangs_is_given_up_and_not_asked_again_before_it_has_answered() -> None:
    part = Part()
    part.answers.clear()
    checks = HealthChecks({"storage": part.ask}, no_lag, timeout_seconds=0.05, max_age_seconds=0)

    given_up = [(await checks.readiness()).parts["storage"].detail for _ in range(3)]
    questions = part.questions
    part.answers.set()

    assert given_up == ["no answer within 0.05 s"] * 3
    assert questions == 1
    await wait_until(lambda: answers(checks))


async def answers(checks: HealthChecks) -> bool:
    return (await checks.readiness()).ready


async def test_many_who_ask_at_once_share_one_round_of_questions() -> None:
    part = Part()
    checks = HealthChecks({"database": part.ask}, no_lag, max_age_seconds=60)

    await asyncio.gather(*(checks.readiness() for _ in range(50)))
    await checks.readiness()

    assert part.questions == 1


async def test_an_old_answer_is_not_repeated() -> None:
    part = Part()
    checks = HealthChecks({"database": part.ask}, no_lag, max_age_seconds=0)

    await checks.readiness()
    await checks.readiness()

    assert part.questions == 2


async def test_a_silent_tracker_makes_a_replica_unready() -> None:
    def tracker(lag: float) -> HealthChecks:
        return HealthChecks({}, lambda: lag, max_lag_seconds=6)

    assert (await tracker(5.9).readiness()).ready
    assert not (await tracker(6.1).readiness()).ready
    assert (await tracker(float("inf")).readiness()).parts["tracker"] == PartMessage(
        ok=False, detail="has not answered yet", ms=0
    )


async def test_a_tracker_that_answers_and_cannot_accept_is_not_ready() -> None:
    checks = HealthChecks({}, no_lag, tracker_outage=lambda: "the database answers with its error 1146")

    tracker = (await checks.readiness()).parts["tracker"]

    assert not tracker.ok
    assert tracker.detail == "last answered 0.0 s ago: the database answers with its error 1146"


async def test_an_outage_is_logged_once_and_so_is_its_end() -> None:
    part = Part(DatabaseUnavailable("(1045, 'Access denied')"))
    checks = HealthChecks({"database": part.ask}, no_lag, max_age_seconds=0)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            await checks.readiness()
        part.error = None
        for _ in range(3):
            await checks.readiness()
    assert [(line["event"], line.get("reason")) for line in lines] == [
        ("part is not ready", "(1045, 'Access denied')"),
        ("part is ready again", None),
    ]
