"""Object storage: one interface, kept by S3 and by a folder."""

from avatarforge.storage.interface import ObjectStorage, StoredObject
from avatarforge.storage.opening import open_storage

__all__ = ["ObjectStorage", "StoredObject", "open_storage"]
