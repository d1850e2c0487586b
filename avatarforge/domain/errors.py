"""Everything that can go wrong, as one family. Each `code` is stable: clients may rely on it.

AvatarForgeError
├── Unauthenticated, Forbidden, ForeignSite, LinkInvalid, LinksUnavailable
├── InvalidRequest
│   └── UnknownField, InvalidCustomerId
├── InvalidUpload
│   ├── UnsupportedMediaType, UnsupportedContentEncoding, MalformedUpload
│   └── MissingPhoto, EmptyPhoto, PhotoTooLarge, NotAnImage, UnsupportedPhoto, DamagedPhoto,
│       InvalidPhotoDimensions
├── NotFound
│   └── CustomerNotFound, JobNotFound, DeliveryNotFound, ImageNotFound, ObjectNotFound
├── IllegalTransition, JobNotFinished, IdempotencyKeyReused, IdempotencyKeyInFlight, StreamOverflowed
├── LimitReached
│   ├── RateLimited, TooManyCalls
│   ├── TooManyUploads
│   │   └── TooManyCrops
│   ├── BacklogFull
│   │   └── CustomerBacklogFull
│   └── TooManyStreams
│       └── TooManyStreamsOfCustomer
├── Unavailable
│   ├── DatabaseUnavailable
│   ├── TrackerUnavailable
│   │   └── ShardLeased, ShardCountChanged
│   └── StorageUnavailable
│       └── StorageFull
├── StaleEpoch, DatabaseInUse
├── ModelUnusable, ModelMissing, ImageNotFinite, ImageWithheld, PipelineFailed, SigningFailed, DeviceFailed
├── RemoteUnavailable, RemoteFailed, RemoteRefused
└── DeadlineExceeded, GenerationCancelled
"""

from dataclasses import dataclass, field
from string import Formatter
from typing import Any, ClassVar, dataclass_transform


def truncate_repr(value: object, max_length: int = 80) -> str:
    """The value as `repr` writes it, cut to `max_length` characters: a value from outside may be long."""
    text = repr(value)
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


class _Repr:
    def __init__(self, value: object) -> None:
        self._value = value

    def __format__(self, max_length: str) -> str:
        return truncate_repr(self._value, int(max_length or 80))


class _MessageFormatter(Formatter):
    """Formats with an error's attributes. `{name!r}` is cut to 80 characters, `{name!r:200}` to 200."""

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        return getattr(args[0], str(key))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return _Repr(value) if conversion == "r" else super().convert_field(value, conversion)


_FORMATTER = _MessageFormatter()


@dataclass_transform(eq_default=False, field_specifiers=(field,))
class FormattedError(Exception):
    """An error whose subclasses declare their fields, as a dataclass does, and the message made of them.

    Fields become the exception's arguments too, since pickle, by which Ray sends exceptions, makes it anew
    from those.
    """

    message: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        dataclass(eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        self.args = tuple(vars(self).values())

    def __str__(self) -> str:
        return _FORMATTER.format(self.message, self)


class AvatarForgeError(FormattedError):
    """Base of all errors that a caller of the service may meet."""

    code: ClassVar[str] = "internal_error"


# --- access -------------------------------------------------------------------------------------------


class Unauthenticated(AvatarForgeError):
    """No key came with the request, or one that is not valid (any more)."""

    code = "unauthenticated"
    message = "{reason} Send a valid API key as 'Authorization: Bearer afk_…'."
    reason: str


class Forbidden(AvatarForgeError):
    """The key is valid, and this is beyond its scope. Says nothing about what is there."""

    code = "forbidden"
    message = "{reason}"
    reason: str


class ForeignSite(AvatarForgeError):
    """The request calls us by a name that is not ours, or comes from a page of another site."""

    code = "foreign_site"
    message = (
        "Without keys only requests to and from {known} are answered, not those of {site!r}. "
        "Ask for keys (access.required), or name it in access.allowed_hosts."
    )
    site: str
    known: str


class LinkInvalid(AvatarForgeError):
    """The signed link is past its time, or not one of ours."""

    code = "link_invalid"
    message = "The link has expired or was changed. Ask for a new one at the photo's '/links'."


class LinksUnavailable(AvatarForgeError):
    """The server has no secret to sign links with."""

    code = "links_unavailable"
    message = "This server signs no links: the setting access.link_secrets is not set."


# --- requests -----------------------------------------------------------------------------------------


class InvalidRequest(AvatarForgeError):
    """A parameter is wrong; nothing was kept."""

    code = "invalid_request"
    message = "{name} is {value!r}, but it must be {expected}."
    name: str
    value: object
    expected: str


class UnknownField(InvalidRequest):
    """The upload has a field that there is none of."""

    code = "unknown_field"
    message = "There is no field {name!r}. Send {expected}."


class InvalidCustomerId(InvalidRequest):
    """The customer id does not match the grammar."""

    code = "invalid_customer_id"


PHOTO_FORMATS = "JPEG, PNG, WebP, GIF, HEIC, AVIF, TIFF or BMP"
"""The kinds of photos that are taken, for people."""


class InvalidUpload(AvatarForgeError):
    """The upload cannot be taken as it is; nothing was kept."""

    code = "invalid_upload"


class MissingPhoto(InvalidUpload):
    """The upload holds no file part named `photo`."""

    code = "photo_missing"
    message = "The upload has no file part named 'photo'. Send multipart/form-data with one."


class EmptyPhoto(InvalidUpload):
    """The photo has no bytes."""

    code = "photo_empty"
    message = f"The photo is empty (0 bytes). Send a {PHOTO_FORMATS} image."


class PhotoTooLarge(InvalidUpload):
    """The upload passes the limit; reading stopped there."""

    code = "photo_too_large"
    message = "The photo is larger than the limit of {limit} bytes."
    limit: int


class NotAnImage(InvalidUpload):
    """The bytes are not an image of a format we read."""

    code = "photo_not_an_image"
    message = f"{{filename!r}} is not an image. Send a {PHOTO_FORMATS} image."
    filename: str


class UnsupportedPhoto(InvalidUpload):
    """The file is of a known kind that is not taken."""

    code = "photo_unsupported"
    message = "{filename!r} cannot be used: {kind} is not supported. {advice}"
    filename: str
    kind: str
    advice: str


class DamagedPhoto(InvalidUpload):
    """The image begins well and cannot be decoded to its end."""

    code = "photo_damaged"
    message = "{filename!r} cannot be decoded to its end ({reason}). Send it again whole."
    filename: str
    reason: str


class InvalidPhotoDimensions(InvalidUpload):
    """The image's width or height is out of bounds."""

    code = "photo_dimensions"
    message = (
        "The photo measures {width} x {height} pixels, but each side must have at least {min_side} pixels "
        "and the whole at most {max_pixels} pixels."
    )
    width: int
    height: int
    min_side: int
    max_pixels: int


class UnsupportedMediaType(InvalidUpload):
    """The request's body is not multipart/form-data."""

    code = "unsupported_media_type"
    message = "The content type is {content_type!r}, but it must be multipart/form-data."
    content_type: str


class UnsupportedContentEncoding(InvalidUpload):
    """The request's body is packed."""

    code = "unsupported_content_encoding"
    message = "The content encoding is {encoding!r}, but the body must come as it is, without one."
    encoding: str


class MalformedUpload(InvalidUpload):
    """The body breaks its own grammar, ends early, or stops coming; nothing was changed."""

    code = "malformed_upload"
    message = "The body cannot be read: {reason}. Nothing was changed."
    reason: str


class NotFound(AvatarForgeError):
    """There is nothing of this name."""

    code = "not_found"


class CustomerNotFound(NotFound):
    """No customer has this id."""

    code = "customer_not_found"
    message = "No customer has the id {customer_id!r}."
    customer_id: str


class JobNotFound(NotFound):
    """The customer has no job of this id."""

    code = "job_not_found"
    message = "Customer {customer_id!r} has no job with the id {job_id!r}."
    customer_id: str
    job_id: str


class DeliveryNotFound(NotFound):
    """The job has no webhook delivery of this id."""

    code = "delivery_not_found"
    message = "Job {job_id!r} has no delivery with the id {delivery_id!r}."
    job_id: str
    delivery_id: str


class ImageNotFound(NotFound):
    """The job is known and has no such image (yet, or any more)."""

    code = "image_not_found"
    message = "Job {job_id!r} has no {image}."
    job_id: str
    kind: str
    index: int | None = None
    """Of one of several images; then `there` tells those that the job has."""
    there: str = ""

    @property
    def image(self) -> str:
        return f"{self.kind} image" if self.index is None else f"image {self.index}; it has {self.there}"


class ObjectNotFound(NotFound):
    """Object storage has nothing under this key."""

    code = "object_not_found"
    message = "Object storage has nothing under the key {key!r}."
    key: str


# --- states that do not allow it ----------------------------------------------------------------------


class IllegalTransition(AvatarForgeError):
    """A job was told to become what its state does not allow."""

    code = "illegal_transition"
    message = "A job that is {current} cannot become {wanted}."
    current: str
    wanted: str


class JobNotFinished(AvatarForgeError):
    """The call needs a job that has come to its end."""

    code = "job_not_finished"
    message = "Job {job_id!r} is {status}; wait for its end or cancel it first."
    job_id: str
    status: str


class IdempotencyKeyReused(AvatarForgeError):
    """The key names another request already."""

    code = "idempotency_key_reused"
    message = (
        "The Idempotency-Key {key!r} was sent before with another photo, other fields or for another call "
        "(job {job_id}). Send the same request again, or use a new key."
    )
    key: str
    job_id: str


class IdempotencyKeyInFlight(AvatarForgeError):
    """An upload with this key is being worked on at this moment."""

    code = "idempotency_key_in_flight"
    message = (
        "An upload with the Idempotency-Key {key!r} is under way. "
        "Send it again in {retry_after} s to get its job."
    )
    key: str
    retry_after: int = 1


class StreamOverflowed(AvatarForgeError):
    """A client of a stream reads more slowly than things happen. It has heard of all up to `seq`."""

    code = "overflow"
    message = "More has happened than this client has read. To miss nothing, go on after seq {seq}."
    seq: int


# --- limits -------------------------------------------------------------------------------------------


class LimitReached(AvatarForgeError):
    """There is as much of something as may be; nothing was kept, try again later."""

    code = "limit_reached"
    limit: float
    retry_after: int
    """Seconds."""


class RateLimited(LimitReached):
    """The key has asked more often than it may."""

    code = "rate_limited"
    message = "This key has asked more often than {limit:g} times a second. Try again in {retry_after} s."


class BacklogFull(LimitReached):
    """The service has jobs for as many images as it takes; nothing was kept, try again later."""

    code = "backlog_full"
    message = (
        "With this job more images than the service takes jobs for at a time ({limit}) would be waited for. "
        "Try again in {retry_after} seconds."
    )


class CustomerBacklogFull(BacklogFull):
    """The customer waits for as many images as one may; nothing was kept, try again later."""

    code = "customer_backlog_full"
    message = (
        "With this job more images than a customer may wait for at a time ({limit}) would be waited for. "
        "Try again in {retry_after} seconds."
    )


class TooManyUploads(LimitReached):
    """An ingress process reads as many uploads as it may; nothing was kept, try again."""

    code = "too_many_uploads"
    message = "As many uploads as are read at a time ({limit}) are under way. Try again in {retry_after} s."
    retry_after: int = 1


class TooManyCrops(TooManyUploads):
    """An ingress process has as many photos to find a square in as it takes; try again."""

    code = "too_many_crops"
    message = (
        "As many squares as are found at a time ({limit}) are being found. Try again in {retry_after} s."
    )


class TooManyCalls(LimitReached):
    """No place among the callers without a key who are read at a time came in time."""

    code = "too_many_calls"
    message = (
        "As many calls without a key as are read at a time ({limit}) have sent nothing yet. "
        "Try again in {retry_after} s."
    )
    retry_after: int = 1


class TooManyStreams(LimitReached):
    """An ingress process serves as many streams as it may."""

    code = "too_many_streams"
    message = (
        "As many streams as are served at a time ({limit}) are open. "
        "Close one, or try again in {retry_after} s."
    )
    retry_after: int = 10


class TooManyStreamsOfCustomer(TooManyStreams):
    """The customer has as many streams open as one may."""

    code = "too_many_streams_of_customer"
    message = (
        "As many streams as one customer may have at a time ({limit}) are open. "
        "Close one, or try again in {retry_after} s."
    )


# --- outages ------------------------------------------------------------------------------------------


class Unavailable(AvatarForgeError):
    """A part that the promise needs does not answer; nothing was kept, try again."""

    code = "unavailable"
    message = "The {part} is not available at present. Try again in {retry_after} seconds."
    part: ClassVar[str] = "service"
    reason: str
    retry_after: int = 5


class DatabaseUnavailable(Unavailable):
    """The database does not answer. The outcome of a commit that was under way is unknown."""

    code = "database_unavailable"
    part = "database"
    defect: int = 0
    """The number of the database's error where no waiting heals it, such as that of a missing table."""


class StorageUnavailable(Unavailable):
    """Object storage does not answer, or refuses to write."""

    code = "storage_unavailable"
    part = "object storage"


class StorageFull(StorageUnavailable):
    """No space is left where the objects go."""

    code = "storage_full"
    message = "Object storage has no space left, so the photo was not kept. Try again later."


class TrackerUnavailable(Unavailable):
    """The job tracker is starting again."""

    code = "tracker_unavailable"
    part = "job tracker"


class ShardLeased(TrackerUnavailable):
    """Another cluster serves the shard."""

    code = "shard_leased"
    message = "{reason}"


class ShardCountChanged(TrackerUnavailable):
    """The customers are spread over another number of shards than the one that is set."""

    code = "shard_count_changed"
    message = "{reason}"


class DatabaseInUse(AvatarForgeError):
    """Something is asked for that has to be done while nothing runs."""

    code = "database_in_use"
    message = "The cluster {cluster_id!r} runs on this database. Stop it, and try again {seconds} s later."
    cluster_id: str
    seconds: int


class StaleEpoch(AvatarForgeError):
    """Another tracker has taken the shard's epoch; this one must stop (a fencing error)."""

    code = "overtaken"
    message = "Shard {shard} is at epoch {current}; a tracker of epoch {epoch} may not write."
    shard: int
    epoch: int
    current: int


# --- generations --------------------------------------------------------------------------------------


class ModelUnusable(AvatarForgeError):
    """A checkpoint cannot be loaded or does not make images."""

    code = "model_unusable"
    message = "The model {model!r} cannot be used: {reason}."
    model: str
    reason: str


class ModelMissing(AvatarForgeError):
    """A replica has no model, since the one that it should serve cannot be loaded; the job waits for one."""

    code = "model_missing"
    message = "No model serves here: {reason}"
    model: str
    reason: str


class ImageNotFinite(AvatarForgeError):
    """The numbers ran out of bounds while denoising: there is no image."""

    code = "image_not_finite"
    message = (
        "The model {model!r} made no image but values that are not finite. "
        "Try a lower guidance; if that does not help, the model's number format may be too narrow."
    )
    model: str


class ImageWithheld(AvatarForgeError):
    """The checkpoint's own safety checker blackened the image."""

    code = "unsafe_content"
    message = "The safety checker of the model {model!r} withheld the image. Try another prompt."
    model: str


class PipelineFailed(AvatarForgeError):
    """The model's pipeline cannot work with what the request asks for; another attempt would end alike."""

    code = "generation_failed"
    message = "The model {model!r} could not make this image: {reason!r:200}."
    model: str
    reason: str


class SigningFailed(AvatarForgeError):
    """The avatar cannot be signed, and unsigned it is not published; another attempt may succeed."""

    code = "signing_failed"
    message = "The avatar could not be signed: {reason!r:200}."
    reason: str


class RemoteUnavailable(AvatarForgeError):
    """The remote server does not answer, or is left alone for a while; it has not begun."""

    code = "remote_unavailable"
    message = "The remote server is not available: {reason!r:200}."
    reason: str
    away_seconds: float


class RemoteFailed(AvatarForgeError):
    """The remote server broke off while it made the image; another attempt may succeed."""

    code = "remote_failed"
    message = "The remote server failed: {reason!r:200}."
    reason: str


class RemoteRefused(AvatarForgeError):
    """The remote server does not take the request as it is; another attempt would end alike."""

    code = "remote_refused"
    message = "The remote server cannot have this request: {reason!r:200}."
    reason: str


class DeviceFailed(AvatarForgeError):
    """The accelerator ran out of memory or stopped working; another attempt may succeed."""

    code = "device_failed"
    message = "The device {device} failed: {reason}"
    device: str
    reason: str


class DeviceLost(DeviceFailed):
    """This process cannot use its accelerator, now or later: another process has to take its place."""

    code = "device_lost"


class DeadlineExceeded(AvatarForgeError):
    """The job did not start, or did not end, within the time that its client gave it."""

    code = "deadline_exceeded"
    message = "The job had not {missed} {seconds:g} seconds after its upload ({field})."
    field: str
    seconds: float
    missed: str


class GenerationCancelled(AvatarForgeError):
    """The generation was stopped between two steps, as asked."""

    code = "cancelled"
