"""Waiting for a condition, with a deadline."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def wait_until(condition: Callable[[], T | Awaitable[T]], deadline: float = 10, what: str = "") -> T:
    """The condition's first true value. Fails the test after `deadline` seconds."""
    began = time.monotonic()
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value  # type: ignore[return-value]  # awaited above
        waited = time.monotonic() - began
        assert waited < deadline, f"not within {deadline} s: {what or inspect.getsource(condition).strip()}"
        # More seldom the longer it takes: the question itself should not hold up what is waited for.
        await asyncio.sleep(min(max(0.01, waited / 20), 0.2))
