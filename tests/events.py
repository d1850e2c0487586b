"""Server-sent events as clients read them."""

import json
from dataclasses import dataclass, field
from typing import Any

from avatarforge.ingress.live.job_cache import JobCache


@dataclass(frozen=True, kw_only=True)
class Event:
    """A server-sent event; a comment is one of the kind `comment`."""

    kind: str
    data: dict[str, Any] = field(default_factory=dict)
    id: int | None = None

    @property
    def told(self) -> tuple[str, int | None, str | None]:
        """Kind, id and the job's status, for comparisons."""
        return self.kind, self.id, self.data.get("status")


class EventReader:
    """Makes events of the lines of a stream."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def read(self, line: str) -> Event | None:
        """The event that the line completes."""
        if line.startswith(":"):
            return Event(kind="comment")
        if line:
            name, _, value = line.partition(": ")
            assert name not in self._fields, "each field stands once"
            self._fields[name] = value
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        number = fields.get("id")
        return Event(
            kind=fields["event"], data=json.loads(fields["data"]), id=None if number is None else int(number)
        )


def subscriber_count(cache: JobCache) -> int:
    """Number of streams that are subscribed to the cache."""
    return sum(len(subscribers) for subscribers in cache._subscriptions.values())
