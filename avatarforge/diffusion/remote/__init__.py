"""Pictures made by another server: one that speaks AUTOMATIC1111's API (SD.Next and Forge do, and we do)."""

from avatarforge.diffusion.remote.breaker import CircuitBreaker
from avatarforge.diffusion.remote.client import RemoteServer
from avatarforge.diffusion.remote.worker import RemoteWorker

__all__ = ["CircuitBreaker", "RemoteServer", "RemoteWorker"]
