"""The form of an upload: its fields, their parser and their description."""

import math
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from types import NoneType
from typing import Any, get_args, get_type_hints

from pydantic.alias_generators import to_camel

from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.domain.errors import PHOTO_FORMATS, InvalidRequest
from avatarforge.domain.jobs import MAX_SEED, GenerationParameters, RequestedParameters, parameter
from avatarforge.webhooks.urls import CallbackUrl, UnusableUrl

MAX_KEY_CHARACTERS = 255
"""Of an idempotency key."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadFields(RequestedParameters):
    """The fields that may stand beside `photo`; every channel takes their names and bounds from here."""

    seed: int | None = parameter(
        None,
        "The same seed makes the same avatar; by default a random one.",
        format="int64",
        minimum=0,
        maximum=MAX_SEED,
    )
    priority: int = parameter(0, "Higher goes first.", minimum=-10, maximum=10)
    callback_url: str | None = parameter(
        None,
        "Where the job's end is told by a webhook: an absolute http or https URL.",
        format="uri",
        maxLength=2000,
    )


FORM_NAMES = {each.name: to_camel(each.name) for each in fields(UploadFields)}
"""Names of the form's fields by names in Python and in the proto."""

_FIELD_TYPES: dict[str, type] = {
    name: next(part for part in (*get_args(hint), hint) if part is not NoneType)
    for name, hint in get_type_hints(UploadFields).items()
}
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """An upload's checked fields."""

    parameters: GenerationParameters
    priority: int
    callback_url: str | None


def read_submission(
    form: Mapping[str, str], manifest: Manifest, new_seed: Callable[[], int] = lambda: secrets.randbits(32)
) -> Submission:
    """Check an upload's fields; an absent or empty one takes its default.

    Raises `InvalidRequest`, which names the field, its value and what would be right.
    """
    # First: of a field that the model lacks, the range says nothing.
    manifest.capabilities.refuse(
        manifest.name,
        strength=form.get("strength"),
        guidance=form.get("guidance"),
        negative_prompt=form.get("negativePrompt"),
        image_guidance=form.get("imageGuidance"),
    )
    upload = _parse_form(form)
    if upload.style is not None and upload.style not in manifest.styles:
        styles = ", ".join(manifest.styles)
        raise InvalidRequest("style", upload.style, f"one of {styles}" if styles else "absent")
    manifest.check_parameters(upload)
    if upload.callback_url is not None:
        try:
            CallbackUrl.parse(upload.callback_url)
        except UnusableUrl as error:
            raise InvalidRequest("callbackUrl", upload.callback_url, str(error)) from error
    _refuse_no_steps(upload, manifest)
    _refuse_unused_image_guidance(upload, manifest)
    requested = {each.name: getattr(upload, each.name) for each in fields(RequestedParameters)}
    return Submission(
        parameters=GenerationParameters(**requested, seed=new_seed() if upload.seed is None else upload.seed),
        priority=upload.priority,
        callback_url=upload.callback_url,
    )


def describe_form() -> dict[str, Any]:
    properties: dict[str, Any] = {
        "photo": {"type": "string", "format": "binary", "description": f"The photo: {PHOTO_FORMATS}."}
    }
    for each in fields(UploadFields):
        kind = _FIELD_TYPES[each.name]
        values = {"type": "string", "enum": list(kind)} if issubclass(kind, StrEnum) else {}
        default = {} if each.default in (None, "") else {"default": each.default}
        properties[FORM_NAMES[each.name]] = {
            "type": _JSON_TYPES.get(kind),
            **values,
            **each.metadata,
            **default,
        }
    return {"type": "object", "required": ["photo"], "additionalProperties": False, "properties": properties}


def validate_key(text: str) -> str:
    """Return an idempotency key. In quotes, as the IETF's draft has it, it is the same.

    Raises `InvalidRequest`.
    """
    if len(text) > 2 and text[0] == text[-1] == '"':
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    if not 1 <= len(text) <= MAX_KEY_CHARACTERS or not text.isascii() or not text.isprintable():
        raise InvalidRequest("Idempotency-Key", text, f"1 to {MAX_KEY_CHARACTERS} printable ASCII characters")
    return text


def parse_number(text: str) -> float | None:
    """Return the text's finite number; `None` if it is none."""
    # The grammar keeps out what float() also takes: nan, inf, 1_0, digits of other scripts.
    if _NUMBER.fullmatch(text) is None or math.isinf(float(text)):
        return None
    return float(text)


def _parse_form(form: Mapping[str, str]) -> UploadFields:
    """Parse each field by its type, within its bounds. HTML forms send absent fields as empty ones."""
    values: dict[str, Any] = {}
    for each in fields(UploadFields):
        name, kind = FORM_NAMES[each.name], _FIELD_TYPES[each.name]
        if text := form.get(name):
            parse = _parse_number if kind in (int, float) else _parse_text
            values[each.name] = parse(name, text, kind, each.metadata)
    return UploadFields(**values)


def _parse_text(name: str, text: str, kind: type, schema: Mapping[str, Any]) -> str | bool:
    if kind is bool:
        # Case does not count: programs write what their language prints.
        if text.lower() not in ("true", "false"):
            raise InvalidRequest(name, text, "true or false")
        return text.lower() == "true"
    if issubclass(kind, StrEnum):
        if text not in list(kind):
            raise InvalidRequest(name, text, f"one of {', '.join(kind)}")
        return kind(text)
    if len(text) > (max_length := schema.get("maxLength", math.inf)):
        raise InvalidRequest(name, text, f"at most {max_length} characters long (it has {len(text)})")
    return text


def _parse_number(name: str, text: str, kind: type, schema: Mapping[str, Any]) -> float:
    above, least, most = schema.get("exclusiveMinimum"), schema.get("minimum", -math.inf), schema["maximum"]
    step = schema.get("multipleOf")
    value: float | None
    if kind is int:
        value, noun = int(text) if _INTEGER.fullmatch(text) else None, "a whole number"
        noun = noun if step is None else f"a multiple of {step}"
    else:
        value, noun = parse_number(text), "a number of seconds" if name.endswith("Seconds") else "a number"
    is_between = value is not None and least <= value <= most and (above is None or value > above)
    if value is None or not is_between or (step is not None and value % step):
        bounds = f"from {least}" if above is None else f"above {above} and up"
        raise InvalidRequest(name, text, f"{noun} {bounds} to {most}")
    return value


def _refuse_no_steps(upload: UploadFields, manifest: Manifest) -> None:
    """Refuse so few steps with so little strength that none is left: the photo would come back as it is."""
    if not manifest.capabilities.strength:
        return
    defaults = manifest.defaults
    steps = defaults.steps if upload.steps is None else upload.steps
    strength = defaults.strength if upload.strength is None else upload.strength
    if int(steps * strength) == 0:
        raise InvalidRequest(
            "strength", f"{strength:g}", f"at least 1/{steps} with {steps} steps, or no step is left to take"
        )


def _refuse_unused_image_guidance(upload: UploadFields, manifest: Manifest) -> None:
    """Refuse an image guidance where the text does not guide: diffusers passes over it."""
    guidance = manifest.defaults.guidance if upload.guidance is None else upload.guidance
    if upload.image_guidance is not None and guidance <= 1:
        raise InvalidRequest(
            "imageGuidance",
            f"{upload.image_guidance:g}",
            f"left out, or come with a guidance above 1: with {guidance:g} it has no effect",
        )
