"""Several images of one photo: made at once, compared, and one kept."""

import re
import zipfile

import pytest
from playwright.async_api import Page, expect

from tests.integration.service import Service, a_preview
from tests.studio.browser import LISTEN, PORTRAIT, grave_findings, is_painted, job_shown, tab_to
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def choose_by_keys(page: Page, selector: str, times: int) -> None:
    await tab_to(page, selector)
    for _ in range(times):
        await page.keyboard.press("ArrowDown")


async def test_four_are_made_compared_and_one_is_kept_by_keyboard_alone(service: Service, page: Page) -> None:
    await page.evaluate(LISTEN)
    puppet = service.puppet()
    async with page.expect_file_chooser() as chooser:
        await tab_to(page, "#photo")
        await page.keyboard.press("Enter")
    await (await chooser.value).set_files(PORTRAIT)
    await expect(page.locator("#crop-place")).to_have_text("Around the face: move it as you like")
    await tab_to(page, "[name=style]:checked")
    await page.keyboard.press("ArrowRight")
    await choose_by_keys(page, "#variants", 3)
    await expect(page.locator("#variants")).to_have_value("4")
    await tab_to(page, "#forge")
    await page.keyboard.press("Enter")
    job_id = await job_shown(page)
    await expect(page.locator("#job-heading")).to_be_focused()
    parameters = service.recorded(job_id).parameters
    assert (parameters.variants, parameters.vary, parameters.style) == (4, "seed", "flat-illustration")

    # The sheet fills as they come, and what has the focus keeps it.
    images = page.locator(".sheet a")
    puppet.step(3, 80, a_preview(), 2)
    await wait_until(lambda: is_painted(page, ".sheet li:nth-child(3) img"))
    puppet.publish(1)
    await expect(images).to_have_count(1)
    await expect(images).to_have_accessible_name(re.compile(r"^Flat illustration of .*, image 2$"))
    await expect(page.locator(".sheet figcaption")).to_contain_text("1 of 4 images are done")
    await tab_to(page, ".sheet a")
    assert await grave_findings(page) == []
    puppet.publish(0)
    await expect(images).to_have_count(2)
    await expect(images.nth(1)).to_be_focused()
    puppet.finish()
    await expect(images).to_have_count(4)
    await expect(page.locator(".facts .badge")).to_have_text("Done")
    await expect(images.nth(1)).to_be_focused()

    # One beside the photo, beside another, and kept.
    await page.keyboard.press("Enter")
    await expect(page.locator("#job-heading")).to_be_focused()
    await expect(page.locator("#job-heading")).to_have_text(re.compile("image 2$"))
    await wait_until(lambda: is_painted(page, ".compare .after"))
    await choose_by_keys(page, "#compare-with", 2)
    await expect(page.locator(".tag.left")).to_have_text("Image 3")
    await expect(page.locator("#compare-with")).to_be_focused()
    await expect(page.locator(".divider")).to_have_accessible_name("Compare Image 3 and Image 2")
    await wait_until(lambda: is_painted(page, ".compare .before"))
    assert await grave_findings(page) == []
    keep = page.get_by_role("button", name="Keep this one")
    await tab_to(page, "[data-key=keep]")
    await page.keyboard.press("Enter")
    await expect(keep).to_have_attribute("aria-pressed", "true")
    await expect(keep).to_be_focused()
    assert service.recorded(job_id).kept == 1
    await tab_to(page, "[data-key=all-images]")
    await page.keyboard.press("Enter")
    await expect(images.nth(1)).to_have_accessible_name(re.compile("image 2, kept$"))

    announced = await page.evaluate("announced")
    for text in ("1 of 4 images are done", "2 of 4 images are done", "The avatar is done."):
        assert text in announced
    assert any(text.endswith("image 2, kept") for text in announced)
    await page.click(".tabs [data-view=gallery]")
    await expect(page.locator(".card .number")).to_have_text("4")


async def test_all_are_saved_at_once_and_others_like_one_are_made(service: Service, page: Page) -> None:
    job_id = await service.submitted(style="neon", variants="2", seed="7", prompt="red hat")
    await service.ended(job_id)
    await page.goto(f"{service.url}/#/photo/ana/{job_id}")
    async with page.expect_download() as download:
        await page.click("text=Download all as ZIP")
    file = await download.value
    assert re.fullmatch(r"ana-neon-\d{4}\.zip", file.suggested_filename)
    with zipfile.ZipFile(await file.path()) as archive:
        assert [archive.read(name)[-1:] for name in archive.namelist()] == [b"0", b"1"]

    await page.locator(".sheet a").nth(1).click()
    async with page.expect_download() as download:
        await page.click("[data-key^=Download]")
    assert (await download.value).suggested_filename.startswith("ana-neon-")
    await expect(page.locator("dl")).to_contain_text("8")
    await page.click("text=More like this")
    await expect(page.locator(".sheet a")).to_have_count(4)
    asked = service.recorded(await job_shown(page)).parameters
    assert (asked.variants, asked.vary, asked.style, asked.prompt) == (4, "seed", "neon", "red hat")
    assert asked.seed not in (7, 8)

    # Remix takes up how many there were.
    await page.goto(f"{service.url}/#/photo/ana/{job_id}")
    await page.get_by_role("button", name="Remix").click()
    await expect(page.locator(".frame")).to_be_visible()
    await expect(page.locator("#variants")).to_have_value("2")
    await page.select_option("#vary", "style")
    await page.click("#forge")
    await expect(page.locator(".sheet a")).to_have_count(2)
    asked = service.recorded(await job_shown(page)).parameters
    assert (asked.variants, asked.vary) == (2, "style")


async def test_what_a_failed_job_has_made_is_kept(service: Service, page: Page) -> None:
    puppet = service.puppet()
    job_id = await service.submitted(variants="3")
    puppet.publish(0)
    puppet.fail()
    await service.ended(job_id)
    await page.goto(f"{service.url}/#/photo/ana/{job_id}")
    await expect(page.locator(".sheet a")).to_have_count(1)
    await expect(page.locator("#facts .error")).to_contain_text("withheld")
    await expect(page.locator(".sheet li[data-state=none]")).to_have_count(2)
    await page.locator(".sheet a").click()
    await wait_until(lambda: is_painted(page, ".compare .after"))
