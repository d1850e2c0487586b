"""Jobs, their photos and their event log."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out here and not taken from the package: a migration stays what it was when it ran.
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
        "customers",
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("customer_id", name="pk_customers"),
        **OPTIONS,
    )
    op.create_table(
        "profile_photo_jobs",
        sa.Column("job_id", sa.CHAR(36), nullable=False),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("seq", LONG, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("callback_url", sa.Text),
        sa.Column("retry_of", sa.CHAR(36)),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("timings", sa.JSON, nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("backend", sa.Text),
        sa.Column("crop", sa.String(16)),
        sa.Column("generation_timings", sa.JSON),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.PrimaryKeyConstraint("job_id", name="pk_profile_photo_jobs"),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.customer_id"], name="fk_profile_photo_jobs_customer_id"
        ),
        **OPTIONS,
    )
    create_index("profile_photo_jobs", "customer_id", "job_id")
    create_index("profile_photo_jobs", "status", "job_id")
    op.create_table(
        "profile_photos",
        sa.Column("job_id", sa.CHAR(36), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("object_key", sa.String(512), nullable=False),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("size", LONG, nullable=False),
        sa.Column("sha256", sa.CHAR(64), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "kind", name="pk_profile_photos"),
        sa.ForeignKeyConstraint(["job_id"], ["profile_photo_jobs.job_id"], name="fk_profile_photos_job_id"),
        **OPTIONS,
    )
    op.create_table(
        "job_events",
        sa.Column("seq", LONG, nullable=False, autoincrement=True),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("job_id", sa.CHAR(36), nullable=False),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("snapshot", sa.JSON),
        sa.Column("terminal_job_id", sa.CHAR(36)),
        sa.PrimaryKeyConstraint("seq", name="pk_job_events"),
        sa.UniqueConstraint("job_id", "revision", name="uq_job_events_job_id_revision"),
        sa.UniqueConstraint("terminal_job_id", name="uq_job_events_terminal_job_id"),
        sqlite_autoincrement=True,
        **OPTIONS,
    )
    create_index("job_events", "shard", "seq")
    create_index("job_events", "customer_id", "seq")
    op.create_table(
        "tracker_shards",
        sa.Column("shard", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("epoch", LONG, nullable=False),
        sa.PrimaryKeyConstraint("shard", name="pk_tracker_shards"),
        **OPTIONS,
    )


def create_index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns), if_not_exists=True)


def downgrade() -> None:
    for table in ("tracker_shards", "job_events", "profile_photos", "profile_photo_jobs", "customers"):
        op.drop_table(table)
