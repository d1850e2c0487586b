"""Where a job's images lie."""

from avatarforge.domain.jobs import ImageFormat

_EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}


def job_prefix(customer_id: str, job_id: str) -> str:
    """What the keys of all the job's objects begin with, and no other job's."""
    return f"customers/{customer_id}/{job_id}/"


def original_key(customer_id: str, job_id: str, media_type: str) -> str:
    return f"{job_prefix(customer_id, job_id)}original.{_EXTENSIONS[media_type]}"


def avatar_key(customer_id: str, job_id: str, attempt: int, image_format: ImageFormat) -> str:
    """The key holds the attempt, so that a late replica overwrites nobody's avatar."""
    return f"{job_prefix(customer_id, job_id)}avatar-{attempt}.{_EXTENSIONS[image_format.media_type]}"
