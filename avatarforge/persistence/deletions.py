"""The record of objects that have to go from storage because their job is erased."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Engine, func, select

from avatarforge.domain.changes import Fence, ObjectDeletion
from avatarforge.persistence.database import reading, writing
from avatarforge.persistence.group import show_fence
from avatarforge.persistence.tables import object_deletions


class DeletionRecords:
    """Objects to delete: `JobRecords.commit` writes them down with the erasure that wants them gone.

    Calls block; any thread may make them. Every method raises `DatabaseUnavailable` when the database does
    not answer, and can simply be repeated. A write whose fence has fallen raises `Overtaken`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, shard: int, now: datetime, limit: int) -> list[ObjectDeletion]:
        """At most `limit` of the shard's deletions whose time has come, the longest due at the front.

        They stay on record until they are `done`: objects that cannot be deleted now are met again.
        """
        deletions = object_deletions.c
        wanted = (
            select(deletions.deletion_id, deletions.prefix)
            .where(deletions.shard == shard, deletions.due_at <= now)
            .order_by(deletions.due_at, deletions.deletion_id)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return [ObjectDeletion(**row) for row in connection.execute(wanted).mappings()]

    def done(self, deletion_ids: Collection[int], fence: Fence) -> None:
        """Forget the deletions. Ids that are not on record (any more) are passed over."""
        if not deletion_ids:
            return
        with writing(self._engine) as connection:
            show_fence(connection, fence)
            connection.execute(
                object_deletions.delete().where(object_deletions.c.deletion_id.in_(deletion_ids))
            )

    def postpone(self, deletion_ids: Collection[int], due_at: datetime, fence: Fence) -> None:
        """Let the deletions become due later. Ids that are not on record are passed over."""
        if not deletion_ids:
            return
        with writing(self._engine) as connection:
            show_fence(connection, fence)
            connection.execute(
                object_deletions.update()
                .where(object_deletions.c.deletion_id.in_(deletion_ids))
                .values(due_at=due_at)
            )

    def next_due(self, shard: int) -> datetime | None:
        """When the shard's next deletion is due, perhaps in the past; `None` where there is none."""
        deletions = object_deletions.c
        wanted = select(func.min(deletions.due_at)).where(deletions.shard == shard)
        with reading(self._engine) as connection:
            earliest: datetime | None = connection.scalar(wanted)
        return earliest
