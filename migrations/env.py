"""What Alembic runs. `avatarforge.persistence.upgrade` hands over a connection; the `alembic` command, which
developers use to write migrations, gets one to the database that the settings name."""

from typing import Any

from alembic import context
from alembic.ddl.mysql import MySQLImpl
from sqlalchemy import Connection, Table

from avatarforge.persistence.database import open_engine, translate_errors
from avatarforge.persistence.tables import metadata
from avatarforge.settings import load_settings


class MariaDb(MySQLImpl):
    """Makes Alembic's own table like ours, whatever the database's default is. Being defined is enough."""

    __dialect__ = "mysql"

    def version_table_impl(self, **names: Any) -> Table:
        table = super().version_table_impl(**names)
        ours = metadata.tables["customers"].dialect_kwargs
        for option in ("engine", "charset", "collate"):
            table.dialect_kwargs[f"{self.__dialect__}_{option}"] = ours[f"{self.__dialect__}_{option}"]
        return table


class MariaDbByName(MariaDb):
    """The same for addresses that begin with `mariadb`."""

    __dialect__ = "mariadb"


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        # SQLite alters most things only by copying the table.
        render_as_batch=connection.dialect.name == "sqlite",
        # With MariaDB, where DDL commits by itself, each finished migration is on record at once.
        transaction_per_migration=connection.dialect.name != "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


def print_sql() -> None:
    context.configure(
        url=load_settings().database_url,
        target_metadata=metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate_configured_database() -> None:
    settings = load_settings()
    with translate_errors(), open_engine(settings.database, settings.database_url).connect() as connection:
        migrate(connection)
        connection.commit()


if context.is_offline_mode():
    print_sql()
elif (given := context.config.attributes.get("connection")) is not None:
    migrate(given)
else:
    migrate_configured_database()
