"""The keys that one ingress replica knows, read from the record again and again."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

import structlog

from avatarforge.access.keys import key_id_of, matches
from avatarforge.domain.access import ApiKey
from avatarforge.domain.errors import DatabaseUnavailable, Unauthenticated

log = structlog.get_logger(__name__)

_UNKNOWN = "This is no API key that is known here."


class Records(Protocol):
    """What is read of keys; `persistence.api_keys.ApiKeyRecords` keeps it. Calls block."""

    def all(self) -> list[ApiKey]: ...

    def fingerprint(self) -> tuple[int, int]: ...

    def note_use(self, used: Mapping[str, datetime]) -> None: ...


class KeyRing:
    """Finds a request's key in memory.

    The record is looked at every `LOOK_SECONDS`, so that a revocation counts everywhere a moment later; a
    key that is not known yet has it looked at once more, and so counts at once. While the database is away
    the keys that are known count for `STALE_SECONDS`: nobody can revoke one meanwhile, and running jobs can
    be followed.
    """

    LOOK_SECONDS = 2.0
    LEAST_PAUSE = 0.25
    """Seconds between two looks: unknown keys, however many, cause no more, and wait for the next one."""
    STALE_SECONDS = 60.0
    NOTE_SECONDS = 60.0
    """How often it is written down which keys were used."""

    def __init__(
        self,
        records: Records,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._now = now
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._fingerprint: tuple[int, int] | None = None
        self._read_at = float("-inf")
        self._looked_at = float("-inf")
        self._look: asyncio.Task[None] | None = None
        self._reading = False
        self._failure: DatabaseUnavailable | None = None
        self._used: dict[str, datetime] = {}
        self._noted_at = clock()
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look at the record from now on, until `stop`."""
        self._looking = asyncio.get_running_loop().create_task(self._look_forever(), name="API keys")

    async def stop(self) -> None:
        """Write down which keys were used, if the database answers."""
        tasks = [task for task in (self._looking, self._look) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._looking = self._look = None
        with contextlib.suppress(DatabaseUnavailable):
            await self._note_use()

    async def find(self, text: str) -> ApiKey:
        """The key that the text is. Raises `Unauthenticated`, and `DatabaseUnavailable` where it cannot be
        told."""
        key_id = key_id_of(text)
        if key_id is None:
            raise Unauthenticated(_UNKNOWN)
        key = await self._known(key_id)
        if key is None or not matches(text, key.secret_hash):
            raise Unauthenticated(_UNKNOWN)
        return self._valid(key)

    async def of_id(self, key_id: str) -> ApiKey:
        """The key of that id; raises as `find`."""
        key = await self._known(key_id)
        if key is None:
            raise Unauthenticated(_UNKNOWN)
        return self._valid(key)

    async def refresh(self) -> None:
        """Have the record looked at from now on, together with whoever else waits for that.

        Raises `DatabaseUnavailable`.
        """
        if self._look is not None and self._reading:
            # It may have passed by what was written a moment ago.
            await asyncio.shield(self._look)
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().create_task(self._read(), name="look at API keys")
        await asyncio.shield(self._look)
        if self._failure is not None:
            raise DatabaseUnavailable(self._failure.reason)

    async def _known(self, key_id: str) -> ApiKey | None:
        if key_id not in self._keys or self._clock() - self._read_at > self.STALE_SECONDS:
            await self.refresh()
        return self._keys.get(key_id)

    def _valid(self, key: ApiKey) -> ApiKey:
        now = self._now()
        if not key.is_valid(now):
            raise Unauthenticated(f"The key {key.key_id} was revoked or has expired.")
        self._used[key.key_id] = now
        return key

    async def _read(self) -> None:
        await asyncio.sleep(max(0.0, self._looked_at + self.LEAST_PAUSE - self._clock()))
        self._reading = True
        try:
            fingerprint = await asyncio.to_thread(self._records.fingerprint)
            if fingerprint != self._fingerprint:
                keys = await asyncio.to_thread(self._records.all)
                self._keys = {key.key_id: key for key in keys}
                self._fingerprint = fingerprint
            self._read_at = self._clock()
            self._failure = None
        except DatabaseUnavailable as error:
            self._failure = error
        finally:
            self._looked_at = self._clock()
            self._reading = False

    async def _look_forever(self) -> None:
        while True:
            try:
                await self.refresh()
                if self._clock() - self._noted_at >= self.NOTE_SECONDS:
                    await self._note_use()
            except DatabaseUnavailable as error:
                log.warning("API keys could not be read", reason=error.reason)
            except Exception:
                # The edge of this task: without it no revocation would ever count here again.
                log.exception("API keys could not be read")
            await asyncio.sleep(self.LOOK_SECONDS)

    async def _note_use(self) -> None:
        used, self._used = self._used, {}
        self._noted_at = self._clock()
        if used:
            await asyncio.to_thread(self._records.note_use, used)
