"""Access log: the export that an entry is about, and a chain of hashes that shows what was removed or changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# NULLs are left out, so that a column of a later revision changes no hash. The function itself is never changed: its
# hashes are kept. Everything is of pg_catalog: it runs with the rights of the log's owner for whoever adds an entry.
_HASH = """
CREATE FUNCTION access_hash(previous bytea, place bigint, db_user text, entry jsonb) RETURNS bytea
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT sha256(previous || convert_to(place::text || chr(31) || db_user || chr(31)
        || jsonb_strip_nulls(entry)::text, 'UTF8'))
$$
"""

# At the end of the transaction, so that writers wait for one another no longer than a commit takes.
_LINK = """
CREATE FUNCTION link_access_log() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    place bigint;
    made bytea;
BEGIN
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

_EARLIER = """
DO $$
DECLARE
    entry record;
    place bigint := 0;
    made bytea := '';
BEGIN
    SET LOCAL timezone = 'UTC';
    FOR entry IN SELECT id, to_jsonb(access_log) AS content FROM access_log ORDER BY id LOOP
        place := place + 1;
        made := access_hash(made, place, '', entry.content);
        INSERT INTO access_link (position, entry_id, db_user, hash) VALUES (place, entry.id, '', made);
    END LOOP;
    INSERT INTO access_head (chain_id, position, hash) VALUES (gen_random_uuid(), place, made);
END $$
"""


def upgrade() -> None:
    op.add_column("access_log", sa.Column("export_id", sa.BigInteger(), nullable=True, comment="where it is about one"))
    op.create_table(
        "access_link",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False, comment="1, 2, 3 … without a gap"),
        sa.Column("entry_id", sa.BigInteger(), nullable=False, comment="of access_log"),
        sa.Column("db_user", sa.Text(), nullable=False, comment="who was logged in; empty: before there was a chain"),
        sa.Column("hash", sa.LargeBinary(), nullable=False, comment="SHA-256 of the hash before it and of the entry"),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("entry_id", name="access_link_entry"),
    )
    op.create_table(
        "access_head",
        sa.Column("chain_id", sa.Uuid(), nullable=False, comment="another in every warehouse"),
        sa.Column("position", sa.BigInteger(), nullable=False, comment="of the last link"),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chain_id"),
    )
    op.execute(_HASH)
    op.execute(_LINK)
    op.execute(_EARLIER)
    op.execute(
        "CREATE CONSTRAINT TRIGGER access_log_link AFTER INSERT ON access_log DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION link_access_log()"
    )
    for name, event, each in (("row", "UPDATE OR DELETE", "ROW"), ("all", "TRUNCATE", "STATEMENT")):
        op.execute(
            f"CREATE TRIGGER access_link_append_only_{name} BEFORE {event} ON access_link"
            f" FOR EACH {each} EXECUTE FUNCTION refuse_change_of_access_log()"
        )


def downgrade() -> None:
    op.execute("DROP TRIGGER access_log_link ON access_log")
    op.drop_table("access_head")
    op.drop_table("access_link")
    op.execute("DROP FUNCTION link_access_log()")
    op.execute("DROP FUNCTION access_hash(bytea, bigint, text, jsonb)")
    op.drop_column("access_log", "export_id")
