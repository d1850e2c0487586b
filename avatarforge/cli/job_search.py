"""Finds the job that an id on the command line names, or the beginning of one."""

from collections.abc import Iterable, Iterator
from itertools import takewhile

import typer

from avatarforge.client import AccessDenied, Client, JobRef, NotFound, ProfilePhotoJobStatus

SHORT_ID_LENGTH = 13
"""Ids begin with their time, and so many characters hold the millisecond."""
_ID_LENGTH = 36


def find_job(client: Client, text: str, customer: str | None) -> ProfilePhotoJobStatus:
    """Return the one job whose id begins so: of the customer, or of every one that the key may see.

    Raises `NotFound` if there is none, and `typer.BadParameter` if there are several.
    """
    if customer is not None:
        found = list(_list_matches(client, customer, text))
        # The server says it best.
        return _choose(found, text) if found else client.get_status(JobRef(customer, text))
    found = []
    for owner in _list_customers(client):
        try:
            found += _list_matches(client, owner, text)
        except (AccessDenied, NotFound):
            continue
        if found and len(text) >= _ID_LENGTH:
            break
    if not found:
        detail = f"No job has an id that begins with {text!r}, of the customers that this key can list."
        raise NotFound(404, "job_not_found", f"{detail} Name another one with --customer.")
    return _choose(found, text)


def shorten_ids(ids: Iterable[str]) -> dict[str, str]:
    """Return the beginning of each id that no other of them has."""
    whole = list(ids)
    length = SHORT_ID_LENGTH
    while length < _ID_LENGTH and len({each[:length] for each in whole}) < len(whole):
        length += 1
    return {each: each[:length] for each in whole}


def _choose(found: list[ProfilePhotoJobStatus], text: str) -> ProfilePhotoJobStatus:
    if len(found) > 1:
        ids = ", ".join(sorted(job.job_id for job in found)[:5])
        raise typer.BadParameter(f"{len(found)} jobs have ids that begin with {text!r}, such as {ids}.")
    return found[0]


def _list_matches(client: Client, customer: str, text: str) -> Iterator[ProfilePhotoJobStatus]:
    if len(text) >= _ID_LENGTH:
        try:
            yield client.get_status(JobRef(customer, text))
        except NotFound:
            return
    else:
        # Newest first, which is by their ids.
        recent = takewhile(lambda job: job.job_id[: len(text)] >= text, client.list_jobs(customer))
        yield from (job for job in recent if job.job_id.startswith(text))


def _list_customers(client: Client) -> Iterator[str]:
    """Yield whom the key may see. Who may be seen by a pattern alone cannot be listed."""
    key = client.get_key()
    if key.is_admin and "*" in key.customers:
        yield from (each.customer_id for each in client.list_customers())
    else:
        yield from (each for each in key.customers if "*" not in each)
