"""Work that runs beside the rest."""

from collections.abc import Coroutine
from typing import Protocol


class Own(Protocol):
    """Runs work beside the rest, until the tracker stops."""

    def __call__(self, work: Coroutine[None, None, None], name: str) -> None: ...
