"""What Alembic runs for each upgrade or comparison of the `etl` schema.

There is no alembic.ini: the caller puts an open `connection` (inside a transaction that it commits itself) and
the `etl_schema` name into `config.attributes`. Revisions name tables without a schema; the search path
decides where they go, so that one set of revisions serves any schema name. One that puts rows of the CDM right finds
their schema as `cdm_schema` ("cdm" where the caller names none).
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from omop_schema.etl import build_metadata


def _run() -> None:
    connection: Connection = context.config.attributes["connection"]
    schema: str = context.config.attributes["etl_schema"]
    before = connection.execute(text("SELECT current_setting('search_path')")).scalar_one()
    connection.execute(text("SELECT set_config('search_path', quote_ident(:schema), true)"), {"schema": schema})
    context.configure(
        connection=connection,
        target_metadata=build_metadata(schema),
        version_table_schema=schema,
        compare_server_default=False,
    )
    context.run_migrations()
    connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": before})


_run()
