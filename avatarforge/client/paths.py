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
    """One segment of a path, so that an id that is none is refused by the server, not misread: with a slash
    it would be two, and ".." would name what is above, so that to erase such a job would erase its customer.
    """
    # `quote` leaves dots alone, and httpx resolves a segment of one or two of them.
    return quote(text, safe="") if text.strip(".") else "%2E" * len(text)
