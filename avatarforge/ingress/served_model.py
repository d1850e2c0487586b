"""Which model's styles and defaults count for what clients ask."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from avatarforge.diffusion.catalogue import Catalogue, Manifest
from avatarforge.domain.errors import ModelUnusable
from avatarforge.domain.replicas import ReplicaReport

log = structlog.get_logger(__name__)


class ServedModel:
    """The model that serves; the one that is to serve, while none does."""

    MANIFEST_AGE = 30.0
    """Seconds after which its manifest is read again."""

    def __init__(
        self,
        wish: str,
        catalogue: Catalogue,
        in_thread: Callable[[Callable[[str], Manifest], str], Awaitable[Manifest]],
        replicas: Callable[[], Sequence[ReplicaReport]],
    ) -> None:
        """`wish` is the model that the replicas are told to serve; `in_thread` makes a call that blocks;
        `replicas` tells what they said of themselves last."""
        self._wish = wish
        self._catalogue = catalogue
        self._in_thread = in_thread
        self._replicas = replicas
        self._manifest: Manifest | None = None
        self._read_name = wish
        self._read_at = 0.0

    def wish_for(self, name: str) -> None:
        """From now on the replicas are told to serve this model."""
        self._wish = name
        self._read_at = float("-inf")

    async def manifest(self) -> Manifest:
        """Its manifest, some seconds old at most.

        Raises `ModelUnusable` if it never could be read; later it stays as it was while it is broken.
        """
        now = asyncio.get_running_loop().time()
        name = self._name()
        is_old = now - self._read_at >= self.MANIFEST_AGE
        if self._manifest is None or is_old or self._read_name != name:
            self._manifest = await self._read_or_known(name)
            self._read_at, self._read_name = now, name
        return self._manifest

    def _name(self) -> str:
        """The wish as soon as a replica serves it; until then, the one that serves."""
        reports = (report for report in self._replicas() if report.backend == "local")
        served = [report.model for report in reports if report.model is not None]
        if not served or any(model.name == self._wish for model in served):
            return self._wish
        return max(served, key=lambda model: model.since).name

    async def _read_or_known(self, name: str) -> Manifest:
        try:
            return await self._in_thread(self._catalogue.manifest, name)
        except ModelUnusable as error:
            if self._manifest is None:
                raise
            log.warning("manifest cannot be read any more", model=error.model, reason=error.reason)
            return self._manifest
