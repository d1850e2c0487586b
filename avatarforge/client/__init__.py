"""A Python client of AvatarForge: `Client`, its twin `AsyncClient`, and `verify_webhook` for receivers.

    with Client("http://127.0.0.1:8000") as client:
        job = client.submit("ana", Path("ana.jpg"), style="pixel-art")
        job = client.wait(job, seconds=60)
        Path("avatar.png").write_bytes(client.download(job).content)

What a call sends and how its answer is read is said once, in `calls` and `watching`, without any I/O. The
two clients only send, wait and read. Nothing of the server is imported but its messages.
"""

from avatarforge.client.asynchronous import AsyncClient
from avatarforge.client.blocking import Client
from avatarforge.client.errors import (
    ClientError,
    Conflict,
    InvalidInput,
    InvalidWebhook,
    JobFailed,
    NotAllowed,
    NotFound,
    Refused,
    ServerUnreachable,
    StillRunning,
    TryLater,
    UnexpectedAnswer,
)
from avatarforge.client.results import (
    Changed,
    Erased,
    JobName,
    NamedJob,
    News,
    Picture,
    Progressed,
    Snapshot,
    Webhook,
)
from avatarforge.client.webhooks import verify_webhook
from avatarforge.domain.deliveries import DeliveryState
from avatarforge.domain.status import ProcessingStatus
from avatarforge.messages import ProfilePhotoJobStatus
from avatarforge.rest_messages import (
    Customer,
    CustomerWithPhotos,
    DeliveryMessage,
    ImageLinks,
    ModelList,
    ModelMessage,
    ReplicaMessage,
    StyleList,
    StyleMessage,
)

__all__ = [
    "AsyncClient",
    "Changed",
    "Client",
    "ClientError",
    "Conflict",
    "Customer",
    "CustomerWithPhotos",
    "DeliveryMessage",
    "DeliveryState",
    "Erased",
    "ImageLinks",
    "InvalidInput",
    "InvalidWebhook",
    "JobFailed",
    "JobName",
    "ModelList",
    "ModelMessage",
    "NamedJob",
    "News",
    "NotAllowed",
    "NotFound",
    "Picture",
    "ProcessingStatus",
    "ProfilePhotoJobStatus",
    "Progressed",
    "Refused",
    "ReplicaMessage",
    "ServerUnreachable",
    "Snapshot",
    "StillRunning",
    "StyleList",
    "StyleMessage",
    "TryLater",
    "UnexpectedAnswer",
    "Webhook",
    "verify_webhook",
]
