"""Fixtures that several integration tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.integration.rest import Rest, running_rest
from tests.integration.service import Service, running_service


@pytest_asyncio.fixture
async def rest(tmp_path: Path) -> AsyncIterator[Rest]:
    """The REST application over an empty record and an empty folder."""
    async with running_rest(tmp_path) as rest:
        yield rest


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """The whole service, and nothing in it."""
    async with running_service(tmp_path) as service:
        yield service
