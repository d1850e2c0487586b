"""Where a job's images lie, and the grammar of object keys: what S3, every file system and a URL's path
take as it stands."""

import re

from avatarforge.domain.jobs import ImageFormat

_EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?")

LONGEST = 1024
"""Characters of the longest key that S3 takes."""


ALL_JOBS = "customers/"
"""What the keys of all jobs' objects begin with."""


def job_prefix(customer_id: str, job_id: str) -> str:
    """Return the beginning of the keys of all the job's objects, and no other job's."""
    return f"{ALL_JOBS}{customer_id}/{job_id}/"


def owner_of(key: str) -> tuple[str, str] | None:
    """Ids of the customer and the job that an object belongs to; `None` for an object of another kind."""
    match key.removeprefix(ALL_JOBS).split("/"):
        case [customer_id, job_id, _] if key.startswith(ALL_JOBS):
            return customer_id, job_id
    return None


def original_key(customer_id: str, job_id: str, media_type: str) -> str:
    return f"{job_prefix(customer_id, job_id)}original.{_EXTENSIONS[media_type]}"


def avatar_key(
    customer_id: str, job_id: str, attempt: int, image_format: ImageFormat, index: int | None = None
) -> str:
    """The key holds the attempt, so that a late replica overwrites nobody's avatar; and the `index`, where a
    job has several images."""
    name = f"avatar-{attempt}" if index is None else f"avatar-{attempt}-{index}"
    return f"{job_prefix(customer_id, job_id)}{name}.{_EXTENSIONS[image_format.media_type]}"


def validate_key(key: str) -> str:
    """The key itself. Raises `ValueError` for an absolute one, an empty segment, `.`, `..` and the like."""
    if len(key) > LONGEST or _KEY.fullmatch(key) is None:
        raise ValueError(f"{key[:200]!r} is not an object key: segments of A-Za-z0-9._~- joined by '/'")
    return key


def validate_prefix(prefix: str) -> str:
    """The beginning of a key, or nothing, itself. Raises `ValueError`."""
    if len(prefix) > LONGEST or _PREFIX.fullmatch(prefix) is None:
        raise ValueError(f"{prefix[:200]!r} is not the beginning of an object key")
    return prefix
