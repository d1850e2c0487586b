"""The events that `watch` yields, and the parsing of the server-sent events that carry them.

The format is the HTML standard's: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from avatarforge.client.connection import Job, customer_path
from avatarforge.client.errors import UnexpectedResponse
from avatarforge.messages import ProfilePhotoJobStatus

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The start of a watch: the customer's unfinished jobs, or the one job that is watched."""

    seq: int
    jobs: tuple[ProfilePhotoJobStatus, ...]
    reset: bool
    """The server's log no longer reaches back to where this client was: some changes were missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobChanged:
    """A job changed; `seq` is the change's number in the event log."""

    seq: int
    job: ProfilePhotoJobStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class JobProgressed:
    """A running job made a step. This is live only: it is not in the log and never sent again."""

    job: ProfilePhotoJobStatus
    preview: bytes | None
    """A small image (WebP), if previews were asked for."""
    index: int | None
    """Which of the job's images it shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobErased:
    """A job was erased: only its ids are left."""

    seq: int
    customer_id: str
    job_id: str


JobEvent = Snapshot | JobChanged | JobProgressed | JobErased
"""An event of `watch`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSentEvent:
    kind: str
    data: str
    event_id: str | None


class SSEDecoder:
    """Decodes the bytes of one connection, in chunks of any size, to server-sent events."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, list[str]] = {}

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that the chunk completes."""
        *lines, self._rest = _LINE_END.split(self._rest + chunk)
        # A CR at the very end may be the first half of a line's end.
        if lines and not self._rest and chunk.endswith(b"\r"):
            self._rest = lines.pop() + b"\r"
        for line in lines:
            if (event := self._feed_line(line.decode("utf-8", "replace"))) is not None:
                yield event

    def _feed_line(self, line: str) -> ServerSentEvent | None:
        if line.startswith(":"):
            return None
        if line:
            name, _, value = line.partition(":")
            self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        return ServerSentEvent(
            kind=fields.get("event", ["message"])[-1],
            data="\n".join(fields["data"]),
            event_id=fields["id"][-1] if "id" in fields else None,
        )


class Subscription:
    """The state of one `watch`: which jobs, and the last `seq` received."""

    def __init__(self, target: str | Job, after: int | None, previews: bool) -> None:
        self._customer_id = target if isinstance(target, str) else target.customer_id
        self._job_id = None if isinstance(target, str) else target.job_id
        self._seq = after
        self._previews = previews
        self.is_finished = False
        """The watched job has ended: the server still sends what its log has of it, then ends the stream."""
        self.is_erased = False
        """The watched job is erased: nothing follows."""

    def build_request(self) -> dict[str, Any]:
        """Return the request for what comes after the last `seq`, as arguments for httpx."""
        query = {} if self._job_id is None else {"jobId": self._job_id}
        if self._previews:
            query["previews"] = "true"
        return {
            "method": "GET",
            "url": f"{customer_path(self._customer_id)}/photos/stream",
            "params": query or None,
            "headers": None if self._seq is None else {"Last-Event-ID": str(self._seq)},
        }

    def receive(self, received: ServerSentEvent, url: str) -> JobEvent | None:
        """Return the event; `None` if it was received before or is of no use here.

        Raises `UnexpectedResponse`.
        """
        try:
            event = _parse_event(received)
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise UnexpectedResponse(url, f"the event {received.kind!r} cannot be read") from error
        if isinstance(event, JobChanged | JobErased) and self._seq is not None and event.seq <= self._seq:
            return None
        if isinstance(event, Snapshot | JobChanged | JobErased):
            self._seq = event.seq
        if self._job_id is not None:
            self.is_finished = self.is_finished or _is_final(event)
            self.is_erased = isinstance(event, JobErased)
        return event


def _parse_event(received: ServerSentEvent) -> JobEvent | None:
    """Return `None` for kinds of later servers, and for `overflow`, which only ends the stream."""
    match received.kind:
        case "snapshot" | "reset":
            data = json.loads(received.data)
            jobs = tuple(ProfilePhotoJobStatus.model_validate(job) for job in data["photos"])
            return Snapshot(seq=int(data["seq"]), jobs=jobs, reset=received.kind == "reset")
        case "status":
            job = ProfilePhotoJobStatus.model_validate_json(received.data)
            return JobChanged(seq=int(received.event_id or job.seq), job=job)
        case "progress":
            data = json.loads(received.data)
            preview = data.get("preview")
            return JobProgressed(
                job=ProfilePhotoJobStatus.model_validate(data),
                preview=None if preview is None else base64.b64decode(preview.partition("base64,")[2]),
                index=data.get("index"),
            )
        case "erased":
            data = json.loads(received.data)
            return JobErased(seq=int(data["seq"]), customer_id=data["customerId"], job_id=data["jobId"])
    return None


def _is_final(event: JobEvent | None) -> bool:
    match event:
        case Snapshot(jobs=jobs):
            return all(job.is_terminal for job in jobs)
        case JobChanged(job=job):
            return job.is_terminal
    return False
