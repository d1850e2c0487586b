"""The record of API keys, and of the tickets that stand for them once."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, or_, select, update

from avatarforge.domain.access import ApiKey
from avatarforge.persistence.database import Repository, begin_read, begin_write
from avatarforge.persistence.tables import access_tickets, api_keys

_TICKETS_AT_ONCE = 1000
"""Expired tickets that one new one sweeps away: a table that was left alone for long is emptied by and by."""


class ApiKeyRepository(Repository):
    """Keys are added and revoked, and never removed."""

    def add(self, key: ApiKey) -> None:
        with begin_write(self._engine) as connection:
            connection.execute(api_keys.insert(), _row(key))

    def list_all(self) -> list[ApiKey]:
        """Return every key, the oldest first, revoked and expired ones too."""
        with begin_read(self._engine) as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_id))
            return [_key(row) for row in rows.mappings()]

    def get_fingerprint(self) -> tuple[int, int]:
        """Return how many keys there are, and how many are revoked: every change of the keys changes it."""
        counted = select(func.count(), func.count(api_keys.c.revoked_at)).select_from(api_keys)
        with begin_read(self._engine) as connection:
            keys, revoked = connection.execute(counted).one()
        return keys, revoked

    def has_valid(self, now: datetime) -> bool:
        """Tell whether there is a key that counts."""
        wanted = select(api_keys.c.key_id).where(
            api_keys.c.revoked_at.is_(None), or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
        )
        with begin_read(self._engine) as connection:
            return connection.scalar(wanted.limit(1)) is not None

    def revoke(self, key_id: str, now: datetime) -> bool:
        """Revoke a key; one that is revoked already stays as it is. Returns whether there is such a key."""
        keys = api_keys.c
        with begin_write(self._engine) as connection:
            connection.execute(
                update(api_keys)
                .where(keys.key_id == key_id, keys.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            return connection.scalar(select(keys.key_id).where(keys.key_id == key_id)) is not None

    def note_use(self, used: Mapping[str, datetime]) -> None:
        keys = api_keys.c
        with begin_write(self._engine) as connection:
            for key_id, at in sorted(used.items()):
                newer = or_(keys.last_used_at.is_(None), keys.last_used_at < at)
                connection.execute(
                    update(api_keys).where(and_(keys.key_id == key_id, newer)).values(last_used_at=at)
                )

    # --- tickets ---------------------------------------------------------------------------------------

    def keep_ticket(
        self, ticket_hash: str, key_id: str, customer_id: str, now: datetime, expires_at: datetime
    ) -> None:
        """Put a ticket down, and sweep expired ones away."""
        tickets = access_tickets.c
        with begin_write(self._engine) as connection:
            old = connection.scalars(
                select(tickets.ticket_hash).where(tickets.expires_at <= now).limit(_TICKETS_AT_ONCE)
            ).all()
            if old:
                connection.execute(access_tickets.delete().where(tickets.ticket_hash.in_(old)))
            connection.execute(
                access_tickets.insert(),
                {
                    "ticket_hash": ticket_hash,
                    "key_id": key_id,
                    "customer_id": customer_id,
                    "expires_at": expires_at,
                },
            )

    def take_ticket(self, ticket_hash: str, customer_id: str, now: datetime) -> str | None:
        """Take a ticket and return the id of its key; `None` if it is not a valid ticket (any more).

        Of all who ask with the same ticket, in whatever process, one gets the answer: who deletes the row.
        """
        tickets = access_tickets.c
        this = and_(
            tickets.ticket_hash == ticket_hash, tickets.customer_id == customer_id, tickets.expires_at > now
        )
        with begin_write(self._engine) as connection:
            key_id: str | None = connection.scalar(select(tickets.key_id).where(this))
            if key_id is None or connection.execute(access_tickets.delete().where(this)).rowcount != 1:
                return None
        return key_id


def _row(key: ApiKey) -> dict[str, Any]:
    values = asdict(key)
    is_admin = values.pop("is_admin")
    return {**values, "administers": is_admin, "customers": list(key.customers)}


def _key(row: Mapping[Any, Any]) -> ApiKey:
    values = dict(row)
    is_admin, customers = values.pop("administers"), tuple(values.pop("customers"))
    return ApiKey(**values, is_admin=is_admin, customers=customers)
