"""The studio in a real Chromium, from a photo to its avatar and what becomes of it."""

import asyncio
import io
import os
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.async_api import Browser, CDPSession, Page, Route, expect

from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.domain.jobs import Crop
from avatarforge.domain.replicas import ModelFailure
from avatarforge.domain.status import ProcessingStatus
from avatarforge.imaging.crop import find_square
from tests import pictures
from tests.factories import NOON, a_manifest, a_model, a_report, an_outcome, write_model
from tests.integration.rest import a_jpeg
from tests.integration.service import Service, a_preview, running_service
from tests.studio.browser import (
    LISTEN,
    PHONE,
    PORTRAIT,
    become,
    grave_findings,
    is_painted,
    job_shown,
    kept_photos,
    leave,
    opened,
    send,
    tab_to,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_photo_becomes_an_avatar_before_ones_eyes(service: Service, page: Page) -> None:
    puppet = service.puppet()
    await page.set_input_files("#photo", PORTRAIT)
    await page.check("[name=style][value=neon]")
    await page.fill("#prompt", "red hair")
    await page.click("#forge")
    job_id = await job_shown(page)
    puppet.step(12, 25, a_preview())
    await expect(page.locator("#situation")).to_have_text("Step 12 of 25")
    await expect(page.locator(".preview")).to_be_visible()
    puppet.finish()

    await expect(page.locator(".compare")).to_be_visible()
    for picture in (".compare .before", ".compare .after"):
        await wait_until(lambda picture=picture: is_painted(page, picture))
    await expect(page.locator("#said")).to_have_text("The avatar is done.")
    asked = service.recorded(job_id).parameters
    assert (asked.style, asked.prompt, asked.crop_to_face) == ("neon", "red hair", True)
    assert asked.strength is None, "what nobody has chosen is the model's to choose"


async def test_below_a_proxys_path_the_studio_works_the_same(tmp_path: Path, browser: Browser) -> None:
    http = {"root_path": "/avatars"}
    asked: list[str] = []
    async with (
        running_service(tmp_path, http=http) as service,
        opened(browser, service.url, "/avatars/") as page,
    ):
        page.on("request", lambda request: asked.append(request.url.removeprefix(service.url)))
        puppet = service.puppet()
        await send(page)
        await job_shown(page)
        puppet.step(1, 25, a_preview())
        await expect(page.locator("#situation")).to_have_text("Step 1 of 25")
        puppet.finish()
        await expect(page.locator(".compare")).to_be_visible()

    assert [path for path in asked if not path.startswith(("/avatars/", "blob:", "data:"))] == []


@asynccontextmanager
async def studio_of(
    manifest: Manifest, folder: Path, browser: Browser
) -> AsyncIterator[tuple[Service, Page]]:
    """A service of this model, and its studio, just opened."""
    settings = write_model(manifest, folder)
    async with running_service(folder, diffusion=settings) as service, opened(browser, service.url) as page:
        yield service, page


async def test_the_strength_is_the_models_until_it_is_chosen(tmp_path: Path, browser: Browser) -> None:
    async with studio_of(a_manifest(defaults={"strength": 0.65}), tmp_path, browser) as (service, page):
        await expect(page.locator("#dial-label")).to_have_text("Strength")
        await expect(page.locator("#dial-value")).to_have_text("0.65")
        await page.set_input_files("#photo", PORTRAIT)
        await page.fill("#dial", "0.4")
        await page.click("#forge")
        asked = service.recorded(await job_shown(page)).parameters
    assert (asked.strength, asked.image_guidance, asked.guidance) == (0.4, None, None)


@pytest.mark.parametrize("default", [1, 7.5])
async def test_the_slider_turns_the_image_guidance_of_a_model_that_edits_where_it_acts(
    tmp_path: Path, browser: Browser, default: float
) -> None:
    """It needs a guidance above 1, as what is to be avoided does."""
    manifest = a_manifest(family="instruct-pix2pix", defaults={"guidance": default})
    async with studio_of(manifest, tmp_path, browser) as (service, page):
        await page.click("summary")
        if default == 1:
            for field in ("#dial", "#negative-prompt"):
                await expect(page.locator(field)).to_be_hidden()
            await page.fill("#guidance", "1,5")
        await expect(page.locator("#negative-prompt")).to_be_visible()
        await expect(page.locator("#dial-label")).to_have_text("Image guidance")
        await expect(page.locator("#dial-value")).to_have_text("1.5")
        await page.set_input_files("#photo", PORTRAIT)
        # More is closer to the photo, which is to the left with either dial.
        await expect(page.locator("#dial")).to_have_attribute("dir", "rtl")
        await page.fill("#dial", "1.6")
        await page.click("#forge")
        asked = service.recorded(await job_shown(page)).parameters
        guidance = 1.5 if default == 1 else None
        assert (asked.strength, asked.image_guidance, asked.guidance) == (None, 1.6, guidance)

        # What would change nothing is not sent.
        await page.click(".thumb.add")
        await page.fill("#guidance", "0.5")
        await expect(page.locator("#dial")).to_be_hidden()
        await page.click("#forge")
        asked = service.recorded(await job_shown(page)).parameters
    assert (asked.image_guidance, asked.guidance) == (None, 0.5)


async def test_a_model_without_a_dial_has_no_slider(tmp_path: Path, browser: Browser) -> None:
    async with studio_of(a_manifest(capabilities={"strength": False}), tmp_path, browser) as (_, page):
        await expect(page.locator("[name=style][value=neon]")).to_have_count(1)
        await expect(page.locator("#dial")).to_be_hidden()


def beside_a_wall(folder: Path) -> Path:
    """A wide photo with the face to the right of its middle."""
    wide = Image.new("RGB", (1600, 900), (120, 110, 100))
    with Image.open(PORTRAIT) as portrait:
        wide.paste(portrait.convert("RGB").resize((700, 700)), (850, 120))
    wide.save(folder / "wide.png")
    return folder / "wide.png"


async def framed(page: Page) -> list[int]:
    """Left, top and side of the frame, in thousandths of the photo's width and height."""
    place = await page.eval_on_selector(
        ".frame", "frame => ['left', 'top', 'width'].map((name) => parseFloat(frame.style[name]))"
    )
    return [round(10 * value) for value in place]


async def test_the_square_is_shown_before_sending_and_is_what_is_made(
    service: Service, page: Page, tmp_path: Path
) -> None:
    wide = beside_a_wall(tmp_path)
    caption = page.locator("#crop-place")
    await page.set_input_files("#photo", wide)
    await expect(caption).to_have_text("Around the face: move it as you like")
    await expect(page.locator("#said")).to_have_text("Around the face: move it as you like")
    await expect(page.locator(".frame")).to_be_focused()
    with Image.open(wide) as photo:
        found = find_square(photo)
    shown = await framed(page)
    expected = [found.left / 1.6, found.top / 0.9, found.side / 1.6]
    assert shown == pytest.approx(expected, abs=12)
    await page.click("#forge")
    untouched = service.recorded(await job_shown(page))
    assert untouched.parameters.crop_to_face
    assert (untouched.original.width, untouched.original.height) == (1600, 900)

    # Whatever moves it: keys, the mouse, a corner, a click beside it, the slider.
    await page.click(".thumb.add")
    before = shown
    box = await page.locator(".whole img").bounding_box()
    assert box is not None
    at_left = (box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)

    async def moved() -> list[int]:
        nonlocal before
        last, before = before, await framed(page)
        assert before != last
        return before

    await page.focus(".frame")
    for key in ("+", "ArrowRight", "ArrowDown"):
        await page.keyboard.press(key)
        await moved()
    await expect(caption).to_have_text("As you framed it")
    await expect(page.locator("#said")).to_contain_text("per cent from the left")
    await page.keyboard.press("Control+ArrowLeft")
    assert await framed(page) == before, "with Control, keys are the browser's"
    await page.mouse.click(*at_left)
    assert (await moved())[0] < 200
    await page.mouse.move(*at_left)
    await page.mouse.down()
    await page.mouse.move(at_left[0] + box["width"] / 2, at_left[1], steps=3)
    await page.mouse.up()
    assert (await moved())[0] > 450
    right = before[0] + before[2]
    await page.locator(".corner").nth(0).hover()
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.4, steps=3)
    await page.mouse.up()
    left, _, side = await moved()
    assert left + side == pytest.approx(right, abs=2), "the opposite corner stays"
    await page.fill("#crop-size", "450")
    await moved()
    await page.click("#forge")
    job = service.recorded(await job_shown(page))
    assert not job.parameters.crop_to_face
    assert (job.original.width, job.original.height) == (450, 450)
    content = io.BytesIO(service.storage.get(job.original.key))
    assert Image.open(content).convert("L").getextrema()[1] > 100, "there is a picture on the canvas"

    await page.click(".thumb.add")
    await page.click("text=Around the face")
    await expect(caption).to_have_text("Around the face: move it as you like")
    assert await framed(page) == shown


async def test_an_avatar_need_not_be_square(
    service: Service, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a replica tells it of a photo that was framed in the page.
    monkeypatch.setattr("tests.integration.service.an_outcome", partial(an_outcome, crop=Crop.CENTRE))
    service.generations.avatar = lambda task: a_jpeg(192, 256)
    wide = beside_a_wall(tmp_path)
    await page.set_input_files("#photo", wide)
    await expect(page.locator("#crop-place")).to_have_text("Around the face: move it as you like")
    [left, top, square] = await framed(page)
    await page.click("summary")
    options = page.locator("#size option")
    values = [await option.get_attribute("value") for option in await options.all()]
    assert values == ["", "192x256", "256x192"]
    await expect(options.first).to_contain_text("256")
    await page.select_option("#size", "256x192")
    # As the server widens the square: as high as before, around the same middle.
    width = square * 4 / 3
    assert await framed(page) == pytest.approx([left + (square - width) / 2, top, width], abs=2)
    await page.select_option("#size", "192x256")
    await page.focus(".frame")
    await page.keyboard.press("-")
    await expect(page.locator("#crop-place")).to_have_text("As you framed it")
    await page.click("#forge")
    job = service.recorded(await job_shown(page))
    assert (job.parameters.width, job.parameters.height, job.parameters.crop_to_face) == (192, 256, False)
    assert job.original.width * 4 == job.original.height * 3, "what was framed is not cut once more"
    await wait_until(lambda: is_painted(page, ".compare .after"))
    box = await page.locator(".compare").bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(0.75, abs=0.01)

    # Whatever shape the next one was to have.
    await page.click(".thumb.add")
    await page.select_option("#size", "256x192")
    await page.goto(f"{service.url}/#/photo/ana/{job.job_id}")
    await page.get_by_role("button", name="Remix").click()
    await expect(page.locator("#size")).to_have_value("192x256")
    assert await framed(page) == [0, 0, 1000], "the photo is the frame that was sent"
    await page.reload()
    await expect(page.locator("#size")).to_have_value("192x256")


async def test_where_no_face_is_found_or_none_can_be_looked_for_the_page_says_so(
    service: Service, page: Page, tmp_path: Path
) -> None:
    Image.new("RGB", (200, 100), (120, 110, 100)).save(tmp_path / "wall.png")
    pictures.quarters().save(tmp_path / "quarters.tif")
    caption, again = page.locator("#crop-place"), page.locator("text=Another photo")
    await page.set_input_files("#photo", tmp_path / "wall.png")
    await expect(caption).to_have_text("No face found: frame it yourself")
    assert await framed(page) == [250, 0, 500]
    await again.click()
    await expect(page.locator("#photo")).to_be_focused()

    # What the browser cannot show comes as the server's square.
    await page.set_input_files("#photo", tmp_path / "quarters.tif")
    await expect(caption).to_have_text("This square becomes the avatar")
    await wait_until(lambda: is_painted(page, ".whole img"))
    await again.click()

    await page.context.set_offline(True)
    await page.set_input_files("#photo", PORTRAIT)
    await expect(page.locator("#photo-error")).to_contain_text("The face could not be looked for yet")
    await expect(caption).to_have_text("Left as it is, it is cut around the face")
    await page.context.set_offline(False)
    await expect(caption).to_have_text("Around the face: move it as you like")
    await expect(page.locator("#photo-error")).to_be_hidden()
    assert service.objects() == []


async def test_on_a_phone_a_stranger_meets_no_error_no_word_of_dropping_and_always_the_button(
    service: Service, browser: Browser, tmp_path: Path
) -> None:
    Image.new("RGB", (600, 1600), (120, 110, 100)).save(tmp_path / "tall.png")
    errors: list[str] = []
    async with opened(browser, service.url, is_stranger=True, **PHONE) as page:
        page.on("console", lambda line: line.type == "error" and errors.append(line.text))
        await page.evaluate("localStorage.clear(); sessionStorage.clear()")
        await page.reload()
        await expect(page.locator(".invitation h2")).to_have_text("Choose a portrait")
        await expect(page.locator("#photo-hint")).not_to_contain_text("paste")
        await expect(page.locator("#plain-why")).to_contain_text("portrait of a person")
        await page.click(".tabs [data-view=gallery]")
        await expect(page.locator("#gallery")).to_contain_text("Nothing here yet")
        assert errors == []

        await page.click(".tabs [data-view=studio]")
        puppet = service.puppet()
        await page.set_input_files("#photo", tmp_path / "tall.png")
        await expect(page.locator("#crop-place")).to_contain_text("No face found")
        await expect(page.locator("#forge")).to_be_in_viewport(ratio=1)
        await page.tap("#forge")
        await job_shown(page)
        puppet.step(0, 1)
        await expect(page.locator("#situation")).to_have_text("Being made …")
        puppet.finish()
        await expect(page.locator(".compare")).to_be_visible()
        # From now on there are jobs to be asked for.
        await page.reload()
        await page.click(".tabs [data-view=gallery]")
        await expect(page.locator(".card")).to_contain_text("No style")


async def test_a_photo_that_is_kept_for_a_reload_can_be_read_by_its_tab_alone(page: Page) -> None:
    await page.set_input_files("#photo", PORTRAIT)
    await wait_until(lambda: kept_photos_are(page, 1))
    begins = await page.evaluate(
        """() => new Promise((done) => {
          const opening = indexedDB.open("avatarforge");
          opening.onsuccess = () => {
            const asked = opening.result.transaction("photos").objectStore("photos").getAll();
            asked.onsuccess = () => {
              const { file } = asked.result.find((entry) => entry.file);
              done([...new Uint8Array(file, 0, 8)]);
            };
          };
        })"""
    )
    assert bytes(begins) != PORTRAIT.read_bytes()[:8]
    await page.reload()
    await expect(page.locator("#crop-place")).to_contain_text("Around the face")
    # Its storage goes with the tab.
    await wait_until(lambda: kept_photos_are(page, 1))
    await page.evaluate("delete sessionStorage['avatarforge.seal']")
    await page.reload()
    await expect(page.locator("#photo")).to_be_attached()


async def test_a_photo_can_be_dropped(page: Page) -> None:
    await page.evaluate(
        """async () => {
          window.addresses = new Set();
          const { createObjectURL, revokeObjectURL } = URL;
          URL.createObjectURL = (file) => {
            const address = createObjectURL.call(URL, file);
            addresses.add(address);
            return address;
          };
          URL.revokeObjectURL = (address) => addresses.delete(address) && revokeObjectURL.call(URL, address);
          const canvas = new OffscreenCanvas(64, 64);
          canvas.getContext("2d").fillRect(0, 0, 64, 64);
          const data = new DataTransfer();
          data.items.add(new File([await canvas.convertToBlob()], "dropped.png", { type: "image/png" }));
          const at = (name) => document.body.dispatchEvent(
            new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
          at("dragover"); at("drop"); at("drop");
        }"""
    )
    await expect(page.locator(".whole img")).to_be_visible()
    await expect(page.locator("#dropping")).to_be_hidden()
    assert await page.evaluate("addresses.size") == 1, "the first photo is let go"


async def test_several_files_become_several_jobs_a_text_stays_a_text_and_the_gallery_keeps_its_place(
    service: Service, page: Page, tmp_path: Path
) -> None:
    photos = [tmp_path / f"{name}.png" for name in ("one", "two", "three")]
    for photo in photos:
        pictures.quarters().save(photo)
    await page.check("[name=style][value=neon]")
    await page.set_input_files("#photo", photos)
    await expect(page.locator("dialog h2")).to_have_text("Make 3 avatars?")
    await page.click("dialog button.primary")
    await expect(page.locator("#queue-heading")).to_be_visible()
    await wait_until(lambda: len(service.records.list_jobs("ana", None, 10)) == 3, 30)
    assert {job.parameters.style for job in service.records.list_jobs("ana", None, 10)} == {"neon"}

    await page.set_viewport_size({"width": 375, "height": 400})
    await page.click(".tabs [data-view=gallery]")
    await expect(page.locator(".card[data-state=DONE]")).to_have_count(3)
    card = page.locator(".card .image").last
    await card.scroll_into_view_if_needed()
    place = await page.evaluate("scrollY")
    assert place > 0
    await card.click()
    await expect(page.locator("#job-heading")).to_be_focused()
    await page.go_back()
    await expect(card).to_be_focused()
    assert await page.evaluate("scrollY") == pytest.approx(place, abs=60)

    await page.click(".tabs [data-view=studio]")
    is_taken = """() => {
      const data = new DataTransfer();
      data.items.add("red hair", "text/plain");
      data.items.add(new File([new Uint8Array(9)], "text.png", { type: "image/png" }));
      const paste = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
      return !document.querySelector("#prompt").dispatchEvent(paste);
    }"""
    assert not await page.evaluate(is_taken)


async def test_a_photo_can_be_taken_with_the_camera(service: Service, page: Page) -> None:
    await page.click("text=Take a photo")
    await expect(page.locator("video")).to_be_visible(timeout=10_000)
    await wait_until(lambda: page.eval_on_selector("video", "video => video.videoWidth"))
    await page.click("text=Take it")
    await expect(page.locator(".whole img")).to_be_visible()
    await page.click("#forge")
    original = service.recorded(await job_shown(page)).original
    assert original.media_type == "image/jpeg"
    assert min(original.width, original.height) >= 480


async def throttle(session: CDPSession, bytes_per_second: int) -> None:
    """Let the page send no more; -1 is no limit."""
    speeds = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_second}
    await session.send("Network.emulateNetworkConditions", {"offline": False, **speeds})


async def test_an_upload_tells_its_progress_can_be_cancelled_and_goes_on_in_the_background(
    service: Service, page: Page, tmp_path: Path
) -> None:
    (tmp_path / "me.jpg").write_bytes(pictures.photo(1200, 1000, 900_000))
    await page.set_input_files("#photo", tmp_path / "me.jpg")
    await expect(page.locator("#crop-place")).to_contain_text("No face found")
    network = await page.context.new_cdp_session(page)
    await throttle(network, 20_000)
    row, share = page.locator("#sending li"), re.compile(r"^[1-9]\d? %$")
    await page.click("#forge")
    await expect(page.locator("#said")).to_have_text("Sending me.jpg")
    await expect(row.locator("span").first).to_have_text(share)
    await expect(page.locator("#forge")).to_contain_text("Sending … ")
    await expect(page.locator("#forge")).to_have_attribute("aria-disabled", "true")
    await expect(page.locator("#forge")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(row).to_have_count(1)
    assert await grave_findings(page) == []
    cancelling = row.get_by_role("button", name="Cancel sending me.jpg")
    # A press takes its time, in which the upload makes progress.
    await cancelling.hover()
    await page.mouse.down()
    said = await row.locator("span").first.inner_text()
    await expect(row.locator("span").first).not_to_have_text(said)
    await page.mouse.up()
    await expect(row).to_have_count(0)
    await expect(page.locator(".toast")).to_have_text("Not sent.")

    # Whoever looks at something else meanwhile is not called away.
    await page.press("#prompt", "Control+Enter")
    await expect(row.locator("span").first).to_have_text(share)
    await page.fill("#prompt", "red hair")
    await page.press("#prompt", "Control+Enter")
    await expect(row.nth(1)).to_contain_text("Waits for the one before")
    await cancelling.nth(1).click()
    await expect(row).to_have_count(1)
    await expect(row.locator("span").first).to_have_text(share)
    await page.click(".tabs [data-view=gallery]")
    await page.context.set_offline(True)
    await expect(row).to_contain_text("You are offline. It is sent when you are back.")
    await page.context.set_offline(False)
    await throttle(network, -1)
    await expect(page.locator(".card[data-state=DONE]")).to_have_count(1)
    await expect(page.locator("#gallery-heading")).to_be_visible()
    [job] = service.records.list_jobs("ana", None, 10)
    assert job.original.width == 1200


def hold_storage(service: Service, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let no photo be stored before the event that is returned is set."""
    gate, put = threading.Event(), service.storage.put

    def put_late(*image: Any) -> None:
        gate.wait(60)
        put(*image)

    monkeypatch.setattr(service.storage, "put", put_late)
    return gate


async def test_what_is_cancelled_after_it_was_received_is_no_job_and_can_be_sent_again(
    service: Service, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = hold_storage(service, monkeypatch)
    row = page.locator("#sending li")
    await page.set_input_files("#photo", PORTRAIT)
    await expect(page.locator("#crop-place")).to_contain_text("Around the face")
    await page.click("#forge")
    await expect(row).to_contain_text("Received")
    await page.context.set_offline(True)
    await expect(row).to_contain_text("You are offline.")
    await row.get_by_role("button").click()
    await expect(row).to_contain_text("Cancelling")
    puppet = service.puppet()
    gate.set()
    await page.context.set_offline(False)
    await expect(page.locator(".toast")).to_have_text("Not sent.")
    [job] = service.records.list_jobs("ana", None, 10)
    await wait_until(lambda: service.recorded(job.job_id).status == ProcessingStatus.CANCELLED)
    puppet.finish()

    await page.click("#forge")
    again = await job_shown(page)
    assert again != job.job_id
    await expect(page.locator(".compare")).to_be_visible()


async def test_a_job_whose_answer_never_came_is_there_when_the_page_is_opened_again(
    service: Service, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = hold_storage(service, monkeypatch)
    async with opened(browser, service.url, is_stranger=True) as page:
        customer = await page.inner_text("#customer-name")
        await send(page)
        await expect(page.locator("#sending li")).to_contain_text("Received")
        await page.close()
        gate.set()
        await wait_until(lambda: service.records.list_jobs(customer, None, 10))
        again = await page.context.new_page()
        await again.goto(f"{service.url}/#/gallery")
        await expect(again.locator(".card")).to_have_count(1)


async def test_what_could_not_be_had_is_asked_for_again_and_nothing_counts_down_meanwhile(
    service: Service, page: Page
) -> None:
    [tracker] = service.running_trackers
    await tracker.record_replica_report(a_report(model=a_model("avatar-mini"), step_seconds={1: 0.25}))
    failures = 1

    async def fail_once(route: Route) -> None:
        nonlocal failures
        failures -= 1
        if failures < 0:
            await route.fallback()
        else:
            problem = {"code": "database_unavailable", "detail": "The database is away.", "status": 503}
            await route.fulfill(status=503, json=problem, content_type="application/problem+json")

    await page.route("**/styles", fail_once)
    await page.reload()
    await expect(page.locator(".toast.error")).to_have_text("The database is away.")
    await expect(page.locator("#styles .style")).to_have_count(7)

    await wait_until(lambda: service.live.replicas, 30)
    failures = 1
    await page.route("**/customers/ana", fail_once)
    puppet = service.puppet()
    await send(page)
    await job_shown(page)
    for step in range(1, 4):
        puppet.step(step, 400)
    left = page.locator("#remaining")
    await expect(left).to_contain_text("left")
    await page.context.set_offline(True)
    await expect(left).to_have_text("")
    await expect(page.locator("#connection")).to_have_text("You are offline. What is shown may be old.")
    await page.context.set_offline(False)
    await expect(page.locator("#connection")).to_have_text("Connected again.")
    await expect(left).to_contain_text("left")


async def test_a_text_is_refused_at_the_photo_in_the_servers_words(
    service: Service, page: Page, tmp_path: Path
) -> None:
    text = tmp_path / "letter.txt"
    text.write_text("Dear reader, I am no picture.")
    await page.set_input_files("#photo", text)
    told = (await service.post(photo=text.read_bytes())).json()
    assert told["code"] == "photo_not_an_image"
    error = page.locator("#photo-error")
    await expect(error).to_be_visible()
    assert "letter.txt" in await error.inner_text()
    await expect(page.locator("#stage")).not_to_contain_text("all the same")
    await expect(page.locator("#crop-place")).to_be_hidden()
    assert (await error.inner_text()).split("letter.txt")[1] == told["detail"].split("portrait.jpg")[1]
    assert await page.get_attribute("#photo-error", "role") == "alert"
    await page.click("#forge")
    await expect(error).to_contain_text("letter.txt")

    # Whoever has gone on to a job is told there.
    answered, gate = asyncio.Event(), asyncio.Event()

    async def answer_late(route: Route) -> None:
        answered.set()
        await gate.wait()
        await route.continue_()

    await page.route("**/customers/ana", answer_late)
    await page.click("#forge")
    await answered.wait()
    await page.evaluate("location.hash = '#/photo/ana/no-such-job'")
    await expect(page.locator("#stage")).to_contain_text("This avatar cannot be shown")
    gate.set()
    await expect(page.locator(".toast.error")).to_contain_text("letter.txt")


async def test_a_file_that_has_changed_since_is_not_sent_for_ever(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "me.png"
    path.write_bytes(PORTRAIT.read_bytes())
    await page.set_input_files("#photo", path)
    await expect(page.locator("#crop-place")).to_contain_text("Around the face")
    path.write_bytes(b"other")
    # Browsers compare whole seconds.
    os.utime(path, (2_000_000_000, 2_000_000_000))
    await page.click("#forge")
    await expect(page.locator("#photo-error")).to_contain_text("The file has changed since it was chosen.")
    await expect(page.locator("#sending")).to_be_hidden()


async def test_a_wrong_value_is_told_at_its_field(page: Page) -> None:
    await page.set_input_files("#photo", PORTRAIT)
    await page.click("text=More")
    await page.fill("#steps", "900")
    await page.click("#forge")
    error = page.locator("[data-field=steps] .error")
    await expect(error).to_contain_text("900")
    await expect(page.locator("#steps")).to_be_focused()
    assert await page.get_attribute("#steps", "aria-describedby") == await error.get_attribute("id")
    await page.fill("#steps", "20")
    await expect(error).to_have_count(0)


async def test_the_keyboard_is_enough(service: Service, page: Page) -> None:
    await page.evaluate(LISTEN)
    async with page.expect_file_chooser() as chooser:
        # A key finds the page sooner than the order to hand the dialog over does. What `tab_to` asks
        # the page is answered after that order.
        await tab_to(page, "#photo")
        await page.keyboard.press("Enter")
    await (await chooser.value).set_files(PORTRAIT)
    await expect(page.locator(".frame")).to_be_focused()
    # Whoever is quicker than the server hears nothing of the face any more.
    await expect(page.locator("#crop-place")).to_have_text("Around the face: move it as you like")
    await tab_to(page, "[name=style]:checked")
    await page.keyboard.press("ArrowRight")
    await tab_to(page, "#prompt")
    await page.keyboard.type("smiling")
    await tab_to(page, "summary")
    await page.keyboard.press("Enter")
    await tab_to(page, "#guidance")
    await page.keyboard.type("2")
    await tab_to(page, "#dial")
    await page.keyboard.press("ArrowRight")
    await tab_to(page, "#forge")
    await page.keyboard.press("Enter")
    job_id = await job_shown(page)
    await expect(page.locator("#job-heading")).to_be_focused()

    asked = service.recorded(job_id).parameters
    assert (asked.style, asked.prompt) == ("flat-illustration", "smiling")
    # One step to the right: freer.
    assert (asked.guidance, asked.image_guidance) == (2, 1.4)
    await expect(page.locator(".compare")).to_be_visible()
    await tab_to(page, ".divider")
    await page.keyboard.press("Home")
    await expect(page.locator(".divider")).to_have_attribute("aria-valuetext", "After: 100 per cent")
    buttons = page.locator("#facts .actions button")
    name = r"Flat illustration of \d+:\d+ .M"
    await expect(buttons.first).to_have_accessible_name(re.compile(f"^Download: {name}$"))
    # What is erased can be had back for a while: by the key for that, or the button above the cards.
    undo = page.get_by_role("status").get_by_role("button", name="Undo")
    for by_button in (False, True):
        await tab_to(page, "[data-key^=Erase]")
        await page.keyboard.press("Enter")
        await expect(page.locator("#gallery-heading")).to_be_focused()
        await expect(page.locator("#gallery")).to_contain_text("Nothing here yet")
        if by_button:
            await page.keyboard.press("Shift+Tab")
            await expect(undo).to_be_focused()
        await page.keyboard.press("Enter" if by_button else "Control+z")
        await expect(page.locator("#job-heading")).to_be_focused()
        await expect(page.locator(".compare")).to_be_visible()
        await expect(undo).to_have_count(0)
    assert service.recorded(job_id).status == "DONE"
    await tab_to(page, "[data-key^=Erase]")
    await page.keyboard.press("Enter")
    await expect(page.locator("#gallery-heading")).to_be_focused()
    await leave(page)
    await wait_until(lambda: service.records.find_job("ana", job_id) is None)

    # In the gallery the focus stays while cards come, goes on to the next where its own goes, and at last to
    # the heading.
    await service.ended(await service.submitted(style="neon"))
    await expect(page.locator(".card[data-state=DONE]")).to_have_count(1)
    await tab_to(page, ".card a")
    await service.ended(await service.submitted(style="neon"))
    await expect(page.locator(".card[data-state=DONE]")).to_have_count(2)
    await expect(page.locator(".card a").last).to_be_focused()
    await expect(page.locator(".card a").first).to_have_accessible_name(re.compile(r"^Neon of .*, Done$"))
    await expect(page.locator(".card strong").first).to_have_text("Neon")
    for left in (1, 0):
        await tab_to(page, ".card [data-key^=Erase]")
        await page.keyboard.press("Enter")
        await expect(page.locator(".card")).to_have_count(left)
        target = ".card [data-key]" if left else "#gallery [data-key], #gallery-heading"
        await expect(page.locator(f":is({target}):focus")).to_have_count(1)
    announced = await page.evaluate("announced")
    for text in ("Around the face: move it as you like", "Sending portrait.png", "The avatar is done."):
        assert text in announced


async def test_an_avatar_is_remixed_made_in_another_style_and_the_draft_survives_a_reload(
    service: Service, page: Page
) -> None:
    wishes = {"style": "neon", "prompt": "png", "negativePrompt": "hat", "steps": "30", "format": "webp"}
    wishes |= {"guidance": "3"}
    unseen = {"allowRemote": "false", "width": "256", "height": "192", "timeoutSeconds": "600"}
    # More digits than a number can hold in a browser.
    seed = 2**53 + 1
    job_id = await service.submitted(photo=PORTRAIT.read_bytes(), seed=str(seed), **wishes, **unseen)
    await service.ended(job_id)
    await page.goto(f"{service.url}/#/photo/ana/{job_id}")
    await page.get_by_role("button", name="The same in Watercolour").dblclick()
    await expect(page.locator("#job-heading")).to_contain_text("Watercolour of")
    restyled, before = service.recorded(await job_shown(page)), service.recorded(job_id)
    told = (await service.get(restyled.job_id)).json()
    same = (await service.get(job_id)).json()
    assert (told["seed"], told["parameters"]) == (seed, {**same["parameters"], "style": "watercolor"})
    assert restyled.original.sha256 == before.original.sha256
    assert len(service.records.list_jobs("ana", None, 10)) == 2, "a second press makes no second job"

    await page.goto(f"{service.url}/#/photo/ana/{job_id}")
    await page.get_by_role("button", name="Remix").click()
    await expect(page.locator("#crop-place")).to_have_text("Around the face: move it as you like")

    async def is_filled() -> None:
        await expect(page.locator("[name=style]:checked")).to_have_value("neon")
        for field, text in {"prompt": "png", "negativePrompt": "hat", "steps": "30"}.items():
            await expect(page.locator(f"[name={field}]")).to_have_value(text)
        await expect(page.locator("#format")).to_have_value("webp")
        await expect(page.locator("#seed")).to_have_value("")

    await is_filled()
    await page.fill("#dial", await page.get_attribute("#dial", "min") or "")
    turned = await page.input_value("#dial")
    await page.focus(".frame")
    await page.keyboard.press("ArrowLeft")
    moved = await framed(page)
    await expect(page.locator("#crop-place")).to_have_text("As you framed it")

    # It is written down a moment after the last move.
    async def is_kept() -> bool:
        return await kept_photos(page) == ["file", "square"]

    await wait_until(is_kept)
    await page.reload()
    await expect(page.locator("#crop-place")).to_have_text("As you framed it")
    assert await page.evaluate("document.activeElement === document.body"), "a reload begins at the top"
    assert await framed(page) == moved
    await is_filled()
    await expect(page.locator("#dial")).to_have_value(turned)
    await page.click("#language-button")
    await expect(page.locator("#same-seed")).to_have_text(f"Usar a mesma semente, {seed}")
    await page.click("#language-button")
    await page.click("#same-seed")
    await expect(page.locator("#seed")).to_have_value(str(seed))

    await page.fill("#prompt", "")
    await page.click("#prompts >> text=png")
    await expect(page.locator("#prompt")).to_have_value("png")
    await expect(page.locator("#prompt")).to_be_focused()
    await page.click("#forge")
    told = (await service.get(await job_shown(page))).json()
    expected = {**same["parameters"], "cropToFace": False, "imageGuidance": float(turned)}
    assert (told["seed"], told["parameters"]) == (seed, expected)

    await page.click(".thumb.add")
    await page.click("text=Leave it out")
    await expect(page.locator("#carried")).to_be_hidden()
    await page.click("text=Another photo")
    await page.reload()
    await expect(page.locator("#photo")).to_be_attached()


async def test_jobs_are_cancelled_repeated_and_erased_in_the_gallery(service: Service, page: Page) -> None:
    job_id = await service.running()
    await page.click("text=Gallery")
    card = page.locator(".card")
    await expect(card).to_have_count(1)
    await page.click(".card >> text=Cancel")
    await expect(card).to_have_attribute("data-state", "CANCELLED")
    await page.click(".card >> text=Try again")
    retried = await job_shown(page)
    await expect(page.locator(".compare")).to_be_visible()
    assert service.recorded(retried).retry_of == job_id

    await page.click("text=Gallery")
    await expect(card).to_have_count(2)
    async with page.expect_download() as download:
        await page.click(f".card [data-key='Download {retried}']")
    assert re.fullmatch(r"ana-avatar-\d{4}\.\w+", (await download.value).suggested_filename)
    await page.click(f".card [data-key='Erase {job_id}']")
    await expect(card).to_have_count(1)
    await page.reload()
    await wait_until(lambda: service.records.find_job("ana", job_id) is None)
    await expect(card).to_have_count(1)


async def test_what_is_erased_can_be_had_back_for_ten_seconds(service: Service, browser: Browser) -> None:
    kept, erased = await service.submitted(style="neon"), await service.submitted(style="watercolor")
    await service.ended(erased)
    async with opened(browser, service.url, **PHONE) as page:
        await page.clock.install()
        await page.goto(f"{service.url}/#/photo/ana/{erased}")
        await page.tap("[data-key^=Erase]")
        toast = page.locator(".toast")
        undo = toast.get_by_role("button", name="Undo")
        # Whoever is about to undo it has all the time they need.
        await undo.focus()
        await page.clock.run_for(20_000)
        await expect(toast).to_contain_text("and its photo will be erased in 10 seconds.")
        await expect(page.locator(".card")).to_have_count(1)
        assert await grave_findings(page) == []
        await undo.tap()
        await expect(page.locator("#job-heading")).to_contain_text("Watercolour")
        await page.clock.run_for(20_000)
        assert service.recorded(erased).status == ProcessingStatus.DONE

        # On a page that is erased a link leads to the gallery.
        await page.tap("[data-key^=Erase]")
        await page.goto(f"{service.url}/#/photo/ana/{erased}")
        await expect(page.locator("#stage")).to_contain_text("Erased.")
        failures = 1

        async def fail_once(route: Route) -> None:
            nonlocal failures
            failures -= 1
            problem = {"code": "database_unavailable", "detail": "The database is away.", "status": 503}
            if failures < 0:
                await route.fallback()
            else:
                await route.fulfill(status=503, json=problem, content_type="application/problem+json")

        await page.route(f"**/photos/{erased}", fail_once)
        await page.clock.run_for(11_000)
        await expect(toast).to_contain_text(["The database is away."])
        await page.clock.run_for(3_000)
        await wait_until(lambda: service.records.find_job("ana", erased) is None)
        await expect(toast.last).to_have_text("Erased.")
    assert service.recorded(kept).status == ProcessingStatus.DONE


async def test_the_queue_shows_who_runs_and_who_waits(service: Service, page: Page) -> None:
    running = [await service.running(), await service.running()]
    waiting = [await service.submitted(), await service.submitted()]
    await service.submitted("bea")
    await page.click("text=Queue")
    assert await page.locator(".lane").nth(0).locator("li").count() == len(running)
    await expect(page.locator(".lane").nth(1).locator("li")).to_have_count(len(waiting))
    await expect(page.locator(".lane").nth(1)).to_contain_text("Number 1 in line")
    await expect(page.locator(".row.other")).to_contain_text("bea")
    await expect(page.locator("#queue-count")).to_have_text("4")
    await page.locator(".lane").nth(0).locator("button").first.click()
    # Its slot is free now: those who wait are soon done.
    await expect(page.locator("#queue-count")).to_have_text("1")
    await expect(page.locator(".lane").nth(0).locator("li")).to_have_count(1)
    ends = [service.recorded(job_id).status for job_id in running]
    assert ends.count(ProcessingStatus.CANCELLED) == 1


async def test_the_models_tell_what_serves_and_how_the_service_is(page: Page) -> None:
    await page.click("text=Models")
    await expect(page.locator(".model h2")).to_have_text("Avatar Mini")
    await expect(page.locator(".templates li")).to_have_count(6)
    await expect(page.locator(".health .dot.ok")).to_have_count(3)


async def test_a_swap_that_failed_is_told_beside_what_still_serves(service: Service, page: Page) -> None:
    failure = ModelFailure(model="broken", reason="The model 'broken' cannot be used: why.", at=NOON)
    report = a_report(
        desired_model="broken",
        model=a_model("avatar-mini"),
        failure=failure,
        user_config_faults=("Nothing reads 'modle'.",),
        step_seconds={1: 0.25},
    )
    [tracker] = service.running_trackers
    await tracker.record_replica_report(report)
    await wait_until(lambda: service.live.replicas)
    await page.click(".tabs [data-view=models]")
    replica = page.locator(".replicas li")
    await expect(replica.locator("h3")).to_have_text("avatar-mini")
    await expect(replica.locator(".badge")).to_have_text("Serves")
    await expect(replica).to_contain_text("250 ms")
    await expect(replica.locator(".error").first).to_contain_text("The model 'broken' cannot be used: why.")
    await expect(replica.locator(".error").nth(1)).to_have_text("Nothing reads 'modle'.")


async def test_another_customer_sees_none_of_it(service: Service, page: Page) -> None:
    await service.ended(await service.submitted())
    await page.click("text=Gallery")
    await expect(page.locator(".card")).to_have_count(1)
    await page.click("#customer-button")
    await page.fill("#ask-input", "no spaces")
    await page.keyboard.press("Enter")
    await expect(page.locator("dialog .error")).to_be_visible()
    await page.fill("#ask-input", "bea")
    await page.keyboard.press("Enter")
    await expect(page.locator(".card")).to_have_count(0)

    # Nor what is being prepared, sent or fetched.
    await page.click(".tabs [data-view=studio]")
    await page.set_input_files("#photo", PORTRAIT)
    await page.fill("#prompt", "red hair")
    await expect(page.locator("#crop-place")).to_contain_text("Around the face")
    await throttle(await page.context.new_cdp_session(page), 2000)
    await page.click("#forge")
    await expect(page.locator("#sending")).to_contain_text("portrait.png")
    await become(page, "ana")
    await expect(page.locator("#sending")).to_be_hidden()
    await expect(page.locator("#photo")).to_be_attached()
    await expect(page.locator("#prompt")).to_have_value("")
    assert await kept_photos(page) == []
    assert service.records.list_jobs("bea", None, 10) == []
    asked, gate = asyncio.Event(), asyncio.Event()

    async def answer_late(route: Route) -> None:
        asked.set()
        await gate.wait()
        await route.continue_()

    await page.route("**/original?redirect=false", answer_late)
    await page.click(".tabs [data-view=gallery]")
    await page.click(".card >> text=Remix")
    await asked.wait()
    await become(page, "bea")
    async with page.expect_response("**/original?redirect=false"):
        gate.set()
    await page.click(".tabs [data-view=studio]")
    await expect(page.locator("#photo")).to_be_attached()
    assert await kept_photos(page) == []
    await page.reload()
    await expect(page.locator("#customer-name")).to_have_text("bea")


async def kept_photos_are(page: Page, count: int) -> bool:
    return (await kept_photos(page)).count("file") == count


async def test_a_tab_keeps_its_customer_whatever_another_tab_chooses(service: Service, page: Page) -> None:
    await page.set_input_files("#photo", PORTRAIT)
    await expect(page.locator("#crop-place")).to_contain_text("Around the face")
    # A tab that is duplicated has its storage, too.
    copied = await page.evaluate("JSON.stringify(sessionStorage)")
    twin = await page.context.new_page()
    await twin.add_init_script(f"sessionStorage.length || Object.assign(sessionStorage, {copied})")
    await twin.goto(service.url)
    await expect(twin.locator("#crop-place")).to_contain_text("Around the face")
    await wait_until(lambda: kept_photos_are(page, 2))
    await twin.click("text=Another photo")
    await wait_until(lambda: kept_photos_are(page, 1))
    await twin.set_input_files("#photo", PORTRAIT)
    await wait_until(lambda: kept_photos_are(page, 2))
    await twin.close()
    other = await page.context.new_page()
    await other.goto(service.url)
    await other.click("#customer-button")
    await other.fill("dialog input", "ben")
    await other.click("dialog button.primary")
    await expect(other.locator("#customer-name")).to_have_text("ben")
    # What a closed tab has left is removed.
    await wait_until(lambda: kept_photos_are(page, 1))
    # A new tab begins with the last choice.
    third = await page.context.new_page()
    await third.goto(service.url)
    await expect(third.locator("#customer-name")).to_have_text("ben")

    await page.click("#forge")
    job_id = await job_shown(page)
    assert service.recorded(job_id).customer_id == "ana"
    await expect(page.locator(".compare")).to_be_visible()
    await page.reload()
    await expect(page.locator("#customer-name")).to_have_text("ana")
    await expect(page.locator(".compare")).to_be_visible()
    # Nor does a reload choose for new ones.
    await third.evaluate("sessionStorage.clear()")
    await third.reload()
    await expect(third.locator("#customer-name")).to_have_text("ben")


async def test_a_picture_that_failed_is_not_taken_for_the_avatar_and_is_asked_for_again(
    service: Service, page: Page
) -> None:
    failures = 1
    gate = asyncio.Event()

    async def fail_once(route: Route) -> None:
        nonlocal failures
        failures -= 1
        if failures < 0:
            await gate.wait()
            await route.continue_()
        else:
            problem = {"code": "storage_unavailable", "detail": "Storage is away.", "status": 503}
            await route.fulfill(status=503, json=problem, content_type="application/problem+json")

    await page.route("**/generated?*", fail_once)
    await send(page)
    await expect(page.locator(".compare .status")).to_contain_text("could not be fetched. Trying again")
    await expect(page.locator(".compare .status")).to_contain_text("Storage is away.")
    for part in (".after", ".divider", ".tag.right"):
        await expect(page.locator(f".compare {part}")).to_be_hidden()
    gate.set()
    await expect(page.locator(".compare .status")).to_have_count(0)
    await wait_until(lambda: is_painted(page, ".compare .after"))
    await expect(page.locator(".compare .divider")).to_be_visible()


async def test_a_link_that_leads_nowhere_says_so_and_one_of_another_customer_whose_it_is(
    service: Service, page: Page
) -> None:
    await page.goto(f"{service.url}/#/photo/ana/no-such-job")
    stage = page.locator("#stage")
    await expect(stage).to_contain_text("This avatar cannot be shown")
    await expect(stage).to_contain_text("no-such-job")
    await expect(stage.locator("a.primary")).to_have_attribute("href", "#/gallery")

    await page.goto(f"{service.url}/#/photo/ana%20/no-such-job")
    await expect(stage).to_contain_text("An id has up to 64 letters")
    job_id = (await service.post("ben")).json()["jobId"]
    await page.goto(f"{service.url}/#/photo/ben/{job_id}")
    await expect(stage).to_contain_text("This avatar belongs to ben")
    await expect(page.locator("#customer-name")).to_have_text("ana")
    await stage.locator("button", has_text="Go on as ben").click()
    await expect(page.locator("#customer-name")).to_have_text("ben")
    await expect(page.locator(".compare")).to_be_visible()


async def test_it_comes_back_after_the_server_restarted_and_says_so(
    service: Service, browser: Browser
) -> None:
    async with service.fresh_replica() as replica:
        port = int(replica.url.rpartition(":")[2])
        page_of = opened(browser, replica.url)
        page = await page_of.__aenter__()
        await page.click("text=Gallery")
    try:
        await expect(page.locator("#connection")).to_have_text("The connection is lost. Trying again …")
        await service.ended(await service.submitted())
        async with service.fresh_replica(port):
            await expect(page.locator("#connection")).to_have_text("Connected again.")
            await expect(page.locator(".card[data-state=DONE]")).to_have_count(1)
    finally:
        await page_of.__aexit__(None, None, None)


async def test_whoever_looks_elsewhere_is_told(service: Service, page: Page) -> None:
    await page.context.grant_permissions(["notifications"])
    await page.evaluate(
        """() => {
          window.shown = [];
          const Real = Notification;
          window.Notification = class extends Real {
            constructor(title, options) { super(title, options); shown.push([title, options.body]); }
          };
        }"""
    )
    puppet = service.puppet()
    await page.set_input_files("#photo", PORTRAIT)
    await page.check("[name=style][value=neon]")
    await page.click("#forge")
    await job_shown(page)
    icon = page.locator("link[rel=icon]")
    plain = await icon.get_attribute("href") or ""
    assert plain.endswith("mark.svg")
    puppet.step(5, 20)
    await expect(page).to_have_title(re.compile(r"^25 % · Neon of .* · AvatarForge$"))
    await expect(icon).to_have_attribute("href", re.compile("^data:image/png"))
    await page.click("text=Tell me when it is done")
    await expect(page.locator(".toast")).to_have_text("You will be told when it is done.")

    hide = "hidden => Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })"
    await page.evaluate(hide, True)
    puppet.finish()
    await expect(page).to_have_title(re.compile("^✓ Neon of "))
    [[title, text]] = await page.evaluate("shown")
    assert title.startswith("Neon of ")
    assert text == "The avatar is done."
    await page.evaluate(hide, False)
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect(page).to_have_title(re.compile("^Neon of "))
    await expect(icon).to_have_attribute("href", re.compile(f"{plain}$"))


async def test_where_a_photo_is_chosen_the_page_says_how_long_it_is_kept(
    tmp_path: Path, browser: Browser
) -> None:
    settings = {"tracker": {"job_retention_days": 30}, "http": {"terms_url": "https://example.org/terms"}}
    async with running_service(tmp_path, **settings) as service, opened(browser, service.url) as page:
        consent = page.locator("#consent")
        await expect(consent).to_contain_text(
            "Only photos of people who agree to it. Photo and avatar are kept"
        )
        await expect(consent).to_contain_text("for 30 days, or until you erase them")
        await expect(consent.locator("a")).to_have_attribute("href", "https://example.org/terms")
        assert await grave_findings(page) == []
