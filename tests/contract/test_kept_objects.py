"""Which objects the jobs on record name, over SQLite and MariaDB alike."""

from avatarforge.domain.changes import KeptObjects
from avatarforge.domain.jobs import GenerationParameters
from avatarforge.persistence import JobRepository
from tests.jobs import a_job, erasure, failure, finish, image, start, submission


def test_a_job_names_its_original_and_once_it_is_done_its_avatar(records: JobRepository, epoch: int) -> None:
    waiting, running, done, erased = (a_job() for _ in range(4))
    finished = finish(start(done).job)
    records.commit(
        0,
        epoch,
        [
            *(submission(job) for job in (waiting, running, done, erased)),
            start(running),
            start(done),
            finished,
            erasure(erased),
        ],
    )
    assert finished.job.outcome is not None
    of_the_living = {job.original.key for job in (waiting, running, done)}
    assert records.list_object_keys() == {*of_the_living, finished.job.outcome.avatar.key}
    asked = [job.job_id for job in (waiting, running, done, erased)]

    assert records.list_objects([*asked, "of nobody"]) == {
        waiting.job_id: KeptObjects(is_terminal=False, keys=frozenset({waiting.original.key})),
        running.job_id: KeptObjects(is_terminal=False, keys=frozenset({running.original.key})),
        done.job_id: KeptObjects(
            is_terminal=True, keys=frozenset({done.original.key, finished.job.outcome.avatar.key})
        ),
    }


def test_a_job_names_every_image_that_was_published_however_it_ended(
    records: JobRepository, epoch: int
) -> None:
    changes = [submission(a_job(parameters=GenerationParameters(seed=1, variants=3)))]
    changes.append(start(changes[-1].job))
    for index in (2, 0):
        changes.append(image(changes[-1].job, index))
    changes.append(failure(changes[-1].job))
    records.commit(0, epoch, changes)
    job = changes[-1].job
    assert len(job.object_keys) == 3
    assert records.list_object_keys() == job.object_keys
    assert records.list_objects([job.job_id]) == {
        job.job_id: KeptObjects(is_terminal=True, keys=job.object_keys)
    }


def test_nobodys_objects_are_none(records: JobRepository, epoch: int) -> None:
    assert records.list_objects([]) == {}
