"""The service with replicas that paint real pictures, and a browser."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.integration.rest import a_jpeg
from tests.integration.service import Service, running_service
from tests.studio.browser import opened, running_browser


@pytest_asyncio.fixture(loop_scope="package")
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tmp_path) as service:
        # A browser shows it whatever its type is said to be.
        service.generations.avatar = lambda task: a_jpeg(128, 128)
        yield service


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="package")
async def page(service: Service, browser: Browser) -> AsyncIterator[Page]:
    """The studio, just opened."""
    async with opened(browser, service.url) as page:
        yield page
