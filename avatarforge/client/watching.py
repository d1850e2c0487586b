"""Following jobs by server-sent events, over whatever happens to the connection."""

import base64
import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from avatarforge.client.errors import Refused, ServerUnreachable, TryLater, UnexpectedAnswer
from avatarforge.client.events import Event, EventReader
from avatarforge.client.paths import customer_path
from avatarforge.client.patience import Pauses
from avatarforge.client.refusals import refusal
from avatarforge.client.results import Changed, Erased, NamedJob, News, Progressed, Snapshot
from avatarforge.client.steps import Policy, Request, Tell, Telling, opened, read
from avatarforge.messages import ProfilePhotoJobStatus

SILENCE_SECONDS = 60.0
"""Silence after which a stream is taken for lost. The server sends a comment every 15 s, by default."""
NO_CONTENT = 204


def watch(
    policy: Policy, whom: str | NamedJob, *, after: int | None = None, previews: bool = False
) -> Telling[News]:
    """What happens to a customer's jobs, without end; or to one job, up to its end or erasure.

    It begins with a `Snapshot`, or with `after` with what came after that `seq`. It goes on by itself, from
    the last `seq`, when the connection is lost, the server starts again, ends the stream or asks a client
    that reads too slowly to come back: no change is missed, and none is told twice. Where the server's log
    no longer reaches back, a `Snapshot` with `reset` stands for what was missed.
    Raises `ServerUnreachable` and `TryLater` once there was no connection for the client's `patience`.
    """
    following = _Following(whom, after, previews)
    pauses = Pauses(policy.patience)
    while True:
        trouble: ServerUnreachable | Refused
        try:
            answer = yield from opened(following.request())
            if answer.is_success:
                if answer.status == NO_CONTENT:
                    return
                reader = EventReader()
                while (chunk := (yield from read())) is not None:
                    # A connection that gave nothing does not count as one.
                    pauses.reset()
                    for event in reader.feed(chunk):
                        for news in following.told(event, policy.url):
                            yield Tell(news)
                        if following.is_over:
                            return
                trouble = ServerUnreachable(policy.url, "it ends every stream")
            else:
                trouble = refusal(answer)
                if not isinstance(trouble, TryLater):
                    raise trouble
        except ServerUnreachable as error:
            trouble = error
        yield pauses.next(trouble)


class _Following:
    """What the client has heard so far."""

    def __init__(self, whom: str | NamedJob, after: int | None, previews: bool) -> None:
        self._customer_id = whom if isinstance(whom, str) else whom.customer_id
        self._job_id = None if isinstance(whom, str) else whom.job_id
        self._seq = after
        self._previews = previews
        self.is_over = False

    def request(self) -> Request:
        query = {} if self._job_id is None else {"jobId": self._job_id}
        if self._previews:
            query["previews"] = "true"
        return Request(
            method="GET",
            path=f"{customer_path(self._customer_id)}/photos/stream",
            query=query,
            headers={} if self._seq is None else {"Last-Event-ID": str(self._seq)},
            silence=SILENCE_SECONDS,
        )

    def told(self, event: Event, url: str) -> Iterator[News]:
        """What the event says that was not heard before."""
        try:
            news = _news(event)
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise UnexpectedAnswer(url, f"the event {event.kind!r} cannot be read") from error
        if news is None:
            return
        if not isinstance(news, Progressed):
            if not isinstance(news, Snapshot) and self._seq is not None and news.seq <= self._seq:
                return
            self._seq = news.seq
        self.is_over = self._job_id is not None and _is_last(news)
        yield news


def _news(event: Event) -> News | None:
    """The event as news. Other kinds are of later servers, and `overflow` only ends the stream."""
    match event.kind:
        case "snapshot" | "reset":
            data = json.loads(event.data)
            jobs = tuple(ProfilePhotoJobStatus.model_validate(job) for job in data["photos"])
            return Snapshot(seq=int(data["seq"]), jobs=jobs, reset=event.kind == "reset")
        case "status":
            job = ProfilePhotoJobStatus.model_validate_json(event.data)
            return Changed(seq=int(event.event_id or job.seq), job=job)
        case "progress":
            data = json.loads(event.data)
            return Progressed(job=ProfilePhotoJobStatus.model_validate(data), preview=_preview(data))
        case "erased":
            data = json.loads(event.data)
            return Erased(seq=int(data["seq"]), customer_id=data["customerId"], job_id=data["jobId"])
    return None


def _preview(data: dict[str, Any]) -> bytes | None:
    url: str | None = data.get("preview")
    return None if url is None else base64.b64decode(url.partition("base64,")[2])


def _is_last(news: News) -> bool:
    match news:
        case Snapshot(jobs=jobs):
            return all(job.is_terminal for job in jobs)
        case Changed(job=job):
            return job.is_terminal
        case Erased():
            return True
    return False
