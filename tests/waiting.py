"""Waiting for a condition, with a deadline."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def wait_until(condition: Callable[[], T | Awaitable[T]], deadline: float = 10, what: str = "") -> T:
    """The condition's first true value. Fails the test after `deadline` seconds."""
    ends = time.monotonic() + deadline
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value  # type: ignore[return-value]  # awaited above
        assert time.monotonic() < ends, (
            f"not within {deadline} s: {what or inspect.getsource(condition).strip()}"
        )
        await asyncio.sleep(0.01)
