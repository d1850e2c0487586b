"""Webhook deliveries, idempotency keys and objects to delete; how far a shard's log was pruned."""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
LONG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OPTIONS = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_nopad_bin",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_nopad_bin",
    # MariaDB commits each table by itself: a migration that was cut short runs again.
    "if_not_exists": True,
}


def upgrade() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("delivery_id", sa.String(64), nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("job_id", sa.CHAR(36), nullable=False),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("seq", LONG, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("next_at", TIME),
        sa.PrimaryKeyConstraint("delivery_id", name="pk_webhook_deliveries"),
        **OPTIONS,
    )
    create_index("webhook_deliveries", "shard", "state", "next_at")
    create_index("webhook_deliveries", "job_id")
    op.create_table(
        "webhook_attempts",
        sa.Column("delivery_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("answer", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("delivery_id", "number", name="pk_webhook_attempts"),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["webhook_deliveries.delivery_id"], name="fk_webhook_attempts_delivery_id"
        ),
        **OPTIONS,
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.CHAR(64), nullable=False),
        sa.Column("job_id", sa.CHAR(36), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("customer_id", "key", name="pk_idempotency_keys"),
        **OPTIONS,
    )
    create_index("idempotency_keys", "created_at")
    create_index("idempotency_keys", "job_id")
    op.create_table(
        "object_deletions",
        sa.Column("deletion_id", LONG, nullable=False, autoincrement=True),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("prefix", sa.String(512), nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("deletion_id", name="pk_object_deletions"),
        sqlite_autoincrement=True,
        **OPTIONS,
    )
    create_index("object_deletions", "shard", "due_at")
    op.add_column(
        "tracker_shards",
        sa.Column("pruned_seq", LONG, nullable=False, server_default=sa.text("0")),
        # SQLite does not know the clause, nor need it: there the whole migration is one transaction.
        if_not_exists=context.get_context().dialect.name != "sqlite",
    )


def create_index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns), if_not_exists=True)


def downgrade() -> None:
    op.drop_column("tracker_shards", "pruned_seq")
    for table in ("object_deletions", "idempotency_keys", "webhook_attempts", "webhook_deliveries"):
        op.drop_table(table)
