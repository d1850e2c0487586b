"""The record of webhook deliveries and of the calls made for them."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, func, insert, select, update

from avatarforge.domain.changes import Fence
from avatarforge.domain.deliveries import (
    DeliveryAttempt,
    DeliveryReport,
    DeliveryState,
    WebhookDelivery,
)
from avatarforge.persistence.database import reading, writing
from avatarforge.persistence.group import show_fence
from avatarforge.persistence.rows import (
    Row,
    attempt_from_row,
    attempt_row,
    delivery_from_row,
    delivery_progress_row,
)
from avatarforge.persistence.tables import webhook_attempts, webhook_deliveries


class DeliveryRecords:
    """Webhook deliveries: `JobRecords.commit` makes them, with the event that they tell of, and erases them.

    Calls block; any thread may make them. Every method raises `DatabaseUnavailable` when the database does
    not answer; the outcome of a write is then unknown. Reads and `again` can simply be repeated; `record`
    repeated may keep its attempt twice. A write whose fence has fallen raises `Overtaken` and keeps nothing.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- writing -----------------------------------------------------------------------------------

    def record(self, delivery: WebhookDelivery, attempt: DeliveryAttempt, fence: Fence) -> bool:
        """Keep one more call of the receiver, and the delivery's state, tries and next time as given.

        False, and nothing is kept, when the delivery has been erased meanwhile.
        """
        with writing(self._engine) as connection:
            show_fence(connection, fence)
            if not _changed(connection, _by_id(delivery.delivery_id), delivery_progress_row(delivery)):
                return False
            number = _attempts_of(connection, delivery.delivery_id) + 1
            connection.execute(insert(webhook_attempts), attempt_row(delivery.delivery_id, number, attempt))
            return True

    def again(
        self, customer_id: str, job_id: str, delivery_id: str, at: datetime, fence: Fence
    ) -> WebhookDelivery | None:
        """The delivery, due at `at` and with all its tries before it, whatever became of it; kept so.

        `None` where this customer's job has no such delivery. The calls made so far stay on record.
        """
        wanted = _by_id(delivery_id) & _of_job(customer_id, job_id)
        waiting = {"state": DeliveryState.PENDING.value, "tries": 0, "next_at": at}
        with writing(self._engine) as connection:
            show_fence(connection, fence)
            if not _changed(connection, wanted, waiting):
                return None
            return _first(connection, wanted)

    # --- reading -----------------------------------------------------------------------------------

    def pending(self, shard: int) -> list[WebhookDelivery]:
        """All deliveries of the shard that are on their way, the one that is due first at the front."""
        deliveries = webhook_deliveries.c
        wanted = (
            select(webhook_deliveries)
            .where(deliveries.shard == shard, deliveries.state == DeliveryState.PENDING.value)
            .order_by(deliveries.next_at, deliveries.seq)
        )
        with reading(self._engine) as connection:
            return [delivery_from_row(row) for row in connection.execute(wanted).mappings()]

    def delivery(self, delivery_id: str) -> WebhookDelivery | None:
        """The delivery; `None` where there is none, or none any more."""
        with reading(self._engine) as connection:
            return _first(connection, _by_id(delivery_id))

    def of_job(self, customer_id: str, job_id: str) -> list[DeliveryReport]:
        """The job's deliveries, oldest first, with their calls; none for a job of another customer."""
        with reading(self._engine) as connection:
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


def _changed(connection: Connection, wanted: ColumnElement[bool], values: dict[str, Any]) -> bool:
    """Write the values, and hold the row until the transaction ends. False where there is no such row."""
    return connection.execute(update(webhook_deliveries).where(wanted).values(values)).rowcount == 1


def _attempts_of(connection: Connection, delivery_id: str) -> int:
    highest = select(func.max(webhook_attempts.c.number))
    return connection.scalar(highest.where(webhook_attempts.c.delivery_id == delivery_id)) or 0
