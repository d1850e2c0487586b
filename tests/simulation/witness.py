"""Who watches: what must hold after every commit, every dispatch and everything that is told."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy.exc import IntegrityError

from avatarforge.domain.changes import JobChange
from avatarforge.domain.errors import JobNotFound, StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.leases import LEASE
from avatarforge.domain.status import NEXT, TERMINAL_EVENTS, EventKind, JobEvent, ProcessingStatus
from avatarforge.storage.keys import avatar_key
from avatarforge.tracker.feed import FeedBatch, FeedCursor
from avatarforge.tracker.queue.fair_queue import FairQueue, Predicate
from tests.simulation.loop import Process
from tests.simulation.trace import Trace


class Violation(AssertionError):
    """A promise was broken."""


class Truth(Protocol):
    """The record as it is at this moment, without a network before it."""

    def find_job(self, customer_id: str, job_id: str) -> ProfilePhotoJob | None: ...

    def list_shard_events(self, shard: int, seq: int, limit: int) -> list[Any]: ...


class Witness:
    """Hears of everything and complains at the first promise that is broken."""

    def __init__(
        self,
        truth: Truth,
        objects: Mapping[str, object],
        undeleted: Collection[str],
        trace: Trace,
        complain: Callable[[Exception], None],
        now: Callable[[], float],
    ) -> None:
        """`undeleted` are the keys of objects whose deletion storage refused."""
        self._truth = truth
        self._objects = objects
        self._undeleted = undeleted
        self._trace = trace
        self._complain = complain
        self._now = now
        self._seen: dict[int, tuple[str, float]] = {}
        """By shard: which cluster has it, and when that last said so."""
        self._log: dict[int, list[JobEvent]] = {}
        """Events by shard, as committed."""
        self._last: dict[str, JobEvent] = {}
        """The last event of each job."""
        self._images: dict[str, dict[int, str]] = {}
        """Of each job that makes several images, the keys of those that were published."""
        self.ended: dict[str, int] = {}
        """The `seq` of each job's end."""
        self._erased: set[str] = set()
        self.promised: dict[str, str] = {}
        """Jobs that were answered 202, with their customers."""
        self.unwanted: set[str] = set()
        """Jobs that clients have asked to erase."""
        self.refused: dict[str, tuple[str, Process]] = {}
        """Jobs whose submission was answered 503, with their customers and who answered."""
        self._named: dict[tuple[str, str], str] = {}
        """What was promised last under an idempotency key."""

    def violated(self, what: str) -> None:
        self._trace.note("VIOLATION", what)
        self._complain(Violation(what))

    # --- the record -----------------------------------------------------------------------------------

    def written(self, name: str, arguments: Sequence[Any], result: Any) -> None:
        """A write came about, or was refused with an error."""
        if name == "claim_shard" and not isinstance(result, Exception):
            self._trace.note("database", f"shard {arguments[0]} has epoch {result}")
            self._check_claim(arguments[0], arguments[2])
        if name == "keep_lease" and not isinstance(result, Exception):
            # What was handed over may be taken at once.
            self._seen[arguments[0]] = (arguments[2], float("-inf") if result else self._now())
        if name != "commit":
            return
        shard, epoch, changes = arguments
        if isinstance(result, Exception):
            self._refused(changes, result)
            return
        for change, seq in zip(changes, result, strict=True):
            numbered = change.with_seq(seq)
            self._trace.note(
                "database",
                f"epoch {epoch} commits {seq}: {change.event.kind} of {change.job.job_id} "
                f"attempt {change.event.attempt}",
            )
            self._check_change(shard, numbered)

    def _check_claim(self, shard: int, cluster_id: str) -> None:
        holder, at = self._seen.get(shard, (cluster_id, 0.0))
        if holder != cluster_id and self._now() - at < LEASE.total_seconds():
            self.violated(f"{cluster_id} takes shard {shard} from {holder}, which lives")
        self._seen[shard] = (cluster_id, self._now())

    def _refused(self, changes: Sequence[JobChange], error: Exception) -> None:
        refused = ", ".join(f"{change.event.kind} of {change.job.job_id}" for change in changes)
        self._trace.note("database", f"refuses {refused}: {error!r}")
        if isinstance(error, StaleEpoch):
            return
        if isinstance(error, IntegrityError) and "idempotency_keys" in str(error):
            return
        if isinstance(error, IntegrityError | JobNotFound):
            self.violated(f"the record had to refuse a change: {error!r}")

    def _check_change(self, shard: int, change: JobChange) -> None:
        event, job = change.event, change.job
        log = self._log.setdefault(shard, [])
        if log and log[-1].seq >= event.seq:
            self.violated(f"seq {event.seq} comes after {log[-1].seq}")
        log.append(event)
        last, self._last[event.job_id] = self._last.get(event.job_id), event
        if last is None:
            if event.kind is not EventKind.SUBMITTED:
                self.violated(f"{event.job_id} begins with {event.kind}")
            return
        if event.revision != last.revision + 1:
            self.violated(f"{event.job_id} goes from revision {last.revision} to {event.revision}")
        if event.kind is EventKind.ERASED:
            self._erased.add(event.job_id)
            wanted = event.job_id in self.promised and event.job_id not in self.refused
            if wanted and event.job_id not in self.unwanted:
                self.violated(f"{event.job_id} is erased, and nobody wanted that")
            return
        if event.job_id in self._erased:
            self.violated(f"{event.job_id} has {event.kind} after its erasure")
        if event.kind is EventKind.KEPT:
            is_legal = event.status is last.status
        elif event.kind is EventKind.IMAGE:
            is_legal = event.status is last.status is ProcessingStatus.PROCESSING
        else:
            is_legal = event.status in NEXT[last.status]
        if not is_legal:
            self.violated(f"{event.job_id} goes from {last.status} to {event.status} with {event.kind}")
        self._check_images(change, last)
        if event.kind in TERMINAL_EVENTS:
            if event.job_id in self.ended:
                self.violated(f"{event.job_id} ends twice")
            self.ended[event.job_id] = event.seq
            self._check_end(job, last)

    def _check_images(self, change: JobChange, last: JobEvent) -> None:
        """Images only become more, by one of the current attempt with each event that says so."""
        job, kind = change.job, change.event.kind
        if job.parameters.variants == 1:
            return
        before = self._images.get(job.job_id, {})
        now = self._images[job.job_id] = {image.index: image.stored.key for image in job.images}
        if len(now) != len(job.images) or not before.items() <= now.items():
            self.violated(f"{job.job_id} has images {now} after {before}")
        new = [image for image in job.images if image.index not in before]
        if len(new) != (kind in (EventKind.IMAGE, EventKind.DONE)):
            self.violated(f"{job.job_id} has {len(new)} new images with {kind}")
        for image in new:
            attempt, index = last.attempt, image.index
            wanted = avatar_key(job.customer_id, job.job_id, attempt, job.parameters.format, index)
            if image.stored.key != wanted or wanted not in self._objects:
                self.violated(f"{job.job_id} in attempt {attempt} publishes {image.stored.key}")

    def _check_end(self, job: ProfilePhotoJob, last: JobEvent) -> None:
        if job.error is not None and job.error.code == "internal_error":
            self.violated(f"{job.job_id} failed because of a fault of ours: {job.error.message}")
        if job.status is not ProcessingStatus.DONE:
            return
        if job.outcome is None or job.attempt != last.attempt:
            self.violated(f"{job.job_id} is DONE without a generation of its attempt")
            return
        if len(job.images) != job.parameters.variants or job.outcome.avatar != job.images[0].stored:
            self.violated(f"{job.job_id} is DONE with images {[image.index for image in job.images]}")
        if job.parameters.variants > 1:
            return
        key = job.outcome.avatar.key
        wanted = avatar_key(job.customer_id, job.job_id, last.attempt, job.parameters.format)
        if key != wanted:
            self.violated(f"{job.job_id} in attempt {last.attempt} publishes {key}")
        if key not in self._objects:
            self.violated(f"{job.job_id} publishes {key}, which is not in storage")

    # --- what is told ---------------------------------------------------------------------------------

    def told(self, shard: int, cursor: FeedCursor, batch: FeedBatch) -> None:
        """A subscriber that had come to the cursor is told so much more."""
        told = [change.event for change in batch.changes]
        expected = [
            event
            for event in self._log.get(shard, ())
            if cursor.tracker and cursor.seq < event.seq <= batch.cursor.seq
        ]
        if told != expected:
            self.violated(
                f"after {cursor.seq} shard {shard} tells {[event.seq for event in told]} "
                f"and not {[event.seq for event in expected]}, up to {batch.cursor.seq}"
            )
        latest = self._log[shard][-1].seq if self._log.get(shard) else 0
        if batch.cursor.seq > latest:
            self.violated(f"shard {shard} tells of {batch.cursor.seq}; the log goes up to {latest}")

    def followed(self, customer_id: str, seqs: Sequence[int], excused_up_to: int) -> None:
        """A client that resumed by its last `seq` has heard so many changes, in this order."""
        mine = [event for log in self._log.values() for event in log if event.customer_id == customer_id]
        needed = {
            event.seq
            for event in mine
            if event.seq > excused_up_to
            and (event.kind is EventKind.ERASED or event.job_id not in self._erased)
        }
        if list(seqs) != sorted(set(seqs)):
            self.violated(f"a follower of {customer_id} hears {list(seqs)}")
        if missing := needed - set(seqs):
            self.violated(f"a follower of {customer_id} was never told of {sorted(missing)}")
        if invented := set(seqs) - {event.seq for event in mine}:
            self.violated(f"a follower of {customer_id} was told of {sorted(invented)}")

    def latest_of(self, customer_id: str) -> int:
        """The last number that every follower of the customer has to hear in the end."""
        return max(
            (event.seq for log in self._log.values() for event in log if event.customer_id == customer_id),
            default=0,
        )

    # --- what clients were promised ----------------------------------------------------------------

    def accepted(self, customer_id: str, job_id: str, key: str | None) -> None:
        """A client was answered 202."""
        self.promised[job_id] = customer_id
        if job_id in self._erased:
            return
        if self._truth.find_job(customer_id, job_id) is None:
            self.violated(f"{job_id} was answered 202 and is not on record")
        if key is None:
            return
        before = self._named.get((customer_id, key), job_id)
        if before != job_id and before not in self._erased:
            self.violated(f"key {key} of {customer_id} stands for {before} and for {job_id}")
        self._named[customer_id, key] = job_id

    def was_refused(self, customer_id: str, job_id: str, process: Process) -> None:
        """A client was answered 503 by this ingress."""
        self.refused[job_id] = (customer_id, process)

    def was_cancelled(self, customer_id: str, job_id: str) -> None:
        """A client was told that the job is cancelled."""
        job = self._truth.find_job(customer_id, job_id)
        if job is not None and job.status is not ProcessingStatus.CANCELLED:
            self.violated(f"{job_id} was told to be cancelled and is {job.status}")

    def was_kept(self, customer_id: str, job_id: str, index: int) -> None:
        """A client was told that it keeps this image."""
        job = self._truth.find_job(customer_id, job_id)
        if job is not None and job.kept != index:
            self.violated(f"image {index} of {job_id} was told to be kept, and {job.kept} is")

    def was_erased(self, customer_id: str, job_id: str) -> None:
        """A client was told that the job is gone."""
        if self._truth.find_job(customer_id, job_id) is not None:
            self.violated(f"{job_id} was told to be erased and is on record")

    def is_erased(self, job_id: str) -> bool:
        return job_id in self._erased

    def refused_and_kept(self) -> list[str]:
        """Refused jobs that are on record.

        An ingress takes back what it has refused; one that dies before it can may leave a job that fails, for
        it has removed the original, or one that was done before. A job that is sent again under its key
        meanwhile is promised.
        """
        kept = []
        for job_id, (customer_id, process) in self.refused.items():
            job = self._truth.find_job(customer_id, job_id)
            if job is None or job_id in self.promised:
                continue
            is_stored = job.original.key in self._objects and job.original.key not in self._undeleted
            is_whole = job.status is ProcessingStatus.DONE and is_stored
            if process.is_alive or is_whole:
                kept.append(job_id)
        return kept

    def open_promises(self) -> list[str]:
        """Promised jobs that have neither ended nor been erased."""
        return [job_id for job_id in self.promised if job_id not in self.ended.keys() | self._erased]


def watched_line(witness: Witness, *, fits_vary: bool) -> type[FairQueue]:
    """A waiting line that is checked at every turn. Fairness is, where all jobs fit at all times."""

    class WatchedLine(FairQueue):
        def __init__(self) -> None:
            super().__init__()
            self._picks = 0
            self._came: dict[str, int] = {}
            """Jobs in line, with the number of picks before they came."""
            self._here: dict[str, ProfilePhotoJob] = {}
            self._picked: dict[tuple[int, str], list[int]] = {}
            """When each customer had its turns in each priority."""
            self._charged: dict[tuple[int, str], int] = {}
            """How many turns of every other customer its last job of several images stands for."""

        def add(self, job: ProfilePhotoJob) -> bool:
            self._came.setdefault(job.job_id, self._picks)
            self._here.setdefault(job.job_id, job)
            return super().add(job)

        def remove(self, job_id: str) -> ProfilePhotoJob | None:
            self._came.pop(job_id, None)
            self._here.pop(job_id, None)
            return super().remove(job_id)

        def pop(self, fits: Predicate = lambda job: True) -> ProfilePhotoJob | None:
            fitting = [job for job in self._here.values() if fits(job)]
            picked = super().pop(fits)
            if picked is None:
                if fitting:
                    witness.violated(f"{fitting[0].job_id} waits, and nobody is picked")
                return None
            for other in fitting:
                if other.job_id != picked.job_id:
                    self._compare(picked, other)
            self._picks += 1
            customer = picked.priority, picked.customer_id
            self._picked.setdefault(customer, []).append(self._picks)
            self._charged[customer] = len(picked.missing) - 1
            self._came.pop(picked.job_id, None)
            self._here.pop(picked.job_id, None)
            return picked

        def _compare(self, picked: ProfilePhotoJob, other: ProfilePhotoJob) -> None:
            if other.priority > picked.priority:
                witness.violated(f"{picked.job_id} goes before {other.job_id}, which has a higher priority")
            if other.priority != picked.priority:
                return
            if other.customer_id == picked.customer_id:
                if other.job_id < picked.job_id:
                    witness.violated(f"{picked.job_id} goes before {other.job_id}, which is older")
                return
            if fits_vary:
                return
            own, others = (picked.priority, picked.customer_id), (other.priority, other.customer_id)
            since = max(self._came[other.job_id], *self._picked.get(others, [0])[-1:])
            passed = sum(turn > since for turn in self._picked.get(own, ()))
            if passed > self._charged.get(others, 0):
                witness.violated(f"{picked.customer_id} has {passed + 1} turns while {other.job_id} waits")

    return WatchedLine
