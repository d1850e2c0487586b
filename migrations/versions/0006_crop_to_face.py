"""The parameter `cut_face` of stored jobs, and of the events that hold them, is called `crop_to_face`."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_OLD, _NEW = '"cut_face":', '"crop_to_face":'


def upgrade() -> None:
    _replace_key(_OLD, _NEW)


def downgrade() -> None:
    _replace_key(_NEW, _OLD)


def _replace_key(old: str, new: str) -> None:
    """Replace a key in JSON, which both databases keep as text; in a string its quotes would be escaped."""
    for table, column in (("profile_photo_jobs", "parameters"), ("job_events", "snapshot")):
        # Table and column are the constants above.
        statement = f"UPDATE {table} SET {column} = REPLACE({column}, :old, :new) WHERE {column} LIKE :held"
        op.execute(sa.text(statement).bindparams(old=old, new=new, held=f"%{old}%"))
