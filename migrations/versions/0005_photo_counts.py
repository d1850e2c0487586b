"""How many photos each customer has, so that a page of customers need not count them."""

import sqlalchemy as sa
from alembic import context, op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

LONG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # The numbers come with the first tracker that keeps them: until then one that does not may write.
    # SQLite does not know the clause, nor need it: there the whole migration is one transaction.
    if_not_exists = context.get_context().dialect.name != "sqlite"
    op.add_column(
        "customers",
        sa.Column("photo_count", sa.Integer(), nullable=False, server_default=sa.text("0")),
        if_not_exists=if_not_exists,
    )
    op.add_column(
        "tracker_shards",
        sa.Column("counted_epoch", LONG, nullable=False, server_default=sa.text("0")),
        if_not_exists=if_not_exists,
    )


def downgrade() -> None:
    op.drop_column("tracker_shards", "counted_epoch")
    op.drop_column("customers", "photo_count")
