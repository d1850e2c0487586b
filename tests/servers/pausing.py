"""Processes that hang."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    """The child process stands still meanwhile, with all its threads.

    The signal alone comes back before they do: a server with several threads may still answer a call.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
