"""The schema, the same for MariaDB and SQLite. `migrations/` makes it; a test holds the two together."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    CHAR,
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes, kept as UTC to the microsecond. A naive one is refused with `ValueError`."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.utcoffset() is None:
            raise ValueError(f"{value!r} has no time zone; give an aware datetime.")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Ids are compared byte by byte, trailing spaces included, as SQLite does by itself.
_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_nopad_bin"))
}


def _json() -> JSON:
    return JSON(none_as_null=True)


def _long() -> TypeEngine[int]:
    # SQLite counts up by itself only in a column that is declared INTEGER.
    return BigInteger().with_variant(Integer(), "sqlite")


def _table(name: str, *parts: SchemaItem, **options: Any) -> Table:
    return Table(name, metadata, *parts, **_OPTIONS, **options)


customers = _table(
    "customers",
    Column("customer_id", String(64), primary_key=True),
    Column("shard", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # The customer's rows in `profile_photo_jobs`: counting them takes longer with each.
    Column("photo_count", Integer, nullable=False, server_default=text("0")),
)

profile_photo_jobs = _table(
    "profile_photo_jobs",
    Column("job_id", CHAR(36), primary_key=True),
    Column("customer_id", String(64), ForeignKey("customers.customer_id"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("seq", _long(), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("callback_url", Text),
    Column("retry_of", CHAR(36)),
    Column("attempt", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("parameters", _json(), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("timings", _json(), nullable=False),
    Column("model", Text),
    Column("backend", Text),
    Column("crop", String(16)),
    Column("generation_timings", _json()),
    Column("error_code", String(64)),
    Column("error_message", Text),
    # Those that were published, of a job that makes several; the first one has a row of its own in the end.
    Column("images", _json()),
    Column("kept", Integer),
    Index(None, "customer_id", "job_id"),
    Index(None, "status", "job_id"),
)

profile_photos = _table(
    "profile_photos",
    Column("job_id", CHAR(36), ForeignKey("profile_photo_jobs.job_id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("object_key", String(512), nullable=False),
    Column("media_type", String(64), nullable=False),
    Column("size", _long(), nullable=False),
    Column("sha256", CHAR(64), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    PrimaryKeyConstraint("job_id", "kind"),
)

job_events = _table(
    "job_events",
    Column("seq", _long(), primary_key=True, autoincrement=True),
    Column("shard", Integer, nullable=False),
    Column("job_id", CHAR(36), nullable=False),
    Column("customer_id", String(64), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    # The whole job as it was committed; null once it is erased.
    Column("snapshot", _json()),
    # The job's id in its terminal event, null in the others: being unique it allows one a job.
    Column("terminal_job_id", CHAR(36)),
    UniqueConstraint("job_id", "revision"),
    UniqueConstraint("terminal_job_id"),
    Index(None, "shard", "seq"),
    Index(None, "customer_id", "seq"),
    # A number is never used twice, not even that of the last row after it was deleted.
    sqlite_autoincrement=True,
)

tracker_shards = _table(
    "tracker_shards",
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("epoch", _long(), nullable=False),
    # The log's events up to this number were removed for their age.
    Column("pruned_seq", _long(), nullable=False, server_default=text("0")),
    # The model that last served as desired; only the first shard's row has it.
    Column("model", String(255)),
    # The last epoch whose writer kept `customers.photo_count`: those of earlier versions do not.
    Column("counted_epoch", _long(), nullable=False, server_default=text("0")),
    # The number of shards, or 0 while customers are moved between them; only the first one's row has it.
    Column("shards", Integer),
    # The cluster whose tracker writes; null once it has handed the shard over.
    Column("cluster_id", String(128)),
)

tracker_clusters = _table(
    "tracker_clusters",
    Column("cluster_id", String(128), primary_key=True),
    # By the database's clock.
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)

webhook_deliveries = _table(
    "webhook_deliveries",
    Column("delivery_id", String(64), primary_key=True),
    Column("shard", Integer, nullable=False),
    Column("job_id", CHAR(36), nullable=False),
    Column("customer_id", String(64), nullable=False),
    Column("seq", _long(), nullable=False),
    Column("url", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_at", UtcDateTime),
    Index(None, "shard", "state", "next_at"),
    Index(None, "job_id"),
)

webhook_attempts = _table(
    "webhook_attempts",
    Column("delivery_id", String(64), ForeignKey("webhook_deliveries.delivery_id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("status", Integer),
    Column("answer", Text, nullable=False),
    PrimaryKeyConstraint("delivery_id", "number"),
)

webhook_secrets = _table(
    "webhook_secrets",
    Column("secret_id", String(32), primary_key=True),
    # A customer's id, or the beginning of ids with a star behind it.
    Column("customers", String(65), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
)

idempotency_keys = _table(
    "idempotency_keys",
    Column("customer_id", String(64), nullable=False),
    Column("key", String(255), nullable=False),
    Column("fingerprint", CHAR(64), nullable=False),
    Column("job_id", CHAR(36), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("customer_id", "key"),
    Index(None, "created_at"),
    Index(None, "job_id"),
)

object_deletions = _table(
    "object_deletions",
    Column("deletion_id", _long(), primary_key=True, autoincrement=True),
    Column("shard", Integer, nullable=False),
    Column("prefix", String(512), nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Index(None, "shard", "due_at"),
    # Whoever says late that a deletion is done must not mean a newer one.
    sqlite_autoincrement=True,
)

api_keys = _table(
    "api_keys",
    Column("key_id", String(32), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("secret_hash", CHAR(64), nullable=False),
    # Ids, and beginnings of ids with a star behind them.
    Column("customers", _json(), nullable=False),
    Column("administers", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
)

access_tickets = _table(
    "access_tickets",
    Column("ticket_hash", CHAR(64), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("customer_id", String(64), nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Index(None, "expires_at"),
)
