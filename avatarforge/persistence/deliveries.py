"""The record of webhook deliveries and of the calls made for them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from avatarforge.domain.access import matches_pattern
from avatarforge.domain.changes import Fence, IdempotencyKey
from avatarforge.domain.deliveries import (
    DeliveryAttempt,
    DeliveryReport,
    DeliveryState,
    WebhookDelivery,
    WebhookSecret,
)
from avatarforge.domain.errors import IdempotencyKeyInFlight
from avatarforge.persistence.database import Repository, begin_read, begin_write
from avatarforge.persistence.group import keep_keys, show_fence
from avatarforge.persistence.rows import (
    Row,
    attempt_from_row,
    attempt_row,
    delivery_from_row,
    delivery_progress_row,
)
from avatarforge.persistence.tables import webhook_attempts, webhook_deliveries, webhook_secrets


class DeliveryRepository(Repository):
    """Webhook deliveries. `JobRepository.commit` makes them, with their event, and erases them.

    After `DatabaseUnavailable` the outcome of a write is unknown. Reads and `reschedule` can simply be
    repeated; `record` repeated may keep its attempt twice. A write whose fence has fallen raises `StaleEpoch`
    and keeps nothing.
    """

    # --- writing -----------------------------------------------------------------------------------

    def record(self, delivery: WebhookDelivery, attempt: DeliveryAttempt, fence: Fence) -> bool:
        """Keep one more call of the receiver, and the delivery's state, tries and next time as given.

        False, and nothing is kept, when the delivery has been erased meanwhile.
        """
        with begin_write(self._engine) as connection:
            show_fence(connection, fence)
            if not _change(connection, _by_id(delivery.delivery_id), delivery_progress_row(delivery)):
                return False
            number = _attempts_of(connection, delivery.delivery_id) + 1
            connection.execute(insert(webhook_attempts), attempt_row(delivery.delivery_id, number, attempt))
            return True

    def reschedule(
        self,
        customer_id: str,
        job_id: str,
        delivery_id: str,
        at: datetime,
        fence: Fence,
        key: IdempotencyKey | None = None,
    ) -> WebhookDelivery | None:
        """Make the delivery due at `at` with all its tries before it, whatever became of it; return it. The
        client's key is kept with it.

        `None` where this customer's job has no such delivery. The calls made so far stay on record. Raises
        `IdempotencyKeyInFlight`, and changes nothing, where the key is kept already.
        """
        wanted = _by_id(delivery_id) & _of_job(customer_id, job_id)
        waiting = {"state": DeliveryState.PENDING.value, "tries": 0, "next_at": at}
        with begin_write(self._engine) as connection:
            show_fence(connection, fence)
            if not _change(connection, wanted, waiting):
                return None
            if key is not None:
                _keep_key(connection, customer_id, job_id, at, key)
            return _first(connection, wanted)

    # --- secrets of receivers ------------------------------------------------------------------------

    def add_secret(self, secret: WebhookSecret) -> None:
        with begin_write(self._engine) as connection:
            connection.execute(insert(webhook_secrets), asdict(secret))

    def rotate_secret(self, secret_id: str, successor: WebhookSecret, expires_at: datetime) -> None:
        """Add the successor, and let the secret expire, if it does not before that."""
        secrets = webhook_secrets.c
        later = or_(secrets.expires_at.is_(None), secrets.expires_at > expires_at)
        with begin_write(self._engine) as connection:
            connection.execute(insert(webhook_secrets), asdict(successor))
            this = update(webhook_secrets).where(secrets.secret_id == secret_id, later)
            connection.execute(this.values(expires_at=expires_at))

    def list_secrets(self) -> list[WebhookSecret]:
        """Return every secret, the oldest first, expired ones too."""
        secrets = webhook_secrets.c
        wanted = select(webhook_secrets).order_by(secrets.created_at, secrets.secret_id)
        with begin_read(self._engine) as connection:
            return [WebhookSecret(**dict(row)) for row in connection.execute(wanted).mappings()]

    def list_secret_ids(self, customer_id: str, now: datetime) -> list[str]:
        """Return the ids of the secrets that sign the customer's webhooks now."""
        secrets = webhook_secrets.c
        valid = (
            select(secrets.secret_id, secrets.customers)
            .where(or_(secrets.expires_at.is_(None), secrets.expires_at > now))
            .order_by(secrets.created_at, secrets.secret_id)
        )
        with begin_read(self._engine) as connection:
            found = connection.execute(valid).all()
        return [row.secret_id for row in found if matches_pattern(customer_id, row.customers)]

    # --- reading -----------------------------------------------------------------------------------

    def list_pending(self, shard: int) -> list[WebhookDelivery]:
        """Return the shard's deliveries that are on their way, the one that is due first at the front."""
        deliveries = webhook_deliveries.c
        wanted = (
            select(webhook_deliveries)
            .where(deliveries.shard == shard, deliveries.state == DeliveryState.PENDING.value)
            .order_by(deliveries.next_at, deliveries.seq)
        )
        with begin_read(self._engine) as connection:
            return [delivery_from_row(row) for row in connection.execute(wanted).mappings()]

    def find_delivery(self, delivery_id: str) -> WebhookDelivery | None:
        """Return the delivery; `None` where there is none, or none any more."""
        with begin_read(self._engine) as connection:
            return _first(connection, _by_id(delivery_id))

    def list_reports(self, customer_id: str, job_id: str) -> list[DeliveryReport]:
        """Return the job's deliveries, oldest first, with their calls; none for a job of another customer."""
        with begin_read(self._engine) as connection:
            rows = connection.execute(_REPORTS.where(_of_job(customer_id, job_id))).mappings().all()
        return list(_reports(rows))


# --- statements -----------------------------------------------------------------------------------------

# One statement, so that a delivery and its calls are of one moment.
_REPORTS = (
    select(*webhook_deliveries.c, *(column for column in webhook_attempts.c if column.name != "delivery_id"))
    .outerjoin_from(webhook_deliveries, webhook_attempts)
    .order_by(webhook_deliveries.c.seq, webhook_attempts.c.number)
)


def _reports(rows: Sequence[Row]) -> Iterator[DeliveryReport]:
    for _, of_delivery in groupby(rows, itemgetter("delivery_id")):
        calls = list(of_delivery)
        yield DeliveryReport(
            delivery=delivery_from_row(calls[0]),
            attempts=tuple(attempt_from_row(row) for row in calls if row["number"] is not None),
        )


def _by_id(delivery_id: str) -> ColumnElement[bool]:
    return webhook_deliveries.c.delivery_id == delivery_id


def _of_job(customer_id: str, job_id: str) -> ColumnElement[bool]:
    deliveries = webhook_deliveries.c
    return (deliveries.job_id == job_id) & (deliveries.customer_id == customer_id)


def _first(connection: Connection, wanted: ColumnElement[bool]) -> WebhookDelivery | None:
    row = connection.execute(select(webhook_deliveries).where(wanted)).mappings().first()
    return None if row is None else delivery_from_row(row)


def _change(connection: Connection, wanted: ColumnElement[bool], values: dict[str, Any]) -> bool:
    """Write the values, and hold the row until the transaction ends. False where there is no such row."""
    return connection.execute(update(webhook_deliveries).where(wanted).values(values)).rowcount == 1


def _keep_key(
    connection: Connection, customer_id: str, job_id: str, at: datetime, key: IdempotencyKey
) -> None:
    try:
        keep_keys(connection, [(customer_id, job_id, at, key)])
    except IntegrityError:
        # Used twice at the same time, through a tracker that started in between: the first one counts.
        raise IdempotencyKeyInFlight(key.key) from None


def _attempts_of(connection: Connection, delivery_id: str) -> int:
    highest = select(func.max(webhook_attempts.c.number))
    return connection.scalar(highest.where(webhook_attempts.c.delivery_id == delivery_id)) or 0
