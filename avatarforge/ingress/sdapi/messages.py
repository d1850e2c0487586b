"""Requests and answers in the shapes of AUTOMATIC1111's `modules/api/models.py`."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

import avatarforge
from avatarforge.diffusion.catalogue import Manifest
from avatarforge.domain.errors import AvatarForgeError, InvalidRequest, shown
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.ingress.news import LiveJob
from avatarforge.ingress.problems import answer_to, http_status_of
from avatarforge.ingress.submissions import Submission, read_submission

SHORTEST_SIDE, LONGEST_SIDE = 64, 2048
"""Pixels of the square that a client may ask for."""

_FORM_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negativePrompt",
    "denoising_strength": "strength",
    "steps": "steps",
    "cfg_scale": "guidance",
    "seed": "seed",
}
"""Fields of a request, and the form fields that they are in an upload: so one check does for both."""
_SDAPI_FIELDS = {form: ours for ours, form in _FORM_FIELDS.items()}


class WrongBody(ValueError):
    """The body is not what `img2img` takes."""

    def __init__(self, faults: list[dict[str, Any]]) -> None:
        """`faults` as FastAPI lists them: `loc`, `msg` and `type` each."""
        super().__init__(faults)
        self.faults = faults


class Img2Img(BaseModel):
    """The fields that count here; others are overlooked, as AUTOMATIC1111 does with those it does not know.

    What is left out or null takes the model's own default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    init_images: list[str] | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    denoising_strength: float | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int | None = None
    n_iter: int | None = None
    mask: str | None = None
    send_images: bool = True
    include_init_images: bool = False
    force_task_id: str | None = None

    @classmethod
    def parsed(cls, body: bytes) -> "Img2Img":
        """The checked request. Blocks. Raises `WrongBody` and `InvalidRequest`."""
        try:
            wish = cls.model_validate_json(body)
        except ValidationError as error:
            raise WrongBody([_fault(fault) for fault in error.errors(include_input=False)]) from error
        for name in ("batch_size", "n_iter"):
            if getattr(wish, name) not in (None, 1):
                raise InvalidRequest(name, getattr(wish, name), "1: each request makes one avatar")
        if wish.mask is not None:
            raise InvalidRequest("mask", wish.mask, "null: this service paints no parts of pictures")
        if wish.width != wish.height:
            raise InvalidRequest("width", wish.width, f"the height ({wish.height}): avatars are square")
        if wish.width is not None and not SHORTEST_SIDE <= wish.width <= LONGEST_SIDE:
            raise InvalidRequest("width", wish.width, f"from {SHORTEST_SIDE} to {LONGEST_SIDE}")
        return wish

    def photo(self) -> bytes:
        """The picture to begin with, as a file. Blocks. Raises `InvalidRequest`."""
        if not self.init_images or len(self.init_images) != 1:
            raise InvalidRequest("init_images", self.init_images, "a list with one picture in base64")
        text = self.init_images[0]
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise InvalidRequest("init_images", text, f"a picture in base64 ({error})") from error

    def submission(self, manifest: Manifest) -> Submission:
        """The wishes as an upload has them. Raises `InvalidRequest` with the names of this API."""
        seed = None if self.seed == -1 else self.seed
        given = self.model_dump(include=set(_FORM_FIELDS)) | {"seed": seed}
        fields = {_FORM_FIELDS[name]: str(value) for name, value in given.items() if value is not None}
        # Clients of this API always send them: what the model has not is passed over, as samplers are.
        for name in manifest.capabilities.missing:
            fields.pop(name, None)
        try:
            submission = read_submission(fields, manifest)
        except InvalidRequest as error:
            name = _SDAPI_FIELDS.get(error.name, error.name)
            raise InvalidRequest(name, error.value, error.expected) from error
        # Not on to another server: two that are each other's fallback would send it round for ever. Not cut:
        # clients of this API send the very picture to begin with.
        parameters = replace(submission.parameters, allow_remote=False, cut_face=False)
        return replace(submission, parameters=parameters)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An error in this API's shape."""

    status: int
    body: Mapping[str, Any]

    @classmethod
    def of(cls, error: AvatarForgeError | WrongBody) -> "Refusal":
        if isinstance(error, WrongBody):
            return cls(status=422, body={"detail": error.faults})
        if isinstance(error, InvalidRequest):
            message = f"{shown(error.value)} must be {error.expected}"
            fault = {"loc": ["body", error.name], "msg": message, "type": "value_error"}
            return cls(status=422, body={"detail": [fault]})
        return cls.saying(answer_to(error).http, error.code, str(error))

    @classmethod
    def of_job(cls, job: ProfilePhotoJob) -> "Refusal":
        """Of one that ended without an avatar."""
        if job.error is None:
            return cls.saying(500, "interrupted", "The picture was interrupted.")
        return cls.saying(http_status_of(job.error.code), job.error.code, job.error.message)

    @classmethod
    def saying(cls, status: int, code: str, message: str) -> "Refusal":
        return cls(status=status, body={"error": code, "detail": message, "body": "", "errors": message})


def picture_answer(wish: Img2Img, job: ProfilePhotoJob, picture: bytes, side: int) -> dict[str, Any]:
    """The answer for an avatar, `picture` being its file."""
    assert job.outcome is not None, "only for jobs that are DONE"
    wanted = job.parameters
    info = {
        "prompt": wanted.prompt,
        "all_prompts": [wanted.prompt],
        "negative_prompt": wanted.negative_prompt,
        "all_negative_prompts": [wanted.negative_prompt],
        "seed": wanted.seed,
        "all_seeds": [wanted.seed],
        "width": side,
        "height": side,
        "cfg_scale": wanted.guidance,
        "steps": wanted.steps,
        "denoising_strength": wanted.strength,
        "batch_size": 1,
        "sd_model_name": job.outcome.model,
        "sd_model_hash": None,
        "infotexts": [],
        "job_timestamp": job.created_at.strftime("%Y%m%d%H%M%S"),
        "version": f"AvatarForge {avatarforge.__version__}",
    }
    return {
        "images": [base64.b64encode(picture).decode()] if wish.send_images else [],
        "parameters": wish.model_dump(),
        "info": json.dumps(info),
    }


def progress_answer(live: LiveJob | None, task_id: str | None, *, image: bool) -> dict[str, Any]:
    """What is worked on; `task_id` is its name, beyond what AUTOMATIC1111 tells."""
    progress = live.progress if live is not None else None
    step, total_steps = (progress.step, progress.total_steps) if progress is not None else (0, 0)
    preview = progress.preview if image and progress is not None else None
    return {
        "progress": step / total_steps if total_steps else 0.0,
        "eta_relative": (live.eta_seconds if live is not None else None) or 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "" if live is None else live.job.job_id,
            "job_count": 0 if live is None else 1,
            "job_timestamp": "" if live is None else live.job.created_at.strftime("%Y%m%d%H%M%S"),
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": total_steps,
        },
        "current_image": None if preview is None else base64.b64encode(preview).decode(),
        "textinfo": None,
        "current_task": task_id,
    }


def model_answer(manifest: Manifest) -> dict[str, Any]:
    """An entry of the list of models."""
    return {
        "title": manifest.name,
        "model_name": manifest.name,
        "hash": None,
        "sha256": None,
        "filename": manifest.name,
        "config": None,
    }


def _fault(fault: Mapping[str, Any]) -> dict[str, Any]:
    return {"loc": ["body", *fault["loc"]], "msg": fault["msg"], "type": fault["type"]}
