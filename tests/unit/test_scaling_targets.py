"""Targets of autoscaling, from the running configuration to the trackers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.ingress.scaling_targets import ScalingTargets
from avatarforge.settings import ScalingSettings
from tests.waiting import wait_until

TARGETS = ScalingSettings(max_replicas=8, target_wait_seconds=10)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScalingTargets, "POLL_INTERVAL_SECONDS", 0.01)


@asynccontextmanager
async def telling(tell: Callable[[ScalingSettings], Awaitable[None]]) -> AsyncIterator[ScalingTargets]:
    targets = ScalingTargets(tell)
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
        targets.update(TARGETS)
        await wait_until(lambda: told)
    assert told == [TARGETS]


async def test_they_hear_of_them_again(told: list[ScalingSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScalingTargets, "RESEND_INTERVAL_SECONDS", 0.02)

    async def tell(aim: ScalingSettings) -> None:
        told.append(aim)
        if len(told) == 2:
            raise TrackerUnavailable("it starts")

    async with telling(tell) as targets:
        targets.update(TARGETS)
        await wait_until(lambda: len(told) > 3)
    assert all(aim == TARGETS for aim in told)
