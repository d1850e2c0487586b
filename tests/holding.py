"""Commits that wait for the test."""

import threading
from collections.abc import Sequence

from avatarforge.domain.changes import JobChange
from avatarforge.domain.status import EventKind
from avatarforge.persistence import JobRepository


class HeldCommits:
    """Commits of one kind of event wait until `release`. Give its `commit` to the record."""

    def __init__(self, records: JobRepository, kind: EventKind) -> None:
        self._commit = records.commit
        self._kind = kind
        self._released = threading.Event()
        self.waiting = 0

    def commit(self, shard: int, epoch: int, changes: Sequence[JobChange]) -> list[int]:
        if any(change.event.kind is self._kind for change in changes):
            self.waiting += 1
            assert self._released.wait(10)
        return self._commit(shard, epoch, changes)

    def release(self) -> None:
        self._released.set()
