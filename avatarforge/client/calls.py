"""The calls of the REST interface: what each sends, and what its answer means.

Each takes first the client's `Policy`, which the clients put in; the rest is the signature of their method.
Each raises `Refused` or one of its kinds, `ServerUnreachable` and `UnexpectedAnswer`.
"""

import time
import uuid
from pathlib import Path
from typing import BinaryIO, Literal, TypedDict, TypeVar, Unpack

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from avatarforge.client.errors import (
    JobFailed,
    NotFound,
    Refused,
    ServerUnreachable,
    StillRunning,
    TryLater,
    UnexpectedAnswer,
)
from avatarforge.client.paths import customer_path, job_path, segment
from avatarforge.client.patience import Pauses, Repeat, patiently
from avatarforge.client.refusals import refusal
from avatarforge.client.results import NamedJob, Picture
from avatarforge.client.steps import Answer, Policy, Request, Steps, Tell, Telling, Upload, loaded, sent
from avatarforge.domain.status import ProcessingStatus
from avatarforge.messages import Message, ProfilePhotoJobStatus
from avatarforge.rest_messages import (
    Customer,
    CustomerPage,
    CustomerWithPhotos,
    DeliveryList,
    DeliveryMessage,
    ImageLinks,
    ModelList,
    PhotoPage,
    StyleList,
)

M = TypeVar("M", bound=Message)

Photo = Path | bytes | BinaryIO
"""A file by its path, its bytes, or an open one that is read to its end."""

WAIT_SECONDS = 30.0
"""Longest that the server is asked to hold one answer back."""
PAGE = 100
"""Entries asked for at a time."""


class Wishes(TypedDict, total=False):
    """What an avatar shall be like; what is left away or `None` is up to the model."""

    style: str | None
    prompt: str | None
    negative_prompt: str | None
    strength: float | None
    steps: int | None
    guidance: float | None
    seed: int | None
    format: Literal["png", "webp", "jpeg"] | None
    priority: int | None
    callback_url: str | None
    allow_remote: bool | None
    cut_face: bool | None
    timeout_seconds: float | None
    start_timeout_seconds: float | None


# --- one job -----------------------------------------------------------------------------------------------


def submit(
    policy: Policy,
    customer_id: str,
    photo: Photo,
    *,
    idempotency_key: str | None = None,
    **wishes: Unpack[Wishes],
) -> Steps[ProfilePhotoJobStatus]:
    """Upload a photo: the job that was accepted.

    It is sent again when the server is busy or the connection is lost, under one idempotency key, so that
    no second job comes of it. Give a key of your own where your program may be started again meanwhile.
    Raises `OSError` when the file cannot be read.
    """
    upload = yield from _upload(photo)
    request = Request(
        method="POST",
        path=customer_path(customer_id),
        headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
        fields={to_camel(name): _text(wish) for name, wish in wishes.items() if wish is not None},
        photo=upload,
    )
    return _message(ProfilePhotoJobStatus, (yield from patiently(policy, request)))


def status(
    policy: Policy, job: NamedJob, *, wait_seconds: float = 0, after: int | None = None
) -> Steps[ProfilePhotoJobStatus]:
    """The job now; with `wait_seconds` once it is terminal, or its `seq` is above `after`, or time is up."""
    query = {"waitSeconds": f"{wait_seconds:g}"} if wait_seconds else {}
    if after is not None:
        query |= {"after": str(after), "waitSeconds": f"{wait_seconds:g}"}
    request = Request(method="GET", path=job_path(job, "status"), query=query, silence=wait_seconds)
    return _message(ProfilePhotoJobStatus, (yield from patiently(policy, request)))


def wait(policy: Policy, job: NamedJob, *, seconds: float = 600) -> Steps[ProfilePhotoJobStatus]:
    """The job when it is DONE. Raises `JobFailed` when it ends otherwise, `StillRunning` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        latest = yield from status(policy, job, wait_seconds=round(min(left, WAIT_SECONDS), 2))
        if latest.status is ProcessingStatus.DONE:
            return latest
        if latest.is_terminal:
            raise JobFailed(latest)
        if time.monotonic() >= deadline:
            raise StillRunning(latest, seconds)


def cancel(policy: Policy, job: NamedJob) -> Steps[ProfilePhotoJobStatus]:
    """End a job that waits or runs. Raises `Conflict` when it has ended otherwise already."""
    request = Request(method="POST", path=job_path(job, "cancel"))
    return _message(ProfilePhotoJobStatus, (yield from patiently(policy, request)))


def retry(policy: Policy, job: NamedJob) -> Steps[ProfilePhotoJobStatus]:
    """A new job with the photo and the wishes of one that has ended. Raises `Conflict` when it has not."""
    request = Request(method="POST", path=job_path(job, "retry"))
    return _message(ProfilePhotoJobStatus, (yield from patiently(policy, request, Repeat.WHEN_REFUSED)))


def erase(policy: Policy, job: NamedJob) -> Steps[None]:
    """Remove the job with its images and webhooks."""
    yield from _erased(policy, job_path(job))


def download(
    policy: Policy, job: NamedJob, kind: Literal["generated", "original", "square"] = "generated"
) -> Steps[Picture]:
    """The avatar, the photo as it was uploaded, or the square of it that the avatar is made from.

    Raises `NotFound` while there is none.
    """
    path = job_path(job, "original?square=true" if kind == "square" else kind)
    answer = yield from patiently(policy, Request(method="GET", path=path))
    return Picture(
        content=answer.body, media_type=answer.headers.get("content-type", "").partition(";")[0].strip()
    )


def links(policy: Policy, job: NamedJob) -> Steps[ImageLinks]:
    """The job's images under URLs that need no key for some minutes, such as for an `<img>`."""
    return _message(
        ImageLinks, (yield from patiently(policy, Request(method="GET", path=job_path(job, "links"))))
    )


def deliveries(policy: Policy, job: NamedJob) -> Steps[tuple[DeliveryMessage, ...]]:
    """The job's webhooks with every call and its answer."""
    answer = yield from patiently(policy, Request(method="GET", path=job_path(job, "deliveries")))
    return _message(DeliveryList, answer).deliveries


def redeliver(policy: Policy, job: NamedJob, delivery_id: str) -> Steps[DeliveryMessage]:
    """Send a webhook again, whether it has arrived or was given up."""
    path = job_path(job, f"deliveries/{segment(delivery_id)}/redeliver")
    answer = yield from patiently(policy, Request(method="POST", path=path), Repeat.WHEN_REFUSED)
    return _message(DeliveryMessage, answer)


# --- customers ---------------------------------------------------------------------------------------------


def customers(policy: Policy) -> Telling[Customer]:
    """Every customer, in the order of their ids."""
    path: str | None = f"/customers?limit={PAGE}"
    while path is not None:
        page = _message(CustomerPage, (yield from patiently(policy, Request(method="GET", path=path))))
        for customer in page.customers:
            yield Tell(customer)
        path = page.next


def customer(policy: Policy, customer_id: str) -> Steps[CustomerWithPhotos]:
    """A customer with the newest photos."""
    answer = yield from patiently(policy, Request(method="GET", path=customer_path(customer_id)))
    return _message(CustomerWithPhotos, answer)


def jobs(policy: Policy, customer_id: str) -> Telling[ProfilePhotoJobStatus]:
    """Every job of the customer, newest first."""
    path: str | None = f"{customer_path(customer_id)}/photos?limit={PAGE}"
    while path is not None:
        page = _message(PhotoPage, (yield from patiently(policy, Request(method="GET", path=path))))
        for job in page.photos:
            yield Tell(job)
        path = page.next


def erase_customer(policy: Policy, customer_id: str) -> Steps[None]:
    """Remove the customer with every job and every image."""
    yield from _erased(policy, customer_path(customer_id))


# --- the server --------------------------------------------------------------------------------------------


def models(policy: Policy) -> Steps[ModelList]:
    """What avatars are made with, and what each replica serves at present."""
    return _message(ModelList, (yield from patiently(policy, Request(method="GET", path="/models"))))


def styles(policy: Policy) -> Steps[StyleList]:
    """What `style` of an upload may be."""
    return _message(StyleList, (yield from patiently(policy, Request(method="GET", path="/styles"))))


def check(policy: Policy) -> Steps[None]:
    """Raise `ServerUnreachable` when no server answers at all. It is asked once."""
    yield from sent(Request(method="GET", path="/healthz"))


def is_ready(policy: Policy) -> Steps[bool]:
    """Whether an AvatarForge answers and can keep a promise now. It is asked once."""
    try:
        return (yield from sent(Request(method="GET", path="/readyz"))).is_success
    except ServerUnreachable:
        return False


# --- shared ------------------------------------------------------------------------------------------------


def _upload(photo: Photo) -> Steps[Upload]:
    match photo:
        case Path():
            return Upload(name=photo.name, content=(yield from loaded(photo.read_bytes)))
        case bytes():
            return Upload(name="photo", content=photo)
    name = Path(str(getattr(photo, "name", "photo"))).name
    return Upload(name=name, content=(yield from loaded(photo.read)))


def _text(wish: object) -> str:
    return str(wish).lower() if isinstance(wish, bool) else str(wish)


def _erased(policy: Policy, path: str) -> Steps[None]:
    """What is gone after a try whose answer was lost has been erased by that try."""
    pauses, lost = Pauses(policy.patience), False
    while True:
        trouble: ServerUnreachable | Refused
        try:
            answer = yield from sent(Request(method="DELETE", path=path))
        except ServerUnreachable as error:
            trouble, lost = error, True
        else:
            if answer.is_success:
                return
            trouble = refusal(answer)
            if lost and isinstance(trouble, NotFound):
                return
            if not isinstance(trouble, TryLater):
                raise trouble
        yield pauses.next(trouble)


def _message(kind: type[M], answer: Answer) -> M:
    try:
        return kind.model_validate_json(answer.body)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise UnexpectedAnswer(answer.url, f"{kind.__name__} {place}: {fault['msg']}") from error
