"""A browser's own EventSource follows jobs, by a real Chromium without a window."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from playwright.async_api import Page, async_playwright

from tests.integration.service import Service, running_service
from tests.waiting import wait_until

LISTEN = """path => {
  window.heard = [];
  window.opened = 0;
  window.source = new EventSource(path);
  source.onopen = () => { opened += 1; };
  for (const kind of ["snapshot", "status", "progress", "erased", "reset", "overflow"])
    source.addEventListener(kind, event => heard.push({
      kind, id: Number(event.lastEventId), data: JSON.parse(event.data),
    }));
}"""
CONNECTING, CLOSED = 0, 2
"""`EventSource.readyState` between two connections, and of one that does not come back."""


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Its streams end after a second."""
    async with running_service(tmp_path, ingress={"max_stream_seconds": 1}) as service:
        yield service


@pytest_asyncio.fixture
async def page(service: Service) -> AsyncIterator[Page]:
    """A page of the service's own origin."""
    chromium = shutil.which("chromium")
    assert chromium, "the tests need Debian's chromium; `make test` installs it"
    async with async_playwright() as playwright:
        # Chromium refuses its sandbox to root.
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(f"{service.url}/docs")
        yield page
        await browser.close()


async def heard(page: Page, *kinds: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = await page.evaluate("heard")
    return [event for event in events if event["kind"] in kinds]


async def has_opened(page: Page, times: int) -> bool:
    return bool(await page.evaluate("opened") >= times)


async def is_in_state(page: Page, state: int) -> bool:
    return bool(await page.evaluate("source.readyState") == state)


async def test_a_browser_resumes_by_itself_and_misses_nothing(service: Service, page: Page) -> None:
    await page.evaluate(LISTEN, "/customers/ana/photos/stream?previews=true")
    for cuts in range(2):
        await wait_until(lambda cuts=cuts: has_opened(page, cuts + 1))
        await service.ended(await service.submitted())
        await wait_until(lambda: is_in_state(page, CONNECTING))
        await service.ended(await service.submitted())

    async def whole_story() -> list[dict[str, Any]] | None:
        events = await heard(page, "status")
        return events if len(events) >= 12 else None

    events = await wait_until(whole_story)
    assert events is not None
    assert [event["id"] for event in events] == list(range(1, 13))
    assert [event["data"]["seq"] for event in events] == list(range(1, 13))
    [snapshot] = await heard(page, "snapshot", "reset", "overflow")
    assert snapshot["data"] == {"seq": 0, "photos": []}


async def test_a_browser_sees_steps_and_stops_after_the_jobs_end(service: Service, page: Page) -> None:
    puppet = service.puppet()
    job_id = await service.submitted()
    await page.evaluate(LISTEN, f"/customers/ana/photos/stream?jobId={job_id}")
    await wait_until(lambda: heard(page, "snapshot"))
    puppet.step(7, 20)
    [progress, *_] = await wait_until(lambda: heard(page, "progress"))
    puppet.finish()

    await wait_until(lambda: is_in_state(page, CLOSED))
    assert progress["data"]["progress"] == {"step": 7, "totalSteps": 20}
    [*_, last] = await heard(page, "status")
    assert (last["data"]["status"], last["id"]) == ("DONE", service.story(job_id)[-1][0])
