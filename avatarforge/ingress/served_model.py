"""The model whose styles and defaults hold for uploads."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from avatarforge.diffusion.models.catalogue import Catalogue, Manifest
from avatarforge.domain.errors import ModelUnusable
from avatarforge.domain.replicas import ReplicaReport

log = structlog.get_logger(__name__)


class ServedModel:
    """The model that is served; the desired one, while none is."""

    MANIFEST_MAX_AGE_SECONDS = 30.0
    """After which the manifest is read again."""

    def __init__(
        self,
        desired: str,
        catalogue: Catalogue,
        run_in_thread: Callable[[Callable[[str], Manifest], str], Awaitable[Manifest]],
        replicas: Callable[[], Sequence[ReplicaReport]],
    ) -> None:
        """`desired` is the model that the replicas should serve; `run_in_thread` makes a blocking call;
        `replicas` returns their newest reports."""
        self._desired = desired
        self._catalogue = catalogue
        self._run_in_thread = run_in_thread
        self._replicas = replicas
        self._manifest: Manifest | None = None
        self._read_name = desired
        self._read_at = 0.0

    def set_desired(self, name: str) -> None:
        """Set the model that the replicas should serve from now on."""
        self._desired = name
        self._read_at = float("-inf")

    async def manifest(self) -> Manifest:
        """Return its manifest, some seconds old at most.

        Raises `ModelUnusable` if it never could be read; later it stays as it was while it is broken.
        """
        now = asyncio.get_running_loop().time()
        name = self._name()
        is_old = now - self._read_at >= self.MANIFEST_MAX_AGE_SECONDS
        if self._manifest is None or is_old or self._read_name != name:
            self._manifest = await self._read_manifest(name)
            self._read_at, self._read_name = now, name
        return self._manifest

    def _name(self) -> str:
        """Return the desired model as soon as a replica serves it; until then, the one that serves."""
        reports = (report for report in self._replicas() if report.backend == "local")
        served = [report.model for report in reports if report.model is not None]
        if not served or any(model.name == self._desired for model in served):
            return self._desired
        return max(served, key=lambda model: model.since).name

    async def _read_manifest(self, name: str) -> Manifest:
        try:
            return await self._run_in_thread(self._catalogue.read, name)
        except ModelUnusable as error:
            if self._manifest is None:
                raise
            log.warning("manifest cannot be read any more", model=error.model, reason=error.reason)
            return self._manifest
