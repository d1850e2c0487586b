"""What the record promises of idempotency keys, over SQLite and MariaDB alike."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from avatarforge.domain.changes import LIFETIME, KnownKey
from avatarforge.domain.errors import StaleEpoch
from avatarforge.persistence import JobRepository, group, jobs
from tests.factories import NOON
from tests.jobs import a_job, a_key, start, submission

MOMENT = timedelta(microseconds=1)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The database's clock: what was put in last."""
    shown = [datetime.max.replace(tzinfo=UTC)]
    for module in (group, jobs):
        monkeypatch.setattr(module, "read_clock", lambda _: shown[-1])
    return shown


def test_a_clock_of_ours_that_runs_ahead_lets_no_key_expire(
    records: JobRepository, epoch: int, clock: list[datetime]
) -> None:
    clock.append(NOON)
    job, again = a_job(), a_job(created_at=NOON + 40 * LIFETIME)
    records.commit(0, epoch, [submission(job, a_key())])

    assert _job_of(records, "ana", NOON + 40 * LIFETIME) == job.job_id
    with pytest.raises(IntegrityError):
        records.commit(0, epoch, [submission(again, a_key())])


def test_a_submissions_key_is_known_with_its_job_and_fingerprint(records: JobRepository, epoch: int) -> None:
    job = a_job()

    records.commit(0, epoch, [submission(job, a_key()), start(job)])

    known = KnownKey(fingerprint=a_key().fingerprint, job_id=job.job_id)
    assert records.find_key("ana", "upload-1", NOON) == known


def test_a_key_that_is_forgotten_is_free_for_another_job(records: JobRepository, epoch: int) -> None:
    job, again, other = a_job(), a_job(), a_job("ben")
    records.commit(0, epoch, [submission(job, a_key()), submission(other, a_key())])

    records.forget_key(0, epoch, "ana", "upload-1", again.job_id)
    assert _job_of(records, "ana", NOON) == job.job_id
    records.forget_key(0, epoch, "ana", "upload-1", job.job_id)
    records.commit(0, epoch, [submission(again, a_key())])

    assert _job_of(records, "ana", NOON) == again.job_id
    assert _job_of(records, "ben", NOON) == other.job_id
    with pytest.raises(StaleEpoch):
        records.forget_key(0, epoch - 1, "ana", "upload-1", again.job_id)


def test_submissions_without_a_key_are_many(records: JobRepository, epoch: int) -> None:
    assert len(records.commit(0, epoch, [submission(a_job()), submission(a_job())])) == 2


def test_a_key_is_its_customers_own(records: JobRepository, epoch: int) -> None:
    ana, ben = a_job("ana"), a_job("ben")

    records.commit(0, epoch, [submission(ana, a_key()), submission(ben, a_key())])

    assert [_job_of(records, customer_id, NOON) for customer_id in ("ana", "ben", "cleo")] == [
        ana.job_id,
        ben.job_id,
        None,
    ]


@pytest.mark.parametrize("other", ["Upload-1", "upload-1 ", "upload-", "üpload-1"])
def test_keys_are_compared_byte_by_byte(records: JobRepository, epoch: int, other: str) -> None:
    records.commit(0, epoch, [submission(a_job(), a_key("upload-1"))])

    assert records.find_key("ana", other, NOON) is None
    assert records.commit(0, epoch, [submission(a_job(), a_key(other))])


def test_a_key_may_have_255_characters(records: JobRepository, epoch: int) -> None:
    long = "🦊" * 255
    job = a_job()

    records.commit(0, epoch, [submission(job, a_key(long))])

    known = records.find_key("ana", long, NOON)
    assert known is not None
    assert known.job_id == job.job_id


def test_a_second_job_under_a_living_key_is_refused_and_nothing_of_its_group_is_kept(
    records: JobRepository, epoch: int
) -> None:
    first, second = a_job(), a_job(created_at=NOON + LIFETIME)
    records.commit(0, epoch, [submission(first, a_key())])

    with pytest.raises(IntegrityError):
        records.commit(0, epoch, [submission(a_job("ben")), submission(second, a_key())])

    assert records.get_latest_seq(0) == 1
    assert records.find_customer("ben") is None
    assert _job_of(records, "ana", NOON) == first.job_id


def test_two_jobs_under_one_key_in_one_group_are_refused(records: JobRepository, epoch: int) -> None:
    with pytest.raises(IntegrityError):
        records.commit(0, epoch, [submission(a_job(), a_key()), submission(a_job(), a_key())])

    assert records.get_latest_seq(0) == 0


def test_a_key_expires_a_lifetime_after_its_submission(records: JobRepository, epoch: int) -> None:
    job = a_job()

    records.commit(0, epoch, [submission(job, a_key())])

    assert _job_of(records, "ana", NOON + LIFETIME) == job.job_id
    assert _job_of(records, "ana", NOON + LIFETIME + MOMENT) is None


def test_an_expired_key_names_its_next_job(records: JobRepository, epoch: int) -> None:
    afterwards = NOON + LIFETIME + MOMENT
    old, new = a_job(), a_job(created_at=afterwards)
    other = a_key("another")
    records.commit(0, epoch, [submission(old, a_key()), submission(a_job("ben"), other)])

    records.commit(0, epoch, [submission(new, a_key()), submission(a_job("cleo"), other)])

    assert _job_of(records, "ana", afterwards) == new.job_id
    assert records.find_job("ana", old.job_id) is not None


def _job_of(records: JobRepository, customer_id: str, now: datetime) -> str | None:
    known = records.find_key(customer_id, "upload-1", now)
    return known and known.job_id
