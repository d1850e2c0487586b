"""What a replica knows of its surroundings under Ray: its own name, and the trackers, by theirs."""

import asyncio
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError

from avatarforge.actors import NAMESPACE, tracker_name
from avatarforge.diffusion.reporting import Tell
from avatarforge.domain.replicas import ReplicaReport


def replica_id() -> str:
    """Serve's name of the replica that this process is."""
    return str(serve.get_replica_context().replica_id.unique_id)


def tracker_reports(shards: int) -> list[Tell]:
    """For each shard, what sends a report to its tracker."""
    return [partial(_tell, {}, shard) for shard in range(shards)]


async def _tell(known: dict[int, Any], shard: int, report: ReplicaReport) -> str | None:
    """Raises what Ray raises, and `ValueError` for a tracker that was never started."""
    actor: Any = known.get(shard)
    if actor is None:
        # Asks Ray's control store, and blocks.
        actor = await asyncio.to_thread(ray.get_actor, tracker_name(shard), namespace=NAMESPACE)
        known[shard] = actor
    try:
        answer: str | None = await actor.report_replica.remote(report)
    except RayActorError:
        del known[shard]
        raise
    return answer
