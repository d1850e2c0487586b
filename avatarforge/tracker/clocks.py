"""The tracker's steady clock."""

import asyncio
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds of any steady clock."""


def steady() -> float:
    """Seconds of the running event loop's own clock, which goes on evenly whatever becomes of the wall clock.

    A loop that simulates time decides over this one, too.
    """
    return asyncio.get_running_loop().time()
