import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProcessingStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROCESSING_STATUS_UNSPECIFIED: _ClassVar[ProcessingStatus]
    PROCESSING_STATUS_PENDING: _ClassVar[ProcessingStatus]
    PROCESSING_STATUS_PROCESSING: _ClassVar[ProcessingStatus]
    PROCESSING_STATUS_DONE: _ClassVar[ProcessingStatus]
    PROCESSING_STATUS_FAILED: _ClassVar[ProcessingStatus]
    PROCESSING_STATUS_CANCELLED: _ClassVar[ProcessingStatus]
PROCESSING_STATUS_UNSPECIFIED: ProcessingStatus
PROCESSING_STATUS_PENDING: ProcessingStatus
PROCESSING_STATUS_PROCESSING: ProcessingStatus
PROCESSING_STATUS_DONE: ProcessingStatus
PROCESSING_STATUS_FAILED: ProcessingStatus
PROCESSING_STATUS_CANCELLED: ProcessingStatus

class SubmitPhotoRequest(_message.Message):
    __slots__ = ("customer_id", "photo", "callback_url", "prompt", "negative_prompt", "style", "strength", "steps", "guidance", "seed", "format", "priority", "allow_remote", "crop_to_face", "timeout_seconds", "start_timeout_seconds", "image_guidance", "sampler", "width", "height", "variants", "vary")
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    PHOTO_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_URL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    STYLE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ALLOW_REMOTE_FIELD_NUMBER: _ClassVar[int]
    CROP_TO_FACE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    START_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    VARY_FIELD_NUMBER: _ClassVar[int]
    customer_id: str
    photo: bytes
    callback_url: str
    prompt: str
    negative_prompt: str
    style: str
    strength: float
    steps: int
    guidance: float
    seed: int
    format: str
    priority: int
    allow_remote: bool
    crop_to_face: bool
    timeout_seconds: float
    start_timeout_seconds: float
    image_guidance: float
    sampler: str
    width: int
    height: int
    variants: int
    vary: str
    def __init__(self, customer_id: _Optional[str] = ..., photo: _Optional[bytes] = ..., callback_url: _Optional[str] = ..., prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., style: _Optional[str] = ..., strength: _Optional[float] = ..., steps: _Optional[int] = ..., guidance: _Optional[float] = ..., seed: _Optional[int] = ..., format: _Optional[str] = ..., priority: _Optional[int] = ..., allow_remote: _Optional[bool] = ..., crop_to_face: _Optional[bool] = ..., timeout_seconds: _Optional[float] = ..., start_timeout_seconds: _Optional[float] = ..., image_guidance: _Optional[float] = ..., sampler: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., variants: _Optional[int] = ..., vary: _Optional[str] = ...) -> None: ...

class JobStatusRequest(_message.Message):
    __slots__ = ("customer_id", "job_id", "wait_seconds", "after_seq")
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    customer_id: str
    job_id: str
    wait_seconds: int
    after_seq: int
    def __init__(self, customer_id: _Optional[str] = ..., job_id: _Optional[str] = ..., wait_seconds: _Optional[int] = ..., after_seq: _Optional[int] = ...) -> None: ...

class StatusStreamRequest(_message.Message):
    __slots__ = ("customer_id", "job_id", "after_seq", "previews")
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    customer_id: str
    job_id: str
    after_seq: int
    previews: bool
    def __init__(self, customer_id: _Optional[str] = ..., job_id: _Optional[str] = ..., after_seq: _Optional[int] = ..., previews: _Optional[bool] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("customer_id", "job_id")
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    customer_id: str
    job_id: str
    def __init__(self, customer_id: _Optional[str] = ..., job_id: _Optional[str] = ...) -> None: ...

class KeepImageRequest(_message.Message):
    __slots__ = ("customer_id", "job_id", "index")
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    customer_id: str
    job_id: str
    index: int
    def __init__(self, customer_id: _Optional[str] = ..., job_id: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("step", "total_steps")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("index", "seed", "style", "generated_url")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STYLE_FIELD_NUMBER: _ClassVar[int]
    GENERATED_URL_FIELD_NUMBER: _ClassVar[int]
    index: int
    seed: int
    style: str
    generated_url: str
    def __init__(self, index: _Optional[int] = ..., seed: _Optional[int] = ..., style: _Optional[str] = ..., generated_url: _Optional[str] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("index", "picture")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    index: int
    picture: bytes
    def __init__(self, index: _Optional[int] = ..., picture: _Optional[bytes] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queued", "fetch", "encode", "steps", "decode", "upload")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    queued: float
    fetch: float
    encode: float
    steps: float
    decode: float
    upload: float
    def __init__(self, queued: _Optional[float] = ..., fetch: _Optional[float] = ..., encode: _Optional[float] = ..., steps: _Optional[float] = ..., decode: _Optional[float] = ..., upload: _Optional[float] = ...) -> None: ...

class Parameters(_message.Message):
    __slots__ = ("prompt", "negative_prompt", "style", "strength", "steps", "guidance", "format", "priority", "allow_remote", "crop_to_face", "timeout_seconds", "start_timeout_seconds", "image_guidance", "sampler", "width", "height", "variants", "vary")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    STYLE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ALLOW_REMOTE_FIELD_NUMBER: _ClassVar[int]
    CROP_TO_FACE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    START_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    VARY_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    negative_prompt: str
    style: str
    strength: float
    steps: int
    guidance: float
    format: str
    priority: int
    allow_remote: bool
    crop_to_face: bool
    timeout_seconds: float
    start_timeout_seconds: float
    image_guidance: float
    sampler: str
    width: int
    height: int
    variants: int
    vary: str
    def __init__(self, prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., style: _Optional[str] = ..., strength: _Optional[float] = ..., steps: _Optional[int] = ..., guidance: _Optional[float] = ..., format: _Optional[str] = ..., priority: _Optional[int] = ..., allow_remote: _Optional[bool] = ..., crop_to_face: _Optional[bool] = ..., timeout_seconds: _Optional[float] = ..., start_timeout_seconds: _Optional[float] = ..., image_guidance: _Optional[float] = ..., sampler: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., variants: _Optional[int] = ..., vary: _Optional[str] = ...) -> None: ...

class ProfilePhotoJobStatus(_message.Message):
    __slots__ = ("job_id", "customer_id", "status", "is_terminal", "progress", "eta_seconds", "queue_position", "original_url", "generated_url", "callback_url", "error", "attempt", "retry_of", "backend", "model", "seed", "crop", "seq", "created_at", "started_at", "finished_at", "timings", "parameters", "reset", "images", "kept", "preview")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    IS_TERMINAL_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_URL_FIELD_NUMBER: _ClassVar[int]
    GENERATED_URL_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_URL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RETRY_OF_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    customer_id: str
    status: ProcessingStatus
    is_terminal: bool
    progress: Progress
    eta_seconds: float
    queue_position: int
    original_url: str
    generated_url: str
    callback_url: str
    error: JobError
    attempt: int
    retry_of: str
    backend: str
    model: str
    seed: int
    crop: str
    seq: int
    created_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    timings: Timings
    parameters: Parameters
    reset: bool
    images: _containers.RepeatedCompositeFieldContainer[Image]
    kept: int
    preview: Preview
    def __init__(self, job_id: _Optional[str] = ..., customer_id: _Optional[str] = ..., status: _Optional[_Union[ProcessingStatus, str]] = ..., is_terminal: _Optional[bool] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., eta_seconds: _Optional[float] = ..., queue_position: _Optional[int] = ..., original_url: _Optional[str] = ..., generated_url: _Optional[str] = ..., callback_url: _Optional[str] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., attempt: _Optional[int] = ..., retry_of: _Optional[str] = ..., backend: _Optional[str] = ..., model: _Optional[str] = ..., seed: _Optional[int] = ..., crop: _Optional[str] = ..., seq: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., parameters: _Optional[_Union[Parameters, _Mapping]] = ..., reset: _Optional[bool] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., kept: _Optional[int] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ...) -> None: ...
