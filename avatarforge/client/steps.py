"""What a call wants of the world, said without doing it.

A call is a generator: it yields what it wants done and is sent what came of it. It is written once;
`blocking` and `asynchronous` carry it out, each in its own way.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file of a multipart request."""

    name: str
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    method: str
    path: str
    """Below the server's URL; it may carry a query."""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    photo: Upload | None = None
    silence: float = 0
    """Seconds that the server may be silent beyond the client's time limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    url: str
    status: int
    headers: Mapping[str, str]
    """Their names are written small."""
    body: bytes
    """Empty when the answer is a stream that was opened."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request: an `Answer` comes back. Raises `ServerUnreachable`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Like `Send`, but the body of a success is left to be read by `Read`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """More of the stream: bytes, or `None` at its end. Raises `ServerUnreachable`."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Load:
    """A file's bytes, as `read` gives them; it blocks. Raises `OSError`."""

    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Tell(Generic[T]):
    """Hand this to whoever iterates."""

    item: T


Wish = Send | Open | Read | Pause | Load

Steps = Generator[Wish, Any, T]
"""A call with one result."""
Telling = Generator[Wish | Tell[T], Any, None]
"""A call with many results, one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How calls behave."""

    url: str
    patience: float
    """Seconds during which a server that does not answer, or is busy, is asked again."""


def sent(request: Request) -> Steps[Answer]:
    answer: Answer = yield Send(request)
    return answer


def opened(request: Request) -> Steps[Answer]:
    answer: Answer = yield Open(request)
    return answer


def read() -> Steps[bytes | None]:
    chunk: bytes | None = yield Read()
    return chunk


def loaded(read: Callable[[], bytes]) -> Steps[bytes]:
    content: bytes = yield Load(read)
    return content
