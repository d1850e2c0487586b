"""Deliveries to send, and a twin in memory of their record."""

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from avatarforge.domain.changes import Fence, IdempotencyKey
from avatarforge.domain.deliveries import (
    DeliveryAttempt,
    DeliveryReport,
    DeliveryState,
    WebhookDelivery,
    delivery_id_of,
)
from avatarforge.domain.errors import DatabaseUnavailable, StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from tests.factories import a_job, an_outcome
from tests.jobs import FENCE


def a_finished_job(customer_id: str = "ana", seq: int = 7) -> ProfilePhotoJob:
    """A job as the record has it after its terminal event."""
    now = datetime.now(UTC)
    done = a_job(customer_id=customer_id, created_at=now).start(now).complete(an_outcome(), now)
    return replace(done, seq=seq)


def a_delivery(job: ProfilePhotoJob, url: str, **changes: Any) -> WebhookDelivery:
    """The delivery of the job's end, due since then."""
    ended = job.finished_at or datetime.now(UTC)
    delivery = WebhookDelivery(
        delivery_id=delivery_id_of(job.job_id, job.seq),
        job_id=job.job_id,
        customer_id=job.customer_id,
        seq=job.seq,
        url=url,
        created_at=ended,
        next_at=ended,
    )
    return replace(delivery, **changes)


class MemoryDeliveries:
    """Jobs that have ended and their deliveries, as `JobRepository` and `DeliveryRepository` keep them."""

    def __init__(self) -> None:
        self.jobs: dict[str, ProfilePhotoJob] = {}
        self.deliveries: dict[str, WebhookDelivery] = {}
        self.secret_ids: dict[str, list[str]] = {}
        """Of receivers' own secrets, by customer."""
        self.attempts: dict[str, list[DeliveryAttempt]] = defaultdict(list)
        self.epoch = FENCE.epoch
        self.down = False
        self.refused = 0
        """Calls that were not answered because it is down."""
        self.lose_answers = 0
        """So many of the next writes happen, and their answers are lost."""

    def ended(self, url: str, job: ProfilePhotoJob | None = None) -> WebhookDelivery:
        """Commit a job's end with its delivery."""
        job = job or a_finished_job()
        delivery = a_delivery(job, url)
        self.jobs[job.job_id] = job
        self.deliveries[delivery.delivery_id] = delivery
        return delivery

    def erase(self, job_id: str) -> None:
        del self.jobs[job_id]
        for delivery in [each for each in self.deliveries.values() if each.job_id == job_id]:
            del self.deliveries[delivery.delivery_id]

    def find_job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None:
        self._answer()
        return self.jobs.get(job_id)

    def list_secret_ids(self, customer_id: str, now: datetime) -> list[str]:
        self._answer()
        return self.secret_ids.get(customer_id, [])

    def list_pending(self, shard: int) -> list[WebhookDelivery]:
        self._answer()
        pending = [each for each in self.deliveries.values() if each.state is DeliveryState.PENDING]
        return sorted(pending, key=lambda each: each.next_at or each.created_at)

    def find_delivery(self, delivery_id: str) -> WebhookDelivery | None:
        self._answer()
        return self.deliveries.get(delivery_id)

    def record(self, delivery: WebhookDelivery, attempt: DeliveryAttempt, fence: Fence) -> bool:
        self._answer()
        self._check(fence)
        if delivery.delivery_id not in self.deliveries:
            return False
        self.deliveries[delivery.delivery_id] = delivery
        self.attempts[delivery.delivery_id].append(attempt)
        if self.lose_answers:
            self.lose_answers -= 1
            raise DatabaseUnavailable("the answer was lost")
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
        self._answer()
        self._check(fence)
        known = self.deliveries.get(delivery_id)
        if known is None or known.job_id != job_id:
            return None
        waiting = replace(known, state=DeliveryState.PENDING, tries=0, next_at=at)
        self.deliveries[delivery_id] = waiting
        return waiting

    def list_reports(self, customer_id: str, job_id: str) -> list[DeliveryReport]:
        self._answer()
        return [
            DeliveryReport(delivery=each, attempts=tuple(self.attempts[each.delivery_id]))
            for each in self.deliveries.values()
            if each.job_id == job_id
        ]

    def _check(self, fence: Fence) -> None:
        if fence.epoch != self.epoch:
            raise StaleEpoch(fence.shard, fence.epoch, self.epoch)

    def _answer(self) -> None:
        if self.down:
            self.refused += 1
            raise DatabaseUnavailable("switched off by the test")
