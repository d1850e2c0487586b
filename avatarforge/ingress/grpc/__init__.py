"""The gRPC interface: from a message to `ProfilePhotoService` and back. Ray Serve carries the calls."""

from avatarforge.ingress.grpc.health import HealthMethods
from avatarforge.ingress.grpc.jobs import JobMethods

__all__ = ["HealthMethods", "JobMethods"]
