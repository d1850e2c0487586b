"""Which model serves: the one that was wished for, or, while that one cannot, the one before it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.diffusion.faults import out_of_memory
from avatarforge.diffusion.loading import LoadedModel
from avatarforge.domain.errors import ModelMissing, ModelUnusable
from avatarforge.domain.replicas import ModelFailure, ReplicaState

log = structlog.get_logger(__name__)


class Loader(Protocol):
    """Where models come from; `loading.ModelLoader` keeps it."""

    async def prepare(self) -> None:
        """Whatever takes long and can be done before a model is named."""

    async def manifest(self, name: str) -> Manifest:
        """Raises `ModelUnusable`."""

    async def holds_beside(self, manifest: Manifest) -> bool:
        """Whether memory holds this model beside what is loaded now."""

    async def load(self, manifest: Manifest) -> LoadedModel:
        """Raises `ModelUnusable`."""

    async def free(self) -> None:
        """Give the memory back of models that nobody refers to any more."""


async def _no_other() -> str | None:
    return None


@dataclass(slots=True)
class _Seat:
    """A loaded model, since when it serves, and how many generations hold it."""

    model: LoadedModel
    since: datetime
    users: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class ModelSwitch:
    """Follows the wish: loads the model beside the serving one, then swaps between two generations.

    A generation keeps the model that it began with; the old engine closes when the last has let go. Where
    memory does not hold two, the old model finishes what runs and goes first; if the new one then cannot
    be loaded, the old one is loaded again. A wish that cannot be fulfilled is on record in `failure` and
    changes nothing else. With no model at all, the last one that is known to be good serves meanwhile.
    """

    RETRY = 30.0
    """Seconds until a wish is tried again while no model serves: files may be put right meanwhile."""
    PATIENCE = 15.0
    """Seconds that a generation waits for a model where none can be loaded, before it is given back."""

    def __init__(
        self,
        wish: str,
        loader: Loader,
        last_good: Callable[[], Awaitable[str | None]] = _no_other,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`last_good` gives the name of the model to serve where the wish cannot be fulfilled at first."""
        self._wish = wish
        self._loader = loader
        self._last_good = last_good
        self._now = now
        self._serving: _Seat | None = None
        self._failure: ModelFailure | None = None
        self._draining = False
        self._empty = False
        """Whether neither the wish nor another model could be loaded."""
        self._wished = asyncio.Event()
        self._wished.set()
        self._seated = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        """Set when what serves, or why another does not, has become different. Who waits clears it."""

    def start(self) -> None:
        """Begin to load. Needs a running event loop; `close` ends what starts here."""
        self._following = asyncio.get_running_loop().create_task(self._follow())

    def wish(self, name: str) -> None:
        """Write the wish down and return; the newest counts. The same name again means its manifest as it
        reads now, and another try if it failed."""
        self._wish = name
        self._wished.set()
        if self._serving is None:
            # What is wished for now may well be loaded: generations wait for it.
            self._failure, self._empty = None, False
        self.changed.set()

    @asynccontextmanager
    async def model(self) -> AsyncIterator[LoadedModel]:
        """The serving model, for one generation. Waits while it is being loaded.

        Raises `ModelMissing` when none has come for a while, since what is wished for cannot be loaded.
        """
        seat = await self._seat()
        seat.users += 1
        try:
            yield seat.model
        finally:
            seat.users -= 1
            await self._close_unused(seat)

    async def _seat(self) -> _Seat:
        while self._serving is None:
            try:
                async with asyncio.timeout(self.PATIENCE):
                    await self._seated.wait()
            except TimeoutError:
                if self._empty and self.failure is not None:
                    raise ModelMissing(self.failure.model, self.failure.reason) from None
        return self._serving

    def check(self) -> None:
        """Raise what makes this process unfit to go on."""
        if self._serving is not None and self._serving.model.engine.broken is not None:
            raise self._serving.model.engine.broken
        if self._following is not None and self._following.done():
            self._following.result()

    # --- what is known -----------------------------------------------------------------------------------

    @property
    def state(self) -> ReplicaState:
        if self._draining:
            return ReplicaState.DRAINING
        if self._serving is not None:
            return ReplicaState.SERVING
        return ReplicaState.EMPTY if self._empty else ReplicaState.LOADING

    @property
    def wished(self) -> str:
        return self._wish

    @property
    def failure(self) -> ModelFailure | None:
        """Of the last wish, if it failed."""
        return self._failure

    @property
    def serving(self) -> LoadedModel | None:
        return None if self._serving is None else self._serving.model

    @property
    def since(self) -> datetime | None:
        """When the model that serves began to."""
        return None if self._serving is None else self._serving.since

    def describe(self) -> dict[str, Any]:
        """What serves (`model`, `device`, `dtype`, `seconds`), the `wish`, and its `failure` if it failed."""
        served = self.serving
        return {
            "model": served and served.manifest.name,
            "wish": self._wish,
            "failure": self._failure and self._failure.reason,
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

    # --- following the wish ------------------------------------------------------------------------------

    async def _follow(self) -> None:
        await self._loader.prepare()
        while True:
            await self._until_wished()
            self._wished.clear()
            await self._fulfil(self._wish)
            self.changed.set()

    async def _until_wished(self) -> None:
        try:
            async with asyncio.timeout(self.RETRY if self._serving is None else None):
                await self._wished.wait()
        except TimeoutError:
            log.info("wish is tried again", model=self._wish)

    async def _fulfil(self, name: str) -> None:
        try:
            manifest = await self._loader.manifest(name)
            if self.serving is None or self.serving.manifest.fingerprint != manifest.fingerprint:
                await self._swap(manifest)
            self._failure = None
        except Exception as error:
            # The edge of a wish: it fails alone, whatever the reason.
            log.error("model cannot be used", model=name, exc_info=error)
            self._failure = ModelFailure(model=name, reason=_reason(name, error), at=self._now())
            self.changed.set()
            if self._serving is None:
                await self._fall_back(name)
                self._empty = self._serving is None and not self._wished.is_set()

    async def _swap(self, manifest: Manifest) -> None:
        """Have the model serve. Raises what loading raises; what served before then serves on."""
        if self._serving is None or await self._loader.holds_beside(manifest):
            try:
                await self._take(await self._loader.load(manifest))
                return
            except ModelUnusable as error:
                if self._serving is None or not _was_too_large(error):
                    raise
        # The manifest alone: the model itself would be kept in memory.
        former = self._serving.model.manifest
        log.warning("memory does not hold two models", serves=former.name, next=manifest.name)
        try:
            await self._drain()
            await self._take(await self._loader.load(manifest))
        except Exception:
            await self._serve_instead(former)
            raise
        finally:
            self._draining = False

    async def _take(self, model: LoadedModel) -> None:
        """Let the model serve from now on, unless another was wished for meanwhile and one serves already."""
        if self._serving is not None and self._wished.is_set() and self._wish != model.manifest.name:
            await asyncio.to_thread(model.engine.close)
            return
        log.info(
            "model serves",
            model=model.manifest.name,
            device=model.engine.device,
            dtype=model.dtype,
            **model.seconds,
        )
        before, self._serving, self._empty = self._serving, _Seat(model, self._now()), False
        if model.manifest.name == self._wish:
            self._failure = None
        self._seated.set()
        self.changed.set()
        if before is not None:
            await self._close_unused(before)

    async def _drain(self) -> None:
        """Let what runs come to its end, then free the memory. Who comes waits."""
        seat = self._serving
        assert seat is not None, "only what serves is drained"
        self._serving, self._draining = None, True
        self._seated.clear()
        self.changed.set()
        if not seat.users:
            await self._close_unused(seat)
        await seat.closed.wait()
        del seat
        await self._loader.free()

    async def _fall_back(self, wish: str) -> None:
        """Serve the last good model while the wish cannot be fulfilled."""
        name = await self._last_good()
        if name is None or name == wish or self._wished.is_set():
            return
        try:
            await self._serve_instead(await self._loader.manifest(name))
        except ModelUnusable as error:
            log.error("last good model cannot be used", model=name, reason=error.reason)

    async def _serve_instead(self, manifest: Manifest) -> None:
        """Serve a model that was not wished for, if it can be loaded. The wish's failure stays on record."""
        log.warning("another model serves instead", model=manifest.name, wish=self._wish)
        try:
            await self._take(await self._loader.load(manifest))
        except Exception as error:
            # The edge of a wish, as above.
            log.error("model cannot be used", model=manifest.name, exc_info=error)

    async def _close_unused(self, seat: _Seat) -> None:
        if seat.users == 0 and seat is not self._serving:
            try:
                await asyncio.to_thread(seat.model.engine.close)
            finally:
                seat.closed.set()


def _was_too_large(error: ModelUnusable) -> bool:
    return error.__cause__ is not None and out_of_memory(error.__cause__)


def _reason(name: str, error: Exception) -> str:
    if not isinstance(error, ModelUnusable):
        error = ModelUnusable(name, f"{type(error).__name__}: {error}")
    return str(error)
