"""Other people's clients for server-sent events."""

from pathlib import Path

import pytest

from tests.clients.runs import FOLLOWERS, following
from tests.events import subscriber_count
from tests.integration.service import running_service
from tests.waiting import wait_until


@pytest.mark.parametrize("client", FOLLOWERS)
async def test_a_client_misses_nothing_where_streams_end(client: str, tmp_path: Path) -> None:
    quick = {"max_stream_seconds": 1, "heartbeat_seconds": 0.1}
    async with (
        running_service(tmp_path, ingress=quick) as service,
        following(client, f"{service.url}/customers/ana/photos/stream") as heard,
    ):
        for job in (1, 2):
            await wait_until(lambda: subscriber_count(service.live) == 1, deadline=30)
            await service.ended(await service.submitted())
            await wait_until(lambda: subscriber_count(service.live) == 0, deadline=30)
            await service.ended(await service.submitted())
            await wait_until(lambda job=job: len(heard.changes) == 6 * job, deadline=30)

    assert heard.changes == list(range(1, 13))
    assert {event["kind"] for event in heard.events} <= {"snapshot", "status", "progress"}
