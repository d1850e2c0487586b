"""Makes the pictures of the studio that the README shows, from the running service: `make screenshots`."""

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from PIL import Image
from playwright.async_api import Browser, Page, expect

from tests.servers.avatarforge import AvatarForgeServer
from tests.studio.browser import PORTRAIT, is_painted, job_shown, opened, running_browser
from tests.waiting import wait_until

FOLDER = Path(__file__).parents[2] / "docs" / "images"
MOST_BYTES = 300_000
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "device_scale_factor": 1.5}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
FIELDS = (
    {"style": "neon", "seed": "3"},
    {"style": "pencil-sketch", "seed": "5"},
    {"style": "watercolor", "seed": "11"},
    {"style": "pixel-art", "seed": "2"},
    {"style": "oil-painting", "seed": "8"},
    {"style": "watercolor", "seed": "4", "prompt": "pink background"},
    {"style": "flat-illustration", "seed": "6", "prompt": "teal background"},
    {"style": "flat-illustration", "seed": "1"},
)
"""What the gallery's avatars were asked for."""


def forged(url: str) -> str:
    """Fills the gallery; the id of the last job."""
    with httpx.Client(base_url=url, timeout=120) as client:
        for fields in FIELDS:
            accepted = client.post("/customers/ana", files={"photo": PORTRAIT.read_bytes()}, data=fields)
            accepted.raise_for_status()
            status = client.get(accepted.headers["location"], params={"waitSeconds": 60}).json()
            assert status["status"] == "DONE", status
    return str(status["jobId"])


@asynccontextmanager
async def taken(browser: Browser, url: str, path: str, name: str, **context: Any) -> AsyncIterator[Page]:
    """The page, whose picture is taken when the body is through."""
    async with opened(browser, url, path, **context) as page:
        yield page
        await wait_until(lambda: _is_complete(page))
        picture = Image.open(io.BytesIO(await page.screenshot()))
        target = FOLDER / f"{name}.webp"
        picture.convert("RGB").save(target, quality=88, method=6)
        assert target.stat().st_size <= MOST_BYTES, f"{target} is larger than {MOST_BYTES} bytes"
        print(f"{target}  {target.stat().st_size:,} bytes")


async def _is_complete(page: Page) -> bool:
    """Whether every image that is to be seen is there, and no transition runs."""
    return bool(
        await page.evaluate(
            """[...document.images].every(image => !image.checkVisibility() || image.naturalWidth > 0)
               && document.getAnimations().every(one => one.playState !== "running")"""
        )
    )


async def take(url: str, job_id: str) -> None:
    async with running_browser() as browser:
        async with taken(browser, url, "/", "studio-light", **DESKTOP) as page:
            await page.set_input_files("#photo", PORTRAIT)
            await expect(page.locator("#crop-place")).to_contain_text("Around the face")
            await page.check("[name=style][value=watercolor]")
            await page.fill("#prompt", "teal background")
            for _ in range(4):
                await page.press(".frame", "+")
            for _ in range(6):
                await page.press(".frame", "ArrowUp")
            await page.evaluate("document.activeElement.blur()")
        async with taken(browser, url, "/", "studio-dark", color_scheme="dark", **DESKTOP) as page:
            await page.set_input_files("#photo", PORTRAIT)
            await page.check("[name=style][value=flat-illustration]")
            await page.click("summary")
            await page.fill("#steps", "150")
            await page.click("#forge")
            running = await job_shown(page)
            await expect(page.locator(".preview")).to_be_visible(timeout=30_000)
            await wait_until(lambda: _is_at(page, 60), 60)
        async with taken(browser, url, f"/#/photo/ana/{job_id}", "compare", **DESKTOP) as page:
            await wait_until(lambda: is_painted(page, ".compare .after"))
        async with taken(
            browser, url, f"/#/photo/ana/{job_id}", "phone", color_scheme="dark", **PHONE
        ) as page:
            await wait_until(lambda: is_painted(page, ".compare .after"))
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            path = f"/customers/ana/photos/{running}/status"
            assert (await client.get(path, params={"waitSeconds": 60})).json()["status"] == "DONE"
            # It had many steps only so that they could be seen; the model is made for one.
            (await client.delete(path.removesuffix("/status"))).raise_for_status()
        async with taken(browser, url, "/#/gallery", "gallery", color_scheme="dark", **DESKTOP) as page:
            await expect(page.locator(".card")).to_have_count(len(FIELDS))
        async with taken(browser, url, "/#/models", "models", **DESKTOP) as page:
            await expect(page.locator(".replicas li")).to_be_visible()


async def _is_at(page: Page, step: int) -> bool:
    return bool(await page.eval_on_selector("#steps-bar progress", "bar => bar.value") >= step)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, AvatarForgeServer(Path(folder) / "data") as service:
        asyncio.run(take(service.url, forged(service.url)))


if __name__ == "__main__":
    sys.exit(main())
