"""The images of jobs that make several, and the one that the client keeps."""

import sqlalchemy as sa
from alembic import context, op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # SQLite does not know the clause, nor need it: there the whole migration is one transaction.
    if_not_exists = context.get_context().dialect.name != "sqlite"
    op.add_column("profile_photo_jobs", sa.Column("images", sa.JSON()), if_not_exists=if_not_exists)
    op.add_column("profile_photo_jobs", sa.Column("kept", sa.Integer()), if_not_exists=if_not_exists)


def downgrade() -> None:
    op.drop_column("profile_photo_jobs", "kept")
    op.drop_column("profile_photo_jobs", "images")
