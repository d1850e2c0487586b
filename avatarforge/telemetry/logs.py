"""Log events: one line each on stderr, as JSON for machines or as text for people.

Our own code logs through structlog, libraries through `logging`; both come out alike.
"""

import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

import structlog
from structlog.contextvars import bound_contextvars, get_contextvars
from structlog.typing import Processor

from avatarforge.settings import LogSettings, Settings, list_differing, load_settings
from avatarforge.telemetry import traces
from avatarforge.telemetry.redaction import redact, secrets_of

log = structlog.get_logger(__name__)

_MARK = "_avatarforge"
"""Set on our handler, so that configuring again replaces it."""

_LIBRARIES = ("sqlalchemy.engine", "alembic", "uvicorn.access", "botocore", "urllib3", "httpx", "PIL")
"""Say more than anyone reads; at DEBUG they may."""

MAX_ID_LENGTH = 128
"""Characters of a request's id that are kept: clients may choose it."""

_COMMON: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def configure(settings: LogSettings, secrets: Sequence[str] = ()) -> None:
    """Send every log event of this process to stderr, without the secrets. Call it as often as you like: the
    last call holds."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_COMMON,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Cached loggers would keep the level and the format of an earlier call.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if hasattr(handler, _MARK)]:
        root.removeHandler(old)
    root.addHandler(_handler(settings, secrets))
    root.setLevel(settings.level)
    # SQLAlchemy's `echo` would add a second handler of its own here.
    if not (sql := logging.getLogger("sqlalchemy.engine.Engine")).handlers:
        sql.addHandler(logging.NullHandler())
    for name in ("ray", "ray.serve"):
        _take_over(name)
    quiet = logging.DEBUG if settings.level == "DEBUG" else logging.WARNING
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(quiet)


def _handler(settings: LogSettings, secrets: Sequence[str]) -> logging.Handler:
    handler = logging.StreamHandler(_stderr())
    handler.addFilter(RepeatedWarnings())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_COMMON,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(settings),
                # Last of all: tracebacks are text by then, too.
                lambda logger, method, line: redact(str(line), secrets),
            ],
        )
    )
    setattr(handler, _MARK, True)
    return handler


class RepeatedWarnings(logging.Filter):
    """Lets each warning pass once a minute. The next one then says as `repeated` how many were left out.

    Two lines are one warning if they say the same of the same thing, such as a job or a shard. Errors always
    pass: each may have another cause.
    """

    INTERVAL_SECONDS = 60.0
    MAX_KNOWN = 10_000
    """Warnings that are remembered, the newest."""
    THINGS = (
        *("job_id", "attempt", "delivery_id", "shard", "code", "part"),
        *("backend", "model", "key", "path", "prefix", "slot"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], tuple[float, int]] = {}
        """When each was last let through, and how many were left out since; oldest first."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        message: object = record.msg
        # A library may log anything, an exception too, of which only the text is kept. Its arguments are left
        # out: they hold what differs each time.
        is_ours = isinstance(message, dict) and "event" in message
        fields: Any = message if is_ours else {"event": message}
        warning = (record.name, *(str(fields.get(thing)) for thing in ("event", *self.THINGS)))
        with self._lock:
            now = time.monotonic()
            passed_at, left_out = self._known.get(warning, (float("-inf"), 0))
            if now - passed_at < self.INTERVAL_SECONDS:
                self._known[warning] = passed_at, left_out + 1
                return False
            self._known.pop(warning, None)
            self._known[warning] = now, 0
            while len(self._known) > self.MAX_KNOWN:
                del self._known[next(iter(self._known))]
        if left_out and is_ours:
            fields["repeated"] = left_out
        elif left_out:
            record.msg = f"{message} (repeated {left_out} times)"
        return True


def bind_request(request_id: str | None) -> AbstractContextManager[None]:
    """Name the request in every line that is written inside, and for `get_request_id`."""
    return nullcontext() if request_id is None else bound_contextvars(request_id=request_id[:MAX_ID_LENGTH])


def get_request_id() -> str | None:
    """Return the id of the request that is being answered; `None` if it has none."""
    request_id: str | None = get_contextvars().get("request_id")
    return request_id


def _stderr() -> TextIO:
    """The process's own. In its place Serve's replicas have an object that wraps every line into one of
    Serve's own, and in their fast setting keeps the last thousand of them to itself."""
    stream: TextIO = getattr(sys.stderr, "_original_object", sys.stderr)
    return stream


def _take_over(name: str) -> None:
    """Let the library's lines that it would write to stderr come out as ours do."""
    library = logging.getLogger(name)
    for handler in list(library.handlers):
        # Handlers of files are streams too.
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            library.removeHandler(handler)
            library.propagate = True


def _renderers(settings: LogSettings) -> list[Processor]:
    if settings.format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # By default, where Rich is installed, a traceback has the local variables: photos, prompts, secrets.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def set_up_process(arguments: Mapping[str, Any], component: str) -> Settings:
    """Log and trace by the settings that the application was built with, and return them.

    `arguments` are theirs; `component` names this kind of process, such as `ingress`. The environment of this
    node changes nothing: where it says something else, the log tells. Raises `SettingsError` if traces are
    wanted and cannot be made, and for a node whose environment is wrong.
    """
    settings = load_settings(arguments, environ={})
    configure(settings.log, secrets_of(settings))
    traces.configure(settings.telemetry, component)
    if differing := list_differing(settings):
        log.warning("this node's environment differs from the application's", variables=differing)
    return settings
