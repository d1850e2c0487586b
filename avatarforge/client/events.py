"""Server-sent events as a client reads them.

The format is the HTML standard's: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    kind: str
    data: str
    event_id: str | None


class EventReader:
    """Makes events of the bytes of one connection, however they are cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, list[str]] = {}

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that the chunk completes."""
        *lines, self._rest = _LINE_END.split(self._rest + chunk)
        # A CR at the very end may be the first half of a line's end.
        if lines and not self._rest and chunk.endswith(b"\r"):
            self._rest = lines.pop() + b"\r"
        for line in lines:
            if (event := self._read(line.decode("utf-8", "replace"))) is not None:
                yield event

    def _read(self, line: str) -> Event | None:
        if line:
            name, _, value = line.partition(":")
            self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        return Event(
            kind=fields.get("event", ["message"])[-1],
            data="\n".join(fields["data"]),
            event_id=fields["id"][-1] if "id" in fields else None,
        )
