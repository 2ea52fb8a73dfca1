"""The function that links entries of the access log serves that table alone.

It runs with the rights of the log's owner, and everyone could make it the trigger of a temporary table, beside views of the
names that it reads: their functions then ran with these rights.
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_BEGINNING = """
CREATE OR REPLACE FUNCTION link_access_log() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    place bigint;
    made bytea;
BEGIN
"""

# Of the table's and the function's own schema: names of tables that another user makes mean nothing.
_GUARD = """
    IF NOT EXISTS (SELECT FROM pg_trigger AS this JOIN pg_proc AS routine ON routine.oid = this.tgfoid
        JOIN pg_class AS relation ON relation.oid = this.tgrelid
        WHERE this.tgrelid = TG_RELID AND this.tgname = TG_NAME
        AND relation.relname = 'access_log' AND relation.relnamespace = routine.pronamespace)
    THEN RAISE EXCEPTION 'link_access_log serves the access log alone' USING ERRCODE = 'insufficient_privilege';
    END IF;
"""

_REST = """
    EXECUTE format('SELECT position, hash FROM %I.access_head FOR UPDATE', TG_TABLE_SCHEMA) INTO place, made;
    place := coalesce(place, 0) + 1;
    EXECUTE format('SELECT %I.access_hash($1, $2, $3, $4)', TG_TABLE_SCHEMA)
        INTO made USING coalesce(made, ''::bytea), place, session_user::text, to_jsonb(NEW);
    EXECUTE format('INSERT INTO %I.access_link (position, entry_id, db_user, hash) VALUES ($1, $2, $3, $4)',
        TG_TABLE_SCHEMA) USING place, NEW.id, session_user::text, made;
    EXECUTE format('UPDATE %I.access_head SET position = $1, hash = $2', TG_TABLE_SCHEMA) USING place, made;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute(_BEGINNING + _GUARD + _REST)
    op.execute("REVOKE EXECUTE ON FUNCTION link_access_log() FROM PUBLIC")


def downgrade() -> None:
    op.execute(_BEGINNING + _REST)
    op.execute("GRANT EXECUTE ON FUNCTION link_access_log() TO PUBLIC")
