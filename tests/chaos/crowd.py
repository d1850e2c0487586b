"""A crowd of customers who upload photos whatever happens, and what became of their jobs."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import httpx

from avatarforge.domain.changes import LoggedChange
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import EventKind, ProcessingStatus
from avatarforge.persistence import JobRepository
from avatarforge.storage.interface import ObjectStorage

STEPS = 2
"""One or two: it is the faults that are tested, not the pictures."""
TERMINAL = {EventKind.DONE, EventKind.FAILED, EventKind.CANCELLED}
WORKING = {EventKind.STARTED, EventKind.DONE}
"""Events that tell of work."""
RECOVERED, STARTED_AGAIN = 10.0, 30.0
"""Seconds until there is work again: after a killed process, and after everything was started again."""


class Crowd:
    """Uploads `jobs` photos for `customers` customers from `threads` threads, each until it is accepted.

    Every upload keeps its idempotency key over refusals, lost connections and lost answers, as a careful
    client does.
    """

    def __init__(
        self,
        url: str,
        photo: bytes,
        jobs: int,
        *,
        customers: int = 8,
        threads: int = 4,
        pause: float = 0.0,
        steps: int = STEPS,
        awaits_ends: bool = False,
    ) -> None:
        """`pause` is the least number of seconds between two uploads of a thread. With `awaits_ends` a thread
        uploads nothing before its last job has ended: there are never more unfinished jobs than threads."""
        self._url = url
        self._photo = photo
        self._pause = pause
        self._fields = {"steps": str(steps)}
        self._awaits_ends = awaits_ends
        name = uuid4().hex[:8]
        self.customers = [f"{name}-{number}" for number in range(customers)]
        self._waiting = [(self.customers[number % customers], uuid4().hex) for number in range(jobs)]
        self.jobs = jobs
        self.accepted: dict[str, str] = {}
        """Job ids with their customers, for every 202."""
        self.refusals: Counter[int | str] = Counter()
        """Statuses other than 202; the error's name for connections that broke or fell silent."""
        self._lock = threading.Lock()
        # Daemons: where a test fails they may upload for ever.
        self._threads = [
            threading.Thread(target=self._upload_all, name="crowd", daemon=True) for _ in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def await_accepted(self, wanted: int, seconds: float = 120) -> None:
        """Return once so many uploads are accepted."""
        deadline = time.monotonic() + seconds
        while len(self.accepted) < wanted:
            assert time.monotonic() < deadline, f"only {len(self.accepted)} accepted: {self.refusals}"
            time.sleep(0.05)

    def stop(self) -> None:
        """Let it begin no more uploads: what it has begun is all it does."""
        with self._lock:
            self.jobs -= len(self._waiting)
            self._waiting.clear()

    def finish(self, seconds: float = 300) -> None:
        """Return once all uploads are accepted."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"only {len(self.accepted)} accepted: {self.refusals}"

    def _upload_all(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while (upload := self._next()) is not None:
                begun = time.monotonic()
                self._upload(client, *upload)
                time.sleep(max(0.0, begun + self._pause - time.monotonic()))

    def _next(self) -> tuple[str, str] | None:
        with self._lock:
            return self._waiting.pop() if self._waiting else None

    def _upload(self, client: httpx.Client, customer_id: str, key: str) -> None:
        while True:
            try:
                answer = client.post(
                    f"/customers/{customer_id}",
                    files={"photo": ("me.jpg", self._photo, "image/jpeg")},
                    data=self._fields,
                    headers={"Idempotency-Key": key},
                )
            except httpx.TransportError as error:
                self._refused(type(error).__name__)
            else:
                if answer.status_code == 202:
                    with self._lock:
                        self.accepted[answer.json()["jobId"]] = customer_id
                    if self._awaits_ends:
                        self._await_end(client, answer.headers["location"])
                    return
                self._refused(answer.status_code)
            time.sleep(0.3)

    @staticmethod
    def _await_end(client: httpx.Client, path: str) -> None:
        while not client.get(path, params={"waitSeconds": 20}).raise_for_status().json()["isTerminal"]:
            pass

    def _refused(self, how: int | str) -> None:
        with self._lock:
            self.refusals[how] += 1


class Outcome:
    """What became of a crowd's jobs, read from the record and from storage."""

    def __init__(self, crowd: Crowd, records: JobRepository, storage: ObjectStorage) -> None:
        self._crowd = crowd
        self._records = records
        self._storage = storage

    def await_ends(self, seconds: float = 300) -> None:
        """Return once every accepted job is terminal."""
        deadline = time.monotonic() + seconds
        while left := self._unfinished():
            assert time.monotonic() < deadline, (
                f"{len(left)} of {self._crowd.jobs} have not ended: {left[:3]}"
            )
            time.sleep(0.2)

    def assert_all_done(self) -> None:
        """Every 202 was kept: DONE, published once, with its avatar in storage and no other beside it; and no
        upload made two jobs."""
        stories = self._stories()
        jobs = [job for customer in self._crowd.customers for job in self._jobs_of(customer)]
        assert {job.job_id for job in jobs} == self._crowd.accepted.keys()
        assert len(jobs) == self._crowd.jobs
        assert Counter(job.status for job in jobs) == {ProcessingStatus.DONE: len(jobs)}, [
            (job.job_id, job.status, job.error) for job in jobs if job.status is not ProcessingStatus.DONE
        ]
        for job in jobs:
            kinds = [change.event.kind for change in stories[job.job_id]]
            assert kinds[0] is EventKind.SUBMITTED
            assert [kind for kind in kinds if kind in TERMINAL] == [EventKind.DONE]
            assert job.outcome is not None, "DONE has an outcome"
            assert f"avatar-{job.attempt}." in job.outcome.avatar.key, "the avatar is the current attempt's"
        self._assert_pictures(jobs)

    def done(self) -> int:
        """How many are published."""
        return sum(
            change.event.kind is EventKind.DONE for story in self._stories().values() for change in story
        )

    def started_again(self, after: datetime) -> list[float]:
        """For each job that was started more than once: seconds from the given time to its second start."""
        starts = [
            [change.event.at for change in story if change.event.kind is EventKind.STARTED]
            for story in self._stories().values()
        ]
        return [
            (second - after).total_seconds() for _, second, *_ in (times for times in starts if times[1:])
        ]

    def jobs_per_second(self) -> float:
        """From the first start to the last end."""
        times = [
            change.event.at
            for story in self._stories().values()
            for change in story
            if change.event.kind in WORKING
        ]
        return self._crowd.jobs / (max(times) - min(times)).total_seconds()

    def seconds_until_work(self, after: datetime) -> float:
        """From the given time to the first event of work after it."""
        times = [
            change.event.at
            for story in self._stories().values()
            for change in story
            if change.event.kind in WORKING and change.event.at > after
        ]
        assert times, "nothing was worked on after the fault: it came too late"
        return (min(times) - after).total_seconds()

    def _assert_pictures(self, jobs: list[ProfilePhotoJob]) -> None:
        wanted = {job.original.key for job in jobs}
        wanted |= {job.outcome.avatar.key for job in jobs if job.outcome is not None}
        deadline = time.monotonic() + 60
        while (kept := self._kept()) != wanted:
            # What lost attempts have left is taken away by and by; what is published must be there.
            assert wanted <= kept, sorted(wanted - kept)
            if time.monotonic() > deadline:
                self._assert_broken_off(kept - wanted)
                return
            time.sleep(0.5)

    def _assert_broken_off(self, left: set[str]) -> None:
        """An ingress that dies between storing a photo and the commit leaves it to the sweeper, which waits
        for two days: no more of them than connections that broke (Serve's own proxy answers 500 then)."""
        broken = sum(
            times for how, times in self._crowd.refusals.items() if isinstance(how, str) or how == 500
        )
        originals = {key for key in left if key.rpartition("/")[2].startswith("original.")}
        assert left == originals, f"objects of nobody: {sorted(left)}"
        assert len(left) <= broken, f"objects of nobody: {sorted(left)}, {self._crowd.refusals}"

    def _kept(self) -> set[str]:
        of_all = (entry.key for entry in self._storage.list(""))
        return {key for key in of_all if any(customer in key for customer in self._crowd.customers)}

    def _unfinished(self) -> list[str]:
        return [
            job.job_id for job in self._records.list_unfinished(0) if job.customer_id in self._crowd.customers
        ]

    def _stories(self) -> dict[str, list[LoggedChange]]:
        stories: dict[str, list[LoggedChange]] = {}
        for change in self._changes():
            stories.setdefault(change.event.job_id, []).append(change)
        return stories

    def _changes(self) -> list[LoggedChange]:
        changes: list[LoggedChange] = []
        for customer in self._crowd.customers:
            after = 0
            while page := self._records.list_customer_events(customer, None, after, 1000):
                changes.extend(page)
                after = page[-1].event.seq
        return changes

    def _jobs_of(self, customer_id: str) -> list[ProfilePhotoJob]:
        return self._records.list_jobs(customer_id, None, 10_000)


def now() -> datetime:
    return datetime.now(UTC)


def soon(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when the condition holds."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < seconds, f"not within {seconds} s: {what}"
        # More seldom the longer it takes: to look at all processes costs some hundredths of a second.
        time.sleep(min(max(0.05, waited / 20), 0.5))
