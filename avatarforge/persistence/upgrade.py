"""Bringing a database to this release's schema. The migrations travel with the package."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, make_url, select

from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.package_data import package_data
from avatarforge.persistence.database import (
    begin_read,
    begin_write,
    is_sqlite,
    open_engine,
    parse_url,
    translate_errors,
)
from avatarforge.settings import DatabaseSettings

_MIGRATION_SECONDS = 3600
"""The longest single statement of a migration: copying a large table takes its time."""


def upgrade(url: str, patience: float = 60) -> None:
    """Bring the database to `latest()`: from empty, from an older release, or, already there, do nothing.

    Several processes may call it at once: one works, the others wait up to `patience` seconds for it. Cut
    short, it is simply called again. A folder for SQLite's file is made. It goes up only: a database of a
    later release raises Alembic's `CommandError`.

    Raises `DatabaseUnavailable` when the database does not answer or another upgrade outlasts `patience`.
    """
    with _engine(url, patience) as engine, _alone(engine, patience) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def current(url: str) -> str | None:
    """The schema's revision; `None` for an empty database. Raises `DatabaseUnavailable`."""
    with _engine(url, patience=5) as engine, begin_read(engine) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def latest() -> str:
    """The revision that this release works with."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise FileNotFoundError(f"There are no migrations in {package_data('migrations')}.")
    return revision


@contextmanager
def _engine(url: str, patience: float) -> Iterator[Engine]:
    if is_sqlite(parse_url(url)):
        settings = DatabaseSettings.model_validate({"read_timeout": patience})
        _make_private_file(url)
    else:
        settings = DatabaseSettings.model_validate({"read_timeout": _MIGRATION_SECONDS})
    engine = open_engine(settings, url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _alone(engine: Engine, patience: float) -> Iterator[Connection]:
    """A connection for the one upgrade at a time."""
    if engine.dialect.name == "sqlite":
        # DDL is part of the transaction, and the transaction keeps other writers out.
        with begin_write(engine) as connection:
            yield connection
        return
    with translate_errors(), engine.connect() as connection:
        name = lock_name(engine.url.database or "")
        # Freed when the connection closes, by whatever cause.
        if connection.scalar(select(func.get_lock(name, patience))) != 1:
            raise DatabaseUnavailable("another process is upgrading the database")
        connection.commit()
        yield connection


def lock_name(database: str) -> str:
    """The name of the lock that an upgrade holds on MariaDB's server.

    Lock names are shared by all databases of a server and may have 64 characters.
    """
    return f"avatarforge-{hashlib.blake2b(database.encode(), digest_size=16).hexdigest()}"


def _make_private_file(url: str) -> None:
    """Make SQLite's file, for this user alone, as its journals are then. One that is there becomes so."""
    database = make_url(url).database
    if database and database != ":memory:":
        path = Path(database)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        if path.stat().st_uid == os.geteuid():
            path.chmod(0o600)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(package_data("migrations")).replace("%", "%%"))
    return config
