"""Retries with back-off, periodic work, background tasks with an owner, threads for blocking calls."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import structlog

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=Exception)

Work = Callable[[], Awaitable[object]]

Clock = Callable[[], float]
"""Seconds of any clock that goes on evenly."""


def monotonic() -> float:
    """Return the seconds of the running event loop's own clock, which no change of the wall clock moves.

    A loop that simulates time decides over this one, too.
    """
    return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between tries: each delay is twice the one before, up to the longest."""

    first: float
    longest: float
    has_jitter: bool = False
    """Shorten each delay by up to a half, by chance, so that many callers do not come back at one moment."""

    def delays(self) -> Iterator[float]:
        delay = self.first
        while True:
            yield delay * random.uniform(0.5, 1) if self.has_jitter else delay
            delay = min(2 * delay, self.longest)


async def retry(
    call: Callable[[], Awaitable[T]],
    errors: type[E] | tuple[type[E], ...],
    backoff: Backoff,
    *,
    timeout_seconds: float | None = None,
    on_error: Callable[[E, float], None] | None = None,
) -> T:
    """Return the call's result; repeat the call while it raises one of `errors`.

    `on_error` gets the error and the seconds until the next try. The error is raised if that try would begin
    after `timeout_seconds`; without a timeout the call is repeated for as long as it takes.
    """
    ends_at = float("inf") if timeout_seconds is None else monotonic() + timeout_seconds
    delays = backoff.delays()
    while True:
        delay = next(delays)
        try:
            return await call()
        except errors as error:
            if monotonic() + delay > ends_at:
                raise
            if on_error is not None:
                on_error(error, delay)
        await asyncio.sleep(delay)


async def wait_for_event(event: asyncio.Event, timeout_seconds: float | None) -> bool:
    """Wait until the event is set or the time is over; return whether it is set."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()


async def run_periodically(
    work: Work,
    interval_seconds: float,
    *,
    first_delay_seconds: float = 0.0,
    wake: asyncio.Event | None = None,
) -> None:
    """Run the work for ever, with a pause after each round; setting `wake` ends the pause.

    What the work raises ends it.
    """
    wake = wake or asyncio.Event()
    await asyncio.sleep(first_delay_seconds)
    while True:
        wake.clear()
        await work()
        await wait_for_event(wake, interval_seconds)


class PeriodicTask:
    """Runs work periodically in its own task. An error is logged, and the next round comes all the same."""

    def __init__(
        self, name: str, work: Work, interval_seconds: float, *, wake: asyncio.Event | None = None
    ) -> None:
        self._name = name
        self._work = work
        self._interval_seconds = interval_seconds
        self._wake = wake
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin with a first round. Needs a running event loop."""
        rounds = run_periodically(self._run_once, self._interval_seconds, wake=self._wake)
        self._task = asyncio.get_running_loop().create_task(rounds, name=self._name)

    async def stop(self) -> None:
        """Cancel the round under way, and return once it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _run_once(self) -> None:
        try:
            await self._work()
        except Exception:
            log.exception("periodic work failed", task=self._name)


class BackgroundTasks:
    """Tasks that nobody awaits, and their owner, who ends them."""

    def __init__(self, on_error: Callable[[str, Exception], None]) -> None:
        """`on_error` gets a task's name and what the task raised."""
        self._on_error = on_error
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run the work beside the rest, until `stop`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._conclude)
        return task

    async def stop(self) -> None:
        """Cancel what runs, and return once it has ended."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _conclude(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._on_error(task.get_name(), error)


class BlockingPool:
    """Threads of one owner for calls that block, so that others' calls never wait for these."""

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the call returns, or raise what it raises."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: call(*args, **kwargs))

    async def close(self) -> None:
        """Wait for the calls under way, and end the threads."""
        await asyncio.to_thread(self._executor.shutdown)
