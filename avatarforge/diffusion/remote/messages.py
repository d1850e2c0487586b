"""What AUTOMATIC1111's API says: requests, pictures, progress, and the many shapes of its errors.

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

from avatarforge.diffusion.engine import EngineRequest
from avatarforge.domain.errors import AvatarForgeError, RemoteFailed, RemoteRefused, RemoteUnavailable
from avatarforge.storage.pictures import STORED_FORMATS, load_upright

PAUSE = 1.0
"""Seconds that a server which is away is left alone, where nobody says more."""
LONGEST_PAUSE = 300.0
"""Most seconds of a `Retry-After` that are believed."""
MOST_PIXELS = 4096 * 4096

_AWAY = frozenset({401, 403, 407, 408, 429, 502, 503})
"""Statuses of somebody who did not begin: the name or password is wrong, a proxy finds nobody, it is busy."""
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def request_body(
    request: EngineRequest, task_id: str, *, model: str | None, sampler: str | None
) -> dict[str, Any]:
    """The body of `POST /sdapi/v1/img2img`. Encodes the picture: use a thread."""
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
    if sampler is not None:
        body["sampler_name"] = sampler
    if model is not None:
        body["override_settings"] = {"sd_model_checkpoint": model}
        # Else it would load its own checkpoint again after every picture.
        body["override_settings_restore_afterwards"] = False
    return body


@dataclass(frozen=True, kw_only=True, slots=True)
class RemotePicture:
    """What a server made."""

    image: Image.Image
    model: str | None
    """The checkpoint's name, where the server tells it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteProgress:
    """What a server works on at present."""

    busy: bool
    step: int
    total_steps: int
    task_id: str | None
    """Whose steps they are, where the server tells it; AUTOMATIC1111 does not."""


def read_picture(content: bytes) -> RemotePicture:
    """The picture in a 200's body. Blocks. Raises `RemoteFailed` where there is none, and
    `RemoteUnavailable` for something else than the API, such as a proxy's page."""
    answer = _object(content)
    if answer is None:
        raise RemoteUnavailable(f"it answered with {_described(content)}", PAUSE)
    images = answer.get("images")
    if not isinstance(images, list) or not images or not isinstance(images[0], str):
        raise RemoteFailed("its answer holds no picture")
    try:
        data = base64.b64decode(images[0].rpartition(",")[2], validate=True)
        with Image.open(BytesIO(data), formats=STORED_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise RemoteFailed(f"its picture is too large: {image.width} x {image.height} pixels")
        picture = load_upright(data)
    # Pillow's decoders raise errors of many kinds.
    except (binascii.Error, OSError, ValueError, SyntaxError) as error:
        raise RemoteFailed(f"its picture cannot be read ({type(error).__name__}: {error})") from error
    return RemotePicture(image=picture, model=_model_of(answer.get("info")))


def read_progress(content: bytes) -> RemoteProgress | None:
    """The answer of `GET /sdapi/v1/progress`; `None` for what is none."""
    answer = _object(content) or {}
    state = answer.get("state")
    if not isinstance(state, dict):
        return None
    total_steps = _count(state.get("sampling_steps"))
    task_id = answer.get("current_task")
    return RemoteProgress(
        busy=_count(state.get("job_count")) != 0,
        step=max(0, min(_count(state.get("sampling_step")), total_steps)),
        total_steps=total_steps,
        task_id=task_id if isinstance(task_id, str) else None,
    )


def error_of(status: int, headers: Mapping[str, str], content: bytes) -> AvatarForgeError:
    """What a status other than 200 means: whether it began, failed, or will never take the request."""
    reason = f"{status}, {_reason(content)}"
    if status in _AWAY or 300 <= status < 400 or (status == 404 and _is_no_api(content)):
        return RemoteUnavailable(reason, _retry_after(headers))
    if 400 <= status < 500:
        return RemoteRefused(reason)
    return RemoteFailed(reason)


def _is_no_api(content: bytes) -> bool:
    """Whether a 404 comes from a server whose API is off, not from a call that misses something.

    Starlette's own answer for a path that it does not know is the former.
    """
    answer = _object(content)
    return answer is None or answer.get("detail") in (None, "Not Found") or "code" in answer


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    seconds = float(text) if text.isascii() and text.isdigit() and len(text) < 10 else PAUSE
    return min(max(seconds, PAUSE), LONGEST_PAUSE)


def _reason(content: bytes) -> str:
    """What an error's body says, for people."""
    answer = _object(content)
    if answer is None:
        return _described(content)
    detail = answer.get("detail")
    if isinstance(detail, list):
        return "; ".join(_fault(entry) for entry in detail[:5])
    texts = [text for text in (detail, answer.get("errors")) if isinstance(text, str) and text]
    kind = answer.get("error")
    return f"{kind}: {texts[0]}" if texts and isinstance(kind, str) else next(iter(texts), str(kind))


def _fault(entry: Any) -> str:
    """An entry of FastAPI's list for a 422."""
    if not isinstance(entry, dict):
        return str(entry)
    place = ".".join(str(part) for part in entry.get("loc", ()) if part != "body")
    return f"{place}: {entry.get('msg')}"


def _described(content: bytes) -> str:
    """A body that is no JSON object."""
    if (title := _TITLE.search(content)) is not None:
        return f"a page titled {title[1].decode('utf-8', 'replace').strip()!r}"
    text = content[:100].decode("utf-8", "replace").strip()
    return repr(text) if text else "nothing"


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _model_of(info: Any) -> str | None:
    told = _object(info.encode()) if isinstance(info, str) else None
    name = (told or {}).get("sd_model_name")
    return name[:200] if isinstance(name, str) and name else None


def _count(value: Any) -> int:
    """A count that the server tells. AUTOMATIC1111 uses -1 for a job whose size it does not know yet."""
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
