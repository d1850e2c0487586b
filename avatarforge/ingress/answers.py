"""What all calls share: finding the service, and answering with a message."""

from collections.abc import Mapping

from fastapi import Request
from starlette.responses import Response

from avatarforge.ingress.service import ProfilePhotos
from avatarforge.messages import Message


def service_of(request: Request) -> ProfilePhotos:
    """The service that `create_api` was given."""
    photos: ProfilePhotos = request.app.state.photos
    return photos


def json_answer(message: Message, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The message, not to be cached."""
    # Written at once: FastAPI's own way would validate the message again.
    return Response(
        message.json_bytes(),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )
