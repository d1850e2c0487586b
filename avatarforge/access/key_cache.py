"""API keys as text, `afk_<id>_<secret>`, and the cache of keys in one ingress replica."""

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from datetime import datetime

import structlog

from avatarforge.background import PeriodicTask
from avatarforge.domain.access import ApiKey
from avatarforge.domain.errors import DatabaseUnavailable, Unauthenticated
from avatarforge.persistence.api_keys import ApiKeyRepository
from avatarforge.persistence.database import limit_wait

log = structlog.get_logger(__name__)

_FORM = re.compile(r"afk_(?P<key_id>[0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
MAX_LENGTH = 128
"""Characters; longer texts are not looked at."""


def new_key() -> tuple[str, str]:
    """Make a key, which is shown once and kept nowhere; return its id, and the key."""
    key_id = secrets.token_hex(6)
    return key_id, f"afk_{key_id}_{secrets.token_urlsafe(32)}"


def key_id_of(text: str) -> str | None:
    """Return the id in a key; `None` if the text is not a valid key."""
    found = _FORM.fullmatch(text) if len(text) <= MAX_LENGTH else None
    return None if found is None else found["key_id"]


def hash_of(text: str) -> str:
    """Return the hash under which a key or a ticket is kept, in hex.

    One round of SHA-256: slow hashes protect passwords that can be guessed. The secret is 256 random bits,
    and every request pays for the hash.
    """
    return hashlib.sha256(text.encode()).hexdigest()


def matches(text: str, secret_hash: str) -> bool:
    """Tell whether the text is the key of that hash; takes the same time whatever the answer."""
    return hmac.compare_digest(hash_of(text), secret_hash)


_UNKNOWN = "This is no API key that is known here."


class KeyCache:
    """The keys that are on record, in memory.

    The record is looked at every `REFRESH_INTERVAL_SECONDS`, so that a revocation counts everywhere a moment
    later; a key that is not known yet has it looked at once more, and so counts at once. While the database
    is away the known keys count for `MAX_STALE_SECONDS`: nobody can revoke one meanwhile, and running jobs
    can be followed.
    """

    REFRESH_INTERVAL_SECONDS = 2.0
    MIN_PAUSE_SECONDS = 0.25
    """Between two looks: unknown keys, however many, cause no more, and wait for the next one."""
    MAX_STALE_SECONDS = 60.0
    NOTE_INTERVAL_SECONDS = 60.0
    """How often it is written down which keys were used."""

    def __init__(
        self,
        records: ApiKeyRepository,
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
        self._is_away = False
        self._used: dict[str, datetime] = {}
        self._noted_at = clock()
        self._refreshing = PeriodicTask("API keys", self._refresh_quietly, self.REFRESH_INTERVAL_SECONDS)

    def start(self) -> None:
        """Look at the record from now on, until `stop`."""
        self._refreshing.start()

    async def stop(self) -> None:
        """Write down which keys were used, if the database answers."""
        await self._refreshing.stop()
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait({self._look})
            self._look = None
        with contextlib.suppress(DatabaseUnavailable):
            await self._note_use()

    async def find(self, text: str, max_stale_seconds: float = MAX_STALE_SECONDS) -> ApiKey:
        """Return the key of this text, as the record had it at most so many seconds ago.

        Raises `Unauthenticated` and `DatabaseUnavailable`.
        """
        key_id = key_id_of(text)
        if key_id is None:
            raise Unauthenticated(_UNKNOWN)
        key = await self._load(key_id, max_stale_seconds)
        if key is None or not matches(text, key.secret_hash):
            raise Unauthenticated(_UNKNOWN)
        return self._check_valid(key)

    async def get(self, key_id: str) -> ApiKey:
        """Return the key of this id. Raises like `find`."""
        key = await self._load(key_id)
        if key is None:
            raise Unauthenticated(_UNKNOWN)
        return self._check_valid(key)

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

    async def _load(self, key_id: str, max_stale_seconds: float = MAX_STALE_SECONDS) -> ApiKey | None:
        if key_id not in self._keys or self._clock() - self._read_at > max_stale_seconds:
            await limit_wait(self.refresh())
        return self._keys.get(key_id)

    def _check_valid(self, key: ApiKey) -> ApiKey:
        now = self._now()
        if not key.is_valid(now):
            raise Unauthenticated(f"The key {key.key_id} was revoked or has expired.")
        self._used[key.key_id] = now
        return key

    async def _read(self) -> None:
        await asyncio.sleep(max(0.0, self._looked_at + self.MIN_PAUSE_SECONDS - self._clock()))
        self._reading = True
        try:
            fingerprint = await asyncio.to_thread(self._records.get_fingerprint)
            if fingerprint != self._fingerprint:
                keys = await asyncio.to_thread(self._records.list_all)
                self._keys = {key.key_id: key for key in keys}
                self._fingerprint = fingerprint
            self._read_at = self._clock()
            self._failure = None
        except DatabaseUnavailable as error:
            self._failure = error
        finally:
            self._looked_at = self._clock()
            self._reading = False

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except DatabaseUnavailable as error:
            # Once, not every two seconds.
            if not self._is_away:
                log.warning("API keys could not be read", reason=error.reason)
            self._is_away = True
            return
        if self._is_away:
            log.info("API keys can be read again")
        self._is_away = False
        if self._clock() - self._noted_at >= self.NOTE_INTERVAL_SECONDS:
            # The next time, or not at all: it is a convenience.
            with contextlib.suppress(DatabaseUnavailable):
                await self._note_use()

    async def _note_use(self) -> None:
        used, self._used = self._used, {}
        self._noted_at = self._clock()
        if used:
            await asyncio.to_thread(self._records.note_use, used)
