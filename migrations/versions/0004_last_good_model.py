"""The model that last served as desired."""

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "tracker_shards",
        sa.Column("model", sa.String(255)),
        # SQLite does not know the clause, nor need it: there the whole migration is one transaction.
        if_not_exists=context.get_context().dialect.name != "sqlite",
    )


def downgrade() -> None:
    op.drop_column("tracker_shards", "model")
