"""The record of objects that have to go from storage because their job is erased."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import select

from avatarforge.domain.changes import Fence, ObjectDeletion
from avatarforge.persistence.database import Repository, begin_read, begin_write
from avatarforge.persistence.group import show_fence
from avatarforge.persistence.tables import object_deletions


class DeletionRepository(Repository):
    """Objects to delete: `JobRepository.commit` writes them down with the erasure that wants them gone.

    Every method can simply be repeated. A write whose fence has fallen raises `StaleEpoch`.
    """

    def list_due(self, shard: int, now: datetime, limit: int) -> list[ObjectDeletion]:
        """Return at most `limit` of the shard's deletions whose time has come, the longest due at the front.

        They stay on record until they are complete: objects that cannot be deleted now are met again.
        """
        deletions = object_deletions.c
        wanted = (
            select(deletions.deletion_id, deletions.prefix)
            .where(deletions.shard == shard, deletions.due_at <= now)
            .order_by(deletions.due_at, deletions.deletion_id)
            .limit(limit)
        )
        with begin_read(self._engine) as connection:
            return [ObjectDeletion(**row) for row in connection.execute(wanted).mappings()]

    def complete(self, deletion_ids: Collection[int], fence: Fence) -> None:
        """Forget the deletions. Ids that are not on record (any more) are passed over."""
        if not deletion_ids:
            return
        with begin_write(self._engine) as connection:
            show_fence(connection, fence)
            connection.execute(
                object_deletions.delete().where(object_deletions.c.deletion_id.in_(deletion_ids))
            )

    def postpone(self, deletion_ids: Collection[int], due_at: datetime, fence: Fence) -> None:
        """Let the deletions become due later. Ids that are not on record are passed over."""
        if not deletion_ids:
            return
        with begin_write(self._engine) as connection:
            show_fence(connection, fence)
            connection.execute(
                object_deletions.update()
                .where(object_deletions.c.deletion_id.in_(deletion_ids))
                .values(due_at=due_at)
            )
