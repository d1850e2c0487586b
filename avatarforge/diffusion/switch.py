"""Which model serves: the one that was wished for, or, while that one cannot, the one before it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from avatarforge.diffusion.loading import LoadedModel
from avatarforge.domain.errors import ModelUnusable

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Seat:
    """A loaded model and how many generations hold it."""

    model: LoadedModel
    users: int = 0


class ModelSwitch:
    """Follows the wish: loads the model beside the serving one, then swaps between two generations.

    A generation keeps the model that it began with; the old engine closes when the last has let go. A
    wish that cannot be loaded is on record in `describe()` and changes nothing else.
    """

    def __init__(
        self,
        wish: str,
        load: Callable[[str], Awaitable[LoadedModel]],
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        self._wish = wish
        self._load = load
        self._prepare = prepare
        self._serving: _Seat | None = None
        self._failure: ModelUnusable | None = None
        self._wished = asyncio.Event()
        self._wished.set()
        self._settled = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load. Needs a running event loop; `close` ends what starts here."""
        self._following = asyncio.get_running_loop().create_task(self._follow())

    def wish(self, name: str) -> None:
        """Write the wish down and return; the newest counts."""
        self._wish = name
        self._wished.set()
        if self._serving is None:
            self._settled.clear()

    @asynccontextmanager
    async def model(self) -> AsyncIterator[LoadedModel]:
        """The serving model, for one generation. Waits while the first is being loaded.

        Raises `ModelUnusable` when no model serves and the one that is wished for cannot be loaded.
        """
        await self._settled.wait()
        seat = self._serving
        if seat is None:
            assert self._failure is not None, "settled means serving or failed"
            raise self._failure
        seat.users += 1
        try:
            yield seat.model
        finally:
            seat.users -= 1
            await self._close_unused(seat)

    def check(self) -> None:
        """Raise what makes this process unfit to go on."""
        if self._serving is not None and self._serving.model.engine.broken is not None:
            raise self._serving.model.engine.broken
        if self._following is not None and self._following.done():
            self._following.result()

    def describe(self) -> dict[str, Any]:
        """What serves (`model`, `device`, `dtype`, `seconds`), the `wish`, and its `failure` if it failed."""
        served = None if self._serving is None else self._serving.model
        return {
            "model": served and served.manifest.name,
            "wish": self._wish,
            "failure": self._failure and str(self._failure),
            "device": served and served.engine.device,
            "dtype": served and served.dtype,
            "seconds": dict(served.seconds) if served else {},
        }

    async def close(self) -> None:
        """Stop following and close the engine after its running picture."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._serving is not None:
            await asyncio.to_thread(self._serving.model.engine.close)

    async def _follow(self) -> None:
        await self._prepare()
        while True:
            await self._wished.wait()
            self._wished.clear()
            await self._fulfil(self._wish)

    async def _fulfil(self, name: str) -> None:
        if self._serving is not None and self._serving.model.manifest.name == name:
            self._failure = None
            return
        try:
            model = await self._load(name)
        except Exception as error:
            # The edge of a wish: it fails alone, whatever the reason.
            log.error("model cannot be used", model=name, exc_info=error)
            self._failed(_as_unusable(name, error))
            return
        if self._wish != name:
            await asyncio.to_thread(model.engine.close)
            return
        log.info("model serves", model=name, device=model.engine.device, dtype=model.dtype, **model.seconds)
        before, self._serving, self._failure = self._serving, _Seat(model), None
        self._settled.set()
        if before is not None:
            await self._close_unused(before)

    def _failed(self, failure: ModelUnusable) -> None:
        self._failure = failure
        if not self._wished.is_set():
            self._settled.set()

    async def _close_unused(self, seat: _Seat) -> None:
        if seat.users == 0 and seat is not self._serving:
            await asyncio.to_thread(seat.model.engine.close)


def _as_unusable(name: str, error: Exception) -> ModelUnusable:
    if isinstance(error, ModelUnusable):
        return error
    unusable = ModelUnusable(name, f"{type(error).__name__}: {error}")
    unusable.__cause__ = error
    return unusable
