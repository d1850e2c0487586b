"""What the messages of proto/profile_photo_job.proto say, in the words of REST, and the other way round."""

from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

from avatarforge.domain.errors import InvalidRequest
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.ingress.news import Changed, Erased, LiveJob, Progressed
from avatarforge.ingress.schemas import status_message
from avatarforge.ingress.streams import Snapshot
from avatarforge.messages import ProfilePhotoJobStatus

_FORM_FIELDS = {
    "callback_url": "callbackUrl",
    "prompt": "prompt",
    "negative_prompt": "negativePrompt",
    "style": "style",
    "strength": "strength",
    "steps": "steps",
    "guidance": "guidance",
    "seed": "seed",
    "format": "format",
    "priority": "priority",
    "allow_remote": "allowRemote",
    "cut_face": "cutFace",
    "timeout_seconds": "timeoutSeconds",
    "start_timeout_seconds": "startTimeoutSeconds",
}
"""Fields of `SubmitPhotoRequest`, and the form fields that they are in REST."""


def form_fields(request: pb.SubmitPhotoRequest) -> dict[str, str]:
    """The fields that are set, as an upload's form has them: so one check does for both."""
    return {
        name: str(getattr(request, field)) for field, name in _FORM_FIELDS.items() if request.HasField(field)
    }


def job_id_of(job_id: str) -> str:
    """The id of a job. Raises `InvalidRequest` for none; one that names no job is found out later."""
    if not job_id:
        raise InvalidRequest("job_id", job_id, "the id of a job, as SubmitPhoto's answer has it")
    return job_id


def wait_seconds_of(request: pb.JobStatusRequest, longest: int) -> int:
    if not 0 <= request.wait_seconds <= longest:
        raise InvalidRequest("wait_seconds", request.wait_seconds, f"a whole number from 0 to {longest}")
    return request.wait_seconds


def after_seq_of(request: pb.JobStatusRequest | pb.StatusStreamRequest) -> int | None:
    if not request.HasField("after_seq"):
        return None
    if request.after_seq < 0:
        raise InvalidRequest("after_seq", request.after_seq, "the seq of a message, which is 0 or more")
    return request.after_seq


def job_status(live: LiveJob) -> pb.ProfilePhotoJobStatus:
    """The job as every channel tells it."""
    return _status(status_message(live))


def stream_messages(
    customer_id: str, item: Snapshot | Changed | Erased | Progressed
) -> Iterator[pb.ProfilePhotoJobStatus]:
    """What a customer's stream sends for the item: messages that all its clients share."""
    if not isinstance(item, Snapshot):
        yield _news(item)
    elif item.jobs:
        yield from map(job_status, item.jobs)
    else:
        # Or the client would not know from where to resume.
        yield pb.ProfilePhotoJobStatus(customer_id=customer_id, seq=item.seq)


# A change goes to all clients that follow its customer, one after the other.
@lru_cache(maxsize=256)
def _news(item: Changed | Erased | Progressed) -> pb.ProfilePhotoJobStatus:
    if isinstance(item, Erased):
        return pb.ProfilePhotoJobStatus(customer_id=item.customer_id, job_id=item.job_id, seq=item.seq)
    return job_status(item.live)


def _status(message: ProfilePhotoJobStatus) -> pb.ProfilePhotoJobStatus:
    progress, error = message.progress, message.error
    return pb.ProfilePhotoJobStatus(
        job_id=message.job_id,
        customer_id=message.customer_id,
        status=f"PROCESSING_STATUS_{message.status}",
        is_terminal=message.is_terminal,
        progress=None
        if progress is None
        else pb.Progress(step=progress.step, total_steps=progress.total_steps),
        eta_seconds=message.eta_seconds,
        queue_position=message.queue_position,
        original_url=message.original_url,
        generated_url=message.generated_url,
        callback_url=message.callback_url,
        error=None if error is None else pb.JobError(code=error.code, message=error.message),
        attempt=message.attempt,
        retry_of=message.retry_of,
        backend=message.backend,
        model=message.model,
        seed=message.seed,
        crop=message.crop,
        seq=message.seq,
        created_at=_timestamp(message.created_at),
        started_at=_timestamp(message.started_at),
        finished_at=_timestamp(message.finished_at),
        timings=pb.Timings(**dict(message.timings)),
        parameters=pb.Parameters(**dict(message.parameters)),
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
