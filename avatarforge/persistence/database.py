"""Connections to MariaDB and SQLite, and one name for the many ways in which they do not answer."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.settings import DatabaseSettings, SettingsError
from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Figures

_WRITES = "avatarforge_writes"
"""Execution option of a connection whose transaction writes."""
_METER = "avatarforge_meter"
"""Execution option of an engine whose transactions are counted: the figures, and whose they are."""

_compact_json = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def open_engine(settings: DatabaseSettings, url: str) -> Engine:
    """An engine for `sqlite:///…` or `mysql+pymysql://…`. Connects to nothing yet.

    Every wait is bounded: `connect_timeout` for a connection (a free one of the pool included),
    `read_timeout` for an answer; a lock is given up before the answer is. MariaDB sessions are UTC, strict
    and READ COMMITTED; SQLite writes ahead and to the disk (WAL, `synchronous=FULL`).

    Raises `SettingsError` for a URL of another kind.
    """
    parsed = _parsed(url)
    options: dict[str, Any] = {
        "echo": settings.echo,
        # Parameters hold prompts and callback URLs: they reach logs only where SQL logging is wished.
        "hide_parameters": not settings.echo,
        "json_serializer": _compact_json,
        "pool_size": settings.pool_size,
        "max_overflow": 0,
        "pool_timeout": settings.connect_timeout,
    }
    if is_sqlite(parsed):
        return _sqlite_engine(settings, parsed, options)
    return _mariadb_engine(settings, parsed, options)


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def meter_engine(engine: Engine, figures: Figures, component: str) -> None:
    """Count and time the engine's transactions from now on; `component` says whose they are."""
    engine.update_execution_options(**{_METER: (figures, component)})


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: committed at the end of the block, rolled back by an exception.

    SQLite takes its write lock at once, so that no transaction fails half-way because another came first.
    Raises as `answering`; when the commit itself is not answered its outcome is unknown.
    """
    with (
        _metered(engine, "write"),
        answering(),
        engine.connect() as connection,
        connection.execution_options(**{_WRITES: True}).begin(),
    ):
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads. Raises as `answering`."""
    with _metered(engine, "read"), answering(), engine.connect() as connection:
        yield connection


@contextmanager
def _metered(engine: Engine, kind: str) -> Iterator[None]:
    meter = engine.get_execution_options().get(_METER)
    if meter is None:
        yield
        return
    figures, component = meter
    begun, outcome = time.perf_counter(), "error"
    try:
        yield
        outcome = "ok"
    except DatabaseUnavailable:
        outcome = "unavailable"
        raise
    finally:
        seconds = time.perf_counter() - begun
        figures.observe(metrics.DATABASE_CALLS, seconds, component, kind, outcome)


@contextmanager
def answering() -> Iterator[None]:
    """Turns every error that means "the database does not answer at present" into `DatabaseUnavailable`.

    That is: refused, lost and timed-out connections, lock time-outs and deadlocks, a server that is full or
    shutting down, a full or failing disk, a pool without a free connection. The vendor's error is chained.
    Integrity errors, wrong SQL, missing tables and refused passwords pass unchanged: repeating does not help.
    """
    try:
        yield
    except NoFreeConnection as error:
        raise DatabaseUnavailable("all connections of the pool are busy") from error
    except DBAPIError as error:
        if not _is_passing(error):
            raise
        raise DatabaseUnavailable(str(error.orig)) from error


# --- errors ---------------------------------------------------------------------------------------------

_MARIADB_PASSING = frozenset(
    {
        2002, 2003, 2006, 2013, 2055,  # the client's: cannot connect, gone away, lost or timed out
        1040, 1203, 1226,  # too many connections
        1041, 1135,  # the server lacks memory or threads
        1053, 1077, 1079, 1152, 1184, 1317, 1927,  # shutting down, connection killed, query interrupted
        1158, 1159, 1160, 1161,  # broken packets
        1205, 1213, 1020, 1969,  # lock wait, deadlock, snapshot overtaken, statement time-out
        3, 28, 1021, 1026, 1030, 1114,  # disk full or failing
        1290, 1836,  # read-only: the server is a replica at present
        1047,  # a Galera node that is not ready
        1180,  # an error during the commit
    }
)  # fmt: skip
"""Error numbers that pass by themselves: https://mariadb.com/kb/en/mariadb-error-code-reference/."""

_SQLITE_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)


def _is_passing(error: DBAPIError) -> bool:
    cause = error.orig
    if error.connection_invalidated or cause is None:
        return True
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code; the rest tells its flavour (https://sqlite.org/rescode.html).
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_PASSING
    return bool(cause.args) and cause.args[0] in _MARIADB_PASSING


# --- MariaDB --------------------------------------------------------------------------------------------


def _mariadb_engine(settings: DatabaseSettings, url: URL, options: dict[str, Any]) -> Engine:
    # Shorter than the read time-out, so that the server names the lock instead of falling silent.
    lock_wait = max(1, int(settings.read_timeout * 0.6))
    session = (
        f"SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,"
        f"NO_ENGINE_SUBSTITUTION', innodb_lock_wait_timeout = {lock_wait}"
    )
    return create_engine(
        url,
        # Gap locks of REPEATABLE READ would let shards wait for one another.
        isolation_level="READ COMMITTED",
        paramstyle="format",
        pool_pre_ping=True,
        connect_args={
            "charset": "utf8mb4",
            "connect_timeout": settings.connect_timeout,
            "read_timeout": settings.read_timeout,
            "write_timeout": settings.read_timeout,
            "init_command": session,
        },
        **options,
    )


# --- SQLite ---------------------------------------------------------------------------------------------


def _sqlite_engine(settings: DatabaseSettings, url: URL, options: dict[str, Any]) -> Engine:
    engine = create_engine(url, connect_args={"timeout": settings.read_timeout}, **options)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own BEGIN is deferred and comes late; ours is sent by `begin` below.
        connection.isolation_level = None
        for pragma in ("foreign_keys=ON", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingsError("The database URL cannot be read.") from error
    if is_sqlite(parsed) or parsed.drivername in ("mysql+pymysql", "mariadb+pymysql"):
        return parsed
    raise SettingsError(
        f"The database URL begins with {parsed.drivername!r}, "
        "but it must begin with 'sqlite' or 'mysql+pymysql'."
    )
