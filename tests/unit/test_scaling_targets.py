"""Targets of autoscaling, from the running configuration to the trackers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.ingress.scaling_targets import ScalingTargets
from avatarforge.settings import ScalingSettings
from tests.waiting import wait_until

SETTINGS = ScalingSettings(max_replicas=8, target_wait_seconds=30)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScalingTargets, "POLL_INTERVAL_SECONDS", 0.01)


@asynccontextmanager
async def telling(tell: Callable[[ScalingSettings], Awaitable[None]]) -> AsyncIterator[ScalingTargets]:
    targets = ScalingTargets(SETTINGS, tell)
    targets.start()
    try:
        yield targets
    finally:
        await targets.stop()


@pytest.fixture
def told() -> list[ScalingSettings]:
    return []


async def test_the_trackers_hear_of_changed_targets(told: list[ScalingSettings]) -> None:
    async def tell(aim: ScalingSettings) -> None:
        told.append(aim)

    async with telling(tell) as targets:
        targets.update({"target_wait_seconds": 10})
        await wait_until(lambda: told)
    assert told == [ScalingSettings(max_replicas=8, target_wait_seconds=10)]


async def test_they_hear_of_them_again(told: list[ScalingSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScalingTargets, "RESEND_INTERVAL_SECONDS", 0.02)

    async def tell(aim: ScalingSettings) -> None:
        told.append(aim)
        if len(told) == 2:
            raise TrackerUnavailable("it starts")

    async with telling(tell) as targets:
        targets.update({"min_replicas": 0})
        await wait_until(lambda: len(told) > 3)
    assert {aim.min_replicas for aim in told} == {0}


@pytest.mark.parametrize(
    "changes",
    [
        {"target_wait_seconds": 0},
        {"min_replicas": 9},
        {"max_replica": 3},
        {"max_replicas": "many"},
        "less",
        None,
    ],
)
async def test_impossible_targets_change_nothing(told: list[ScalingSettings], changes: object) -> None:
    async def tell(aim: ScalingSettings) -> None:
        told.append(aim)

    async with telling(tell) as targets:
        targets.update(changes)
        targets.update({"max_replicas": 5})
        await wait_until(lambda: told)
    assert [aim.max_replicas for aim in told] == [5]
