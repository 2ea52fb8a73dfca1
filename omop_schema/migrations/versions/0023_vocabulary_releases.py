"""Vocabulary releases side by side, known by the hash of their content; publications name the hash as well."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_TABLE = "vocabulary_release"


def upgrade() -> None:
    # A content that was loaded under two labels is known by the one that is loaded now, else by the later one.
    op.execute(
        "DELETE FROM vocabulary_release AS item USING vocabulary_release AS other"
        " WHERE item.content_hash = other.content_hash"
        " AND (item.is_current, item.loaded_at, item.release) < (other.is_current, other.loaded_at, other.release)"
    )
    op.drop_constraint("vocabulary_release_pkey", _TABLE, type_="primary")
    op.create_primary_key("vocabulary_release_pkey", _TABLE, ["content_hash"])
    op.alter_column(_TABLE, "release", comment="label: version of the vocabulary None")
    op.alter_column(_TABLE, "content_hash", comment="of the download and of what the site added to it")
    for column in _columns():
        op.add_column(_TABLE, column)
    # Releases that were replaced in place are gone: their rows stay as history.
    op.execute("UPDATE vocabulary_release SET state = 'dropped' WHERE NOT is_current")
    op.execute("UPDATE vocabulary_release SET active_since = loaded_at")
    op.create_check_constraint(
        "vocabulary_release_state",
        _TABLE,
        "state IN ('loading', 'ready', 'dropped') AND (state = 'ready' OR NOT is_current)",
    )
    op.create_index(
        "vocabulary_release_current", _TABLE, ["is_current"], unique=True, postgresql_where=sa.text("is_current")
    )
    op.add_column(
        "publication", sa.Column("vocabulary_hash", sa.Text(), comment="content_hash of the release; NULL: not known")
    )
    # A label that was loaded again later says nothing of the content before.
    op.execute(
        "UPDATE publication SET vocabulary_hash = item.content_hash FROM vocabulary_release AS item"
        " WHERE item.release = publication.vocabulary_release AND publication.published_at >= item.loaded_at"
    )


def downgrade() -> None:
    # The view names the column.
    op.execute("DROP VIEW IF EXISTS row_source")
    op.drop_column("publication", "vocabulary_hash")
    op.drop_index("vocabulary_release_current", _TABLE)
    op.drop_constraint("vocabulary_release_state", _TABLE, type_="check")
    for column in _columns():
        op.drop_column(_TABLE, column.name)
    op.execute(
        "DELETE FROM vocabulary_release AS item USING vocabulary_release AS other WHERE item.release = other.release"
        " AND (item.is_current, item.loaded_at, item.content_hash) < (other.is_current, other.loaded_at, other.content_hash)"
    )
    op.drop_constraint("vocabulary_release_pkey", _TABLE, type_="primary")
    op.create_primary_key("vocabulary_release_pkey", _TABLE, ["release"])
    for name in ("release", "content_hash"):
        op.alter_column(_TABLE, name, comment=None)


def _columns() -> list[sa.Column]:  # type: ignore[type-arg]
    json = postgresql.JSONB(astext_type=sa.Text())
    return [
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'ready'")),
        sa.Column(
            "schema_name", sa.Text(), comment="where its tables are; NULL: the vocabulary's schema itself, or gone"
        ),
        sa.Column("active_since", sa.DateTime(timezone=True), comment="NULL: never was"),
        sa.Column("download_hash", sa.Text(), comment="of the files alone"),
        sa.Column(
            "vocabularies",
            json,
            nullable=False,
            server_default=sa.text("'{}'"),
            comment="vocabulary_id → concepts, maps_to, version",
        ),
        sa.Column(
            "notes",
            json,
            nullable=False,
            server_default=sa.text("'{}'"),
            comment="what was repaired, ignored, left out and overruled",
        ),
    ]
