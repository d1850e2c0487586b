"""The clusters that were started on this database, which of them has a shard, and the number of shards."""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.mysql import DATETIME

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime().with_variant(DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    # SQLite does not know the clause, nor need it: there the whole migration is one transaction.
    if_not_exists = context.get_context().dialect.name != "sqlite"
    op.add_column("tracker_shards", sa.Column("shards", sa.Integer()), if_not_exists=if_not_exists)
    op.add_column("tracker_shards", sa.Column("cluster_id", sa.String(128)), if_not_exists=if_not_exists)
    op.create_table(
        "tracker_clusters",
        sa.Column("cluster_id", sa.String(128), nullable=False),
        sa.Column("first_seen_at", MOMENT, nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", name="pk_tracker_clusters"),
        if_not_exists=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_nopad_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_nopad_bin",
    )
    # So many have ever had a tracker.
    op.execute(
        "UPDATE tracker_shards SET shards = "
        "(SELECT known FROM (SELECT MAX(shard) + 1 AS known FROM tracker_shards) AS counted) WHERE shard = 0"
    )


def downgrade() -> None:
    op.drop_table("tracker_clusters")
    op.drop_column("tracker_shards", "cluster_id")
    op.drop_column("tracker_shards", "shards")
