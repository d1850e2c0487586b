"""What reads and a tracker's start cost with 100,000 jobs in the database, beside 1,000."""

import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from statistics import median
from typing import Any

from avatarforge.domain.changes import JobChange
from avatarforge.domain.jobs import (
    Crop,
    GenerationParameters,
    Outcome,
    ProfilePhotoJob,
    StoredImage,
    new_job_id,
)
from avatarforge.domain.status import EventKind
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings
from avatarforge.storage.keys import avatar_key, original_key
from benchmarks.options import Options
from benchmarks.report import Figure, Report, Table
from benchmarks.service import mariadb

EACH = 100
"""Jobs of a customer."""
BIG = "big"
"""A customer with a tenth of all jobs."""
WAITING = 200
"""Jobs that a tracker finds unfinished at its start, in either database."""
PAGE = 50
FEW_CUSTOMERS = 9
"""Customers of a page: as many as there are in the smaller database."""


def run(options: Options) -> Report:
    few, many = options.size(1000, 500), options.size(100_000, 5000)
    times: dict[str, dict[str, list[float]]] = {}
    with mariadb(options.folder / "mariadb") as server:
        urls = {
            "SQLite": lambda count: f"sqlite:///{options.folder / f'crowd-{count}.db'}",
            "MariaDB": lambda count: server.create_database(f"crowd_{count}"),
        }
        for database, url_for in urls.items():
            crowds = [_Crowd(url_for(count), count) for count in (few, many)]
            # In turns, so that what else the machine does falls on both.
            for _ in range(options.repeat(5)):
                for crowd in crowds:
                    crowd.measure(options.size(200, 20))
            small, large = ({name: median(taken) for name, taken in crowd.times.items()} for crowd in crowds)
            times[database] = {name: [small[name], large[name]] for name in small}
            for crowd in crowds:
                crowd.close()
    return Report(
        title=f"A crowd: {many:,} jobs in the database beside {few:,}",
        figures=[
            Figure(
                name=f"{database}: {name}, {many:,} / {few:,}",
                value=large / small,
                unit="times",
                wanted="≤ 1.5",
            )
            for database, measured in times.items()
            for name, (small, large) in measured.items()
        ],
        conditions={
            "jobs": f"DONE, {EACH} of each customer, but for one that has a tenth; {WAITING} more wait",
            "pages": f"{PAGE} photos, {FEW_CUSTOMERS} customers",
            "reads": "of the record, without HTTP, one after the other, other ids each time; medians",
            "start": "what a tracker reads before it is ready: unfinished jobs, the log's last number",
        },
        tables=[
            Table(
                title=f"{database}: milliseconds",
                columns=("", f"{few:,} jobs", f"{many:,} jobs"),
                rows=[
                    (name, *(round(1000 * value, 3) for value in taken)) for name, taken in measured.items()
                ],
            )
            for database, measured in times.items()
        ],
    )


class _Crowd:
    """A database with so many jobs that are done."""

    def __init__(self, url: str, count: int) -> None:
        upgrade(url)
        self._records = JobRepository(open_engine(DatabaseSettings(), url))
        self._random = random.Random(1)
        self._customers = count // EACH
        self._ids: list[tuple[str, str]] = []
        self.times: dict[str, list[float]] = {}
        epoch = self._records.claim_shard(0)
        jobs = _jobs(count, self._customers)
        while group := list(islice(jobs, 300)):
            self._ids += [(job.customer_id, job.job_id) for job in group]
            self._records.commit(0, epoch, [change for job in group for change in _life(job)])
        waiting = [_submission(_job(f"customer-{number % self._customers}")) for number in range(WAITING)]
        self._records.commit(0, epoch, waiting)

    def measure(self, reads: int) -> None:
        """Add the seconds of one more round."""
        records, someone = self._records, lambda: f"customer-{self._random.randrange(self._customers)}"
        calls: dict[str, Callable[[], Any]] = {
            "status": lambda: records.find_job(*self._random.choice(self._ids)),
            "a customer's photos": lambda: records.list_jobs(someone(), None, PAGE),
            "the big customer's photos": lambda: records.list_jobs(BIG, None, PAGE),
            "customers": lambda: records.list_customers("customer", FEW_CUSTOMERS),
            "customers, the big one among them": lambda: records.list_customers(None, FEW_CUSTOMERS),
            "start": lambda: (records.list_unfinished(0), records.get_latest_seq(0)),
        }
        for name, call in calls.items():
            call()
            taken = [_seconds(call) for _ in range(reads if name != "start" else max(3, reads // 10))]
            self.times.setdefault(name, []).append(median(taken))

    def close(self) -> None:
        self._records.close()


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _jobs(count: int, customers: int) -> Iterator[ProfilePhotoJob]:
    for number in range(count):
        yield _job(BIG if number % 10 == 0 else f"customer-{number // 10 % customers}")


def _job(customer_id: str) -> ProfilePhotoJob:
    job_id = new_job_id()
    return ProfilePhotoJob(
        job_id=job_id,
        customer_id=customer_id,
        parameters=GenerationParameters(seed=1, prompt="a portrait in oil, warm light"),
        original=_image(original_key(customer_id, job_id, "image/jpeg"), "image/jpeg"),
        created_at=datetime.now(UTC) - timedelta(days=1),
    )


def _life(job: ProfilePhotoJob) -> list[JobChange]:
    """From its submission to its end."""
    now = datetime.now(UTC)
    started = job.start(now)
    key = avatar_key(job.customer_id, job.job_id, 1, job.parameters.format)
    outcome = Outcome(
        avatar=_image(key, "image/png"), model="avatar-mini", backend="local", crop=Crop.FACE, timings={}
    )
    done = started.complete(outcome, now)
    return [
        _submission(job),
        JobChange(job=started, event=started.event(EventKind.STARTED, now)),
        JobChange(job=done, event=done.event(EventKind.DONE, now)),
    ]


def _submission(job: ProfilePhotoJob) -> JobChange:
    return JobChange(job=job, event=job.event(EventKind.SUBMITTED, job.created_at))


def _image(key: str, media_type: str) -> StoredImage:
    return StoredImage(key=key, media_type=media_type, size=50_000, sha256="f0" * 32, width=512, height=512)
