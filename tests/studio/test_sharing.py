"""An avatar as it will look elsewhere, and how to take it there: files, the clipboard, links, archives."""

import asyncio
import re
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.async_api import Browser, Page, Route, expect

from avatarforge.imaging.provenance import SOURCE_TYPE
from tests.integration.rest import a_jpeg
from tests.integration.service import Service, running_service
from tests.keys import kept_key
from tests.studio.browser import PORTRAIT, grave_findings, is_painted, leave, opened
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_it_is_shown_round_and_small_and_saved_in_the_sizes_that_sites_ask_for(
    service: Service, page: Page
) -> None:
    job_id = await service.submitted(style="watercolor")
    await service.ended(job_id)
    await page.goto(f"{service.url}/#/photo/ana/{job_id}")
    await page.locator(".look.dark img").last.wait_for()
    await wait_until(lambda: is_painted(page, ".look.dark img:last-child"))
    for ground in ("light", "dark"):
        looks = page.locator(f".look.{ground} img")
        assert [(await look.bounding_box() or {}).get("width") for look in await looks.all()] == [128, 64, 32]
        assert await looks.first.evaluate("image => getComputedStyle(image).borderRadius") == "50%"
    await expect(page.locator(".exporting .hint")).to_contain_text(
        "has 128 pixels: a larger file is enlarged"
    )
    assert await grave_findings(page) == []

    async def saved(place: str, side: int) -> tuple[str, Image.Image]:
        async with page.expect_download() as download:
            await page.get_by_role("button", name=f"Download: {place} {side} px").click()
        file = await download.value
        return file.suggested_filename, Image.open(await file.path())

    for place, side in {"Slack": 512, "GitHub": 500, "LinkedIn": 400, "Gravatar": 512}.items():
        name, image = await saved(place, side)
        assert name == f"ana-watercolour-{place.lower()}-{side}.png"
        assert (image.format, image.size) == ("PNG", (side, side))
        image.load()
        assert SOURCE_TYPE in image.info["XML:com.adobe.xmp"], "the mark goes with it"
        assert image.convert("RGBA").getpixel((0, 0))[3] == 255
    await page.get_by_label("Round").check()
    _, image = await saved("GitHub", 500)
    rim, middle = image.getpixel((3, 3)), image.getpixel((250, 250))
    assert (rim[3], middle[3]) == (0, 255)


async def test_the_image_and_a_link_that_expires_are_copied(tmp_path: Path, browser: Browser) -> None:
    access = {"required": "always", "requests_per_second": 0, "link_secrets": "s" * 32}
    permissions = ["clipboard-read", "clipboard-write"]
    async with running_service(tmp_path, access=access) as service:
        service.generations.avatar = lambda task: a_jpeg(128, 128)
        _, key = kept_key(service.settings, "ana")
        service.client.headers["Authorization"] = f"Bearer {key}"
        job_id = await service.submitted()
        await service.ended(job_id)
        async with opened(browser, service.url, loads=False, permissions=permissions) as page:
            await page.evaluate("key => sessionStorage.setItem('avatarforge.key', key)", key)
            await page.reload()
            await page.goto(f"{service.url}/#/photo/ana/{job_id}")
            await page.get_by_role("button", name="Copy image").click()
            await expect(page.locator(".toast")).to_have_text("The image is copied.")
            types = await page.evaluate("async () => (await navigator.clipboard.read())[0].types")
            assert types == ["image/png"]

            about = {"jobRetentionDays": None, "termsUrl": None, "maxLinkSeconds": None}
            await page.route("**/about", lambda route: route.fulfill(json=about))
            copy = page.get_by_role("button", name="Copy link")
            await page.reload()
            await expect(page.get_by_role("button", name="Copy image")).to_be_visible()
            await expect(copy).to_have_count(0)
            about["maxLinkSeconds"] = 2 * 24 * 3600
            await page.reload()
            await copy.click()
            assert await page.locator("#ask-input option").all_inner_texts() == ["an hour", "a day"]
            await page.keyboard.press("Escape")

            await page.get_by_role("button", name="Copy link").click()
            await page.select_option("#ask-input", label="a day")
            assert await grave_findings(page) == []
            await page.click("dialog button.primary")
            await expect(page.locator(".toast").last).to_have_text("The link is copied.")
            link = str(await page.evaluate("navigator.clipboard.readText()"))
        assert link.startswith(f"{service.url}/customers/ana/photos/{job_id}/generated?")
        async with httpx.AsyncClient() as stranger:
            assert (await stranger.get(link)).content == a_jpeg(128, 128)


async def test_where_no_key_is_asked_for_the_link_is_the_plain_address(
    service: Service, browser: Browser
) -> None:
    job_id = await service.submitted()
    await service.ended(job_id)
    permissions = ["clipboard-read", "clipboard-write"]
    path = f"/#/photo/ana/{job_id}"
    async with opened(browser, service.url, path, permissions=permissions) as page:
        await page.get_by_role("button", name="Copy link").click()
        await expect(page.locator(".toast")).to_contain_text("It works until the avatar is erased")
        link = await page.evaluate("navigator.clipboard.readText()")
    assert link == f"{service.url}/customers/ana/photos/{job_id}/generated"


async def test_in_the_gallery_one_searches_chooses_several_and_saves_or_erases_them(
    service: Service, page: Page
) -> None:
    wishes = ({"style": "neon"}, {"style": "watercolor", "prompt": "Red Hair"}, {"prompt": "red hat"})
    jobs = [await service.submitted(photo=PORTRAIT.read_bytes(), **wish) for wish in wishes]
    for job_id in jobs:
        await service.ended(job_id)

    async def fetch_one(route: Route) -> None:
        await route.continue_(url=route.request.url.replace("limit=24", "limit=1"))

    # A search looks through older pages, too.
    await page.route("**/photos?limit=24", fetch_one)
    await page.reload()
    card, count = page.locator(".card"), page.locator("#chosen-count")
    await page.click(".tabs [data-view=gallery]")
    await expect(card).to_have_count(1)
    for text, found in {"red": 2, "réd WATERCOLOUR": 1, "blue": 0}.items():
        await page.fill("#search", text)
        await expect(card).to_have_count(found)
        await expect(page.locator("#found")).to_have_text(f"{found} of 3")
    await expect(page.locator("#gallery")).to_have_text(
        "No avatar has these words in its style or description."
    )

    await page.fill("#search", "red")
    await page.click("#choosing")
    await expect(page.locator("#zip")).to_be_disabled()
    await page.click("#choose-all")
    await expect(count).to_have_text("2 selected")
    await page.fill("#search", "neon")
    await expect(count).to_have_text("0 selected, 2 not shown")
    await expect(page.locator("#erase-chosen")).to_be_disabled()
    await page.evaluate(
        """() => {
          window.written = 0;
          const observer = new MutationObserver(() => (window.written += 1));
          for (const one of document.querySelectorAll("#found, #chosen-count"))
            observer.observe(one, { childList: true, characterData: true, subtree: true });
        }"""
    )
    await page.dispatch_event("#search", "input")
    assert await page.evaluate("written") == 0, "the same is not read out again"
    await page.click("#choosing")
    await page.fill("#search", "red")
    await page.click("#choosing")
    await expect(count).to_have_text("0 selected")
    assert await page.locator(".card input:checked").count() == 0
    await page.click("#choose-all")
    await page.fill("#search", "")
    await page.get_by_role("checkbox", name=re.compile("^Select Neon of ")).check()
    assert await grave_findings(page) == []
    waiting = asyncio.Event()

    async def fail_once(route: Route) -> None:
        await page.unroute(f"**/photos/{jobs[0]}/generated*")
        await waiting.wait()
        problem = {"code": "storage_unavailable", "detail": "The storage is away."}
        await route.fulfill(status=503, json=problem, content_type="application/problem+json")

    async def miss(route: Route) -> None:
        problem = {"code": "image_not_found", "detail": "There is none."}
        await route.fulfill(status=404, json=problem, content_type="application/problem+json")

    await page.route(f"**/photos/{jobs[0]}/generated*", fail_once)
    await page.route(f"**/photos/{jobs[1]}/generated*", miss)
    async with page.expect_download() as download:
        await page.click("#zip")
        await expect(page.locator("#zip")).to_have_text("2 of 3")
        await expect(page.locator("#zip")).to_have_attribute("aria-disabled", "true")
        waiting.set()
    await expect(page.locator("#zip")).to_have_text("Download as ZIP")
    await expect(page.locator(".toast").last).to_have_text("Left out, since there is no avatar: 1")
    await page.get_by_role("checkbox", name=re.compile("^Select Watercolour of ")).uncheck()
    file = await download.value
    assert file.suggested_filename == "ana-avatars.zip"
    with zipfile.ZipFile(await file.path()) as archive:
        assert archive.testzip() is None
        assert {archive.read(name) for name in archive.namelist()} == {a_jpeg(128, 128)}
        names = [re.sub(r"\d{4}-\d\d-\d\d-\d{4}", "TIME", name) for name in archive.namelist()]
    assert sorted(names) == ["ana-avatar-TIME.png", "ana-neon-TIME.png"]

    await page.fill("#search", "neon")
    await expect(count).to_have_text("1 selected, 1 not shown")
    await page.click("#erase-chosen")
    await expect(page.locator(".toast").last).to_contain_text("Neon of ")
    await expect(page.locator("#choosing")).to_be_focused()
    await page.fill("#search", "")
    await expect(card).to_have_count(2)
    await expect(count).to_have_text("1 selected")
    await page.click("#choose-all")
    await page.click("#erase-chosen")
    await expect(page.locator(".toast").last).to_contain_text("2 avatars will be erased with their photos")
    await expect(card).to_have_count(0)
    await leave(page)
    await wait_until(lambda: service.records.list_jobs("ana", None, 10) == [])
