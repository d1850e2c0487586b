"""Answers that are no success, as errors."""

import json
from collections.abc import Mapping
from typing import Any

from avatarforge.client.errors import Conflict, InvalidInput, NotAllowed, NotFound, Refused, TryLater
from avatarforge.client.steps import Answer

_STANDARD = ("type", "title", "status", "detail", "instance", "code")
_KINDS: dict[int, type[Refused]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    429: TryLater,
    # Gateways answer so for a server that is not there, or did not come to an end.
    502: TryLater,
    503: TryLater,
    504: TryLater,
}
_IN_FLIGHT = "idempotency_key_in_flight"


def refusal(answer: Answer) -> Refused:
    """The error that the answer stands for."""
    problem = _problem(answer)
    code = str(problem.get("code", "unknown"))
    kind = _KINDS.get(answer.status, InvalidInput if 400 <= answer.status < 500 else Refused)
    if code == _IN_FLIGHT:
        # The same upload is under way: its job is the answer in a moment.
        kind = TryLater
    return kind(
        answer.status,
        code,
        str(problem.get("detail") or f"{answer.url} answered {answer.status}."),
        {name: value for name, value in problem.items() if name not in _STANDARD},
        _seconds(answer.headers.get("retry-after")),
    )


def _problem(answer: Answer) -> Mapping[str, Any]:
    """The problem document; empty when something else than AvatarForge answered."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return {}
    try:
        problem = json.loads(answer.body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not what our server sends."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
