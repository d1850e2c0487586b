"""Which model serves: the desired one, or, while that one cannot be loaded, the one before it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import structlog

from avatarforge.background import PeriodicTask, monotonic
from avatarforge.diffusion.engines.torch_errors import find_device_loss, has_run_out_of_memory
from avatarforge.diffusion.engines.watchdog import CHECK_INTERVAL_SECONDS
from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.diffusion.models.loader import LoadedModel, ModelLoader
from avatarforge.domain.errors import DeviceLost, ModelMissing, ModelUnusable
from avatarforge.domain.replicas import ModelFailure, ReplicaState

log = structlog.get_logger(__name__)


async def _no_last_good() -> str | None:
    return None


@dataclass(slots=True)
class _SharedModel:
    """A loaded model, since when it serves, and how many generations use it."""

    model: LoadedModel
    since: datetime
    users: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class ModelManager:
    """Makes the desired model serve: loads it beside the serving one, then swaps between two generations.

    A generation keeps the model that it began with; the old engine closes when its last user is done.
    Where memory does not hold two, the old model finishes what runs and goes first; if the new one then
    cannot be loaded, the old one is loaded again. If the desired model cannot be loaded, `failure` says why,
    and the old one serves on. With no model at all, the last one known to be good serves meanwhile.

    A device that is lost, or that does not answer, is lost for good: nothing serves any more, and
    `check_health` raises, so that Serve replaces the process.
    """

    RETRY_SECONDS = 30.0
    """Until the desired model is tried again while no model serves: its files may be repaired meanwhile."""
    MODEL_WAIT_SECONDS = 15.0
    """How long a generation waits for a model if none can be loaded, before it is given back."""
    LOST_DEVICE_WAIT_SECONDS = 1.0
    """How long a generation waits before it is given back once the device is lost: a replica that gave them
    back at once would be the least busy of all, and get them all."""

    def __init__(
        self, desired: str, loader: ModelLoader, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.desired_model = desired
        self._loader = loader
        self._find_last_good: Callable[[], Awaitable[str | None]] = _no_last_good
        self._now = now
        self._serving: _SharedModel | None = None
        self.failure: ModelFailure | None = None
        """Why the desired model could not be loaded, if so."""
        self._is_draining = False
        self._has_no_model = False
        """Neither the desired nor another model could be loaded."""
        self._desired_changed = asyncio.Event()
        self._desired_changed.set()
        self._available = asyncio.Event()
        self._reconciling: asyncio.Task[None] | None = None
        self._device_loss: DeviceLost | None = None
        self._engine_checks = PeriodicTask("engine checks", self._check_engines, CHECK_INTERVAL_SECONDS)
        self.changed = asyncio.Event()
        """Set when what serves, or why another does not, has changed. The waiter clears it."""

    def start(self, find_last_good: Callable[[], Awaitable[str | None]] = _no_last_good) -> None:
        """Begin to load. Needs a running event loop; `close` ends what starts here.

        `find_last_good` returns the name of the model to serve if the desired one cannot be loaded at first.
        """
        self._find_last_good = find_last_good
        self._reconciling = asyncio.get_running_loop().create_task(self._reconcile_forever())
        self._engine_checks.start()

    def set_desired(self, name: str) -> None:
        """Record the desired model and return; the newest counts. The same name again has its manifest read
        anew, and is tried again if it failed."""
        self.desired_model = name
        self._desired_changed.set()
        if self._serving is None and self._device_loss is None:
            # The new one may well be loaded: generations wait for it.
            self.failure, self._has_no_model = None, False
        self.changed.set()

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[LoadedModel]:
        """Hold the serving model for one generation. Waits while it is being loaded.

        Raises `ModelMissing` if none has come for a while, since the desired one cannot be loaded, and if the
        device is lost.
        """
        shared = await self._wait_for_model()
        shared.users += 1
        try:
            yield shared.model
        finally:
            shared.users -= 1
            await self._close_unused(shared)

    async def _wait_for_model(self) -> _SharedModel:
        while self._serving is None or self._device_loss is not None:
            if self._device_loss is not None:
                await asyncio.sleep(self.LOST_DEVICE_WAIT_SECONDS)
                raise ModelMissing(self.desired_model, str(self._device_loss))
            try:
                async with asyncio.timeout(self.MODEL_WAIT_SECONDS):
                    await self._available.wait()
            except TimeoutError:
                if self._has_no_model and self.failure is not None:
                    raise ModelMissing(self.failure.model, self.failure.reason) from None
        return self._serving

    def check_health(self) -> None:
        """Raise what makes this process unfit to go on."""
        if self._device_loss is not None:
            raise self._device_loss
        if self._reconciling is not None and self._reconciling.done():
            self._reconciling.result()

    async def _check_engines(self) -> None:
        if self._device_loss is None and (loss := self._loader.check_engines()) is not None:
            self._lose_device(loss)

    def _lose_device(self, loss: DeviceLost) -> None:
        log.error("device is lost", reason=str(loss))
        self._device_loss = loss
        self.failure = ModelFailure(model=self.desired_model, reason=str(loss), at=self._now())
        # Who waits for a model is told.
        self._available.set()
        self.changed.set()

    # --- state -------------------------------------------------------------------------------------------

    @property
    def state(self) -> ReplicaState:
        if self._device_loss is not None:
            return ReplicaState.NO_MODEL
        if self._is_draining:
            return ReplicaState.DRAINING
        if self._serving is not None:
            return ReplicaState.SERVING
        return ReplicaState.NO_MODEL if self._has_no_model else ReplicaState.LOADING

    @property
    def serving_model(self) -> LoadedModel | None:
        return None if self._serving is None or self._device_loss is not None else self._serving.model

    @property
    def since(self) -> datetime | None:
        """When the serving model began to."""
        return None if self._serving is None else self._serving.since

    def describe(self) -> dict[str, Any]:
        """Return what serves (`model`, `device`, `dtype`, `seconds`), the `desiredModel`, and a `failure`."""
        serving = self.serving_model
        return {
            "model": serving and serving.manifest.name,
            "desiredModel": self.desired_model,
            "failure": self.failure and self.failure.reason,
            "device": serving and serving.engine.device,
            "dtype": serving and serving.dtype,
            "seconds": dict(serving.seconds) if serving else {},
        }

    async def close(self) -> None:
        """Stop reconciling and close the engine after its running image."""
        await self._engine_checks.stop()
        if self._reconciling is not None:
            self._reconciling.cancel()
            await asyncio.gather(self._reconciling, return_exceptions=True)
        if self._serving is not None:
            await asyncio.to_thread(self._serving.model.engine.close)

    # --- reconciling -------------------------------------------------------------------------------------

    async def _reconcile_forever(self) -> None:
        await self._loader.prepare()
        while self._device_loss is None:
            await self._wait_for_change()
            self._desired_changed.clear()
            await self._reconcile(self.desired_model)
            self.changed.set()

    async def _wait_for_change(self) -> None:
        try:
            async with asyncio.timeout(self.RETRY_SECONDS if self._serving is None else None):
                await self._desired_changed.wait()
        except TimeoutError:
            log.info("desired model is tried again", model=self.desired_model)

    async def _reconcile(self, name: str) -> None:
        try:
            manifest = await self._loader.read_manifest(name)
            if self.serving_model is None or self.serving_model.manifest.fingerprint != manifest.fingerprint:
                await self._swap(manifest)
            self.failure = None
        except Exception as error:
            # The edge of one attempt: it fails alone, whatever the reason.
            log.error("model cannot be used", model=name, exc_info=error)
            self.failure = ModelFailure(model=name, reason=_format_reason(name, error), at=self._now())
            self.changed.set()
            if (loss := find_device_loss(error)) is not None:
                self._lose_device(loss)
            elif self._serving is None:
                await self._fall_back(name)
                self._has_no_model = self._serving is None and not self._desired_changed.is_set()

    async def _swap(self, manifest: Manifest) -> None:
        """Make the model serve. Raises what loading raises; what served before then serves on."""
        if self._serving is None or await self._loader.fits_beside(manifest):
            try:
                await self._activate(await self._loader.load(manifest))
                return
            except ModelUnusable as error:
                if self._serving is None or not has_run_out_of_memory(error):
                    raise
        # The manifest alone: the model itself would be kept in memory.
        previous = self._serving.model.manifest
        log.warning("memory does not hold two models", serves=previous.name, next=manifest.name)
        try:
            began = monotonic()
            await self._drain()
            seconds = {"drain": monotonic() - began}
            model = await self._loader.load(manifest)
            await self._activate(replace(model, seconds={**seconds, **model.seconds}))
        except Exception:
            await self._serve_instead(previous)
            raise
        finally:
            self._is_draining = False

    async def _activate(self, model: LoadedModel) -> None:
        """Let the model serve, unless another became desired meanwhile and one serves already."""
        is_outdated = self._desired_changed.is_set() and self.desired_model != model.manifest.name
        if self._serving is not None and is_outdated:
            await asyncio.to_thread(model.engine.close)
            return
        log.info(
            "model serves",
            model=model.manifest.name,
            device=model.engine.device,
            dtype=model.dtype,
            tuning=dict(model.engine.report().tuning),
            **model.seconds,
        )
        previous, self._serving = self._serving, _SharedModel(model, self._now())
        self._has_no_model = False
        if model.manifest.name == self.desired_model:
            self.failure = None
        self._available.set()
        self.changed.set()
        if previous is not None:
            await self._close_unused(previous)

    async def _drain(self) -> None:
        """Let running generations finish, then free the memory. New ones wait."""
        shared = self._serving
        assert shared is not None, "only what serves is drained"
        self._serving, self._is_draining = None, True
        self._available.clear()
        self.changed.set()
        if not shared.users:
            await self._close_unused(shared)
        await shared.closed.wait()
        del shared
        await self._loader.free_memory()

    async def _fall_back(self, desired: str) -> None:
        """Serve the last good model while the desired one cannot be loaded."""
        name = await self._find_last_good()
        if name is None or name == desired or self._desired_changed.is_set():
            return
        try:
            await self._serve_instead(await self._loader.read_manifest(name))
        except ModelUnusable as error:
            log.error("last good model cannot be used", model=name, reason=error.reason)

    async def _serve_instead(self, manifest: Manifest) -> None:
        """Serve another model than the desired one, if it can be loaded. `failure` stays."""
        log.warning("another model serves instead", model=manifest.name, desired=self.desired_model)
        try:
            await self._activate(await self._loader.load(manifest))
        except Exception as error:
            # The edge of one attempt, as above.
            log.error("model cannot be used", model=manifest.name, exc_info=error)

    async def _close_unused(self, shared: _SharedModel) -> None:
        if shared.users == 0 and shared is not self._serving:
            try:
                await asyncio.to_thread(shared.model.engine.close)
            finally:
                shared.closed.set()


def _format_reason(name: str, error: Exception) -> str:
    if not isinstance(error, ModelUnusable):
        error = ModelUnusable(name, f"{type(error).__name__}: {error}")
    return str(error)
