"""Lets requests in or refuses them, by the table of rules: the same for REST, SSE and gRPC."""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from avatarforge.access import ring
from avatarforge.access.keys import hash_of
from avatarforge.access.links import SIGNATURE, LinkSigner
from avatarforge.access.rates import RateLimits
from avatarforge.access.ring import KeyRing
from avatarforge.access.rules import SDAPI_CUSTOMER, Rule
from avatarforge.domain.access import ApiKey
from avatarforge.domain.customers import checked_customer_id
from avatarforge.domain.errors import Forbidden, Unauthenticated
from avatarforge.settings import AccessSettings

TICKET = "ticket"
"""The parameter with a ticket."""
NOBODY = ""
"""The key of tickets that were given out while no keys were needed: no key has this id."""


class Records(ring.Records, Protocol):
    """What is kept of keys and tickets; `persistence.api_keys.ApiKeyRecords` keeps it. Calls block."""

    def keep_ticket(
        self, ticket_hash: str, key_id: str, customer_id: str, now: datetime, expires_at: datetime
    ) -> None: ...

    def take_ticket(self, ticket_hash: str, customer_id: str, now: datetime) -> str | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What a request shows of who it is."""

    key: str | None = None
    path: str = ""
    query: Mapping[str, str] | None = None
    """Of a request that may show a ticket or a signature instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """Stands for a key once."""

    text: str
    expires_at: datetime


class Gate:
    """The door of one ingress replica. Where `required` is false everybody may do everything."""

    def __init__(
        self,
        settings: AccessSettings,
        records: Records,
        *,
        required: bool,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.required = required
        self._settings = settings
        self._records = records
        self._now = now
        self._ring = KeyRing(records, now, clock)
        self._rates = RateLimits(settings.requests_per_second, settings.burst, clock)
        self._links = LinkSigner(settings.signing_secrets())

    def start(self) -> None:
        """Follow the record of keys, until `stop`."""
        if self.required:
            self._ring.start()

    async def stop(self) -> None:
        if self.required:
            await self._ring.stop()

    async def admit(self, rule: Rule, customer_id: str | None, shown: Shown) -> ApiKey | None:
        """The key that the request came with, if it needs one.

        Raises `Unauthenticated`, `Forbidden`, `LinkInvalid`, `RateLimited` and `InvalidCustomerId`. None of
        them depends on whether there is such a customer or job.
        """
        if not self.required or rule is Rule.OPEN:
            return None
        query = shown.query or {}
        if rule is Rule.IMAGE and shown.key is None and SIGNATURE in query:
            self._links.check(shown.path, query, self._now().timestamp())
            return None
        if rule is Rule.STREAM and shown.key is None and TICKET in query and customer_id is not None:
            key = await self._redeemed(query[TICKET], customer_id)
        else:
            key = await self._found(shown.key)
        self._rates.take(key.key_id)
        _check_scope(key, rule, customer_id)
        return key

    async def check(self, key: ApiKey | None) -> None:
        """Raises `Unauthenticated` when the key that came in has become invalid since."""
        if key is not None:
            await self._ring.of_id(key.key_id)

    async def ticket(self, customer_id: str, key: ApiKey | None) -> Ticket:
        """A fresh ticket of the customer: it stands for the key once, on whatever replica it is shown."""
        checked_customer_id(customer_id)
        text, now = secrets.token_urlsafe(32), self._now()
        expires_at = now + timedelta(seconds=self._settings.ticket_seconds)
        key_id = NOBODY if key is None else key.key_id
        await asyncio.to_thread(
            self._records.keep_ticket, hash_of(text), key_id, customer_id, now, expires_at
        )
        return Ticket(text=text, expires_at=expires_at)

    def links_end(self) -> datetime:
        """When a link that is signed now ends."""
        return self._now().replace(microsecond=0) + timedelta(seconds=self._settings.link_seconds)

    def link(self, path: str, end: datetime) -> str:
        """The path with our signature. Raises `LinksUnavailable`."""
        return self._links.signed(path, int(end.timestamp()))

    async def _found(self, text: str | None) -> ApiKey:
        if text is None:
            raise Unauthenticated("This needs an API key.")
        return await self._ring.find(text)

    async def _redeemed(self, ticket: str, customer_id: str) -> ApiKey:
        key_id = await asyncio.to_thread(self._records.take_ticket, hash_of(ticket), customer_id, self._now())
        if key_id is None:
            raise Unauthenticated("The ticket was used, has expired, or is none of this customer's.")
        return await self._ring.of_id(key_id)


def _check_scope(key: ApiKey, rule: Rule, customer_id: str | None) -> None:
    if rule in (Rule.ADMIN, Rule.ADMIN_OF_ALL) and not key.administers:
        raise Forbidden("This call is for keys that may administer.")
    if rule is Rule.ADMIN_OF_ALL and not key.reaches_everybody:
        raise Forbidden("This call is for keys that reach every customer.")
    if rule in (Rule.CUSTOMER, Rule.STREAM, Rule.IMAGE, Rule.SDAPI):
        wanted = checked_customer_id(SDAPI_CUSTOMER if rule is Rule.SDAPI else customer_id or "")
        if not key.reaches(wanted):
            raise Forbidden(f"The customer {wanted!r} is beyond this key's scope.")
