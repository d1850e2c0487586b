"""AUTOMATIC1111's API inward: its clients, and other AvatarForges, have avatars made through it."""

from avatarforge.ingress.sdapi.calls import sdapi_routes

__all__ = ["sdapi_routes"]
