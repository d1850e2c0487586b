"""How work is laid on a device: a GPU takes it whole, a CPU takes a share on each of its lanes.

On a CPU two threads that compute one operation together wait for each other after each, some two
thousand times in one pass of a small UNet. Rows of a batch need no such meeting. So a batch is split into
as many parts as there are threads, and each part is computed in one thread from its beginning to its end.
Two lanes of one thread took half the time of two threads in one lane, and lose less to busy neighbours.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Final, TypeVar

import torch

_Answer = TypeVar("_Answer")

_MOST: Final = 16
"""Lanes: more would wait for Python more than they compute."""


class Lanes:
    """The threads that compute. Belongs to one thread, which computes too."""

    def __init__(self, device: torch.device, threads: int, niceness: int = 0) -> None:
        """`threads` of a CPU; a GPU has one lane."""
        self._threads = threads
        self.count = min(threads, _MOST) if device.type == "cpu" else 1
        """Of how many parts something may consist so that they are computed side by side."""
        if device.type == "cpu":
            _keep_memory()
        # Linux keeps niceness by thread.
        step_back = partial(os.nice, niceness) if niceness else None
        self._pool = ThreadPoolExecutor(max(1, self.count - 1), "lane", initializer=step_back)

    def run(self, works: Sequence[Callable[[], _Answer]]) -> list[_Answer]:
        """What each answers, in their order; raises an error of theirs once all lanes have stopped."""
        lanes = min(self.count, len(works))
        if lanes == 0:
            return []
        answers: dict[int, _Answer] = {}
        # Each lane takes the next one that nobody has taken; `next` of an enumeration is one operation.
        waiting = iter(enumerate(works))
        share = max(1, self._threads // lanes)
        others = [self._pool.submit(_worked_off, waiting, answers, share) for _ in range(lanes - 1)]
        try:
            _worked_off(waiting, answers, share)
        finally:
            wait(others)
        for other in others:
            other.result()
        return [answers[place] for place in range(len(works))]

    def close(self) -> None:
        self._pool.shutdown()


def _keep_memory() -> None:
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


def _worked_off(
    waiting: Iterator[tuple[int, Callable[[], _Answer]]], answers: dict[int, _Answer], threads: int
) -> None:
    # Each thread has its own number; what torch has for all counts only where none was set.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        for place, work in waiting:
            answers[place] = work()
