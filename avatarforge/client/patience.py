"""Asking again: what may be repeated, how often, and for how long."""

import random
import time
from collections.abc import Iterator
from enum import Enum, auto

from avatarforge.client.errors import Refused, ServerUnreachable, TryLater
from avatarforge.client.refusals import refusal
from avatarforge.client.steps import Answer, Pause, Policy, Request, Steps, sent

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two tries, doubled each time and varied by chance."""


class Repeat(Enum):
    """When a request may be sent again."""

    ALWAYS = auto()
    """It has no effect, or the same one however often it is sent."""
    WHEN_REFUSED = auto()
    """Only when an answer said that nothing was kept: after a lost connection nobody knows."""


class Pauses:
    """The pauses between tries. They begin anew after a success, and end with the patience."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.reset()

    def reset(self) -> None:
        self._end = time.monotonic() + self._patience
        self._growing = _growing()

    def next(self, trouble: ServerUnreachable | Refused) -> Pause:
        """The pause before the next try. Raises `trouble` when there is to be none."""
        asked_for = trouble.retry_after if isinstance(trouble, TryLater) else None
        pause = max(next(self._growing), asked_for or 0)
        if time.monotonic() + pause > self._end:
            raise trouble
        return Pause(pause)


def patiently(policy: Policy, request: Request, repeat: Repeat = Repeat.ALWAYS) -> Steps[Answer]:
    """The answer, a success. Raises `Refused` and `ServerUnreachable`."""
    pauses = Pauses(policy.patience)
    while True:
        trouble: ServerUnreachable | Refused
        try:
            answer = yield from sent(request)
        except ServerUnreachable as error:
            if repeat is not Repeat.ALWAYS:
                raise
            trouble = error
        else:
            if answer.is_success:
                return answer
            trouble = refusal(answer)
            if not isinstance(trouble, TryLater):
                raise trouble
        yield pauses.next(trouble)


def _growing() -> Iterator[float]:
    pause = FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(2 * pause, LONGEST_PAUSE)
