"""The studio where the service asks for API keys."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from tests.integration.rest import a_jpeg
from tests.integration.service import Service, running_service
from tests.keys import kept_key
from tests.studio.browser import PORTRAIT, grave_findings, is_painted, job_shown, kept_photos, opened, send
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest_asyncio.fixture(loop_scope="package")
async def guarded(tmp_path: Path) -> AsyncIterator[Service]:
    """Nobody is let in without a key."""
    async with running_service(tmp_path, access={"required": "always"}) as service:
        service.generations.avatar = lambda task: a_jpeg(128, 128)
        yield service


async def test_a_key_is_asked_for_kept_for_the_tab_and_used_for_every_call(
    guarded: Service, browser: Browser
) -> None:
    _, key = kept_key(guarded.settings, "ana")
    async with opened(browser, guarded.url, loads=False) as page:
        await expect(page.locator("dialog h2")).to_have_text("A key, please")
        await page.fill("#ask-input", "af_wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("dialog .error")).to_be_visible()
        await page.fill("#ask-input", key)
        await page.keyboard.press("Enter")
        await expect(page.locator("#styles .style")).to_have_count(7)

        await send(page)
        await job_shown(page)
        await expect(page.locator(".compare")).to_be_visible()
        await wait_until(lambda: is_painted(page, ".compare .after"))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for _ in range(2):
            async with page.expect_response("**/customers/ana/photos?limit=24"):
                await page.click(".tabs [data-view=gallery]")
                await page.click(".tabs [data-view=queue]")
            await expect(page.locator("#queue .nothing")).to_be_visible()
        await expect(page.locator(".toast.error")).to_have_count(0)
        others = [url for url in asked if "/customers?" in url]
        assert len(others) == 1, "what the key does not reach is not asked for again and again"
        assert await page.evaluate("Object.values(localStorage).concat(document.cookie).join()") == "ana,"

        # An upload waits for a key that is taken.
        await page.click(".tabs [data-view=studio]")
        await page.fill("#prompt", "red hair")
        await page.evaluate("sessionStorage['avatarforge.key'] = 'af_wrong'")
        await page.click("#forge")
        await expect(page.locator("#sending")).to_contain_text("Waits for a key")
        await page.fill("#ask-input", key)
        await page.keyboard.press("Enter")
        await expect(page.locator("#sending")).to_be_hidden()
        jobs = guarded.records.list_jobs("ana", None, 10)
        assert sorted(job.parameters.prompt or "" for job in jobs) == ["", "red hair"]


async def test_a_key_opens_its_customer_and_can_be_changed_and_forgotten(
    guarded: Service, browser: Browser
) -> None:
    _, of_ben = kept_key(guarded.settings, "ben")
    _, of_shops = kept_key(guarded.settings, "shop-*", is_admin=True)
    _, of_all = kept_key(guarded.settings, "*", is_admin=True)
    async with opened(browser, guarded.url, loads=False) as page:
        secret = page.locator("#ask-input")
        assert await secret.get_attribute("autocomplete") == "current-password"
        assert await page.locator("dialog [autocomplete=username]").count() == 1
        await secret.fill(of_ben)
        await page.keyboard.press("Enter")
        await expect(page.locator("#customer-name")).to_have_text("ben")
        await send(page)
        job_id = await job_shown(page)
        assert guarded.recorded(job_id, "ben")
        await expect(page.locator(".compare")).to_be_visible()
        await expect(page.locator(".toast")).to_have_count(0)

        await page.click("#customer-button")
        await expect(page.locator("dialog .key")).to_contain_text("for a test")
        await expect(page.locator("dialog .key")).to_contain_text("It opens ben")
        assert await grave_findings(page) == []
        await page.click("text=Use another key")
        await page.fill("#ask-input", of_shops)
        await page.click("dialog button.primary")
        await expect(page.locator("dialog .error")).to_contain_text("It opens shop-*")
        await expect(page.locator("#ask-input")).to_have_value("shop-")
        await expect(page.locator(".thumb:not(.add)")).to_have_count(0)
        await page.fill("#ask-input", "shop-1")
        await page.keyboard.press("Enter")
        await expect(page.locator("#customer-name")).to_have_text("shop-1")

        await page.click("#customer-button")
        await page.click("text=Use another key")
        await page.fill("#ask-input", of_all)
        await page.click("dialog button.primary")
        await page.click(".tabs [data-view=studio]")
        await page.set_input_files("#photo", PORTRAIT)
        await page.fill("#prompt", "red hair")
        await expect(page.locator("#crop-place")).to_contain_text("Around the face")
        guarded.puppet()
        await guarded.client.post(
            "/customers/shop-2",
            files={"photo": ("portrait.jpg", a_jpeg(), "image/jpeg")},
            headers={"Authorization": f"Bearer {of_all}"},
        )
        await page.click(".tabs [data-view=queue]")
        await expect(page.locator(".row.other")).to_contain_text("shop-2")
        await expect(page.locator("#queue .nothing")).to_have_count(0)
        answer_late = await hold(page, "**/customers?*")
        await page.click("#customer-button")
        await page.click("text=Forget the key")
        await expect(page.locator("dialog h2")).to_have_text("A key, please")
        assert await page.evaluate("sessionStorage['avatarforge.key'] ?? null") is None
        await answer_late()
        assert await page.locator(".row.other").count() == 0, "it was the key's to see"
        # The queue asks for a key every now and then.
        async with page.expect_response("**/customers/shop-1/photos?limit=24"):
            pass
        await page.evaluate("location.hash = '#/'")
        await page.keyboard.press("Escape")
        await expect(page.locator("dialog")).to_have_count(0)
        await page.click("#customer-button")
        await expect(page.locator("dialog .key p")).to_have_text("API key: none")
        await page.keyboard.press("Escape")
        await expect(page.locator("#photo")).to_be_attached()
        await expect(page.locator("#prompt")).to_have_value("")
        assert "red hair" not in await page.evaluate("JSON.stringify(sessionStorage)")
        assert await kept_photos(page) == []


async def hold(page: Page, url: str) -> Callable[[], Awaitable[None]]:
    """Wait for a call of the page. What is returned lets it be answered, and waits for what is drawn then."""
    asked, gate = asyncio.Event(), asyncio.Event()

    async def answer(route: Route) -> None:
        response = await route.fetch()
        asked.set()
        await gate.wait()
        await route.fulfill(response=response)

    async def release() -> None:
        async with page.expect_response(url):
            gate.set()
        for _ in range(3):
            await page.evaluate("new Promise(requestAnimationFrame)")

    await page.route(url, answer)
    await asked.wait()
    return release
