"""`epic-omop access-log`: who asked a site for what, and who looked at what in the warehouse, for auditors."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.export import instant
from pipeline.commands.output import Column, CsvOption, JsonOption, Listing, refuse_both, show
from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Terminal
from pipeline.commands.warehouse_state import refuse_empty

if TYPE_CHECKING:
    import psycopg

__all__ = ["register"]

_COLUMNS = (
    Column("id", "id", "number"),
    Column("at", "at", "time"),
    Column("site", "site", "code"),
    Column("client_id", "client", "code"),
    Column("os_user", "user", "code"),
    Column("workflow", "by", "code"),
    Column("event", "event", "code"),
    Column("outcome", "outcome", "code", {"refused": "yellow", "failed": "red", "blocked": "bold red"}),
    Column("method", "method", "code"),
    Column("url", "url", "path"),
    Column("resource_type", "type", "code"),
    Column("status", "status", "number"),
    Column("resources", "resources", "count"),
    Column("bytes", "bytes", "size"),
    Column("export_id", "export", "number"),
    Column("run_id", "run", "code"),
    Column("detail", "detail", "code"),
)


def register(app: typer.Typer) -> None:
    app.command("access-log")(access_log)


def access_log(
    site: Annotated[str | None, typer.Option("--site", help="Only this site; * is about all of them.")] = None,
    since: Annotated[
        datetime | None, typer.Option("--since", parser=instant, help="Only from this time on (UTC).")
    ] = None,
    event: Annotated[str | None, typer.Option("--event", help="Only this, such as kick-off, file or psql.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="The newest so many; 0: all.")] = 50,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show the access log, the newest first: requests to sites, and looks at the warehouse (docs/security.md).

    Needs a database user who may read it: a member of omop_auditor. Whether it is whole is what `epic-omop verify` says.

    Example: epic-omop access-log --site north --since 2026-03-01 --csv
    """
    from pipeline.warehouse.access_looks import EVERY_SITE
    from pipeline.warehouse.runtime import Runtime

    refuse_both(as_json=as_json, as_csv=as_csv)
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        if site not in (None, EVERY_SITE):
            known_site(runtime, site)
        rows = _entries(connection, site, since, event, limit)
    console = Terminal(highlight=False)
    if rows or as_json or as_csv:
        show(console, Listing("", _COLUMNS, rows), as_json=as_json, as_csv=as_csv)
    else:
        console.print("There is no such entry.")


def _entries(
    connection: psycopg.Connection, site: str | None, since: datetime | None, event: str | None, limit: int
) -> list[tuple[str | int | datetime | None, ...]]:
    names = ", ".join(column.key for column in _COLUMNS)
    return connection.execute(
        f"SELECT {names} FROM access_log WHERE (%(site)s::text IS NULL OR site = %(site)s)"
        " AND (%(since)s::timestamptz IS NULL OR at >= %(since)s) AND (%(event)s::text IS NULL OR event = %(event)s)"
        " ORDER BY id DESC LIMIT %(limit)s",
        {"site": site, "since": since, "event": event, "limit": limit or None},
    ).fetchall()
