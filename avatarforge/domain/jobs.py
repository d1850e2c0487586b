"""A job: one request for one avatar, or several to choose from, from upload to its terminal state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from uuid6 import uuid7

from avatarforge.domain.errors import IllegalTransition, InvalidRequest
from avatarforge.domain.pickling import pickle_by_name
from avatarforge.domain.status import NEXT, EventKind, JobEvent, ProcessingStatus


class ImageFormat(StrEnum):
    """A file format of avatars."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"


class Vary(StrEnum):
    """How the images of a job differ."""

    SEED = "seed"
    STYLE = "style"


class Crop(StrEnum):
    """How the square was cut from the photo."""

    FACE = "face"
    CENTRE = "centre"


class Stage(StrEnum):
    """The parts of a job's time, in seconds each."""

    QUEUED = "queued"
    FETCH = "fetch"
    ENCODE = "encode"
    STEPS = "steps"
    DECODE = "decode"
    UPLOAD = "upload"


_MODEL_DEFAULT = "By default as `GET /models` says."
_PROMPT_LIMIT = "With more than 600 tokens, some 450 words of English, the job fails."
_MAX_TIMEOUT_SECONDS = 7 * 86_400
MAX_VARIANTS = 8
MAX_SEED = 2**63 - 1
_SIDE = {"minimum": 64, "maximum": 4096, "multipleOf": 8}


def parameter(default: object, description: str, **schema: object) -> Any:
    """Make a dataclass' field whose metadata are its JSON schema."""
    return field(default=default, metadata={"description": description, **schema})


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class RequestedParameters:
    """The parameters of a generation. `None` stands for the value of the model's manifest.

    The metadata are JSON schema: an upload's form is checked and documented by them.
    """

    prompt: str = parameter("", f"What the avatar should show. {_PROMPT_LIMIT}", maxLength=1000)
    negative_prompt: str = parameter("", f"What it should not show. {_PROMPT_LIMIT}", maxLength=1000)
    style: str | None = parameter(None, "One of `GET /styles`.")
    strength: float | None = parameter(
        None,
        "How far the avatar may go from the photo, in models that name it among their `dials`. "
        + _MODEL_DEFAULT,
        exclusiveMinimum=0,
        maximum=1,
    )
    steps: int | None = parameter(
        None,
        "Steps of the whole schedule. Where the model has a `strength`, only that share of them is made, "
        f"the last ones. {_MODEL_DEFAULT}",
        minimum=1,
        maximum=150,
    )
    guidance: float | None = parameter(
        None, f"How closely to follow the prompt. {_MODEL_DEFAULT}", minimum=0, maximum=30
    )
    image_guidance: float | None = parameter(
        None,
        "How closely to follow the photo, in place of `strength` in models that edit. It needs a `guidance` "
        f"above 1. {_MODEL_DEFAULT}",
        minimum=1,
        maximum=5,
    )
    sampler: str | None = parameter(
        None, "One of the model's `samplers` in `GET /models`; by default the model's own."
    )
    width: int | None = parameter(
        None,
        "The avatar's width in pixels, up to the model's `maxSize` in `GET /models`; with a `height`. By "
        "default both are the model's `size`.",
        **_SIDE,
    )
    height: int | None = parameter(None, "Its height, with a `width`.", **_SIDE)
    format: ImageFormat = parameter(ImageFormat.PNG, "The avatar's file format.")
    allow_remote: bool = parameter(
        True, "Whether the photo may go to another server where this one uses one."
    )
    variants: int = parameter(1, "How many images to make of the photo.", minimum=1, maximum=MAX_VARIANTS)
    vary: Vary = parameter(
        Vary.SEED,
        "How several images differ: `seed` counts the seed up; `style` goes through the model's styles, from "
        "the one asked for or else the first, with the next seed after a whole round.",
    )
    crop_to_face: bool = parameter(
        True,
        "Whether the photo is cropped around the face, to a square or what `width` and `height` say. With "
        "`false` a photo of these proportions is taken as it is.",
    )
    timeout_seconds: float | None = parameter(
        None,
        "The job fails with the code `deadline_exceeded` unless it has ended so many seconds after its "
        "upload; by default it has all the time it needs.",
        minimum=1,
        maximum=_MAX_TIMEOUT_SECONDS,
    )
    start_timeout_seconds: float | None = parameter(
        None, "The same for a job that has not been started by then.", minimum=1, maximum=_MAX_TIMEOUT_SECONDS
    )

    def size(self, model_size: int) -> tuple[int, int]:
        """Return the avatar's width and height, where a model makes squares of `model_size` by default."""
        return self.width or model_size, self.height or model_size


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationParameters(RequestedParameters):
    """The ingredients of the avatar beside the photo."""

    seed: int
    traceparent: str | None = None
    """The trace that the upload belongs to, as W3C's header has it; `None` unless it is traced."""
    request_id: str | None = None
    """The id that the client got with the answer to its upload, as `X-Request-ID`."""

    @property
    def origin(self) -> dict[str, str]:
        """The ids by which logs name the upload: `request_id` and `trace_id`, those that there are."""
        ids = {"request_id": self.request_id, "trace_id": (self.traceparent or "").partition("-")[2][:32]}
        return {name: value for name, value in ids.items() if value}

    def for_image(self, index: int, styles: Sequence[str]) -> "GenerationParameters":
        """Return the parameters of the job's image of this index, with the seed and the style that it has.

        `styles` are the model's, in its order.
        """
        seed, style = self.seed + index, self.style
        is_known = style is None or style in styles
        if self.vary is Vary.STYLE and self.variants > 1 and styles and is_known:
            place = index + (0 if style is None else styles.index(style))
            seed, style = self.seed + index // len(styles), styles[place % len(styles)]
        return replace(self, seed=seed % (MAX_SEED + 1), style=style)

    def for_prepared_photo(self) -> "GenerationParameters":
        """Return the same for a photo that is not cropped any more, and does not leave this server."""
        return replace(self, allow_remote=False, crop_to_face=False)


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class StoredImage:
    """An object in storage."""

    key: str
    media_type: str
    size: int
    """Bytes."""
    sha256: str
    width: int
    height: int


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class AvatarImage:
    """One image of a job, in storage."""

    index: int
    """Its place among the job's images, from 0."""
    seed: int
    style: str | None
    stored: StoredImage


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """Why a job failed: a stable code and a sentence for people."""

    code: str
    message: str


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The outcome of a finished generation: the avatar and how it came about."""

    avatar: StoredImage
    model: str
    backend: str
    crop: Crop
    timings: Mapping[str, float]
    """Seconds by `Stage`, without `queued`."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class ProfilePhotoJob:
    """One request for one or more avatars of a photo. Every change makes a new value and one `JobEvent`."""

    job_id: str
    customer_id: str
    parameters: GenerationParameters
    original: StoredImage
    created_at: datetime
    status: ProcessingStatus = ProcessingStatus.PENDING
    revision: int = 1
    """Counts the job's events from 1: with the job's id it names a change before its `seq` is known."""
    seq: int = 0
    """The number of the job's last event in the log; 0 until the first is committed."""
    priority: int = 0
    """Higher goes first."""
    callback_url: str | None = None
    retry_of: str | None = None
    attempt: int = 0
    """How often the job was dispatched: the fence. Only the current attempt may publish."""
    worker_losses: int = 0
    """How many attempts ended with a lost worker."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: Outcome | None = None
    error: JobError | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    variant_images: tuple[AvatarImage, ...] = ()
    """Those published of a job that makes several, by index."""
    kept: int | None = None
    """The index of the image that the client keeps; `None` until it chose."""

    @property
    def images(self) -> tuple[AvatarImage, ...]:
        """The images published so far, by index. A job of a single image has it once it is DONE."""
        published = self.variant_images
        # Of several too, where a release ended the job that makes one image of each.
        if self.outcome is None or (published and published[0].index == 0):
            return published
        first = self.parameters
        return (
            AvatarImage(index=0, seed=first.seed, style=first.style, stored=self.outcome.avatar),
            *published,
        )

    @property
    def object_keys(self) -> frozenset[str]:
        """The keys of the original and of all images."""
        return frozenset({self.original.key, *(image.stored.key for image in self.images)})

    @property
    def missing(self) -> tuple[int, ...]:
        """The indices of the images that are still to be made."""
        if self.parameters.variants == 1:
            return (0,) if self.outcome is None else ()
        there = {image.index for image in self.images}
        return tuple(index for index in range(self.parameters.variants) if index not in there)

    def find_image(self, index: int | None = None) -> AvatarImage | None:
        """Return the image of this index, by default the one that the client keeps, else the first; `None`
        if it is not there."""
        wanted = (self.kept or 0) if index is None else index
        return next((image for image in self.images if image.index == wanted), None)

    def list_images(self) -> str:
        """Return the indices of the images that are there, for people."""
        indices = ", ".join(str(image.index) for image in self.images)
        return indices or ("none" if self.status.is_terminal else "none yet")

    # --- moves: each returns the job as it becomes; this value stays as it is ------------------------

    def start(self, at: datetime) -> "ProfilePhotoJob":
        """Return the job as dispatched once more: the attempt number rises."""
        return self._move(
            ProcessingStatus.PROCESSING, attempt=self.attempt + 1, started_at=self.started_at or at
        )

    def requeue(self, *, lost: bool) -> "ProfilePhotoJob":
        """Return the job as waiting again. `lost` if a worker died with it, not if it was taken back."""
        return self._move(ProcessingStatus.PENDING, worker_losses=self.worker_losses + lost)

    def publish(self, image: AvatarImage, attempt: int) -> "ProfilePhotoJob":
        """Return the job with one more of its images. Raises `IllegalTransition` unless it is that attempt's
        to publish, one of those that are missing, and not the last of them, which comes with the outcome."""
        if self.missing == (image.index,):
            raise IllegalTransition(self.status, f"one with image {image.index} and no outcome")
        return self._publish(image, attempt)

    def _publish(self, image: AvatarImage, attempt: int) -> "ProfilePhotoJob":
        is_expected = self.attempt == attempt and image.index in self.missing
        if self.status is not ProcessingStatus.PROCESSING or not is_expected:
            raise IllegalTransition(self.status, f"one with image {image.index} of attempt {attempt}")
        images = sorted((*self.variant_images, image), key=lambda each: each.index)
        return replace(self, revision=self.revision + 1, variant_images=tuple(images))

    def keep(self, index: int) -> "ProfilePhotoJob":
        """Return the job with this image as the one that the client keeps. Raises `InvalidRequest` for an
        image that is not there."""
        if self.find_image(index) is None:
            raise InvalidRequest("index", index, f"that of an image that there is: {self.list_images()}")
        return replace(self, revision=self.revision + 1, kept=index)

    def complete(self, outcome: Outcome, at: datetime, last: AvatarImage | None = None) -> "ProfilePhotoJob":
        """Return the job as it is when all is made. Of one that makes several images, `last` came with the
        outcome. Raises `IllegalTransition`, also while an image is missing."""
        if self.parameters.variants > 1:
            job = self if last is None else self._publish(last, self.attempt)
            if job.missing:
                raise IllegalTransition(self.status, f"{ProcessingStatus.DONE} without images {job.missing}")
            images, outcome = job.variant_images, replace(outcome, avatar=job.variant_images[0].stored)
        else:
            images = ()
        # Not below 0: the clock may have been put back since.
        queued = max(0.0, ((self.started_at or at) - self.created_at).total_seconds())
        return self._move(
            ProcessingStatus.DONE,
            outcome=outcome,
            variant_images=images,
            finished_at=at,
            timings={Stage.QUEUED.value: round(queued, 6), **outcome.timings},
        )

    def fail(self, error: JobError, at: datetime) -> "ProfilePhotoJob":
        return self._move(ProcessingStatus.FAILED, error=error, finished_at=at)

    def cancel(self, at: datetime) -> "ProfilePhotoJob":
        return self._move(ProcessingStatus.CANCELLED, finished_at=at)

    def erase(self) -> "ProfilePhotoJob":
        """Return the value of the job's tombstone. Its state stays what it was."""
        return replace(self, revision=self.revision + 1)

    def _move(self, wanted: ProcessingStatus, **changes: object) -> "ProfilePhotoJob":
        if wanted not in NEXT[self.status]:
            raise IllegalTransition(self.status, wanted)
        return replace(self, status=wanted, revision=self.revision + 1, **changes)  # type: ignore[arg-type]  # each caller names fields of this class

    # --- the log -----------------------------------------------------------------------------------

    def event(self, kind: EventKind, at: datetime) -> JobEvent:
        """The entry of the log that this value of the job stands for; its `seq` comes with the commit."""
        return JobEvent(
            job_id=self.job_id,
            customer_id=self.customer_id,
            revision=self.revision,
            kind=kind,
            status=self.status,
            attempt=self.attempt,
            at=at,
        )


# --- ids ----------------------------------------------------------------------------------------------


def new_job_id() -> str:
    """Return a fresh UUID of version 7 (RFC 9562, section 5.7): ids sort by the time they were made."""
    return str(uuid7())


def first_job_id(time: datetime) -> str:
    """Return a bound that sorts after all ids made before that time: its milliseconds, in their place."""
    milliseconds = int(time.timestamp() * 1000)
    return str(UUID(int=milliseconds << 80 | 0x7000 << 64 | 0x8000 << 48))


def is_job_id(text: str) -> bool:
    """Tell whether the text is a UUID in canonical form; anything else names no job."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
