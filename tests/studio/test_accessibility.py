"""What axe-core finds in every view, and what only a look at the page's state shows."""

import pytest
from playwright.async_api import Browser, Page, ViewportSize, expect

from tests.integration.service import Service, a_preview
from tests.studio.browser import PORTRAIT, grave_findings, opened
from tests.waiting import wait_until

COVER = """() => {
  const active = document.activeElement;
  let { top, bottom, left, right } = active.getBoundingClientRect();
  // Of what is large its middle.
  if (bottom - top > 120) top = bottom = (top + bottom) / 2;
  const name = active.id || active.name || active.textContent.trim() || active.tagName;
  const bar = [".bar", ".tabs", ".send"]
    .map((selector) => document.querySelector(selector))
    .filter((element) => element && !element.contains(active) && !active.matches(".skip"))
    .find((element) => {
      const box = element.getBoundingClientRect();
      return box.top < bottom - 1 && box.bottom > top + 1 && box.left < right && box.right > left;
    });
  return [active === document.body ? "BODY" : name, bar?.className ?? null];
}"""
"""What has the focus, and the bar over a part of it, if any."""

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.parametrize(
    ("scheme", "size"), [("light", (1280, 800)), ("dark", (390, 844))], ids=["light, desktop", "dark, phone"]
)
async def test_axe_finds_nothing_grave_in_any_view(
    service: Service, browser: Browser, scheme: str, size: tuple[int, int]
) -> None:
    done = await service.submitted()
    await service.ended(done)
    service.script(service.generations.failing)
    failed = await service.submitted()
    await service.ended(failed)
    puppet = service.puppet()
    running = await service.submitted()
    await service.running()
    await service.submitted()
    await service.submitted("bea")

    viewport = {"width": size[0], "height": size[1]}
    async with opened(browser, service.url, color_scheme=scheme, viewport=viewport) as page:
        findings = {"empty": await grave_findings(page)}
        await page.set_input_files("#photo", PORTRAIT)
        await expect(page.locator("#crop-place")).to_contain_text("Around the face")
        await page.press(".frame", "ArrowUp")
        await page.click("summary")
        await page.fill("#steps", "900")
        await page.click("#forge")
        await expect(page.locator(".field .error")).to_be_visible()
        findings["cropping, with an error"] = await grave_findings(page)
        puppet.step(7, 20, a_preview())
        for name, job_id in {"running": running, "done": done, "failed": failed}.items():
            await page.goto(f"{service.url}/#/photo/ana/{job_id}")
            await expect(page.locator("#stage [aria-label], #stage img[alt]").first).to_be_attached()
            findings[name] = await grave_findings(page)
        for view in ("gallery", "queue", "models"):
            await page.goto(f"{service.url}/#/{view}")
            await expect(page.locator(f"#{view} > *").first).to_be_visible()
            findings[view] = await grave_findings(page)
        await page.click("#customer-button")
        findings["a question"] = await grave_findings(page)
    assert {view: found for view, found in findings.items() if found} == {}


async def test_each_view_begins_at_its_heading_and_names_the_page(page: Page) -> None:
    for view, title in {"gallery": "Gallery", "queue": "Queue", "models": "Models"}.items():
        await page.click(f".tabs [data-view={view}]")
        await expect(page.locator(f"#{view}-heading")).to_be_focused()
        await expect(page).to_have_title(f"{title} · AvatarForge")
        await expect(page.locator(f".tabs [data-view={view}]")).to_have_attribute("aria-current", "page")


async def test_the_first_tab_leads_past_the_bar(page: Page) -> None:
    await page.keyboard.press("Tab")
    await expect(page.locator(".skip")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()


async def test_the_theme_follows_the_system_until_one_is_chosen(service: Service, browser: Browser) -> None:
    async def ground(page: Page) -> str:
        return str(await page.evaluate("getComputedStyle(document.body).backgroundColor"))

    async with opened(browser, service.url, color_scheme="dark") as page:
        dark = await ground(page)
        await page.emulate_media(color_scheme="light")
        light = await ground(page)
        assert dark != light
        await page.click("#theme-button")
        await page.click("#theme-button")
        await expect(page.locator("#theme-button")).to_have_attribute("aria-label", "Theme: dark")
        assert await ground(page) == dark
        await page.reload()
        assert await ground(page) == dark


async def test_nothing_moves_for_those_who_asked_for_that(service: Service, browser: Browser) -> None:
    puppet = service.puppet()
    job_id = await service.submitted()
    puppet.step(1, 20)
    async with opened(browser, service.url, f"/#/photo/ana/{job_id}", reduced_motion="no-preference") as page:
        await expect(page.locator(".making")).to_be_visible()
        moving = "document.getAnimations().filter(one => one instanceof CSSAnimation).length"
        await wait_until(lambda: page.evaluate(moving))
        await page.emulate_media(reduced_motion="reduce")
        assert await page.evaluate(moving) == 0


@pytest.mark.parametrize(
    "viewport",
    [(1280, 720), (375, 667), (640, 360), (320, 256)],
    ids=["desktop", "phone", "200 percent", "400 percent"],
)
async def test_what_has_the_focus_is_never_beneath_a_bar(
    service: Service, browser: Browser, viewport: tuple[int, int]
) -> None:
    """WCAG 2.4.11, for all that is reached by the keyboard where a photo is chosen."""
    size = ViewportSize(width=viewport[0], height=viewport[1])
    async with opened(browser, service.url, viewport=size) as page:
        await page.set_input_files("#photo", PORTRAIT)
        await page.click("summary")
        await page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
        seen, hidden = set[str](), list[str]()
        for _ in range(60):
            await page.keyboard.press("Tab")
            name, cover = await page.evaluate(COVER)
            if name in seen and name == "BODY":
                break
            seen.add(name)
            if cover:
                hidden.append(f"{name} beneath {cover}")
    assert len(seen) > 12
    assert hidden == []


HIT = """() => {
  const { left, top, width, height } = document.querySelector("#forge").getBoundingClientRect();
  const shares = [0.1, 0.5, 0.9];
  const points = shares.flatMap((x) => shares.map((y) => [left + x * width, top + y * height]));
  const bar = document.querySelector(".tabs").getBoundingClientRect();
  const isSeen = ([x, y]) => y > 0 && y < innerHeight && !(y > bar.top && y < bar.bottom);
  return points.filter(isSeen).map(([x, y]) => document.elementFromPoint(x, y).closest("#forge") !== null);
}"""


async def test_a_tap_on_the_button_meets_nothing_else_wherever_the_page_is(
    service: Service, browser: Browser
) -> None:
    hits: list[bool] = []
    size = ViewportSize(width=390, height=844)
    async with opened(browser, service.url, viewport=size) as page:
        await page.set_input_files("#photo", PORTRAIT)
        await expect(page.locator("#crop-place")).not_to_be_empty()
        height = await page.evaluate("document.documentElement.scrollHeight - innerHeight")
        for top in range(0, height + 40, 40):
            await page.evaluate(f"scrollTo(0, {top})")
            hits += await page.evaluate(HIT)
    assert len(hits) > 20
    assert all(hits), f"{hits.count(False)} of {len(hits)} points"


@pytest.mark.parametrize(
    "viewport", [(320, 640), (640, 360), (320, 256)], ids=["narrow", "200 percent", "400 percent"]
)
async def test_nothing_is_cut_off_however_small_and_forced_colours_show_what_is_chosen(
    service: Service, browser: Browser, viewport: tuple[int, int]
) -> None:
    """WCAG 1.4.10: a window of 1280 pixels that is zoomed is such a small one."""
    done = await service.submitted(
        style="neon", prompt="a-very-long-word-without-a-place-to-break-it-anywhere"
    )
    await service.ended(done)
    size = ViewportSize(width=viewport[0], height=viewport[1])
    wide = {}
    async with opened(browser, service.url, viewport=size, forced_colors="active", locale="pt-BR") as page:

        async def overflow() -> int:
            return int(await page.evaluate("document.documentElement.scrollWidth - innerWidth"))

        wide["empty"] = await overflow()
        await page.set_input_files("#photo", PORTRAIT)
        await expect(page.locator("#crop-place")).to_contain_text("Em volta do rosto")
        wide["framing"] = await overflow()
        await page.press(".frame", "ArrowUp")
        wide["framed"] = await overflow()
        outline = "element => getComputedStyle(element).outlineStyle"
        chosen = page.locator(".style:has(:checked) img")
        assert await chosen.evaluate(outline) == "solid"
        assert await page.locator(".style:not(:has(:checked)) img").first.evaluate(outline) == "none"
        assert await page.locator(".tabs a[aria-current]").evaluate(outline) == "solid"
        for view in (f"photo/ana/{done}", "gallery", "queue", "models"):
            await page.goto(f"{service.url}/#/{view}")
            await expect(
                page.locator(".view:not([hidden]) :is(.compare, .card, .nothing, .model)")
            ).to_be_visible()
            wide[view.split("/")[0]] = await overflow()
        await page.click("#customer-button")
        wide["a question"] = await overflow()
    assert {view: pixels for view, pixels in wide.items() if pixels > 0} == {}
