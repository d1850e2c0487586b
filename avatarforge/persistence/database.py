"""Connections to MariaDB and SQLite, and one name for the many ways in which they do not answer."""

import asyncio
import difflib
import inspect
import json
import os
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pymysql
from sqlalchemy import URL, Connection, Engine, Insert, Table, create_engine, event, func, make_url, select
from sqlalchemy.dialects.mysql import insert as mariadb_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.secret_file import SecretFile
from avatarforge.settings import DatabaseSettings, SettingsError
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import MetricsRegistry

T = TypeVar("T")

_WRITES = "avatarforge_writes"
"""Execution option of a connection whose transaction writes."""
_METER = "avatarforge_meter"
"""Execution option of an engine whose transactions are counted: the registry, and the component's name."""

_compact_json = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def open_engine(settings: DatabaseSettings, url: str) -> Engine:
    """An engine for `sqlite:///…` or `mysql+pymysql://…`. Connects to nothing yet.

    Every wait is bounded: `connect_timeout` for a connection (a free one of the pool included),
    `read_timeout` for an answer; a lock is given up before the answer is, and a session that falls silent in
    a transaction loses its locks before that. MariaDB sessions are UTC, strict and READ COMMITTED; SQLite
    writes ahead and to the disk (WAL, `synchronous=FULL`).

    Raises `SettingsError` for a URL of another kind, and for a file of passwords that cannot be read.
    """
    parsed = parse_url(url)
    options: dict[str, Any] = {
        "echo": settings.echo,
        # Parameters hold prompts and callback URLs: they reach logs only where SQL logging is asked for.
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


def meter_engine(engine: Engine, registry: MetricsRegistry, component: str) -> None:
    """Count and time the engine's transactions from now on; `component` says whose they are."""
    engine.update_execution_options(**{_METER: (registry, component)})


class Repository:
    """Records behind an engine. Calls block; any thread may make them.

    Every method raises `DatabaseUnavailable` when the database does not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine


@contextmanager
def begin_write(engine: Engine) -> Iterator[Connection]:
    """Begin a transaction that writes: committed at the end of the block, rolled back by an exception.

    SQLite takes its write lock at once, so that no transaction fails half-way because another came first.
    Raises as `translate_errors`; when the commit itself is not answered its outcome is unknown.
    """
    with (
        _meter(engine, "write"),
        translate_errors(),
        engine.connect() as connection,
        connection.execution_options(**{_WRITES: True}).begin(),
    ):
        yield connection


@contextmanager
def begin_read(engine: Engine) -> Iterator[Connection]:
    """Begin a transaction that only reads. Raises as `translate_errors`."""
    with _meter(engine, "read"), translate_errors(), engine.connect() as connection:
        yield connection


def _meter(engine: Engine, kind: str) -> AbstractContextManager[None]:
    meter = engine.get_execution_options().get(_METER)
    if meter is None:
        return nullcontext()
    registry, component = meter
    outcomes = {DatabaseUnavailable: "unavailable"}
    metered: AbstractContextManager[None] = registry.time_call(
        metrics.DATABASE_CALLS, component, kind, errors=outcomes
    )
    return metered


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn every error of the database but those that speak about the data into `DatabaseUnavailable`.

    `IntegrityError` and `DataError` pass unchanged: repeated they would be the same. All else is an outage
    that ends by itself or by somebody's hand: lost connections, locks, a full disk, a wrong password, a
    missing table. Where no waiting heals it, `defect` has its number. The vendor's error is chained.
    """
    try:
        yield
    except NoFreeConnection as error:
        raise DatabaseUnavailable("all connections of the pool are busy") from error
    except (IntegrityError, DataError):
        raise
    except DBAPIError as error:
        raise DatabaseUnavailable(str(error.orig), defect=_find_defect(error)) from error


DATABASE_TIMEOUT_SECONDS = 5.0
"""How long a request waits for the database. The driver waits for longer, and may then try anew."""


async def limit_wait(answer: Awaitable[T]) -> T:
    """Return the database's answer. Raises `DatabaseUnavailable` if it does not come in time; a thread that
    waits for it goes on waiting."""
    limit = asyncio.timeout(DATABASE_TIMEOUT_SECONDS)
    try:
        async with limit:
            return await answer
    except TimeoutError as error:
        if not limit.expired():
            raise
        reason = f"no answer within {DATABASE_TIMEOUT_SECONDS:g} seconds"
        raise DatabaseUnavailable(reason) from error


def read_clock(connection: Connection) -> datetime:
    """Return the time of day by the database's clock; SQLite's is this machine's."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = connection.execute(_NOW).scalar_one()
    return now.replace(tzinfo=UTC)


_NOW = select(func.utc_timestamp(6))


def build_upserts(table: Table, changes: Callable[[Any], dict[str, Any]]) -> dict[str, Insert]:
    """Return an INSERT for each of SQLAlchemy's names of a database. Rows whose key is there already get the
    `changes`, a function of the new row's columns.
    """
    sqlite, mariadb = sqlite_insert(table), mariadb_insert(table)
    on_mariadb = mariadb.on_duplicate_key_update(changes(mariadb.inserted))
    on_sqlite = sqlite.on_conflict_do_update(
        index_elements=list(table.primary_key), set_=changes(sqlite.excluded)
    )
    return {"sqlite": on_sqlite, "mysql": on_mariadb, "mariadb": on_mariadb}


# --- errors ---------------------------------------------------------------------------------------------

_MARIADB_DEFECTS = frozenset(
    {
        1044, 1045, 1142, 1143, 1227, 1698,  # the user may not do it
        1049, 1054, 1064, 1146, 1364,  # not this release's database, table, column or grammar
        1290, 1836,  # it is read-only
    }
)  # fmt: skip
"""Error numbers that no waiting heals: https://mariadb.com/kb/en/mariadb-error-code-reference/."""

_SQLITE_DEFECTS = frozenset(
    # The first is that of a missing table, too.
    {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_AUTH}
)


def _find_defect(error: DBAPIError) -> int:
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code; the rest tells its flavour (https://sqlite.org/rescode.html).
        code, known = getattr(cause, "sqlite_errorcode", 0) & 0xFF, _SQLITE_DEFECTS
    else:
        code, known = cause.args[0] if cause is not None and cause.args else 0, _MARIADB_DEFECTS
    return code if code in known else 0


# --- MariaDB --------------------------------------------------------------------------------------------


def _mariadb_engine(settings: DatabaseSettings, url: URL, options: dict[str, Any]) -> Engine:
    # Shorter than the read time-out, so that the server names the lock instead of falling silent.
    lock_wait = max(1, int(settings.read_timeout * 0.6))
    # A client that vanished without a word holds its locks no longer than that, at whichever point of a
    # transaction: between two statements, in the middle of one, or while it is answered.
    silence = max(1, int(settings.read_timeout * 0.4))
    session = (
        f"SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,"
        f"NO_ENGINE_SUBSTITUTION', innodb_lock_wait_timeout = {lock_wait}, lock_wait_timeout = {lock_wait}, "
        f"idle_transaction_timeout = {silence}, net_read_timeout = {silence}, net_write_timeout = {silence}"
    )
    passwords = _find_password_file(url)
    engine = create_engine(
        url.difference_update_query([_PASSWORD_FILE]),
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

    @event.listens_for(engine, "connect")
    def notice_silence(connection: Any, _record: object) -> None:
        """Let the system find out too that the other side is gone: about a pool's idle connections."""
        link: socket.socket = connection._sock
        # Not on every system, and not on a socket of this machine.
        if link.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(settings.read_timeout * 1000)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(settings.read_timeout)))
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, silence)

    if passwords is not None:
        _use_passwords(engine, passwords)
    return engine


_PASSWORD_FILE = "password_file"
"""The URL's query parameter that names a file of passwords."""
_ACCESS_DENIED = 1045


def _find_password_file(url: URL) -> SecretFile | None:
    path = url.query.get(_PASSWORD_FILE)
    if path is None:
        return None
    if not isinstance(path, str) or url.password is not None:
        raise SettingsError("The database URL has one password_file, or a password, but not both.")
    return SecretFile(Path(path), "database.url (AVATARFORGE_DATABASE_URL)")


def _use_passwords(engine: Engine, passwords: SecretFile) -> None:
    """Let each new connection try the file's passwords, the one that was taken last before the others."""
    last_taken = ""

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: object, arguments: Any, options: dict[str, Any]) -> Any:
        nonlocal last_taken
        *others, least = sorted(passwords.read(), key=lambda password: password != last_taken)
        for password in others:
            try:
                connection = dialect.connect(*arguments, **{**options, "password": password})
            except pymysql.err.OperationalError as error:
                if error.args[0] != _ACCESS_DENIED:
                    raise
            else:
                last_taken = password
                return connection
        connection = dialect.connect(*arguments, **{**options, "password": least})
        last_taken = least
        return connection


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


def parse_url(url: str) -> URL:
    """Return the database's URL in its parts. Raises `SettingsError` for one that we cannot use."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise SettingsError(f"{_SETTING} cannot be read. It is such as {_EXAMPLE}.") from error
    if is_sqlite(parsed):
        if _PASSWORD_FILE in parsed.query:
            raise SettingsError(f"{_SETTING} has a {_PASSWORD_FILE}, but SQLite knows no passwords.")
        return parsed
    if parsed.drivername not in ("mysql+pymysql", "mariadb+pymysql"):
        raise SettingsError(
            f"The database URL begins with {parsed.drivername!r}, "
            "but it must begin with 'sqlite' or 'mysql+pymysql'."
        )
    if not parsed.database:
        raise SettingsError(f"{_SETTING} names no database. It is such as {_EXAMPLE}.")
    for name in parsed.query:
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"{_SETTING} has the option {name!r}, which the driver does not know.{hint}")
    for name in ("ssl_ca", "ssl_cert", "ssl_key"):
        path = parsed.query.get(name)
        if isinstance(path, str) and not os.access(path, os.R_OK):
            raise SettingsError(f"{_SETTING} has {name}={path}, a file that is not there or cannot be read.")
    return parsed


_SETTING = "The database URL (AVATARFORGE_DATABASE_URL)"
_EXAMPLE = "mysql+pymysql://user:password@host/name"
_OPTIONS = frozenset(inspect.signature(pymysql.connections.Connection).parameters) | {
    _PASSWORD_FILE,
    # Those that SQLAlchemy turns into the driver's `ssl`.
    *("ssl_capath", "ssl_cipher", "ssl_check_hostname"),
}
