"""The replicas as the dispatcher sees them: reserve a slot, then give it a task."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from avatarforge.domain.generations import GenerationTask, GenerationUpdate


class Reservation(Protocol):
    """A free slot of one replica, ours until the context that gave it ends."""

    def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """Give the slot its task; may be called once. Closing the generator stops the generation.

        Raises what the transport raises when the replica is lost.
        """


class Replicas(Protocol):
    """Where slots come from."""

    def reserve(self) -> AbstractAsyncContextManager[Reservation]:
        """Wait until a replica has a free slot and hold it."""
