"""A real Chromium without a window, and what the tests do with the studio's page in it."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.waiting import wait_until

PORTRAIT = Path(__file__).parents[2] / "avatarforge" / "samples" / "portrait.png"

# As long as the page's own: a loaded machine is slow, and what fails still fails.
expect.set_options(timeout=20_000)

_FLAGS = (
    # Chromium refuses its sandbox to root.
    "--no-sandbox",
    # A camera that shows a test picture, and that nobody has to allow.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)

_AS_ANA = "localStorage['avatarforge.customer'] ??= 'ana'"
_GRAVE = ("serious", "critical")
_OURS = ("blob:", "data:")


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "the tests need Debian's chromium; `make test` installs it"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=list(_FLAGS))
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser,
    url: str,
    path: str = "/",
    *,
    loads: bool = True,
    is_stranger: bool = False,
    **context: Any,
) -> AsyncIterator[Page]:
    """The studio as the customer ana sees it, or a stranger, ready where it `loads`.

    A script that breaks or breaks the page's policy fails the test, and so does a request to another host.
    """
    own = await browser.new_context(**{"reduced_motion": "reduce", **context})
    if not is_stranger:
        await own.add_init_script(_AS_ANA)
    page, faults = await own.new_page(), list[str]()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: "Content Security" in line.text and faults.append(line.text))
    page.on("request", lambda asked: asked.url.startswith((*_OURS, url)) or faults.append(asked.url))
    await page.goto(url + path)
    if loads:
        await page.locator("#styles .style").nth(1).wait_for(state="attached")
    yield page
    await own.close()
    assert faults == []


async def send(page: Page, photo: Path = PORTRAIT) -> None:
    """Choose the photo and ask for an avatar."""
    await page.set_input_files("#photo", photo)
    await page.click("#forge")


async def job_shown(page: Page) -> str:
    """The id of the job that is on the stage."""

    async def shown() -> str:
        return str(await page.evaluate("location.hash.split('/')[3] ?? ''"))

    return await wait_until(lambda: _told(shown)) or ""


async def _told(shown: Any) -> str:
    job_id: str = await shown()
    return job_id if len(job_id) == 36 else ""


PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}

_KEPT_ENTRIES = """() => new Promise((done) => {
  const opening = indexedDB.open("avatarforge");
  opening.onsuccess = () => {
    const asked = opening.result.transaction("photos").objectStore("photos").getAll();
    asked.onsuccess = () => {
      opening.result.close();
      done(asked.result.map(({ file, square }) => (file ? "file" : square ? "square" : "none")));
    };
  };
})"""


async def kept_photos(page: Page) -> list[str]:
    """What the browser's database keeps of photos, in order: "file"s and "square"s."""
    return [kind for kind in await page.evaluate(_KEPT_ENTRIES) if kind != "none"]


async def become(page: Page, customer: str) -> None:
    await page.click("#customer-button")
    await page.fill("#ask-input", customer)
    await page.keyboard.press("Enter")
    await expect(page.locator("#customer-name")).to_have_text(customer)


LISTEN = """() => {
  window.announced = [];
  const region = document.querySelector("#said");
  new MutationObserver(() => announced.push(region.textContent)).observe(region, { childList: true });
}"""
"""Notes what is announced."""


async def leave(page: Page) -> None:
    """Look at something else."""
    await page.evaluate(
        """Object.defineProperty(document, 'hidden', { value: true, configurable: true });
           document.dispatchEvent(new Event('visibilitychange'));
           delete document.hidden;"""
    )


async def tab_to(page: Page, selector: str, most: int = 60) -> None:
    """Press Tab until the focus is on the element."""
    for _ in range(most):
        if await page.evaluate("wanted => document.activeElement.matches(wanted)", selector):
            return
        await page.keyboard.press("Tab")
    raise AssertionError(f"{most} times Tab do not lead to {selector}")


async def is_painted(page: Page, selector: str) -> bool:
    """Whether the image is here and has pixels."""
    return bool(await page.eval_on_selector(selector, "image => image.complete && image.naturalWidth > 0"))


async def grave_findings(page: Page) -> list[tuple[str, Any]]:
    """Rules that the page breaks gravely, each with the elements that do."""
    found = await Axe().run(page)
    return [
        (rule["id"], [node["html"] for node in rule["nodes"]])
        for rule in found.response["violations"]
        if rule["impact"] in _GRAVE
    ]
