"""The record of API keys, and of the tickets that stand for them once."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, and_, func, or_, select, update

from avatarforge.domain.access import ApiKey
from avatarforge.persistence.database import reading, writing
from avatarforge.persistence.tables import access_tickets, api_keys

_TICKETS_AT_ONCE = 1000
"""Expired tickets that one new one sweeps away: a table that was left alone for long is emptied by and by."""


class ApiKeyRecords:
    """Keys are added and revoked, and never removed.

    Calls block; any thread may make them. Every method raises `DatabaseUnavailable` when the database does
    not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, key: ApiKey) -> None:
        with writing(self._engine) as connection:
            connection.execute(api_keys.insert(), _row(key))

    def all(self) -> list[ApiKey]:
        """Every key, the oldest first, revoked and expired ones too."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_id))
            return [_key(row) for row in rows.mappings()]

    def fingerprint(self) -> tuple[int, int]:
        """Changes whenever a key is added or revoked: how many there are, and how many are revoked."""
        counted = select(func.count(), func.count(api_keys.c.revoked_at)).select_from(api_keys)
        with reading(self._engine) as connection:
            keys, revoked = connection.execute(counted).one()
        return keys, revoked

    def has_valid(self, now: datetime) -> bool:
        """Whether anybody could come in."""
        wanted = select(api_keys.c.key_id).where(
            api_keys.c.revoked_at.is_(None),
            or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now),
        )
        with reading(self._engine) as connection:
            return connection.scalar(wanted.limit(1)) is not None

    def revoke(self, key_id: str, now: datetime) -> bool:
        """Whether there is such a key. One that is revoked already stays as it is."""
        keys = api_keys.c
        with writing(self._engine) as connection:
            connection.execute(
                update(api_keys)
                .where(keys.key_id == key_id, keys.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            return connection.scalar(select(keys.key_id).where(keys.key_id == key_id)) is not None

    def note_use(self, used: Mapping[str, datetime]) -> None:
        """Keep when the keys were last used."""
        keys = api_keys.c
        with writing(self._engine) as connection:
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
        with writing(self._engine) as connection:
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
        """The id of the key that the ticket stands for; `None` for one that is none (any more).

        Of all who ask with the same ticket, in whatever process, one gets the answer: who deletes the row.
        """
        tickets = access_tickets.c
        this = and_(
            tickets.ticket_hash == ticket_hash, tickets.customer_id == customer_id, tickets.expires_at > now
        )
        with writing(self._engine) as connection:
            key_id: str | None = connection.scalar(select(tickets.key_id).where(this))
            if key_id is None or connection.execute(access_tickets.delete().where(this)).rowcount != 1:
                return None
        return key_id


def _row(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "secret_hash": key.secret_hash,
        "customers": list(key.customers),
        "administers": key.administers,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }


def _key(row: Mapping[Any, Any]) -> ApiKey:
    values = dict(row)
    return ApiKey(**{**values, "customers": tuple(values["customers"])})
