"""What `DeliveryRepository` promises, over SQLite and MariaDB alike."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.exc import IntegrityError

from avatarforge.domain.deliveries import (
    DeliveryAttempt,
    DeliveryReport,
    DeliveryState,
    WebhookDelivery,
    WebhookSecret,
    delivery_id_of,
)
from avatarforge.domain.errors import DatabaseUnavailable, IdempotencyKeyInFlight, StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.persistence import DeliveryRepository, JobRepository, open_engine
from avatarforge.persistence.rows import delivery_row
from avatarforge.persistence.tables import webhook_deliveries
from avatarforge.settings import DatabaseSettings
from tests.jobs import (
    FENCE,
    a_detailed_job,
    a_followed_job,
    a_job,
    a_key,
    cancellation,
    failure,
    finish,
    later,
    requeue,
    start,
    submission,
)


def an_attempt(**changes: Any) -> DeliveryAttempt:
    attempt = DeliveryAttempt(at=later(5), seconds=0.25, status=500, answer="not now")
    return replace(attempt, **changes)


@pytest.fixture
def job(records: JobRepository, epoch: int) -> ProfilePhotoJob:
    """A job that has ended and whose end is to be told."""
    job = a_followed_job()
    cancelled = cancellation(job)
    *_, seq = records.commit(0, epoch, [submission(job), cancelled])
    return cancelled.with_seq(seq).job


@pytest.fixture
def delivery(deliveries: DeliveryRepository, job: ProfilePhotoJob) -> WebhookDelivery:
    [delivery] = deliveries.list_pending(0)
    return delivery


# --- how they come into being -------------------------------------------------------------------------


@pytest.mark.parametrize("end", [finish, failure, cancellation])
def test_the_end_of_a_job_with_a_callback_url_makes_a_delivery_that_is_due_at_once(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int, end
) -> None:
    job = a_detailed_job()
    ended = end(start(job).job)
    records.commit(0, epoch, [submission(job), start(job)])

    [seq] = records.commit(0, epoch, [ended])

    expected = WebhookDelivery(
        delivery_id=f"msg_{job.job_id}_{seq}",
        job_id=job.job_id,
        customer_id="ana",
        seq=seq,
        url=job.callback_url or "",
        created_at=ended.event.at,
        state=DeliveryState.PENDING,
        tries=0,
        next_at=ended.event.at,
    )
    assert deliveries.list_pending(0) == [expected]
    assert deliveries.find_delivery(expected.delivery_id) == expected
    assert deliveries.list_reports("ana", job.job_id) == [DeliveryReport(delivery=expected, attempts=())]


def test_a_job_that_comes_and_ends_in_one_commit_has_one_delivery(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int
) -> None:
    job = a_followed_job()

    *_, seq = records.commit(0, epoch, [submission(job), start(job), finish(start(job).job)])

    assert [delivery.seq for delivery in deliveries.list_pending(0)] == [seq]


def test_nobody_is_told_of_a_job_that_goes_on(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int
) -> None:
    job = a_followed_job()

    records.commit(0, epoch, [submission(job), start(job), requeue(start(job).job)])

    assert deliveries.list_pending(0) == []


def test_nobody_is_told_where_nobody_asked(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int
) -> None:
    job = a_job()

    records.commit(0, epoch, [submission(job), cancellation(job)])

    assert deliveries.list_pending(0) == []


def test_a_group_that_fails_leaves_no_delivery(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int
) -> None:
    job, known = a_followed_job(), a_job()
    records.commit(0, epoch, [submission(job), submission(known)])

    with pytest.raises(IntegrityError):
        records.commit(0, epoch, [cancellation(job), submission(known)])

    assert deliveries.list_pending(0) == []


# --- calls --------------------------------------------------------------------------------------------


def test_every_field_of_an_attempt_and_the_deliverys_new_state_come_back(
    deliveries: DeliveryRepository, delivery: WebhookDelivery
) -> None:
    attempts = [
        an_attempt(at=later(4), seconds=0.123456789, status=None, answer="no route to host"),
        an_attempt(at=later(9), seconds=29.999, status=204, answer="\n🦊 'thanks' %s :name \\"),
    ]
    waiting = replace(delivery, tries=1, next_at=later(8))
    arrived = replace(delivery, state=DeliveryState.DELIVERED, tries=2, next_at=None)

    assert deliveries.record(waiting, attempts[0], FENCE)
    assert deliveries.list_pending(0) == [waiting]
    assert deliveries.record(arrived, attempts[1], FENCE)

    assert deliveries.list_reports("ana", delivery.job_id) == [
        DeliveryReport(delivery=arrived, attempts=tuple(attempts))
    ]
    assert deliveries.find_delivery(delivery.delivery_id) == arrived


def test_attempts_are_told_in_the_order_in_which_they_were_recorded(
    deliveries: DeliveryRepository, delivery: WebhookDelivery
) -> None:
    for number in range(12):
        deliveries.record(delivery, an_attempt(answer=str(number), at=later(-number)), FENCE)

    [report] = deliveries.list_reports("ana", delivery.job_id)
    assert [attempt.answer for attempt in report.attempts] == [str(number) for number in range(12)]


def test_attempts_that_are_recorded_at_the_same_time_are_all_kept(
    deliveries: DeliveryRepository, delivery: WebhookDelivery
) -> None:
    attempts = [an_attempt(answer=str(number)) for number in range(20)]
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(deliveries.record, [delivery] * 20, attempts, [FENCE] * 20))

    [report] = deliveries.list_reports("ana", delivery.job_id)
    assert {attempt.answer for attempt in report.attempts} == {str(number) for number in range(20)}


def test_an_overtaken_tracker_records_nothing_and_asks_for_nothing_again(
    records: JobRepository, deliveries: DeliveryRepository, delivery: WebhookDelivery
) -> None:
    records.claim_shard(0)
    with pytest.raises(StaleEpoch):
        deliveries.record(replace(delivery, state=DeliveryState.DELIVERED, next_at=None), an_attempt(), FENCE)
    with pytest.raises(StaleEpoch):
        deliveries.reschedule("ana", delivery.job_id, delivery.delivery_id, later(60), FENCE)

    assert deliveries.list_reports("ana", delivery.job_id) == [DeliveryReport(delivery=delivery, attempts=())]


def test_a_delivery_that_nobody_made_is_not_recorded(
    deliveries: DeliveryRepository, delivery: WebhookDelivery
) -> None:
    assert not deliveries.record(replace(delivery, delivery_id="msg_other_1"), an_attempt(), FENCE)


# --- what is pending ----------------------------------------------------------------------------------


def test_pending_deliveries_come_in_the_order_in_which_they_are_due(
    records: JobRepository, deliveries: DeliveryRepository, epoch: int
) -> None:
    jobs = [a_followed_job(f"customer-{index}") for index in range(5)]
    records.commit(0, epoch, [*map(submission, jobs), *map(cancellation, jobs)])
    made = deliveries.list_pending(0)
    assert [delivery.job_id for delivery in made] == [job.job_id for job in jobs]
    deliveries.record(replace(made[0], next_at=later(40)), an_attempt(), FENCE)
    deliveries.record(replace(made[1], next_at=later(30)), an_attempt(), FENCE)
    deliveries.record(replace(made[2], state=DeliveryState.DELIVERED, next_at=None), an_attempt(), FENCE)
    deliveries.record(replace(made[3], state=DeliveryState.GIVEN_UP, next_at=None), an_attempt(), FENCE)

    assert [delivery.customer_id for delivery in deliveries.list_pending(0)] == [
        "customer-4",
        "customer-1",
        "customer-0",
    ]


def test_pending_deliveries_are_of_their_shard(
    records: JobRepository, deliveries: DeliveryRepository
) -> None:
    job = a_followed_job()
    records.commit(1, records.claim_shard(1), [submission(job), cancellation(job)])

    assert deliveries.list_pending(0) == []
    assert [delivery.job_id for delivery in deliveries.list_pending(1)] == [job.job_id]


# --- sending again ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(DeliveryState))
def test_a_delivery_is_asked_for_again_whatever_became_of_it(
    deliveries: DeliveryRepository, delivery: WebhookDelivery, state: DeliveryState
) -> None:
    next_at = later(500) if state is DeliveryState.PENDING else None
    deliveries.record(replace(delivery, state=state, tries=10, next_at=next_at), an_attempt(), FENCE)

    due = deliveries.reschedule("ana", delivery.job_id, delivery.delivery_id, later(60), FENCE)

    assert due == replace(delivery, state=DeliveryState.PENDING, tries=0, next_at=later(60))
    assert deliveries.list_pending(0) == [due]
    assert deliveries.list_reports("ana", delivery.job_id) == [
        DeliveryReport(delivery=due, attempts=(an_attempt(),))
    ]


def test_only_a_delivery_of_this_customers_job_is_asked_for_again(
    deliveries: DeliveryRepository, delivery: WebhookDelivery
) -> None:
    job_id, delivery_id = delivery.job_id, delivery.delivery_id

    assert deliveries.reschedule("ben", job_id, delivery_id, later(60), FENCE) is None
    assert deliveries.reschedule("ana", a_job().job_id, delivery_id, later(60), FENCE) is None
    assert deliveries.reschedule("ana", job_id, delivery_id_of(job_id, 0), later(60), FENCE) is None

    assert deliveries.list_pending(0) == [delivery]


def test_a_key_that_is_kept_already_lets_nothing_be_asked_for_again(
    deliveries: DeliveryRepository, delivery: WebhookDelivery
) -> None:
    wanted = ("ana", delivery.job_id, delivery.delivery_id)
    due = deliveries.reschedule(*wanted, later(60), FENCE, a_key())

    with pytest.raises(IdempotencyKeyInFlight):
        deliveries.reschedule(*wanted, later(90), FENCE, a_key())

    assert deliveries.list_pending(0) == [due]


# --- reads --------------------------------------------------------------------------------------------


def test_the_deliveries_of_a_job_come_oldest_first_each_with_its_own_attempts(
    deliveries: DeliveryRepository, delivery: WebhookDelivery, engine: Engine
) -> None:
    # A job ends once; that it could have two deliveries is the tables' business.
    elder = replace(delivery, delivery_id=delivery_id_of(delivery.job_id, 1), seq=1)
    with engine.begin() as connection:
        connection.execute(insert(webhook_deliveries), delivery_row(0, elder))
    deliveries.record(delivery, an_attempt(answer="second"), FENCE)
    deliveries.record(elder, an_attempt(answer="first"), FENCE)

    assert deliveries.list_reports("ana", delivery.job_id) == [
        DeliveryReport(delivery=elder, attempts=(an_attempt(answer="first"),)),
        DeliveryReport(delivery=delivery, attempts=(an_attempt(answer="second"),)),
    ]


def test_a_job_of_another_customer_has_no_deliveries(
    deliveries: DeliveryRepository, delivery: WebhookDelivery
) -> None:
    assert deliveries.list_reports("ben", delivery.job_id) == []


def test_an_unknown_delivery_is_none(deliveries: DeliveryRepository) -> None:
    assert deliveries.find_delivery("msg_unknown_1") is None


def test_states_and_ids_fit_their_columns() -> None:
    columns = webhook_deliveries.c

    assert max(map(len, DeliveryState)) <= columns.state.type.length
    assert len(delivery_id_of(a_job().job_id, 2**63 - 1)) <= columns.delivery_id.type.length


def test_a_database_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    gone = DeliveryRepository(
        open_engine(DatabaseSettings(), f"sqlite:///{tmp_path / 'gone' / 'avatarforge.db'}")
    )

    with pytest.raises(DatabaseUnavailable):
        gone.list_pending(0)


# --- secrets of receivers ---------------------------------------------------------------------------------


def test_a_rotated_secret_signs_beside_its_successor_until_it_expires(deliveries: DeliveryRepository) -> None:
    def a_secret(secret_id: str, customers: str) -> WebhookSecret:
        return WebhookSecret(secret_id=secret_id, customers=customers, created_at=later(0))

    deliveries.add_secret(a_secret("old", "shop-*"))
    deliveries.add_secret(a_secret("other", "ana"))
    assert deliveries.list_secret_ids("shop-7", later(1)) == ["old"]

    deliveries.rotate_secret("old", replace(a_secret("new", "shop-*"), created_at=later(2)), later(60))
    deliveries.rotate_secret("old", replace(a_secret("newest", "shop-*"), created_at=later(3)), later(90))

    assert deliveries.list_secret_ids("shop-7", later(59)) == ["old", "new", "newest"]
    assert deliveries.list_secret_ids("shop-7", later(60)) == ["new", "newest"]
    assert deliveries.list_secret_ids("ana", later(60)) == ["other"]
    assert deliveries.list_secret_ids("shop", later(60)) == []
    assert [secret.expires_at for secret in deliveries.list_secrets()] == [later(60), None, None, None]
