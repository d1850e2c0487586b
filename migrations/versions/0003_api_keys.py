"""API keys, and the tickets that stand for them once."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
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
        "api_keys",
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("secret_hash", sa.CHAR(64), nullable=False),
        sa.Column("customers", sa.JSON, nullable=False),
        sa.Column("administers", sa.Boolean, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("last_used_at", TIME),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        **OPTIONS,
    )
    op.create_table(
        "access_tickets",
        sa.Column("ticket_hash", sa.CHAR(64), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("ticket_hash", name="pk_access_tickets"),
        **OPTIONS,
    )
    op.create_index("ix_access_tickets_expires_at", "access_tickets", ["expires_at"], if_not_exists=True)


def downgrade() -> None:
    for table in ("access_tickets", "api_keys"):
        op.drop_table(table)
