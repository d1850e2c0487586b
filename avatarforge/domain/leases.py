"""Which cluster serves a database, where several are started on it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from avatarforge.domain.pickling import pickle_by_name

LEASE = timedelta(seconds=10)
"""A cluster that was not seen for so long is taken for dead."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class KnownCluster:
    """A cluster whose trackers were started on a database. Times are by the database's clock."""

    cluster_id: str
    first_seen_at: datetime
    seen_at: datetime

    @property
    def age_order(self) -> tuple[datetime, str]:
        return self.first_seen_at, self.cluster_id


def find_rival(
    cluster_id: str, holder: str | None, clusters: Iterable[KnownCluster], now: datetime
) -> str | None:
    """Return the living cluster that a shard is left to: the one that holds it, or else one that is younger
    than the cluster `cluster_id`. `None` if this one may have it."""
    known = {cluster.cluster_id: cluster for cluster in clusters}
    ours = known.pop(cluster_id)
    living = [cluster for cluster in known.values() if now - cluster.seen_at < LEASE]
    if any(cluster.cluster_id == holder for cluster in living):
        return holder
    younger = [cluster for cluster in living if cluster.age_order > ours.age_order]
    return max(younger, key=lambda cluster: cluster.age_order).cluster_id if younger else None
