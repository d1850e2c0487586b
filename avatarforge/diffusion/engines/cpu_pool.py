"""Splits work over the threads of a CPU; a GPU takes it whole.

On a CPU two threads that compute one operation together wait for each other after each, some two
thousand times in one pass of a small UNet. Rows of a batch need no such meeting: they can be computed in
one thread each, from the beginning to the end. Which way is faster differs by machine and by model, so
warming up measures both, and what lies between, and the fastest is taken.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Final, TypeVar

import torch

_Result = TypeVar("_Result")

MAX_THREADS: Final = 16
"""More would wait for Python more than they compute."""


class CpuPool:
    """The threads that compute, the calling one included. Only one thread may call `run`."""

    def __init__(self, device: torch.device, threads: int, niceness: int = 0) -> None:
        """`threads` of a CPU; on a GPU only the caller's."""
        self._threads = threads
        self.size = min(threads, MAX_THREADS) if device.type == "cpu" else 1
        """How many tasks are computed side by side."""
        if device.type == "cpu":
            _tune_malloc()
        # Linux keeps niceness by thread.
        lower_priority = partial(os.nice, niceness) if niceness else None
        self._pool = ThreadPoolExecutor(max(1, self.size - 1), "cpu-pool", initializer=lower_priority)

    def list_lanes(self) -> list[int]:
        """Return the numbers of passes side by side that are worth measuring, the usual one first."""
        return sorted({1, 4 if self.size > 8 else 1, self.size}, reverse=True)

    def describe_lanes(self, lanes: int) -> str:
        """Return a phrase of the passes and the threads of each."""
        threads = max(1, self._threads // lanes)
        return f"{lanes} pass{'es' * (lanes > 1)} of {threads} thread{'s' * (threads > 1)}"

    def run(self, tasks: Sequence[Callable[[], _Result]]) -> list[_Result]:
        """Return the tasks' results, in their order. An error is raised once all threads have stopped."""
        workers = min(self.size, len(tasks))
        if workers == 0:
            return []
        results: dict[int, _Result] = {}
        # Each thread takes the next task that nobody has taken; `next` of an enumeration is one operation.
        remaining = iter(enumerate(tasks))
        threads_each = max(1, self._threads // workers)
        others = [
            self._pool.submit(_run_remaining, remaining, results, threads_each) for _ in range(workers - 1)
        ]
        try:
            _run_remaining(remaining, results, threads_each)
        finally:
            wait(others)
        for other in others:
            other.result()
        return [results[index] for index in range(len(tasks))]

    def close(self) -> None:
        self._pool.shutdown()


def _tune_malloc() -> None:
    """Let the C library keep what is freed, up to bounds, instead of giving it back to the system.

    Every step allocates the same some hundred megabytes anew. Getting them from the system each time took a
    seventh of the time. Only glibc has `mallopt`, and these numbers (malloc.h).
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        # The most that it takes: half of a thread's heap.
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 512 * 2**20)
        mallopt(top_pad, 64 * 2**20)


def _run_remaining(
    remaining: Iterator[tuple[int, Callable[[], _Result]]], results: dict[int, _Result], threads: int
) -> None:
    # Each thread has its own number; what torch has for all counts only where none was set.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        for index, task in remaining:
            results[index] = task()
