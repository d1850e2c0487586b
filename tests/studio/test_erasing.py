"""What is erased in the studio can be had back for a while, and is gone then, whatever the page meets."""

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from avatarforge.domain.status import ProcessingStatus
from tests.integration.service import Service
from tests.studio.browser import PORTRAIT, leave, opened
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

UNFINISHED = "Object.keys(localStorage).filter((name) => name.startsWith('avatarforge.erasing')).length"


@pytest_asyncio.fixture(loop_scope="package")
async def gallery(service: Service, browser: Browser) -> AsyncIterator[Page]:
    """Three avatars, on a page whose clock the test moves."""
    for style in ("neon", "watercolor", "pencil-sketch"):
        await service.ended(await service.submitted(photo=PORTRAIT.read_bytes(), style=style))
    async with opened(browser, service.url, "/#/gallery") as page:
        await page.clock.install()
        await page.reload()
        await expect(page.locator(".card")).to_have_count(3)
        yield page


async def refuse(route: Route) -> None:
    problem = {"code": "database_unavailable", "detail": "The database is away.", "status": 503}
    await route.fulfill(status=503, json=problem, content_type="application/problem+json")


def ids(service: Service) -> list[str]:
    """Of ana's jobs, the oldest first."""
    return sorted(job.job_id for job in service.records.list_jobs("ana", None, 10))


async def test_what_a_closed_page_has_not_erased_the_next_one_erases(service: Service, gallery: Page) -> None:
    page, context = gallery, gallery.context
    refused, offline, killed = ids(service)

    async def reopened(left: int, erased: str) -> Page:
        """The page once the earlier one's erasing is over."""
        page = await context.new_page()
        await page.goto(f"{service.url}/#/gallery")
        assert await page.evaluate(UNFINISHED) == 1
        await expect(page.locator(".card")).to_have_count(left)
        await page.clock.run_for(11_000)
        await wait_until(lambda: service.records.find_job("ana", erased) is None)
        await expect(page.locator(".toast")).to_have_text("Erased.")
        assert await page.evaluate(UNFINISHED) == 0
        return page

    await context.route(f"**/photos/{refused}", refuse)
    await page.click(f"[data-key='Erase {refused}']")
    await page.clock.run_for(11_000)
    await expect(page.locator(".toast.error")).to_have_text("The database is away.")
    async with page.expect_event("dialog") as asked:
        await page.close(run_before_unload=True)
    assert (await asked.value).type == "beforeunload"
    async with page.expect_event("close"):
        await (await asked.value).accept()
    await context.unroute_all()
    assert service.recorded(refused).status == ProcessingStatus.DONE
    page = await reopened(2, refused)

    await context.set_offline(True)
    await page.click(f"[data-key='Erase {offline}']")
    await page.clock.run_for(11_000)
    await expect(page.locator(".toast.error")).to_be_visible()
    await page.close()
    await context.set_offline(False)
    page = await reopened(1, offline)

    # As after a crash: no script of the page hears of its end.
    await context.route(f"**/photos/{killed}", lambda route: route.abort())
    await page.click(f"[data-key='Erase {killed}']")
    await page.close()
    await context.unroute_all()
    await reopened(0, killed)


async def test_undo_stays_as_long_as_it_is_pointed_at_or_has_the_focus(
    service: Service, gallery: Page
) -> None:
    neon, watercolor, _ = ids(service)
    await gallery.click(f"[data-key='Erase {neon}']")
    await gallery.click(f"[data-key='Erase {watercolor}']")
    toasts = gallery.locator(".toast")
    await expect(toasts).to_have_text(
        [
            re.compile(f"^{name} of .* and its photo will be erased in 10 seconds")
            for name in ("Neon", "Watercolour")
        ]
    )
    undo = toasts.first.get_by_role("button", name="Undo")
    await undo.hover()
    await undo.focus()
    await gallery.mouse.move(0, 0)
    await gallery.clock.run_for(11_000)
    await wait_until(lambda: service.records.find_job("ana", watercolor) is None)
    await undo.hover()
    await undo.blur()
    await gallery.clock.run_for(11_000)
    await undo.click()
    await expect(gallery.locator(".card")).to_have_count(2)
    assert await gallery.evaluate(UNFINISHED) == 0
    await gallery.clock.run_for(11_000)
    assert service.recorded(neon).status == ProcessingStatus.DONE


async def test_the_focus_goes_to_the_heading_where_what_had_it_is_erased(
    service: Service, gallery: Page
) -> None:
    heading = gallery.locator("#gallery-heading")
    await gallery.click("#choosing")
    await gallery.click("#choose-all")
    await gallery.click("#erase-chosen")
    await expect(gallery.locator(".card")).to_have_count(0)
    await expect(heading).to_be_focused()
    await gallery.get_by_role("button", name="Undo").focus()
    await leave(gallery)
    await expect(heading).to_be_focused()
    await wait_until(lambda: ids(service) == [])
