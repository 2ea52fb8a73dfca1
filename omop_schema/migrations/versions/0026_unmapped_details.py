"""Codes without a concept keep what a person needs to map them: the text, what was tried, and when they were seen.

The columns are empty for codes that were counted before, until a resource with them is loaded again.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

_COLUMNS: dict[str, tuple[sa.types.TypeEngine[Any], str]] = {
    "text": (sa.Text(), "of the concept, where the site's allow-list names the type"),
    "tried": (sa.Text(), "what it was looked up in, and what was found"),
    "first_seen": (sa.DateTime(timezone=True), "when a resource was loaded with it"),
    "last_seen": (sa.DateTime(timezone=True), "the same, the last time"),
}


def upgrade() -> None:
    for name, (kind, comment) in _COLUMNS.items():
        op.add_column("unmapped_coding", sa.Column(name, kind, comment=comment))


def downgrade() -> None:
    op.execute("DROP VIEW IF EXISTS unmapped_code")
    for name in _COLUMNS:
        op.drop_column("unmapped_coding", name)
