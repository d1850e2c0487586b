"""Finds the job that an id on the command line names, or the beginning of one."""

from collections.abc import Iterable, Iterator
from itertools import takewhile

import typer

from avatarforge.cli.options import (
    DEFAULT_CUSTOMER,
    ID_LENGTH,
    MIN_ID_LENGTH,
    SHORT_ID_LENGTH,
    validate_id_beginning,
)
from avatarforge.client import AccessDenied, Client, JobRef, KeyMessage, NotFound, ProfilePhotoJobStatus
from avatarforge.domain.access import EVERY_CUSTOMER, matches_pattern


def find_job(
    client: Client, text: str, customer: str | None, min_length: int = MIN_ID_LENGTH
) -> ProfilePhotoJobStatus:
    """Return the one job whose id begins so: of the customer, or of every one that the key may see.

    Raises `NotFound` if there is none, and `typer.BadParameter` if there are several, or if `text` is no
    beginning of an id with `min_length` characters or more.
    """
    validate_id_beginning(text, min_length)
    if customer is not None:
        found = list(_list_matches(client, customer, text))
        # The server says it best.
        return _choose(found, text) if found else client.get_status(JobRef(customer, text))
    key = client.get_key()
    if key.is_admin and EVERY_CUSTOMER in key.customers:
        found = list(client.find_jobs(text))
    else:
        found = list(_search_customers(client, key, text))
    if not found:
        raise NotFound(404, "job_not_found", _describe_missing(key, text))
    return _choose(found, text)


def shorten_ids(ids: Iterable[str]) -> dict[str, str]:
    """Return the beginning of each id that no other of them has."""
    whole = list(ids)
    length = SHORT_ID_LENGTH
    while length < ID_LENGTH and len({each[:length] for each in whole}) < len(whole):
        length += 1
    return {each: each[:length] for each in whole}


def _choose(found: list[ProfilePhotoJobStatus], text: str) -> ProfilePhotoJobStatus:
    if len(found) > 1:
        ids = ", ".join(sorted(job.job_id for job in found)[:5])
        raise typer.BadParameter(f"Several jobs have ids that begin with {text!r}, such as {ids}.")
    return found[0]


def _search_customers(client: Client, key: KeyMessage, text: str) -> Iterator[ProfilePhotoJobStatus]:
    """Yield the matches among the customers that the key names, and the default one if it may see that."""
    customers = [each for each in key.customers if EVERY_CUSTOMER not in each]
    if any(matches_pattern(DEFAULT_CUSTOMER, pattern) for pattern in key.customers):
        customers.insert(0, DEFAULT_CUSTOMER)
    for customer in dict.fromkeys(customers):
        matches: list[ProfilePhotoJobStatus] = []
        try:
            matches = list(_list_matches(client, customer, text))
        except (AccessDenied, NotFound):
            continue
        yield from matches
        if matches and len(text) >= ID_LENGTH:
            return


def _describe_missing(key: KeyMessage, text: str) -> str:
    said = f"No job has an id that begins with {text!r}"
    patterns = [each for each in key.customers if EVERY_CUSTOMER in each]
    if not patterns or (key.is_admin and EVERY_CUSTOMER in patterns):
        return f"{said}."
    return f"{said}. The key cannot list customers such as {patterns[0]}: name the job's with --customer."


def _list_matches(client: Client, customer: str, text: str) -> Iterator[ProfilePhotoJobStatus]:
    if len(text) >= ID_LENGTH:
        try:
            yield client.get_status(JobRef(customer, text))
        except NotFound:
            return
    else:
        # Newest first, which is by their ids.
        recent = takewhile(lambda job: job.job_id[: len(text)] >= text, client.list_jobs(customer))
        yield from (job for job in recent if job.job_id.startswith(text))
