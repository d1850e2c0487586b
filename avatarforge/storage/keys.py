"""Where a job's images lie."""

from avatarforge.domain.jobs import ImageFormat

_EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}


ALL_JOBS = "customers/"
"""What the keys of all jobs' objects begin with."""


def job_prefix(customer_id: str, job_id: str) -> str:
    """What the keys of all the job's objects begin with, and no other job's."""
    return f"{ALL_JOBS}{customer_id}/{job_id}/"


def owner_of(key: str) -> tuple[str, str] | None:
    """Ids of the customer and the job that an object belongs to; `None` for an object of another kind."""
    match key.removeprefix(ALL_JOBS).split("/"):
        case [customer_id, job_id, _] if key.startswith(ALL_JOBS):
            return customer_id, job_id
    return None


def original_key(customer_id: str, job_id: str, media_type: str) -> str:
    return f"{job_prefix(customer_id, job_id)}original.{_EXTENSIONS[media_type]}"


def avatar_key(customer_id: str, job_id: str, attempt: int, image_format: ImageFormat) -> str:
    """The key holds the attempt, so that a late replica overwrites nobody's avatar."""
    return f"{job_prefix(customer_id, job_id)}avatar-{attempt}.{_EXTENSIONS[image_format.media_type]}"
