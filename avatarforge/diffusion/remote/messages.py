"""The messages of AUTOMATIC1111's API: requests, images, progress, and the many shapes of its errors.

The shapes are those of `modules/api/api.py` and `models.py` in AUTOMATIC1111/stable-diffusion-webui (1.10),
which SD.Next and Forge keep.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from avatarforge.diffusion.engines.engine import EngineRequest
from avatarforge.diffusion.models.catalogue import strength_for
from avatarforge.domain.errors import AvatarForgeError, RemoteFailed, RemoteRefused, RemoteUnavailable
from avatarforge.imaging.decode import STORED_FORMATS, load_upright

DEFAULT_RETRY_SECONDS = 1.0
"""How long an unavailable server is left alone, without a `Retry-After`."""
MAX_RETRY_SECONDS = 300.0
"""A longer `Retry-After` is cut to this."""
MAX_PIXELS = 4096 * 4096

_UNAVAILABLE_STATUSES = frozenset({401, 403, 407, 408, 429, 502, 503})
"""Statuses of a server that did not begin: wrong credentials, a proxy without its server, or overload."""
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def build_request_body(
    request: EngineRequest, task_id: str, *, model: str | None, sampler: str | None, edits: bool = False
) -> dict[str, Any]:
    """Build the body of `POST /sdapi/v1/img2img`. Encodes the image: use a thread."""
    buffer = BytesIO()
    request.image.save(buffer, "PNG")
    body = {
        "init_images": [base64.b64encode(buffer.getvalue()).decode()],
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "denoising_strength": request.strength,
        "steps": request.steps,
        "cfg_scale": request.guidance,
        "width": request.image.width,
        "height": request.image.height,
        "batch_size": 1,
        "n_iter": 1,
        "force_task_id": task_id,
    }
    if edits:
        # The server's model may be of either kind: it takes the one that it has.
        body["image_cfg_scale"] = request.image_guidance
        body["denoising_strength"] = strength_for(request.image_guidance)
    if (wanted := request.sampler or sampler) is not None:
        body["sampler_name"] = wanted
    if model is not None:
        body["override_settings"] = {"sd_model_checkpoint": model}
        # Else it would load its own checkpoint again after every image.
        body["override_settings_restore_afterwards"] = False
    return body


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteImage:
    """A server's image."""

    image: Image.Image
    model: str | None
    """The checkpoint's name, if the server gives it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteProgress:
    """The progress of what a server works on."""

    busy: bool
    step: int
    total_steps: int
    task_id: str | None
    """The task that the steps belong to, if the server gives it; AUTOMATIC1111 does not."""


def read_image(content: bytes) -> RemoteImage:
    """Read the image in a 200's body. Blocks. Raises `RemoteFailed` if there is none or an unfinished one,
    and `RemoteUnavailable` for something else than the API, such as a proxy's page."""
    answer = _parse_object(content)
    if answer is None:
        raise RemoteUnavailable(f"it answered with {_describe_body(content)}", DEFAULT_RETRY_SECONDS)
    info = _parse_info(answer.get("info"))
    if info.get("interrupted") is True:
        raise RemoteFailed("it was interrupted there")
    images = answer.get("images")
    if not isinstance(images, list) or not images or not isinstance(images[0], str):
        raise RemoteFailed("its response holds no image")
    try:
        data = base64.b64decode(images[0].rpartition(",")[2], validate=True)
        with Image.open(BytesIO(data), formats=STORED_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise RemoteFailed(f"its image is too large: {image.width} x {image.height} pixels")
        upright = load_upright(data)
    # Pillow's decoders raise errors of many kinds.
    except (binascii.Error, OSError, ValueError, SyntaxError) as error:
        raise RemoteFailed("its image cannot be read") from error
    return RemoteImage(image=upright, model=_parse_model(info))


def read_progress(content: bytes) -> RemoteProgress | None:
    """Read the response of `GET /sdapi/v1/progress`; `None` if it is not valid."""
    answer = _parse_object(content) or {}
    state = answer.get("state")
    if not isinstance(state, dict):
        return None
    total_steps = _parse_count(state.get("sampling_steps"))
    task_id = answer.get("current_task")
    return RemoteProgress(
        busy=_parse_count(state.get("job_count")) != 0,
        step=max(0, min(_parse_count(state.get("sampling_step")), total_steps)),
        total_steps=total_steps,
        task_id=task_id if isinstance(task_id, str) else None,
    )


def create_error(status: int, headers: Mapping[str, str], content: bytes) -> AvatarForgeError:
    """Create the error for a status other than 200: not begun, failed, or refused for good."""
    reason = f"{status}, {_replace_surrogates(_extract_reason(content))}"
    if status in _UNAVAILABLE_STATUSES or 300 <= status < 400 or (status == 404 and _is_no_api(content)):
        return RemoteUnavailable(reason, _parse_retry_after(headers))
    if 400 <= status < 500:
        return RemoteRefused(reason)
    return RemoteFailed(reason)


def _is_no_api(content: bytes) -> bool:
    """Return whether a 404 comes from a server whose API is off, not from a call that misses something.

    Starlette's own response for an unknown path is the former.
    """
    answer = _parse_object(content)
    return answer is None or answer.get("detail") in (None, "Not Found") or "code" in answer


def _parse_retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    seconds = float(text) if text.isascii() and text.isdigit() and len(text) < 10 else DEFAULT_RETRY_SECONDS
    return min(max(seconds, DEFAULT_RETRY_SECONDS), MAX_RETRY_SECONDS)


def _extract_reason(content: bytes) -> str:
    answer = _parse_object(content)
    if answer is None:
        return _describe_body(content)
    detail = answer.get("detail")
    if isinstance(detail, list):
        return "; ".join(_format_detail(entry) for entry in detail[:5])
    texts = [text for text in (detail, answer.get("errors")) if isinstance(text, str) and text]
    kind = answer.get("error")
    return f"{kind}: {texts[0]}" if texts and isinstance(kind, str) else next(iter(texts), str(kind))


def _format_detail(entry: Any) -> str:
    """Format an entry of FastAPI's list for a 422."""
    if not isinstance(entry, dict):
        return str(entry)
    place = ".".join(str(part) for part in entry.get("loc", ()) if part != "body")
    return f"{place}: {entry.get('msg')}"


def _describe_body(content: bytes) -> str:
    if (title := _TITLE.search(content)) is not None:
        return f"a page titled {title[1].decode('utf-8', 'replace').strip()!r}"
    text = content[:100].decode("utf-8", "replace").strip()
    return repr(text) if text else "nothing"


def _parse_object(content: bytes | str) -> dict[str, Any] | None:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _parse_info(info: Any) -> dict[str, Any]:
    """Parse what is told of an image: JSON within JSON."""
    return (_parse_object(info) if isinstance(info, str) else None) or {}


def _parse_model(info: dict[str, Any]) -> str | None:
    name = info.get("sd_model_name")
    return _replace_surrogates(name[:200]) if isinstance(name, str) and name else None


def _replace_surrogates(text: str) -> str:
    """Replace halves of surrogate pairs: JSON may have them alone, and nothing stores them."""
    return text.encode("utf-8", "replace").decode()


def _parse_count(value: Any) -> int:
    """Parse a count. AUTOMATIC1111 uses -1 for a job whose size it does not know yet."""
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
