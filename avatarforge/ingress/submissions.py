"""What a client may ask for with a photo: the fields of an upload, checked."""

import math
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from avatarforge.diffusion.catalogue import Manifest
from avatarforge.domain.errors import InvalidRequest
from avatarforge.domain.jobs import GenerationParameters, ImageFormat
from avatarforge.webhooks.urls import CallbackUrl, UnusableUrl

MAX_PROMPT = 1000
"""Characters of a prompt, and of a negative prompt."""
MAX_CALLBACK_URL = 2000
"""Characters of a callback URL."""
MAX_KEY = 255
"""Characters of an idempotency key."""
MAX_STEPS = 150
MAX_GUIDANCE = 30
MAX_SEED = 2**63 - 1
MAX_TIMEOUT = 7 * 86_400
"""Seconds: a week."""
MAX_PRIORITY = 10
"""Priorities go from minus this to this."""

FIELDS = (
    "callbackUrl",
    "prompt",
    "negativePrompt",
    "style",
    "strength",
    "steps",
    "guidance",
    "seed",
    "format",
    "priority",
    "allowRemote",
    "timeoutSeconds",
    "startTimeoutSeconds",
    "cutFace",
)
"""The form fields that may stand beside `photo`."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """An upload's fields as the domain has them."""

    parameters: GenerationParameters
    priority: int
    callback_url: str | None


def read_submission(
    fields: Mapping[str, str], manifest: Manifest, new_seed: Callable[[], int] = lambda: secrets.randbits(32)
) -> Submission:
    """The checked fields; an absent or empty one takes its default.

    Raises `InvalidRequest`, which names the field, its value and what would be right.
    """
    given = _Fields(fields)
    seed = given.integer("seed", 0, MAX_SEED)
    parameters = GenerationParameters(
        seed=new_seed() if seed is None else seed,
        prompt=given.text("prompt", MAX_PROMPT),
        negative_prompt=given.text("negativePrompt", MAX_PROMPT),
        style=given.choice("style", manifest.styles),
        strength=given.number("strength", _is_strength, "a number above 0 and up to 1"),
        steps=given.integer("steps", 1, MAX_STEPS),
        guidance=given.number("guidance", _is_guidance, f"a number from 0 to {MAX_GUIDANCE}"),
        format=ImageFormat(given.choice("format", list(ImageFormat)) or ImageFormat.PNG),
        allow_remote=given.truth("allowRemote", default=True),
        timeout_seconds=given.number("timeoutSeconds", _is_timeout, _A_TIMEOUT),
        start_timeout_seconds=given.number("startTimeoutSeconds", _is_timeout, _A_TIMEOUT),
        cut_face=given.truth("cutFace", default=True),
    )
    manifest.capabilities.refuse(
        manifest.name,
        strength=fields.get("strength"),
        guidance=fields.get("guidance"),
        negative_prompt=fields.get("negativePrompt"),
    )
    _refuse_idle(parameters, manifest)
    return Submission(
        parameters=parameters,
        priority=given.integer("priority", -MAX_PRIORITY, MAX_PRIORITY) or 0,
        callback_url=given.url("callbackUrl", MAX_CALLBACK_URL),
    )


def checked_key(text: str) -> str:
    """An idempotency key as it was sent. Raises `InvalidRequest`."""
    if not 1 <= len(text) <= MAX_KEY or not text.isascii() or not text.isprintable():
        raise InvalidRequest("Idempotency-Key", text, f"1 to {MAX_KEY} printable ASCII characters")
    return text


def number(text: str) -> float | None:
    """The finite number that the text is, if it is one."""
    # The grammar keeps out what float() also takes: nan, inf, 1_0, digits of other scripts.
    if _NUMBER.fullmatch(text) is None or math.isinf(float(text)):
        return None
    return float(text)


class _Fields:
    """Reads one field at a time; an empty field counts as absent, since HTML forms send those."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields

    def text(self, name: str, most: int) -> str:
        text = self._fields.get(name, "")
        if len(text) > most:
            raise InvalidRequest(name, text, f"at most {most} characters long (it has {len(text)})")
        return text

    def choice(self, name: str, choices: Mapping[str, object] | list[ImageFormat]) -> str | None:
        text = self._fields.get(name)
        if text and text not in choices:
            raise InvalidRequest(name, text, f"one of {', '.join(choices)}" if choices else "absent")
        return text or None

    def integer(self, name: str, least: int, most: int) -> int | None:
        text = self._fields.get(name)
        if not text:
            return None
        if _INTEGER.fullmatch(text) is None or not least <= int(text) <= most:
            raise InvalidRequest(name, text, f"a whole number from {least} to {most}")
        return int(text)

    def number(self, name: str, fits: Callable[[float], bool], expected: str) -> float | None:
        text = self._fields.get(name)
        if not text:
            return None
        value = number(text)
        if value is None or not fits(value):
            raise InvalidRequest(name, text, expected)
        return value

    def truth(self, name: str, *, default: bool) -> bool:
        text = self._fields.get(name)
        if not text:
            return default
        # Case does not count: programs write what their language prints.
        if text.lower() not in ("true", "false"):
            raise InvalidRequest(name, text, "true or false")
        return text.lower() == "true"

    def url(self, name: str, most: int) -> str | None:
        text = self.text(name, most)
        if not text:
            return None
        try:
            CallbackUrl.parsed(text)
        except UnusableUrl as error:
            raise InvalidRequest(name, text, str(error)) from error
        return text


def _is_strength(value: float) -> bool:
    return 0 < value <= 1


def _is_guidance(value: float) -> bool:
    return 0 <= value <= MAX_GUIDANCE


def _is_timeout(value: float) -> bool:
    return 1 <= value <= MAX_TIMEOUT


_A_TIMEOUT = f"a number of seconds from 1 to {MAX_TIMEOUT}"


def _refuse_idle(parameters: GenerationParameters, manifest: Manifest) -> None:
    """With few steps and little strength no step is left, and the photo would come back as it went."""
    if not manifest.capabilities.strength:
        return
    defaults = manifest.defaults
    steps = defaults.steps if parameters.steps is None else parameters.steps
    strength = defaults.strength if parameters.strength is None else parameters.strength
    if int(steps * strength) == 0:
        raise InvalidRequest(
            "strength", f"{strength:g}", f"at least 1/{steps} with {steps} steps, or no step is left to take"
        )
