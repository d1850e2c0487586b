"""The responses of REST: builds their messages, and has those about the server's own health.

Those that clients read are in `messages` and `rest_messages`.
"""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict

from fastapi import Request
from pydantic import ConfigDict
from starlette.responses import Response

from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.domain.deliveries import DeliveryReport
from avatarforge.ingress.service import ProfilePhotoService
from avatarforge.ingress.upload.submit import FoundCrop
from avatarforge.messages import Message
from avatarforge.rest_messages import (
    CropMessage,
    DefaultsMessage,
    DeliveryMessage,
    ModelMessage,
    StyleMessage,
)


class Alive(Message):
    status: str = "ok"


class Problem(Message):
    """RFC 9457. Further members hold facts, such as `field`, `value`, `expected` or `limit`."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    """What was wrong, with what value, and what would be right."""
    instance: str
    code: str
    """Stable; programs may rely on it."""


def get_service(request: Request) -> ProfilePhotoService:
    """Return the service that `create_api` was given."""
    service: ProfilePhotoService = request.app.state.service
    return service


def json_response(message: Message, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with the message, not to be cached."""
    # Written at once: FastAPI's own way would validate the message again.
    return Response(
        message.json_bytes(),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )


def delivery_message(report: DeliveryReport) -> DeliveryMessage:
    return DeliveryMessage.model_validate({**asdict(report.delivery), "attempts": report.attempts})


def crop_message(found: FoundCrop) -> CropMessage:
    square = found.square
    preview = None if found.preview is None else f"data:image/jpeg;base64,{b64encode(found.preview).decode()}"
    return CropMessage(
        width=found.width,
        height=found.height,
        crop=square.crop,
        left=round(square.left, 1),
        top=round(square.top, 1),
        side=round(square.side, 1),
        quarter_turns=square.quarter_turns,
        preview=preview,
    )


def model_message(manifest: Manifest) -> ModelMessage:
    defaults, capabilities = manifest.defaults.model_dump(), manifest.capabilities
    if not capabilities.strength:
        defaults["strength"] = None
    if not capabilities.image_guidance:
        defaults["image_guidance"] = None
    return ModelMessage(
        name=manifest.name,
        title=manifest.title,
        family=manifest.family,
        licence=manifest.licence,
        size=manifest.size,
        max_size=manifest.longest_side,
        dials=tuple(capabilities.dials),
        samplers=manifest.sampler_names,
        defaults=DefaultsMessage(**defaults),
        styles=style_messages(manifest),
    )


def style_messages(manifest: Manifest) -> tuple[StyleMessage, ...]:
    return tuple(
        StyleMessage(name=name, title=style.title, prompt=style.prompt)
        for name, style in manifest.styles.items()
    )
