"""The studio where the service asks for API keys."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.integration.rest import a_jpeg
from tests.integration.service import Service, running_service
from tests.keys import kept_key
from tests.studio.browser import grave_findings, is_painted, job_shown, opened, send
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


async def test_a_key_opens_its_customer_and_can_be_changed_and_forgotten(
    guarded: Service, browser: Browser
) -> None:
    _, of_ben = kept_key(guarded.settings, "ben")
    _, of_shops = kept_key(guarded.settings, "shop-*", is_admin=True)
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
        await page.click("text=Forget the key")
        await expect(page.locator("dialog h2")).to_have_text("A key, please")
        assert await page.evaluate("sessionStorage['avatarforge.key'] ?? null") is None
