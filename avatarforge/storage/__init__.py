"""Object storage: one interface, kept by S3 and by a folder."""

from avatarforge.settings import Settings
from avatarforge.storage.folder import FolderStorage
from avatarforge.storage.interface import ObjectStorage, StoredObject
from avatarforge.storage.s3 import S3Storage

__all__ = ["ObjectStorage", "StoredObject", "open_storage"]


def open_storage(settings: Settings) -> ObjectStorage:
    """Open S3 where a bucket is named, else the folder. S3 is not asked before the first call."""
    if settings.storage.bucket is not None:
        return S3Storage(settings.storage)
    return FolderStorage(settings.storage_folder)
