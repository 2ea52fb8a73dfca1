"""What several commands say of the warehouse before they begin: that there is none, that settings have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.commands.terminal import Terminal
from pipeline.core.errors import WarehouseError

if TYPE_CHECKING:
    import psycopg

    from pipeline.warehouse.runtime import Runtime

__all__ = ["is_installed", "print_settings_notes", "refuse_empty", "settings_texts"]


def print_settings_notes(console: Terminal, runtime: Runtime, connection: psycopg.Connection) -> None:
    """What is loaded under settings that have changed since, and that the instance has no name yet."""
    for note in settings_texts(runtime, connection):
        console.print(note)


def settings_texts(runtime: Runtime, connection: psycopg.Connection) -> list[str]:
    """The same as sentences; none before a vocabulary is loaded."""
    from pipeline.quality.settings_notes import instance_notes, settings_notes
    from pipeline.warehouse.vocabulary import current_release

    if not current_release(runtime.url, etl_schema=runtime.settings.etl_schema):
        return []
    return [*settings_notes(runtime, connection), *instance_notes(runtime.settings.cdm_source, connection)]


def refuse_empty(connection: psycopg.Connection, schema: str) -> None:
    """For commands that only look. Raises WarehouseError where `db init` has not been run."""
    if not is_installed(connection, schema):
        raise WarehouseError("The database holds no warehouse yet.", "Make its schemas with `epic-omop db init`.")


def is_installed(connection: psycopg.Connection, schema: str) -> bool:
    """Whether `db init` has been run."""
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{schema}.export_job",)).fetchone()
    return bool(row and row[0])
