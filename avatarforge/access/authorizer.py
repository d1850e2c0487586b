"""Authorizes requests by the table of permissions: the same for REST, SSE and gRPC."""

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from avatarforge.access.key_cache import KeyCache, hash_of
from avatarforge.access.permissions import SDAPI_CUSTOMER, Permission
from avatarforge.access.rate_limit import RateLimits
from avatarforge.access.signed_links import SIGNATURE, LinkSigner
from avatarforge.domain.access import ApiKey
from avatarforge.domain.customers import validate_customer_id
from avatarforge.domain.errors import DatabaseUnavailable, Forbidden, InvalidRequest, Unauthenticated
from avatarforge.persistence.api_keys import ApiKeyRepository
from avatarforge.persistence.database import limit_wait
from avatarforge.settings import AccessSettings, Settings, SettingsError

log = structlog.get_logger(__name__)

TICKET = "ticket"
"""The parameter with a ticket."""
NOBODY = ""
"""The key of tickets that were given out while no keys were needed: no key has this id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """The credentials that came with a request."""

    key: str | None = None
    path: str = ""
    query: Mapping[str, str] | None = None
    """Of a request that may carry a ticket or a signature instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """A stand-in for a key, valid once."""

    text: str
    expires_at: datetime


class Authorizer:
    """The access control of one ingress replica. Where `required` is false everybody may do everything."""

    def __init__(
        self,
        settings: AccessSettings,
        records: ApiKeyRepository,
        *,
        required: bool,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.required = required
        self._settings = settings
        self._records = records
        self._now = now
        self._keys = KeyCache(records, now, clock)
        self._rates = RateLimits(settings.requests_per_second, settings.burst, clock)
        self._links = LinkSigner(settings.signing_secrets)

    def start(self) -> None:
        """Follow the record of keys, until `stop`."""
        if self.required:
            self._keys.start()

    async def stop(self) -> None:
        if self.required:
            await self._keys.stop()

    async def authorize(
        self, permission: Permission, customer_id: str | None, credentials: Credentials
    ) -> ApiKey | None:
        """Return the key that the request came with, if it needs one.

        Raises `Unauthenticated`, `Forbidden`, `LinkInvalid`, `RateLimited` and `InvalidCustomerId`. None of
        them depends on whether there is such a customer or job.
        """
        if not self.required or permission is Permission.PUBLIC:
            return None
        query = credentials.query or {}
        if permission is Permission.IMAGE and credentials.key is None and SIGNATURE in query:
            self._links.check(credentials.path, query, self._now().timestamp())
            return None
        if (
            permission is Permission.STREAM
            and credentials.key is None
            and TICKET in query
            and customer_id is not None
        ):
            key = await self._redeem(query[TICKET], customer_id)
        else:
            key = await self._find_key(credentials.key, permission)
        self._rates.take(key.key_id)
        check_scope(key, permission, customer_id)
        return key

    async def check(self, key: ApiKey | None) -> None:
        """Raise `Unauthenticated` if the key that came in has become invalid since."""
        if key is not None:
            await self._keys.get(key.key_id)

    async def issue_ticket(self, customer_id: str, key: ApiKey | None) -> Ticket:
        """Issue a ticket of the customer: it stands for the key once, on any replica."""
        validate_customer_id(customer_id)
        text, now = secrets.token_urlsafe(32), self._now()
        expires_at = now + timedelta(seconds=self._settings.ticket_seconds)
        key_id = NOBODY if key is None else key.key_id
        await limit_wait(
            asyncio.to_thread(self._records.keep_ticket, hash_of(text), key_id, customer_id, now, expires_at)
        )
        return Ticket(text=text, expires_at=expires_at)

    def link_expiry(self, seconds: int | None = None) -> datetime:
        """Return when a link that is signed now expires: in so many seconds, or as the settings say.

        Raises `InvalidRequest` if that is longer than a link may work.
        """
        longest = self._settings.max_link_seconds
        if seconds is not None and seconds > longest:
            raise InvalidRequest("expiresSeconds", seconds, f"{longest} or less")
        return self._now().replace(microsecond=0) + timedelta(seconds=seconds or self._settings.link_seconds)

    def sign_link(self, path: str, end: datetime) -> str:
        """Return the path with our signature. Raises `LinksUnavailable`."""
        return self._links.sign(path, int(end.timestamp()))

    async def _find_key(self, text: str | None, permission: Permission) -> ApiKey:
        if text is None:
            raise Unauthenticated("This needs an API key.")
        if permission is Permission.SCRAPE:
            return await self._keys.find(text, max_stale_seconds=math.inf)
        return await self._keys.find(text)

    async def _redeem(self, ticket: str, customer_id: str) -> ApiKey:
        taking = asyncio.to_thread(self._records.take_ticket, hash_of(ticket), customer_id, self._now())
        key_id = await limit_wait(taking)
        if key_id is None:
            raise Unauthenticated("The ticket was used, has expired, or is none of this customer's.")
        return await self._keys.get(key_id)


def check_scope(key: ApiKey | None, permission: Permission, customer_id: str | None) -> None:
    """Raise `Forbidden` or `InvalidCustomerId` unless the key, where one is needed, allows the call."""
    if key is None:
        return
    if permission in (Permission.SCRAPE, Permission.ADMIN_OF_ALL) and not key.is_admin:
        raise Forbidden("This call is for keys that may administer.")
    if permission is Permission.ADMIN_OF_ALL and not key.can_access_everybody:
        raise Forbidden("This call is for keys that reach every customer.")
    if permission in (Permission.CUSTOMER, Permission.STREAM, Permission.IMAGE, Permission.SDAPI):
        wanted = validate_customer_id(SDAPI_CUSTOMER if permission is Permission.SDAPI else customer_id or "")
        if not key.can_access(wanted):
            raise Forbidden(f"The customer {wanted!r} is beyond this key's scope.")


class NoApiKeys(SettingsError):
    """Keys are needed, and there is none: nobody could come in."""

    def __str__(self) -> str:
        return (
            "The service needs API keys here, since it may be reached from elsewhere, but there is no valid "
            "one. Make one with `avatarforge keys create NAME --all-customers --admin`, listen on 127.0.0.1 "
            "only, or let everybody in with `avatarforge up --insecure` (AVATARFORGE_ACCESS_REQUIRED=never)."
        )


def create_authorizer(settings: Settings, records: ApiKeyRepository) -> Authorizer:
    """Create the authorizer of an ingress replica.

    Here `auto` means that keys are needed: only `avatarforge up` knows for whom a server listens, and says
    so to its replicas. Blocks. Raises `NoApiKeys`.
    """
    required = settings.access.required != "never"
    if required:
        try:
            check_keys(records)
        except DatabaseUnavailable as error:
            # A replica that starts during an outage answers 503 until it can read the keys.
            log.warning("API keys could not be read", reason=error.reason)
    else:
        log.warning("no API keys are asked for")
    return Authorizer(settings.access, records, required=required)


def check_keys(records: ApiKeyRepository) -> None:
    """Raise `NoApiKeys` if nobody could come in, and `DatabaseUnavailable`."""
    if not records.has_valid(datetime.now(UTC)):
        raise NoApiKeys
