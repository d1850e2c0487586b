"""Requests and answers in the shapes of AUTOMATIC1111's `modules/api/models.py`."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

import avatarforge
from avatarforge.diffusion.models.catalogue import Manifest, image_guidance_for
from avatarforge.domain.errors import AvatarForgeError, InvalidRequest, truncate_repr
from avatarforge.domain.jobs import MAX_VARIANTS, ProfilePhotoJob
from avatarforge.ingress.problems import http_status_of, problem_type_of
from avatarforge.ingress.upload.form import FORM_NAMES, Submission, read_submission
from avatarforge.messages import LiveJob

AUTOMATIC, KARRAS = "Automatic", "Karras"
"""Noise schedules: the one that belongs to the sampler, and that of https://arxiv.org/abs/2206.00364."""
EVEN = ("Uniform", "Normal")
"""Names of the schedule with even timesteps, which samplers have that are not named after another."""
DEFAULT_SAMPLER = "Default"
"""The checkpoint's own, which may be any."""
SHORTEST_SIDE, LONGEST_SIDE = 64, 2048
"""Pixels that a client may ask for."""

_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "denoising_strength": "strength",
    "steps": "steps",
    "cfg_scale": "guidance",
    "image_cfg_scale": "image_guidance",
    "seed": "seed",
}
_FORM_FIELDS = {ours: FORM_NAMES[name] for ours, name in _FIELDS.items()}
"""Fields of a request, and the form fields that they are in an upload: so one check does for both."""
_SDAPI_FIELDS = {form_name: ours for ours, form_name in _FORM_FIELDS.items()}


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
    image_cfg_scale: float | None = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    """A name, too, for where `sampler_name` is missing."""
    scheduler: str | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int | None = None
    n_iter: int | None = None
    styles: list[str] | None = None
    mask: str | None = None
    send_images: bool = True
    include_init_images: bool = False
    force_task_id: str | None = None

    @classmethod
    def parse(cls, content: bytes) -> "Img2Img":
        """Parse and check a request's body. Blocks. Raises `WrongBody` and `InvalidRequest`."""
        try:
            body = cls.model_validate_json(content)
        except ValidationError as error:
            raise WrongBody(
                [_describe_fault(fault) for fault in error.errors(include_input=False)]
            ) from error
        for name in ("batch_size", "n_iter"):
            if (number := getattr(body, name)) is not None and number < 1:
                raise InvalidRequest(name, number, "1 or more")
        if body.variants > MAX_VARIANTS:
            name = max(("batch_size", "n_iter"), key=lambda field: getattr(body, field) or 1)
            expected = (
                f"less: batch_size times n_iter is {body.variants}, and at most {MAX_VARIANTS} are made"
            )
            raise InvalidRequest(name, getattr(body, name), expected)
        if body.mask is not None:
            raise InvalidRequest("mask", body.mask, "null: this service paints no parts of images")
        if (body.width is None) != (body.height is None):
            raise InvalidRequest("width", body.width, "given together with the height, or neither")
        for name in ("width", "height"):
            side = getattr(body, name)
            if side is not None and not SHORTEST_SIDE <= side <= LONGEST_SIDE:
                raise InvalidRequest(name, side, f"from {SHORTEST_SIDE} to {LONGEST_SIDE}")
        return body

    @property
    def variants(self) -> int:
        """The number of images."""
        return (self.batch_size or 1) * (self.n_iter or 1)

    def decode_photo(self) -> bytes:
        """Return the image to begin with, as a file. Blocks. Raises `InvalidRequest`."""
        if not self.init_images or len(self.init_images) != 1:
            raise InvalidRequest("init_images", self.init_images, "a list with one image in base64")
        text = self.init_images[0]
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise InvalidRequest("init_images", text, f"an image in base64 ({error})") from error

    def read_submission(self, manifest: Manifest) -> Submission:
        """Check the fields as those of an upload. Raises `InvalidRequest` with the names of this API."""
        seed = None if self.seed == -1 else self.seed
        given = self.model_dump(include=set(_FORM_FIELDS)) | {"seed": seed}
        fields = {_FORM_FIELDS[name]: str(value) for name, value in given.items() if value is not None}
        fields |= self._choose_image_guidance(manifest) | self._choose_sampler(manifest)
        fields |= self._choose_size(manifest) | {"variants": str(self.variants)}
        if (style := next((name for name in self.styles or () if name in manifest.styles), None)) is not None:
            # Several cannot be laid over each other here.
            fields["style"] = style
        # Clients of this API always send them: what the model has not is passed over.
        for name in manifest.capabilities.missing:
            fields.pop(name, None)
        try:
            submission = read_submission(fields, manifest)
        except InvalidRequest as error:
            name = _SDAPI_FIELDS.get(error.name, error.name)
            raise InvalidRequest(name, error.value, error.expected) from error
        # Not on to another server: two that are each other's fallback would send it round for ever. Not cut:
        # clients of this API send the very image to begin with.
        return replace(submission, parameters=submission.parameters.for_prepared_photo())

    def _choose_image_guidance(self, manifest: Manifest) -> dict[str, str]:
        """Choose the form field for a model that edits: as it was sent, or what stands for the strength."""
        guidance = manifest.defaults.guidance if self.cfg_scale is None else self.cfg_scale
        if guidance <= 1:
            return {"imageGuidance": ""}
        has_strength = manifest.capabilities.strength
        if not has_strength and self.image_cfg_scale is None and self.denoising_strength is not None:
            return {"imageGuidance": f"{image_guidance_for(min(max(self.denoising_strength, 0), 1)):g}"}
        return {}

    def _choose_size(self, manifest: Manifest) -> dict[str, str]:
        """Choose the form fields for the size. A square that the model does not make is scaled later: clients
        of this API always send some size."""
        if self.width is None or self.height is None:
            return {}
        if self.width == self.height and (self.width > manifest.longest_side or self.width % 8):
            return {}
        return {"width": str(self.width), "height": str(self.height)}

    def _choose_sampler(self, manifest: Manifest) -> dict[str, str]:
        """Choose the form field for the sampler and noise schedule. Raises `InvalidRequest`.

        As `validate_sampler_name` and `get_sampler_and_scheduler` of AUTOMATIC1111 do, it takes names in any
        case, and a sampler with the name of its schedule behind it.
        """
        if not manifest.samplers:
            # There is no choice, and clients of this API always send some sampler.
            return {}
        known = list_samplers(manifest)
        asked, field = self.sampler_name, "sampler_name"
        if not asked and self.sampler_index:
            asked, field = self.sampler_index, "sampler_index"
        name = (asked or known[0].name).strip().lower()
        sampler = next((one for one in known if name in (one.name.lower(), one.full_name.lower())), None)
        if sampler is None:
            names = ", ".join(one.name for one in known)
            raise InvalidRequest(field, asked, f"one of {names}")
        schedules = (AUTOMATIC, *(EVEN if sampler.schedule == AUTOMATIC else (KARRAS,)))
        if (self.scheduler or AUTOMATIC).lower() not in [schedule.lower() for schedule in schedules]:
            expected = f"one of {', '.join(schedules)} with the sampler {sampler.name}"
            raise InvalidRequest("scheduler", self.scheduler, expected)
        # A name that was not sent is left open: a server that the job goes on to may have a configured one.
        return {} if not asked or sampler.full_name == DEFAULT_SAMPLER else {"sampler": sampler.full_name}


@dataclass(frozen=True, kw_only=True, slots=True)
class SdapiError:
    """An error in this API's shape."""

    status: int
    body: Mapping[str, Any]

    @classmethod
    def from_error(cls, error: AvatarForgeError | WrongBody) -> "SdapiError":
        if isinstance(error, WrongBody):
            return cls(status=422, body={"detail": error.faults})
        if isinstance(error, InvalidRequest):
            message = f"{truncate_repr(error.value)} must be {error.expected}"
            fault = {"loc": ["body", error.name], "msg": message, "type": "value_error"}
            return cls(status=422, body={"detail": [fault]})
        return cls._create(problem_type_of(error).http_status, error.code, str(error))

    @classmethod
    def from_job(cls, job: ProfilePhotoJob) -> "SdapiError":
        """Describe the end of a job without an avatar."""
        if job.error is None:
            return cls._create(500, "interrupted", "The image was interrupted.")
        return cls._create(http_status_of(job.error.code), job.error.code, job.error.message)

    @classmethod
    def not_implemented(cls, message: str) -> "SdapiError":
        return cls._create(501, "not_implemented", message)

    @classmethod
    def _create(cls, status: int, code: str, message: str) -> "SdapiError":
        return cls(status=status, body={"error": code, "detail": message, "body": "", "errors": message})


def img2img_response(
    body: Img2Img, job: ProfilePhotoJob, manifest: Manifest, files: Sequence[bytes], size: tuple[int, int]
) -> dict[str, Any]:
    """Build the answer for the images, given the files that go with it."""
    parameters, defaults = job.parameters, manifest.defaults
    seeds = [image.seed for image in job.images] or [parameters.seed]
    width, height = size
    sampler = Sampler.parse(parameters.sampler or manifest.own_sampler)
    model = manifest.name if job.outcome is None else job.outcome.model
    guidance = defaults.guidance if parameters.guidance is None else parameters.guidance
    steps = defaults.steps if parameters.steps is None else parameters.steps
    strength = parameters.strength
    if strength is None and manifest.capabilities.strength:
        strength = defaults.strength
    version = f"AvatarForge {avatarforge.__version__}"
    infotexts = [
        f"{parameters.prompt}\nNegative prompt: {parameters.negative_prompt}\nSteps: {steps}, "
        f"Sampler: {sampler.name}, Schedule type: {sampler.schedule}, CFG scale: {guidance:g}, "
        f"Seed: {seed}, Size: {width}x{height}, Model: {model}, "
        f"Denoising strength: {strength}, Version: {version}"
        for seed in seeds
    ]
    info = {
        "prompt": parameters.prompt,
        "all_prompts": [parameters.prompt] * len(seeds),
        "negative_prompt": parameters.negative_prompt,
        "all_negative_prompts": [parameters.negative_prompt] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(seeds),
        "subseed_strength": 0.0,
        "width": width,
        "height": height,
        "sampler_name": sampler.name,
        "cfg_scale": guidance,
        "steps": steps,
        "denoising_strength": strength,
        "image_cfg_scale": parameters.image_guidance,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model,
        "sd_model_hash": "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "extra_generation_params": {"Schedule type": sampler.schedule},
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": [parameters.style] if parameters.style else [],
        "job_timestamp": job.created_at.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": version,
        # AUTOMATIC1111 does not tell: what came as far as it got would pass for the avatar.
        "interrupted": job.outcome is None,
    }
    return {
        "images": [base64.b64encode(file).decode() for file in files],
        "parameters": body.model_dump(),
        "info": json.dumps(info),
    }


def progress_response(live: LiveJob | None, task_id: str | None, *, image: bool) -> dict[str, Any]:
    """Build the progress of a job; `task_id` is its name, which AUTOMATIC1111 does not tell."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """A sampler with its noise schedule, which AUTOMATIC1111 names apart."""

    name: str
    schedule: str
    full_name: str

    @classmethod
    def parse(cls, full_name: str | None) -> "Sampler":
        """Parse one of the manifest's names; `None` is the checkpoint's own sampler."""
        full_name = full_name or DEFAULT_SAMPLER
        name = full_name.removesuffix(f" {KARRAS}")
        return cls(name=name, schedule=AUTOMATIC if name == full_name else KARRAS, full_name=full_name)


def list_samplers(manifest: Manifest) -> list[Sampler]:
    """Return the samplers that a request may ask for, the model's own first."""
    return [Sampler.parse(name) for name in dict.fromkeys((manifest.own_sampler, *manifest.samplers))]


def check_options(content: bytes, manifest: Manifest) -> None:
    """Check a change of options. Raises `InvalidRequest` for another model, and `WrongBody`."""
    try:
        options = json.loads(content)
        wanted = options.get("sd_model_checkpoint")
    except (ValueError, AttributeError, RecursionError):
        fault = {"loc": ["body"], "msg": "Input should be a JSON object", "type": "dict_type"}
        raise WrongBody([fault]) from None
    if wanted not in (None, manifest.name, f"{manifest.name}.safetensors"):
        raise InvalidRequest(
            "sd_model_checkpoint", wanted, f"{manifest.name}: who runs the service decides which model serves"
        )


def model_response(manifest: Manifest) -> dict[str, Any]:
    return {
        "title": manifest.name,
        "model_name": manifest.name,
        "hash": None,
        "sha256": None,
        "filename": manifest.name,
        "config": None,
    }


def _describe_fault(fault: Mapping[str, Any]) -> dict[str, Any]:
    return {"loc": ["body", *fault["loc"]], "msg": fault["msg"], "type": fault["type"]}
