"""The handles of the trackers: detached, named actors that outlive the application that started them."""

import time
from typing import Any

import ray
import structlog
from ray.actor import ActorHandle
from ray.exceptions import RayError

from avatarforge import __version__
from avatarforge.actors import NAMESPACE, tracker_name
from avatarforge.domain.errors import TrackerUnavailable
from avatarforge.tracker.actor import JobTrackerActor

log = structlog.get_logger(__name__)

ANSWER_TIMEOUT_SECONDS = 15.0
"""How long a tracker may take to say what it is, or to stop, before it is ended as it is."""
MAX_CALLS = 10_000
"""Calls that one tracker answers at a time: they wait, they do not work."""
HEAD_NODE_ONLY = {"node:__internal_head__": 0.0001}
"""A share of what Ray gives to the head alone: trackers live there, as Serve's controller does.

Workers with GPUs come and go with the demand, and Ray misses one that dies after seconds only. Meanwhile its
jobs go on elsewhere, if their tracker has not gone with it. Without the head no actor is started anywhere.
"""


def get_or_start_tracker(arguments: dict[str, Any], shard: int) -> "ActorHandle[JobTrackerActor]":
    """Return the shard's tracker, started if it is not running. Blocks.

    It outlives the application that started it. One that was started with other arguments, or by another
    release, is replaced: it finishes its commit and ends, and the new one takes the epoch and the jobs over.
    """
    known = find_tracker(shard)
    if known is not None and not _is_current(known, arguments):
        log.info("tracker is replaced: its arguments or the release have changed", shard=shard)
        _retire(known, shard)
    actor: Any = ray.remote(JobTrackerActor)
    handle: ActorHandle[JobTrackerActor] = actor.options(
        name=tracker_name(shard),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=MAX_CALLS,
        num_cpus=0,
        resources=HEAD_NODE_ONLY,
    ).remote(arguments, shard)
    return handle


def find_tracker(shard: int) -> "ActorHandle[JobTrackerActor] | None":
    """Return the shard's tracker, if there is one. Blocks."""
    try:
        return ray.get_actor(tracker_name(shard), namespace=NAMESPACE)
    except ValueError:
        return None


def _is_current(tracker: Any, arguments: dict[str, Any]) -> bool:
    try:
        answer = tracker.is_current.remote(arguments, __version__)
        return bool(ray.get(answer, timeout=ANSWER_TIMEOUT_SECONDS))
    except (RayError, AttributeError, TypeError) as error:
        # It is away, or of a release that does not know the question. A new one loses nothing: all is in the
        # database.
        log.warning("tracker does not answer", reason=str(error))
        return False


def _retire(tracker: Any, shard: int) -> None:
    """End the tracker for good, and return when its name is free."""
    try:
        ray.get(tracker.stop.remote(), timeout=ANSWER_TIMEOUT_SECONDS)
    except RayError as error:
        log.warning("tracker was not stopped in time", shard=shard, reason=str(error))
    ray.kill(tracker, no_restart=True)
    deadline = time.monotonic() + ANSWER_TIMEOUT_SECONDS
    while (named := find_tracker(shard)) is not None and named == tracker:
        if time.monotonic() > deadline:
            raise TrackerUnavailable(f"shard {shard}'s last tracker does not end")
        time.sleep(0.05)
