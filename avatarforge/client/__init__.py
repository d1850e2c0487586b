"""A Python client of AvatarForge: `Client`, its twin `AsyncClient`, and `verify_webhook` for receivers.

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit("ana", Path("ana.jpg"), style="pixel-art")
        job = client.wait(job, seconds=60)
        Path("avatar.png").write_bytes(client.download(job).content)

Threads may share a `Client`. `make client` generates it from `AsyncClient`. Nothing of the server is imported
but its messages.
"""

from avatarforge.client.async_client import AsyncClient
from avatarforge.client.connection import ImageFile, Job, JobRef, Photo
from avatarforge.client.errors import (
    AccessDenied,
    APIError,
    ClientError,
    Conflict,
    InvalidRequest,
    InvalidWebhook,
    JobFailed,
    NotFound,
    ServerBusy,
    ServerUnreachable,
    StillRunning,
    UnexpectedResponse,
)
from avatarforge.client.events import JobChanged, JobErased, JobEvent, JobProgressed, Snapshot
from avatarforge.client.sync_client import Client
from avatarforge.client.webhooks import Webhook, verify_webhook
from avatarforge.domain.deliveries import DeliveryState
from avatarforge.domain.status import ProcessingStatus
from avatarforge.messages import Image, ProfilePhotoJobStatus
from avatarforge.rest_messages import (
    Customer,
    CustomerWithPhotos,
    DeliveryMessage,
    ImageLink,
    ImageLinks,
    KeyMessage,
    ModelList,
    ModelMessage,
    ReplicaMessage,
    StyleList,
    StyleMessage,
)

__all__ = [
    "APIError",
    "AccessDenied",
    "AsyncClient",
    "Client",
    "ClientError",
    "Conflict",
    "Customer",
    "CustomerWithPhotos",
    "DeliveryMessage",
    "DeliveryState",
    "Image",
    "ImageFile",
    "ImageLink",
    "ImageLinks",
    "InvalidRequest",
    "InvalidWebhook",
    "Job",
    "JobChanged",
    "JobErased",
    "JobEvent",
    "JobFailed",
    "JobProgressed",
    "JobRef",
    "KeyMessage",
    "ModelList",
    "ModelMessage",
    "NotFound",
    "Photo",
    "ProcessingStatus",
    "ProfilePhotoJobStatus",
    "ReplicaMessage",
    "ServerBusy",
    "ServerUnreachable",
    "Snapshot",
    "StillRunning",
    "StyleList",
    "StyleMessage",
    "UnexpectedResponse",
    "Webhook",
    "verify_webhook",
]
