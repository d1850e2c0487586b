"""The Serve replica that this process is, as far as Serve hides it."""

from collections.abc import Collection
from typing import Any

from ray._private.worker import global_worker


class ServeShell:
    """Reads what Serve has no public call for: Ray's version is pinned, and a test holds this to it.

    Raises `RuntimeError` outside of a replica.
    """

    def __init__(self) -> None:
        actor = global_worker.actors.get(global_worker.actor_id)
        # `ray.serve._private.replica.Replica`.
        self._replica: Any = getattr(actor, "_replica_impl", None)
        if self._replica is None:
            raise RuntimeError("This process is not a replica of Ray Serve.")

    @property
    def is_stopping(self) -> bool:
        return bool(self._replica._shutting_down)

    @property
    def seconds_to_stop(self) -> float:
        return float(self._replica._deployment_config.graceful_shutdown_timeout_s)

    @property
    def reserved(self) -> Collection[str]:
        # A copy: the set is changed in another thread, Serve's own.
        return frozenset(self._replica._reserved_slots.copy())

    def release(self, reserved: str) -> None:
        self._replica._event_loop.call_soon_threadsafe(self._replica.release_slot, reserved)
