"""Where things are below the server's URL."""

from urllib.parse import quote

from avatarforge.client.results import NamedJob


def customer_path(customer_id: str) -> str:
    return f"/customers/{segment(customer_id)}"


def job_path(job: NamedJob, resource: str = "") -> str:
    """The job itself, or one of its resources, such as `status`."""
    path = f"{customer_path(job.customer_id)}/photos/{segment(job.job_id)}"
    return f"{path}/{resource}" if resource else path


def segment(text: str) -> str:
    """One segment of a path, so that a customer id with a slash is refused by the server, not misread."""
    return quote(text, safe="")
