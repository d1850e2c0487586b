"""The answer to a scrape where a tracker hangs."""

import asyncio

from avatarforge.ingress.metrics_endpoint import MetricsEndpoint
from avatarforge.telemetry.aggregation import MetricsReport
from avatarforge.telemetry.exposition import ShardMetrics
from avatarforge.telemetry.registry import MetricsRegistry


class HangingTracker:
    async def add_metrics(self, report: MetricsReport) -> None:
        await asyncio.Event().wait()

    async def read_metrics(self) -> dict[int, ShardMetrics | None]:
        return {0: None}


async def test_a_tracker_that_hangs_is_told_before_prometheus_gives_up() -> None:
    endpoint = MetricsEndpoint(MetricsRegistry(), HangingTracker())
    endpoint.REPORT_TIMEOUT_SECONDS = 0.05
    text, _ = await asyncio.wait_for(endpoint.scrape(""), 10)
    assert b'avatarforge_tracker_up{shard="0"} 0.0' in text
