"""The answer to a scrape where a tracker hangs."""

import asyncio

from avatarforge.ingress.scrapes import Scrapes
from avatarforge.telemetry.exposition import TrackerFigures
from avatarforge.telemetry.figures import Figures
from avatarforge.telemetry.reports import Report


class HangingTracker:
    async def report(self, report: Report) -> None:
        await asyncio.Event().wait()

    async def figures(self) -> dict[int, TrackerFigures | None]:
        return {0: None}


async def test_a_tracker_that_hangs_is_told_before_prometheus_gives_up() -> None:
    scrapes = Scrapes(Figures(), HangingTracker())
    scrapes.PATIENCE = 0.05
    text, _ = await asyncio.wait_for(scrapes.answer(""), 10)
    assert b'avatarforge_tracker_up{shard="0"} 0.0' in text
