"""Translates the messages of proto/profile_photo_job.proto into REST's, and the other way round."""

from collections.abc import Iterator
from functools import lru_cache

from avatarforge.domain.errors import InvalidRequest
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.ingress.live.events import Changed, Erased, Progressed
from avatarforge.ingress.live.streams import Snapshot
from avatarforge.ingress.upload.form import FORM_NAMES
from avatarforge.messages import LiveJob

_PARAMETERS = tuple(pb.Parameters.DESCRIPTOR.fields_by_name)


def form_fields(request: pb.SubmitPhotoRequest) -> dict[str, str]:
    """Return the fields that are set, as an upload's form has them: so one check does for both."""
    return {
        form_name: str(getattr(request, name))
        for name, form_name in FORM_NAMES.items()
        if request.HasField(name)
    }


def parse_job_id(job_id: str) -> str:
    """Return the id of a job, which may not exist. Raises `InvalidRequest` if it is empty."""
    if not job_id:
        raise InvalidRequest("job_id", job_id, "the id of a job, as SubmitPhoto's answer has it")
    return job_id


def parse_wait_seconds(request: pb.JobStatusRequest, longest: int) -> int:
    if not 0 <= request.wait_seconds <= longest:
        raise InvalidRequest("wait_seconds", request.wait_seconds, f"a whole number from 0 to {longest}")
    return request.wait_seconds


def parse_after_seq(request: pb.JobStatusRequest | pb.StatusStreamRequest) -> int | None:
    if not request.HasField("after_seq"):
        return None
    if request.after_seq < 0:
        raise InvalidRequest("after_seq", request.after_seq, "the seq of a message, which is 0 or more")
    return request.after_seq


def parse_index(request: pb.KeepImageRequest) -> int:
    """Return the image's index, which may not exist. Raises `InvalidRequest` if there is none."""
    if not request.HasField("index"):
        raise InvalidRequest("index", None, "the index of an image, as the job's `images` have it")
    return request.index


def job_status(live: LiveJob, prefix: str = "") -> pb.ProfilePhotoJobStatus:
    """Build the message of a job; its addresses begin with `prefix`."""
    message = live.to_message()
    progress, error = message.progress, message.error
    return pb.ProfilePhotoJobStatus(
        job_id=message.job_id,
        customer_id=message.customer_id,
        status=f"PROCESSING_STATUS_{message.status}",
        is_terminal=message.is_terminal,
        progress=None if progress is None else dict(progress),
        eta_seconds=message.eta_seconds,
        queue_position=message.queue_position,
        original_url=message.original_url and prefix + message.original_url,
        generated_url=message.generated_url and prefix + message.generated_url,
        callback_url=message.callback_url,
        error=None if error is None else dict(error),
        attempt=message.attempt,
        retry_of=message.retry_of,
        backend=message.backend,
        model=message.model,
        seed=message.seed,
        crop=message.crop,
        seq=message.seq,
        created_at=message.created_at,
        started_at=message.started_at,
        finished_at=message.finished_at,
        timings=dict(message.timings),
        parameters=pb.Parameters(**{name: getattr(message.parameters, name) for name in _PARAMETERS}),
        images=[
            pb.Image(
                index=image.index,
                seed=image.seed,
                style=image.style,
                generated_url=prefix + image.generated_url,
            )
            for image in message.images
        ],
        kept=message.kept,
    )


def stream_messages(
    customer_id: str,
    item: Snapshot | Changed | Erased | Progressed,
    prefix: str = "",
    *,
    previews: bool = False,
) -> Iterator[pb.ProfilePhotoJobStatus]:
    """Yield the messages of an event, which all clients of the customer share."""
    if not isinstance(item, Snapshot):
        yield _event_message(item, prefix, previews)
        return
    if item.reset:
        yield pb.ProfilePhotoJobStatus(customer_id=customer_id, reset=True)
    # A client that is cut off in between resumes from the highest seq that it has: what it lacks is above.
    for live in sorted(item.jobs, key=lambda live: live.job.seq):
        yield job_status(live, prefix)
    if item.reset or not item.jobs:
        # The jobs alone would not say from where to resume.
        yield pb.ProfilePhotoJobStatus(customer_id=customer_id, seq=item.seq)


# A change goes to all clients that follow its customer, one after the other.
@lru_cache(maxsize=256)
def _event_message(
    item: Changed | Erased | Progressed, prefix: str, previews: bool
) -> pb.ProfilePhotoJobStatus:
    if isinstance(item, Erased):
        return pb.ProfilePhotoJobStatus(customer_id=item.customer_id, job_id=item.job_id, seq=item.seq)
    message = job_status(item.live, prefix)
    if previews and isinstance(item, Progressed) and item.preview is not None:
        message.preview.MergeFrom(pb.Preview(index=item.index, picture=item.preview))
    return message
