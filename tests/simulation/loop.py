"""An event loop in which time is a number, processes can be killed, and all chance comes from one seed.

Nothing sleeps and there are no threads: the clock jumps to the next timer, and what is given to an executor
runs as a greenlet, which may `pause` in the middle as a blocking call does. Every handle belongs to the
`Process` in whose context it was made. Within a process the order is asyncio's own; which process goes next
is drawn.
"""

import asyncio
import heapq
import itertools
import sys
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class Process:
    """What dies together: killed, none of its code ever runs again, not even to tidy up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.tasks: list[asyncio.Task[Any]] = []
        """All of them, also those that have ended: a task that is collected as garbage would run on."""
        self.left: list[events.Handle] = []
        """What would have run next when it was killed."""
        self.watchers: dict[asyncio.Future[None], None] = {}
        """Done when it is killed, in this order."""


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


START = 1000.0
"""What the clock shows at first."""


class Unhandled(AssertionError):
    """An error that nobody caught."""


class Stuck(AssertionError):
    """Nothing can ever happen again, or far too much has."""


class SimulatedLoop(asyncio.AbstractEventLoop):
    """As asyncio's own, as far as the tracker uses it."""

    MOST_STEPS = 400_000
    """Handles that a run may take before it counts as a livelock."""
    DEFAULT_WORKERS = 6
    """Threads of the default executor on a machine with two cores."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._now = START
        self.outside = Process("outside")
        """The world: the network, servers, and whoever looks on. It cannot be killed."""
        self._ready: dict[Process, deque[events.Handle]] = {}
        self._timers: list[tuple[float, int, events.TimerHandle, Process]] = []
        self._numbers = itertools.count()
        self._executors: dict[int, _Workers] = {}
        self._closed = False
        self.steps = 0
        self.failure: Exception | None = None
        """Set to end the run with it."""
        self.thread_delay: Callable[[], float] = lambda: 0.0
        """Seconds until a free thread of an executor begins with its work."""

    # --- running --------------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; it runs outside of all processes."""
        hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(finalizer=self._finalize)
        try:
            task = self.create_task(main)
            while not task.done():
                self._step()
                if self.failure is not None:
                    raise self.failure
            return task.result()
        finally:
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(None)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > self.MOST_STEPS:
            raise Stuck(f"more than {self.MOST_STEPS} steps")
        self._due()
        while not self._ready:
            if not self._timers:
                raise Stuck("nothing is ready and no timer is set")
            self._now = max(self._now, self._timers[0][0])
            self._due()
        processes = list(self._ready)
        process = processes[0] if len(processes) == 1 else self._chance.choice(processes)
        handles = self._ready[process]
        handle = handles.popleft()
        if not handles:
            del self._ready[process]
        if not process.is_alive:
            process.left.append(handle)
        elif not handle.cancelled():
            handle._run()

    def _due(self) -> None:
        while self._timers and self._timers[0][0] <= self._now:
            _, _, handle, process = heapq.heappop(self._timers)
            if not handle.cancelled():
                self._add(handle, process)

    def _add(self, handle: events.Handle, process: Process) -> None:
        handles = self._ready.get(process)
        if handles is None:
            handles = self._ready[process] = deque()
        handles.append(handle)

    def _finalize(self, generator: AsyncGenerator[Any, None]) -> None:
        # Of a generator that is collected as garbage nobody knows whose it was, nor when that happens.
        self.call_exception_handler({"message": f"a generator was left open: {generator!r}"})

    # --- processes ------------------------------------------------------------------------------------

    def spawn(
        self, process: Process, work: Coroutine[Any, Any, T], name: str | None = None
    ) -> "asyncio.Task[T]":
        """Run the coroutine in the process."""
        context = copy_context()
        context.run(_PROCESS.set, process)
        return self.create_task(work, name=name, context=context)

    def current_process(self) -> Process:
        return _PROCESS.get() or self.outside

    def kill(self, process: Process) -> None:
        process.is_alive = False
        process.left.extend(self._ready.pop(process, ()))
        for watcher in process.watchers:
            if not watcher.done():
                watcher.set_result(None)

    async def outlived(self, process: Process, work: Coroutine[Any, Any, T]) -> T:
        """What the work in the process returns or raises; `ConnectionError` when the process dies first.

        For the outside world, which sees a death as a closed connection.
        """
        death = self.create_future()
        process.watchers[death] = None
        task = self.spawn(process, work)
        try:
            await asyncio.wait((task, death), return_when=asyncio.FIRST_COMPLETED)
        finally:
            del process.watchers[death]
        if not task.done():
            raise ConnectionError(f"{process.name} is gone")
        return task.result()

    async def bury(self, processes: list[Process]) -> None:
        """End for good what the processes left, so that nothing of it runs when it is collected."""
        me = asyncio.current_task()
        self._timers.clear()
        for process in [self.outside, *processes]:
            process.is_alive = True
            for handle in process.left:
                self._add(handle, process)
            for _ in range(20):
                left = [task for task in process.tasks if not task.done() and task is not me]
                if not left:
                    break
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=5)
            process.is_alive = process is self.outside
        for workers in self._executors.values():
            workers.abandon()

    # --- asyncio's interface --------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        process = self._process_of(context)
        self._add(handle, process)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there are no threads

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> events.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> events.TimerHandle:
        handle = events.TimerHandle(when, callback, args, self, context)
        process = self._process_of(context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle, process))
        return handle

    def call_outside(self, delay: float, callback: Callable[..., object], *args: Any) -> events.TimerHandle:
        """A timer that no process takes with it."""
        return self.call_later(delay, callback, *args, context=NOBODYS)

    def _process_of(self, context: Context | None) -> Process:
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        return process or self.outside

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        """It is passed over when it comes up."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[Any]":
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        process = self._process_of(context)
        process.tasks.append(task)
        return task

    def run_in_executor(
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        workers = self._executors.get(id(executor))
        if workers is None:
            most = executor._max_workers if isinstance(executor, ThreadPoolExecutor) else self.DEFAULT_WORKERS
            # The executor is kept with them: another one must not get its number.
            workers = self._executors[id(executor)] = _Workers(self, executor, most)
        future = self.create_future()
        workers.put(SimulatedThread(self, lambda: func(*args), future, workers))
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.failure is None:
            self.failure = Unhandled(f"{context.get('message')}: {context.get('exception')!r}")


NOBODYS = Context()
"""A context in which no process is set."""


class SimulatedThread(greenlet):
    """A call in a thread of an executor."""

    def __init__(
        self, loop: SimulatedLoop, call: Callable[[], Any], future: "asyncio.Future[Any]", workers: "_Workers"
    ) -> None:
        super().__init__()
        self.loop = loop
        self.process = loop.current_process()
        self.gr_context = copy_context()
        self._call = call
        self._future = future
        self._workers = workers

    def run(self) -> None:
        if not self._future.cancelled():
            try:
                result = self._call()
            except Exception as error:
                if not self._future.cancelled():
                    self._future.set_exception(error)
            else:
                if not self._future.cancelled():
                    self._future.set_result(result)
        self._workers.done()

    def resume(self) -> None:
        """Go on until the next pause. For timers of the thread's process."""
        # A greenlet returns to its parent: to whoever drives the loop just now.
        self.parent = getcurrent()
        self.switch()


class _Workers:
    """The threads of one executor."""

    def __init__(self, loop: SimulatedLoop, executor: Executor | None, most: int) -> None:
        self._loop = loop
        self._executor = executor
        self._most = most
        self._busy: dict[Process, int] = {}
        self._waiting: deque[SimulatedThread] = deque()
        self._started: list[SimulatedThread] = []

    def put(self, thread: SimulatedThread) -> None:
        # The default executor stands for one in each process.
        if self._busy.get(thread.process, 0) < self._most:
            self._begin(thread)
        else:
            self._waiting.append(thread)

    def done(self) -> None:
        process = self._loop.current_process()
        self._busy[process] -= 1
        waiting = next((thread for thread in self._waiting if thread.process is process), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            self._begin(waiting)

    def abandon(self) -> None:
        """Nobody waits any more for what is still under way."""
        self._waiting.clear()
        for thread in self._started:
            if thread and not thread.dead:
                thread.parent = getcurrent()
                thread.throw()
        self._started.clear()

    def _begin(self, thread: SimulatedThread) -> None:
        self._busy[thread.process] = self._busy.get(thread.process, 0) + 1
        self._started.append(thread)
        self._loop.call_later(self._loop.thread_delay(), thread.resume)


def pause(seconds: float) -> None:
    """Block the simulated thread that calls. Elsewhere nothing passes."""
    thread = getcurrent()
    if isinstance(thread, SimulatedThread):
        thread.loop.call_later(seconds, thread.resume)
        thread.parent.switch()


def block(begin: Callable[[Callable[[Any], None]], None]) -> Any:
    """Block the simulated thread until what `begin` starts calls back, and return what it is told."""
    thread = getcurrent()
    assert isinstance(thread, SimulatedThread), "only calls in executors block"
    told: list[Any] = []
    context = copy_context()

    def wake(value: Any) -> None:
        told.append(value)
        thread.loop.call_soon(thread.resume, context=context)

    begin(wake)
    thread.parent.switch()
    return told[0]
