"""A mark for the states of each site, by which files that were made of them are known to be old."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# A publication tells the files of its changes, and says so; after any other change they are to be written anew.
_FORGET = """
CREATE FUNCTION forget_known_marks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('epic_omop.keep_known_marks', true) IS DISTINCT FROM 'on' THEN
        EXECUTE format('DELETE FROM %I.known_mark', TG_TABLE_SCHEMA);
    END IF;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "known_mark",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column(
            "mark",
            sa.Text(),
            nullable=False,
            comment="of the states: files of known lines with another mark are old",
        ),
        sa.PrimaryKeyConstraint("site"),
    )
    op.execute(_FORGET)
    op.execute(
        "CREATE TRIGGER resource_state_marks AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON resource_state"
        " FOR EACH STATEMENT EXECUTE FUNCTION forget_known_marks()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER resource_state_marks ON resource_state")
    op.execute("DROP FUNCTION forget_known_marks()")
    op.drop_table("known_mark")
