"""The answers of the REST interface beside the message of a job: pages, customers, webhooks, models.

The server writes them and `avatarforge.client` reads them, so that they are said once.
"""

from typing import Literal

from pydantic import ConfigDict, Field

from avatarforge.domain.deliveries import DeliveryState
from avatarforge.domain.jobs import Crop
from avatarforge.messages import Message, ProfilePhotoJobStatus, PublicPath, Time


class PhotoPage(Message):
    photos: tuple[ProfilePhotoJobStatus, ...]
    """Newest first."""
    next: PublicPath | None
    """Path of the next page; null on the last."""


class FoundPhotos(Message):
    photos: tuple[ProfilePhotoJobStatus, ...]
    """Oldest first."""


class CropMessage(Message):
    """The square that a photo would be cropped to, in pixels of the photo as people see it."""

    width: int
    """Of the photo."""
    height: int
    crop: Crop
    """`face`, or `centre` where no face was found."""
    left: float
    top: float
    side: float
    quarter_turns: int
    """Turns by 90 degrees counter-clockwise that make the face upright."""
    preview: str | None
    """The square as a small JPEG in a data URL, if `preview=true` asks for it."""


class Customer(Message):
    customer_id: str
    created_at: Time
    photo_count: int
    latest_photo: ProfilePhotoJobStatus | None


class CustomerPage(Message):
    customers: tuple[Customer, ...]
    """In the order of their ids, byte by byte."""
    next: PublicPath | None
    """Path of the next page; null on the last."""


class CustomerWithPhotos(Customer):
    photos: tuple[ProfilePhotoJobStatus, ...]
    """The newest photos, newest first."""
    next: PublicPath | None
    """Path of the rest of the photos; null when these are all."""


class StreamSnapshot(Message):
    """The data of the events `snapshot` and `reset`."""

    seq: int
    photos: tuple[ProfilePhotoJobStatus, ...]
    """The unfinished jobs, or the one job that is followed."""


class StreamProgress(ProfilePhotoJobStatus):
    """The data of the event `progress`: a live step, which is not in the log."""

    preview: str | None = None
    """A small image as a data URL, if `previews=true` asks for it."""
    index: int | None = None
    """Which of the job's images the preview shows."""


class StreamErased(Message):
    """The data of the event `erased`."""

    job_id: str
    customer_id: str
    seq: int


class StreamOverflow(Message):
    """The data of the event `overflow`: the client reads too slowly, and has to come back."""

    seq: int
    detail: str


class DeliveryAttemptMessage(Message):
    at: Time
    seconds: float
    """How long the call took."""
    status: int | None
    """The receiver's HTTP status; null where no answer came."""
    answer: str
    """The beginning of the answer's body, or what went wrong."""


class DeliveryMessage(Message):
    delivery_id: str
    """Also the `webhook-id` of every call."""
    seq: int
    """The number of the event that is told."""
    url: str
    state: DeliveryState
    created_at: Time
    next_at: Time | None
    """When it is called next; null unless PENDING."""
    attempts: tuple[DeliveryAttemptMessage, ...]
    """Calls, oldest first."""


class DeliveryList(Message):
    deliveries: tuple[DeliveryMessage, ...]


class StyleMessage(Message):
    name: str
    """What the field `style` of an upload takes."""
    title: str
    prompt: str
    """The template; `{prompt}` stands for the client's words."""


class DefaultsMessage(Message):
    steps: int
    strength: float | None
    """Null where the model has no such dial; so is `imageGuidance`."""
    guidance: float
    image_guidance: float | None
    prompt: str
    """For an upload with neither prompt nor style."""
    negative_prompt: str


class ModelMessage(Message):
    name: str
    title: str
    family: str
    licence: str
    size: int
    """Side in pixels of the square avatars that are made where an upload names no size."""
    max_size: int
    """The longest `width` and `height` of an upload."""
    dials: tuple[Literal["strength", "imageGuidance"], ...]
    """The fields of an upload that say how close the avatar stays to the photo. Others are refused."""
    samplers: tuple[str, ...]
    """What the field `sampler` of an upload takes; empty where the model has its own alone."""
    defaults: DefaultsMessage
    styles: tuple[StyleMessage, ...]


class ServedModelMessage(Message):
    name: str
    fingerprint: str
    """Of the manifest's content: it differs where a manifest was changed and kept its name."""
    since: Time
    load_seconds: float
    """The time of loading, with the first image."""
    load_phases: dict[str, float]
    """Its parts in seconds: `drain` of the model before (where memory does not hold both), `import` of the
    libraries (for a replica's first model), `read`, `measure` and `first_image`."""
    dtype: str
    """Number format."""


class ModelFailureMessage(Message):
    model: str
    """The desired model."""
    reason: str
    at: Time


class ReplicaMessage(Message):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    replica_id: str
    backend: str
    """`local`, or `remote` for one that asks another server."""
    state: str
    """`serving`; `loading`: it has no model yet; `draining`: it finishes what runs, then loads another model
    where its memory does not hold two; `no_model`: it has none, since the desired one cannot be loaded."""
    reported_at: Time
    desired_model: str
    """The model that it should serve."""
    model: ServedModelMessage | None
    """What serves; null for a remote one, whose server decides."""
    failure: ModelFailureMessage | None
    """Why the desired model does not serve, if it cannot be loaded."""
    user_config_faults: tuple[str, ...]
    """What is wrong in its deployment's `user_config`, and left out."""
    device: str | None
    limit: int
    """Images that are denoised at once."""
    active: int
    """Images in progress."""
    waiting: int
    """Images that wait in the replica."""
    step_seconds: dict[str, float]
    """Seconds of a step by the number of images, rounded up to 1, 2, 4, 8, …"""
    mean_images: float | None
    """The real batch size: images of a step, on average."""
    steps_by_images: dict[str, int]
    """How many steps were run with so many images."""
    images_generated: int
    """Since the model serves."""
    busy_seconds: float
    memory_bytes: int | None
    """Taken on a GPU."""
    cached_embeddings: int
    tuning: dict[str, str]
    """How the device is used, as warming up found it fastest: the memory formats of the model's parts, and
    into how many passes and threads the rows of a step are split."""
    compile_failure: str | None
    """Why the model runs as it is, if it was to be compiled and torch could not."""
    circuit: str | None
    """Of a remote one: whether its server is asked (`closed`) or left alone (`open`)."""


class ModelList(Message):
    models: tuple[ModelMessage, ...]
    """What uploads are checked against."""
    replicas: tuple[ReplicaMessage, ...] = ()
    """What each replica serves, as it told some seconds ago."""
    user_config_faults: tuple[str, ...] = ()
    """What is wrong in Ingress' `user_config`, and left out."""


class StyleList(Message):
    model: str
    styles: tuple[StyleMessage, ...]


class AboutMessage(Message):
    """The rules for photos that are sent to this server."""

    job_retention_days: float | None
    """Days after its upload at which a job is erased, with photo and avatar; null: when somebody asks."""
    terms_url: str | None
    """Address of the terms of whoever runs the server."""
    max_link_seconds: int | None
    """How long a link to an avatar may work that needs no key; null: this server signs none."""


class KeyMessage(Message):
    """The scope of a key."""

    key_id: str | None = None
    """Null, as the name, where no keys are asked for."""
    name: str | None = None
    customers: tuple[str, ...]
    """Ids of customers; `shop-*` stands for all that begin so, `*` for every one."""
    is_admin: bool
    """It may ask about the service as a whole."""
    expires_at: Time | None = None


class TicketMessage(Message):
    ticket: str
    """Opens one stream of the customer, once."""
    expires_at: Time


class KeptImage(Message):
    # Not checked: the job's own error names the images that there are.
    index: int = Field(json_schema_extra={"minimum": 0})
    """The image's number among the job's `images`."""


class ImageLink(Message):
    index: int
    """The image's number among the job's `images`."""
    generated_url: PublicPath


class ImageLinks(Message):
    original_url: PublicPath | None
    generated_url: PublicPath | None
    """The image that is kept, else the first, also if another one is kept later. Null until the job is
    DONE."""
    images: tuple[ImageLink, ...]
    """Of each of the job's images that there are."""
    expires_at: Time
    """When the avatar's URL stops working."""
    original_expires_at: Time
    """When the original's does: never later than the server's own time for links."""
