"""The parts around a tracker: the database, storage, the webhooks, and the replicas."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from avatarforge.domain.generations import GenerationTask, GenerationUpdate
from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository
from avatarforge.settings import RemoteSettings
from avatarforge.storage import ObjectStorage
from avatarforge.webhooks.sender import WebhookSender


class Reservation(Protocol):
    """A free slot of one replica, ours until the context that gave it ends."""

    @property
    def replica_id(self) -> str:
        """The replica's name, as the log and Ray's dashboard have it."""

    def generate(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """Give the slot its task; may be called once. Closing the generator stops the generation.

        Raises what the transport raises when the replica is lost.
        """


class Replicas(Protocol):
    """The source of slots: `queue.serve_replicas.ServeReplicas`."""

    def reserve(self) -> AbstractAsyncContextManager[Reservation]:
        """Wait until a replica has a free slot and hold it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFallback:
    """The replicas that ask a remote server, and the conditions for using them."""

    replicas: Replicas
    settings: RemoteSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Ports:
    """The database, storage, webhooks and replicas of one tracker. Tests have twins of them in memory."""

    store: JobRepository
    deletions: DeletionRepository
    deliveries: DeliveryRepository
    storage: ObjectStorage
    webhooks: WebhookSender
    replicas: Replicas
    remote: RemoteFallback | None = None
