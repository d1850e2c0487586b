"""Which web sites' pages may call us from browsers: none, unless the settings name some."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from avatarforge.settings import AccessSettings

_PREFLIGHT_SECONDS = 600


def add_cors(api: FastAPI, settings: AccessSettings) -> None:
    """Answer browsers' questions about the settings' origins. Keys are sent by pages, never by browsers
    themselves: credentials stay off."""
    if not (origins := settings.origins()):
        return
    api.add_middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "If-None-Match"],
        expose_headers=["Location", "Retry-After", "Idempotent-Replayed", "ETag"],
        max_age=_PREFLIGHT_SECONDS,
    )
