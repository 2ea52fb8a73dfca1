"""Alembic environment of the `etl` schema; `pipeline.warehouse.schema` runs it with a connection of its own."""
