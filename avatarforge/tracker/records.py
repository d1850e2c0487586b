"""What a tracker needs of the database, and of whoever calls webhooks."""

from datetime import datetime
from typing import Protocol

from avatarforge.domain.changes import Fence, LoggedChange
from avatarforge.domain.deliveries import WebhookDelivery
from avatarforge.domain.idempotency import KnownKey
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.tracker.committer import ChangeLog
from avatarforge.tracker.retention import AgedRecords
from avatarforge.tracker.sweeper import ObjectRecords


class TrackerRecords(ChangeLog, ObjectRecords, AgedRecords, Protocol):
    """A shard's jobs and their log; `persistence.jobs.JobRecords` keeps it."""

    def unfinished(self, shard: int) -> list[ProfilePhotoJob]: ...

    def job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None: ...

    def jobs_of(self, customer_id: str, before: str | None, limit: int) -> list[ProfilePhotoJob]: ...

    def forget_customer(self, shard: int, epoch: int, customer_id: str) -> bool: ...

    def known_key(self, customer_id: str, key: str, now: datetime) -> KnownKey | None: ...

    def latest_seq(self, shard: int) -> int: ...

    def events_after(self, shard: int, seq: int, limit: int) -> list[LoggedChange]: ...

    def prune(self, shard: int, epoch: int, before: datetime, limit: int) -> int: ...

    def last_model(self, shard: int) -> str | None: ...

    def keep_model(self, shard: int, epoch: int, model: str) -> None: ...


class Deliveries(Protocol):
    """Where a delivery is asked for again; `persistence.deliveries.DeliveryRecords` keeps it."""

    def again(
        self, customer_id: str, job_id: str, delivery_id: str, at: datetime, fence: Fence
    ) -> WebhookDelivery | None: ...


class Webhooks(Protocol):
    """Who calls the receivers; `webhooks.sender.WebhookSender` does."""

    async def start(self, fence: Fence) -> None: ...

    async def stop(self) -> None: ...

    def expect(self, delivery: WebhookDelivery) -> None: ...

    def forget(self, job_id: str) -> None: ...
