"""Which jobs have reached their age, over SQLite and MariaDB alike."""

from datetime import UTC, datetime, timedelta

from avatarforge.domain.jobs import first_job_id, new_job_id
from avatarforge.persistence import JobRepository
from tests.jobs import a_job, finish, start, submission


def test_an_id_sorts_by_the_millisecond_in_which_it_was_made() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    job_id = new_job_id()
    after = datetime.now(UTC) + timedelta(milliseconds=1)

    assert first_job_id(before) < job_id < first_job_id(after)


def test_only_jobs_of_the_shard_that_have_ended_before_that_time_are_old(
    records: JobRepository, epoch: int
) -> None:
    done, waiting, running, elsewhere = a_job(), a_job(), a_job("ben"), a_job("customer-1")
    other_epoch = records.claim_shard(1)
    records.commit(0, epoch, [submission(job) for job in (done, waiting, running)])
    records.commit(1, other_epoch, [submission(elsewhere)])
    for shard, its_epoch, job in ((0, epoch, done), (1, other_epoch, elsewhere)):
        started = start(job)
        records.commit(shard, its_epoch, [started])
        records.commit(shard, its_epoch, [finish(started.job)])
    records.commit(0, epoch, [start(running)])
    moment = datetime.now(UTC) + timedelta(seconds=1)
    late = a_job(job_id=first_job_id(moment + timedelta(days=1)))
    records.commit(0, epoch, [submission(late)])
    records.commit(0, epoch, [started := start(late)])
    records.commit(0, epoch, [finish(started.job)])

    assert [job.job_id for job in records.list_ended(0, moment, 10)] == [done.job_id]
    assert records.list_ended(0, moment - timedelta(days=1), 10) == []
    later = moment + timedelta(days=2)
    assert [job.job_id for job in records.list_ended(0, later, 10)] == [done.job_id, late.job_id]
    assert [job.job_id for job in records.list_ended(0, later, 1)] == [done.job_id]
    assert [job.job_id for job in records.list_ended(1, later, 10)] == [elsewhere.job_id]
