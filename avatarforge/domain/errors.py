"""Everything that can go wrong, as one family.

Ray sends exceptions between processes by pickle, so each class hands its raw facts to
`super().__init__` and writes its sentence in `__str__`. The `code` is stable: clients may rely on it.
"""

from typing import ClassVar


class AvatarForgeError(Exception):
    """Base of all errors that a caller may meet."""

    code: ClassVar[str] = "internal_error"


# --- who is asking ------------------------------------------------------------------------------------


class Unauthenticated(AvatarForgeError):
    """No key came with the request, or one that is not valid (any more)."""

    code = "unauthenticated"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} Send a valid API key as 'Authorization: Bearer afk_…'."


class Forbidden(AvatarForgeError):
    """The key is valid, and this is beyond its scope. Says nothing about what is there."""

    code = "forbidden"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class RateLimited(AvatarForgeError):
    """The key has asked more often than it may."""

    code = "rate_limited"

    def __init__(self, rate: float, retry_after: int) -> None:
        super().__init__(rate, retry_after)
        self.rate, self.retry_after = rate, retry_after

    def __str__(self) -> str:
        return (
            f"This key has asked more often than {self.rate:g} times a second. "
            f"Try again in {self.retry_after} s."
        )


class ForeignSite(AvatarForgeError):
    """The request calls us by a name that is not ours, or comes from a page of another site."""

    code = "foreign_site"

    def __init__(self, site: str, known: str) -> None:
        super().__init__(site, known)
        self.site, self.known = site, known

    def __str__(self) -> str:
        return (
            f"Without keys only requests to and from {self.known} are answered, not those of "
            f"{shown(self.site)}. Ask for keys (access.required), or name it in access.hosts."
        )


class LinkInvalid(AvatarForgeError):
    """The signed link is past its time, or not one of ours."""

    code = "link_invalid"

    def __str__(self) -> str:
        return "The link has expired or was changed. Ask for a new one at the photo's '/links'."


class LinksUnavailable(AvatarForgeError):
    """The server has no secret to sign links with."""

    code = "links_unavailable"

    def __str__(self) -> str:
        return "This server signs no links: the setting access.link_secrets is not set."


# --- what the client sent ---------------------------------------------------------------------------


class InvalidRequest(AvatarForgeError):
    """A parameter is wrong; nothing was kept."""

    code = "invalid_request"

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(name, value, expected)
        self.name, self.value, self.expected = name, value, expected

    def __str__(self) -> str:
        return f"{self.name} is {shown(self.value)}, but it must be {self.expected}."


class InvalidCustomerId(InvalidRequest):
    """The customer id does not match the grammar."""

    code = "invalid_customer_id"


class MissingPhoto(AvatarForgeError):
    """The upload holds no file part named `photo`."""

    code = "photo_missing"

    def __str__(self) -> str:
        return "The upload has no file part named 'photo'. Send multipart/form-data with one."


class EmptyPhoto(AvatarForgeError):
    """The photo has no bytes."""

    code = "photo_empty"

    def __str__(self) -> str:
        return "The photo is empty (0 bytes). Send a JPEG, PNG, WebP or GIF picture."


class PhotoTooLarge(AvatarForgeError):
    """The upload passes the limit; reading stopped there."""

    code = "photo_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"The photo is larger than the limit of {self.limit} bytes."


class NotAnImage(AvatarForgeError):
    """The bytes are not a picture of a format we read."""

    code = "photo_not_an_image"

    def __init__(self, filename: str) -> None:
        super().__init__(filename)
        self.filename = filename

    def __str__(self) -> str:
        return f"{shown(self.filename)} is not a picture. Send a JPEG, PNG, WebP or GIF picture."


class DamagedPhoto(AvatarForgeError):
    """The picture begins well and cannot be decoded to its end."""

    code = "photo_damaged"

    def __init__(self, filename: str, reason: str) -> None:
        super().__init__(filename, reason)
        self.filename, self.reason = filename, reason

    def __str__(self) -> str:
        return f"{shown(self.filename)} cannot be decoded to its end ({self.reason}). Send it again whole."


class PhotoDimensions(AvatarForgeError):
    """The picture's width or height is out of bounds."""

    code = "photo_dimensions"

    def __init__(self, width: int, height: int, shortest: int, most_pixels: int) -> None:
        super().__init__(width, height, shortest, most_pixels)
        self.width, self.height = width, height
        self.shortest, self.most_pixels = shortest, most_pixels

    def __str__(self) -> str:
        return (
            f"The photo measures {self.width} x {self.height} pixels, but each side must have at least "
            f"{self.shortest} pixels and the whole at most {self.most_pixels} pixels."
        )


class UnsupportedMediaType(AvatarForgeError):
    """The request's body is not multipart/form-data."""

    code = "unsupported_media_type"

    def __init__(self, content_type: str) -> None:
        super().__init__(content_type)
        self.content_type = content_type

    def __str__(self) -> str:
        return f"The content type is {shown(self.content_type)}, but it must be multipart/form-data."


class MalformedUpload(AvatarForgeError):
    """The multipart body breaks its own grammar or ends early."""

    code = "malformed_upload"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The multipart body cannot be read: {self.reason}."


# --- what is not there --------------------------------------------------------------------------------


class CustomerNotFound(AvatarForgeError):
    """No customer has this id."""

    code = "customer_not_found"

    def __init__(self, customer_id: str) -> None:
        super().__init__(customer_id)
        self.customer_id = customer_id

    def __str__(self) -> str:
        return f"No customer has the id {shown(self.customer_id)}."


class JobNotFound(AvatarForgeError):
    """The customer has no job of this id."""

    code = "job_not_found"

    def __init__(self, customer_id: str, job_id: str) -> None:
        super().__init__(customer_id, job_id)
        self.customer_id, self.job_id = customer_id, job_id

    def __str__(self) -> str:
        return f"Customer {shown(self.customer_id)} has no job with the id {shown(self.job_id)}."


class DeliveryNotFound(AvatarForgeError):
    """The job has no webhook delivery of this id."""

    code = "delivery_not_found"

    def __init__(self, job_id: str, delivery_id: str) -> None:
        super().__init__(job_id, delivery_id)
        self.job_id, self.delivery_id = job_id, delivery_id

    def __str__(self) -> str:
        return f"Job {shown(self.job_id)} has no delivery with the id {shown(self.delivery_id)}."


class ImageNotFound(AvatarForgeError):
    """The job is known and has no such image (yet, or any more)."""

    code = "image_not_found"

    def __init__(self, job_id: str, kind: str) -> None:
        super().__init__(job_id, kind)
        self.job_id, self.kind = job_id, kind

    def __str__(self) -> str:
        return f"Job {shown(self.job_id)} has no {self.kind} image."


class ObjectNotFound(AvatarForgeError):
    """Object storage has nothing under this key."""

    code = "object_not_found"

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"Object storage has nothing under the key {shown(self.key)}."


# --- what a job may not do ----------------------------------------------------------------------------


class IllegalTransition(AvatarForgeError):
    """A job was told to become what its state does not allow."""

    code = "illegal_transition"

    def __init__(self, current: str, wanted: str) -> None:
        super().__init__(current, wanted)
        self.current, self.wanted = current, wanted

    def __str__(self) -> str:
        return f"A job that is {self.current} cannot become {self.wanted}."


class NotFinished(AvatarForgeError):
    """What was asked for needs a job that has come to its end."""

    code = "job_not_finished"

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(job_id, status)
        self.job_id, self.status = job_id, status

    def __str__(self) -> str:
        return f"Job {shown(self.job_id)} is {self.status}; wait for its end or cancel it first."


class IdempotencyKeyReused(AvatarForgeError):
    """The key names another upload already."""

    code = "idempotency_key_reused"

    def __init__(self, key: str, job_id: str) -> None:
        super().__init__(key, job_id)
        self.key, self.job_id = key, job_id

    def __str__(self) -> str:
        return (
            f"The Idempotency-Key {shown(self.key)} was sent before with another photo or other fields "
            f"(job {self.job_id}). Send the same upload again, or use a new key."
        )


class IdempotencyKeyInFlight(AvatarForgeError):
    """An upload with this key is being worked on at this moment."""

    code = "idempotency_key_in_flight"

    def __init__(self, key: str, retry_after: int = 1) -> None:
        super().__init__(key, retry_after)
        self.key, self.retry_after = key, retry_after

    def __str__(self) -> str:
        return (
            f"An upload with the Idempotency-Key {shown(self.key)} is under way. "
            f"Send it again in {self.retry_after} s to get its job."
        )


class StreamOverflowed(AvatarForgeError):
    """A client of a stream reads more slowly than things happen. It has heard of all up to `seq`."""

    code = "overflow"

    def __init__(self, seq: int) -> None:
        super().__init__(seq)
        self.seq = seq

    def __str__(self) -> str:
        return f"More has happened than this client has read. To miss nothing, go on after seq {self.seq}."


# --- what is too much ---------------------------------------------------------------------------------


class BacklogFull(AvatarForgeError):
    """As many jobs wait and run as may; nothing was kept, try again later."""

    code = "backlog_full"

    def __init__(self, limit: int, retry_after: int) -> None:
        super().__init__(limit, retry_after)
        self.limit, self.retry_after = limit, retry_after

    def __str__(self) -> str:
        return (
            f"As many jobs as the service takes at a time ({self.limit}) have not ended yet. "
            f"Try again in {self.retry_after} seconds."
        )


class CustomerBacklogFull(BacklogFull):
    """As many of the customer's jobs wait and run as may; nothing was kept, try again later."""

    code = "customer_backlog_full"

    def __str__(self) -> str:
        return (
            f"As many jobs as a customer may have at a time ({self.limit}) have not ended yet. "
            f"Try again in {self.retry_after} seconds."
        )


class TooManyUploads(AvatarForgeError):
    """As many uploads are under way as may be; nothing was kept, try again."""

    code = "too_many_uploads"

    def __init__(self, limit: int, retry_after: int = 1) -> None:
        super().__init__(limit, retry_after)
        self.limit, self.retry_after = limit, retry_after

    def __str__(self) -> str:
        return (
            f"As many uploads as are read at a time ({self.limit}) are under way. "
            f"Try again in {self.retry_after} s."
        )


class TooManyStreams(AvatarForgeError):
    """As many streams are open as may be."""

    code = "too_many_streams"

    def __init__(self, limit: int, retry_after: int = 10) -> None:
        super().__init__(limit, retry_after)
        self.limit, self.retry_after = limit, retry_after

    def __str__(self) -> str:
        return (
            f"As many streams as are served at a time ({self.limit}) are open. "
            f"Close one, or try again in {self.retry_after} s."
        )


class TooManyStreamsOfCustomer(TooManyStreams):
    """As many streams of the customer are open as may be."""

    code = "too_many_streams_of_customer"

    def __str__(self) -> str:
        return (
            f"As many streams as one customer may have at a time ({self.limit}) are open. "
            f"Close one, or try again in {self.retry_after} s."
        )


# --- what is out of order on our side -----------------------------------------------------------------


class Unavailable(AvatarForgeError):
    """A part that the promise needs does not answer; nothing was kept, try again."""

    code = "unavailable"

    def __init__(self, part: str, reason: str, retry_after: int = 5) -> None:
        super().__init__(part, reason, retry_after)
        self.part, self.reason, self.retry_after = part, reason, retry_after

    def __str__(self) -> str:
        return f"The {self.part} is not available at present. Try again in {self.retry_after} seconds."


class DatabaseUnavailable(Unavailable):
    """The database does not answer. The outcome of a commit that was under way is unknown."""

    code = "database_unavailable"

    def __init__(self, reason: str, retry_after: int = 5) -> None:
        AvatarForgeError.__init__(self, reason, retry_after)
        self.part, self.reason, self.retry_after = "database", reason, retry_after


class StorageUnavailable(Unavailable):
    """Object storage does not answer, or refuses to write."""

    code = "storage_unavailable"

    def __init__(self, reason: str, retry_after: int = 5) -> None:
        AvatarForgeError.__init__(self, reason, retry_after)
        self.part, self.reason, self.retry_after = "object storage", reason, retry_after


class StorageFull(StorageUnavailable):
    """No space is left where the objects go."""

    code = "storage_full"

    def __str__(self) -> str:
        return "Object storage has no space left, so the photo was not kept. Try again later."


class TrackerUnavailable(Unavailable):
    """The job tracker is starting again."""

    code = "tracker_unavailable"

    def __init__(self, reason: str, retry_after: int = 5) -> None:
        AvatarForgeError.__init__(self, reason, retry_after)
        self.part, self.reason, self.retry_after = "job tracker", reason, retry_after


class Overtaken(AvatarForgeError):
    """Another tracker has taken the shard's epoch; this one must stop."""

    code = "overtaken"

    def __init__(self, shard: int, epoch: int, current: int) -> None:
        super().__init__(shard, epoch, current)
        self.shard, self.epoch, self.current = shard, epoch, current

    def __str__(self) -> str:
        return (
            f"Shard {self.shard} is at epoch {self.current}; a tracker of epoch {self.epoch} may not write."
        )


class ModelUnusable(AvatarForgeError):
    """A checkpoint cannot be loaded or does not make pictures."""

    code = "model_unusable"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.model, self.reason = model, reason

    def __str__(self) -> str:
        return f"The model {shown(self.model)} cannot be used: {self.reason}."


class ModelMissing(AvatarForgeError):
    """A replica has no model, since the one that it should serve cannot be loaded; the job waits for one."""

    code = "model_missing"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.model, self.reason = model, reason

    def __str__(self) -> str:
        return f"No model serves here: {self.reason}"


class ImageNotFinite(AvatarForgeError):
    """The numbers ran out of bounds while denoising: there is no picture."""

    code = "image_not_finite"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return (
            f"The model {shown(self.model)} made no picture but values that are no numbers. "
            f"Try a lower guidance; if that does not help, the model's number format may be too narrow."
        )


class ImageWithheld(AvatarForgeError):
    """The checkpoint's own safety checker blackened the picture."""

    code = "unsafe_content"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return (
            f"The safety checker of the model {shown(self.model)} withheld the picture. Try another prompt."
        )


class GenerationBroke(AvatarForgeError):
    """The model's pipeline cannot work with what the request asks for; another attempt would end alike."""

    code = "generation_failed"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.model, self.reason = model, reason

    def __str__(self) -> str:
        return f"The model {shown(self.model)} could not make this picture: {shown(self.reason, 200)}."


class SigningFailed(AvatarForgeError):
    """The avatar cannot be signed, and unsigned it is not published; another attempt may succeed."""

    code = "signing_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The avatar could not be signed: {shown(self.reason, 200)}."


class RemoteUnavailable(AvatarForgeError):
    """The remote server does not answer, or is left alone for a while; it has not begun."""

    code = "remote_unavailable"

    def __init__(self, reason: str, away_seconds: float) -> None:
        super().__init__(reason, away_seconds)
        self.reason, self.away_seconds = reason, away_seconds

    def __str__(self) -> str:
        return f"The remote server is not available: {shown(self.reason, 200)}."


class RemoteFailed(AvatarForgeError):
    """The remote server broke off while it made the picture; another attempt may succeed."""

    code = "remote_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The remote server failed: {shown(self.reason, 200)}."


class RemoteRefused(AvatarForgeError):
    """The remote server does not take the request as it is; another attempt would end alike."""

    code = "remote_refused"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The remote server cannot have this request: {shown(self.reason, 200)}."


class DeviceFailed(AvatarForgeError):
    """The accelerator ran out of memory or stopped working; another attempt may succeed."""

    code = "device_failed"

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, reason)
        self.device, self.reason = device, reason

    def __str__(self) -> str:
        return f"The device {self.device} failed: {self.reason}"


class DeadlineExceeded(AvatarForgeError):
    """The job did not start, or did not end, within the time that its client gave it."""

    code = "deadline_exceeded"

    def __init__(self, field: str, seconds: float, missed: str) -> None:
        super().__init__(field, seconds, missed)
        self.field, self.seconds, self.missed = field, seconds, missed

    def __str__(self) -> str:
        return f"The job had not {self.missed} {self.seconds:g} seconds after its upload ({self.field})."


class GenerationCancelled(AvatarForgeError):
    """The generation was stopped between two steps, as asked."""

    code = "cancelled"


def shown(value: object, most: int = 80) -> str:
    """The value as `repr` writes it, cut to `most` characters: what came from outside may be long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
