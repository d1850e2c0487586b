"""AUTOMATIC1111's API: its clients, and other AvatarForges, have avatars made through it."""

from avatarforge.ingress.sdapi.calls import SDAPI_SCHEME, sdapi_routes

__all__ = ["SDAPI_SCHEME", "sdapi_routes"]
