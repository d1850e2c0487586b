"""What every answer says to browsers: its policy, and which other sites' pages may read it."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page, async_playwright

from avatarforge.access.permissions import HTTP
from avatarforge.embedded import access_variables
from avatarforge.settings import load_settings
from tests.integration.rest import Rest, a_jpeg, problem, running_rest
from tests.integration.service import Service, running_service
from tests.keys import kept_key

SHOP = "https://shop.example"
PREFLIGHT = {
    "Origin": SHOP,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, idempotency-key",
}


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/customers/ana", "/customers/a%2Fb", "/docs", "/"])
async def test_every_answer_forbids_frames_guessing_and_telling_its_address(rest: Rest, path: str) -> None:
    answer = await rest.client.get(path)

    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "microphone=()" in answer.headers["permissions-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]


async def test_an_image_that_a_browser_opens_can_load_and_run_nothing(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/original")

    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


async def test_no_other_site_may_read_answers_unless_settings_say_so(rest: Rest) -> None:
    asked = await rest.client.get("/styles", headers={"Origin": SHOP})
    preflight = await rest.client.options("/customers/ana", headers=PREFLIGHT)

    assert "access-control-allow-origin" not in asked.headers
    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in preflight.headers


async def test_a_site_that_settings_name_may_read_answers_even_refusals(tmp_path: Path) -> None:
    access = {"required": "always", "cors_origins": f"{SHOP}, https://other.example"}
    async with running_rest(tmp_path, access=access) as rest:
        _, key = kept_key(rest.settings, "*")
        preflight = await rest.client.options("/customers/ana", headers=PREFLIGHT)
        refused = await rest.client.get("/customers/ana", headers={"Origin": SHOP})
        asked = await rest.client.get("/styles", headers={"Origin": SHOP, "Authorization": f"Bearer {key}"})
        stranger = await rest.client.get("/healthz", headers={"Origin": "https://evil.example"})
    assert preflight.status_code == 200
    used = {method for methods in HTTP.values() for method in methods}
    assert {method.lower() for method in used} <= _names(preflight, "access-control-allow-methods")
    allowed = _names(preflight, "access-control-allow-headers")
    assert {"authorization", "idempotency-key", "traceparent", "range"} <= allowed
    exposed = _names(asked, "access-control-expose-headers")
    assert {"x-request-id", "content-disposition", "location", "retry-after", "content-range"} <= exposed
    for answer in (preflight, refused, asked):
        assert answer.headers["access-control-allow-origin"] == SHOP
        assert "access-control-allow-credentials" not in answer.headers
    assert {"location", "retry-after"} <= _names(asked, "access-control-expose-headers")
    assert refused.status_code == 401
    assert "access-control-allow-origin" not in stranger.headers


LOCAL = "localhost, 127.0.0.1, ::1"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8000"},
        {"Host": "[::2]:8000"},
        {"Host": "[:"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
async def test_a_service_for_this_machine_does_nothing_for_the_pages_of_other_sites(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with running_rest(tmp_path, access={"allowed_hosts": LOCAL}) as rest:
        headers = {"Host": "localhost:8000", **headers}
        refused = await rest.client.post("/customers/ana", files={"photo": a_jpeg()}, headers=headers)
        read = await rest.client.get("/styles", headers=headers)
        assert list(rest.storage.list("")) == []
    assert (refused.status_code, problem(refused)["code"]) == (403, "foreign_site")
    assert (read.status_code, problem(read)["code"]) == (403, "foreign_site")
    assert "access.allowed_hosts" in problem(read)["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LocalHost:8000"},
        {"Host": "[::1]:8000"},
        {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"},
        {"Host": "127.0.0.1:8000", "Origin": SHOP},
    ],
)
async def test_a_service_for_this_machine_answers_its_own_pages_and_those_of_named_sites(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with running_rest(tmp_path, access={"allowed_hosts": LOCAL, "cors_origins": SHOP}) as rest:
        assert (await rest.client.get("/styles", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"REQUIRED": "never", "ALLOWED_HOSTS": "localhost,127.0.0.1,::1"}),
        (
            {"http": {"host": "127.0.0.9"}},
            {"REQUIRED": "never", "ALLOWED_HOSTS": "localhost,127.0.0.1,::1,127.0.0.9"},
        ),
        ({"access": {"allowed_hosts": "forge.example"}}, {"REQUIRED": "never"}),
        ({"access": {"required": "never"}}, {"REQUIRED": "never"}),
        ({"access": {"required": "always"}}, {"REQUIRED": "always"}),
        ({"http": {"host": "0.0.0.0"}}, {"REQUIRED": "always"}),
    ],
)
def test_only_who_lets_everybody_in_for_its_address_minds_by_what_name_it_is_called(
    given: dict[str, Any], told: dict[str, str]
) -> None:
    variables = access_variables(load_settings(given, environ={}))
    assert variables == {f"AVATARFORGE_ACCESS_{name}": value for name, value in told.items()}


def _names(answer: httpx.Response, header: str) -> set[str]:
    return {name.strip().lower() for name in answer.headers[header].split(",")}


# --- in a browser -----------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """One that asks for keys."""
    async with running_service(tmp_path, access={"required": "always"}) as service:
        yield service


@pytest_asyncio.fixture
async def page() -> AsyncIterator[Page]:
    chromium = shutil.which("chromium")
    assert chromium, "the tests need Debian's chromium; `make test` installs it"
    async with async_playwright() as playwright:
        # Chromium refuses its sandbox to root.
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield await browser.new_page()
        await browser.close()


async def test_the_description_of_the_interface_works_under_its_policy_and_takes_a_key(
    service: Service, page: Page
) -> None:
    complaints: list[Any] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    _, key = kept_key(service.settings, "*")

    await page.goto(f"{service.url}/docs")
    await page.get_by_role("button", name="Authorize").click()
    await page.locator(".auth-container input").fill(key)
    await page.locator(".auth-container button.authorize").click()
    await page.locator(".auth-container button.btn-done").click()
    await page.locator("#operations-models-listStyles .opblock-summary-control").click()
    await page.get_by_role("button", name="Execute").click()
    answer = page.locator("#operations-models-listStyles .live-responses-table")
    await answer.get_by_text("watercolor").first.wait_for()

    assert complaints == []
