"""`epic-omop report`: what the warehouse says about the quality of its own content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.site_names import known_site
from pipeline.commands.tables import number_table
from pipeline.commands.terminal import Terminal, document
from pipeline.commands.warehouse_state import refuse_empty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.quality.coverage import CoverageFall, CoverageNight, CoverageShare
    from pipeline.quality.mapping_report import MappingReport

__all__ = ["app"]

#: Characters of a code system in a table of 80.
_LONGEST = 24

app = typer.Typer(no_args_is_help=True, help="Reports over the whole warehouse.")


@app.callback()
def _group() -> None:
    """Keeps `report mapping` a command of a group while it is the only one."""


@app.command()
def mapping(
    site: Annotated[str | None, typer.Option("--site", help="Codes of this site only; tables are of all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for a program to read.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="The most frequent so many codes.")] = 30,
) -> None:
    """Rows with a concept by table, and codes that stay unmapped although the vocabulary holds them.

    "defect" is a code that the loaded vocabulary has with a valid Standard concept: there should be none.
    """
    import orjson

    from pipeline.quality.mapping_report import mapping_report
    from pipeline.transform.mapping.mappings import load_mappings
    from pipeline.warehouse.access_looks import EVERY_SITE, record_look
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    settings = runtime.settings
    mappings = load_mappings(settings.mappings, site)
    with runtime.connect() as connection:
        refuse_empty(connection, settings.etl_schema)
        if site is not None:
            known_site(runtime, site)
    record_look(runtime, "report", site=site or EVERY_SITE, detail="mapping")
    with runtime.connect() as connection:
        report = mapping_report(
            connection,
            cdm_schema=settings.cdm_schema,
            vocab_schema=settings.vocab_schema,
            vocabulary_of=mappings.vocabulary_of,
            site=site,
        )
    if as_json:
        document(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    _print(Terminal(highlight=False), report, limit)


@app.command()
def coverage(
    site: Annotated[str | None, typer.Option("--site", help="Only this site.")] = None,
    nights: Annotated[int, typer.Option(min=1, help="The last so many nights.")] = 14,
    limit: Annotated[int, typer.Option(min=1, help="So many elements and systems.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for a program to read.")] = False,
) -> None:
    """Codes that have a concept: by night and vocabulary release, and of the last night by table, element and system.

    Example: epic-omop report coverage --site north
    """
    import orjson

    from pipeline.quality.coverage import coverage_falls, coverage_nights, last_night
    from pipeline.warehouse.runtime import Runtime
    from pipeline.warehouse.schema import ensure_schemas, schema_names

    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    if site is not None:
        known_site(runtime, site)
    ensure_schemas(runtime.url, **schema_names(runtime.settings))
    with runtime.connect() as connection:
        by_night, shares = coverage_nights(connection, site, nights), last_night(connection, site)
        falls = [
            fall for name in sorted({night.site for night in by_night}) for fall in coverage_falls(connection, name)
        ]
    if as_json:
        content = {
            "nights": [night.as_json() for night in by_night],
            "last_night": [share.as_json() for share in shares],
            "falls": [fall.last.as_json() | {"before": round(fall.before, 4)} for fall in falls],
        }
        document(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    _print_coverage(Terminal(highlight=False), by_night, shares[:limit], falls)


def _short(system: str) -> str:
    """The end of a system's name, which says the most."""
    return (system or "no system") if len(system) <= _LONGEST else f"…{system[1 - _LONGEST :]}"


def _print_coverage(
    console: Terminal,
    nights: Sequence[CoverageNight],
    shares: Sequence[CoverageShare],
    falls: Sequence[CoverageFall],
) -> None:
    if not nights:
        console.print("No export has been counted yet: each is when it is loaded.")
        return
    trend = number_table("night", "codes", "with a concept", "share", "site", "vocabulary", title="By night")
    for night in nights:
        share = f"{100 * night.share:.1f} %"
        trend.add_row(f"{night.day}", f"{night.rows:,}", f"{night.mapped:,}", share, night.site, night.release)
    console.print(trend)
    table = number_table("element", "codes", "share", "table and system", title="The last night")
    for column in (*trend.columns[4:], *table.columns[3:]):
        column.justify = "left"
    for column in (table.columns[0], *table.columns[3:]):
        column.overflow = "fold"
    table.columns[1].min_width, table.columns[2].min_width = 9, 7  # numbers are never cut
    for item in shares:
        name = f"{item.resource_type}.{item.element}"
        where = f"{item.cdm_table}, {_short(item.system)}"
        table.add_row(name, f"{item.rows:,}", f"{100 * item.share:.1f} %", where)
    console.print(table)
    for fall in falls:
        console.print(f"Fell: {fall.sentence}")


def _print(console: Terminal, report: MappingReport, limit: int) -> None:
    tables = number_table("OMOP table", "rows", "with a concept", "share", "column", title="Rows with a concept")
    for share in report.tables:
        tables.add_row(
            share.table,
            f"{share.rows:,}",
            f"{share.mapped:,}",
            f"{100 * share.mapped / share.rows:.1f} %",
            share.concept_column,
        )
    console.print(tables)
    if not report.codes:
        console.print("Every code has a Standard concept.")
        return
    systems = number_table(
        "code system", "places", "defect", "no Standard concept", "not in the vocabulary", title="Unmapped codes"
    )
    for system in report.systems:
        name = system.vocabulary_id or system.system or "(no system)"
        systems.add_row(
            name, f"{system.count:,}", *(str(n) for n in (system.defect, system.no_standard, system.absent))
        )
    console.print(systems)
    codes = number_table("code", "places", "finding", "element", "code system", title="The most frequent of them")
    for column in codes.columns[2:]:
        column.justify = "left"
    codes.columns[4].overflow = "fold"
    for code in report.codes[:limit]:
        codes.add_row(
            code.code or "(text only)",
            f"{code.count:,}",
            code.finding,
            f"{code.resource_type}.{code.element}",
            code.vocabulary_id or code.system or "–",
        )
    console.print(codes)
    found = len(report.defects)
    console.print(
        f"{found:,} codes are unmapped although the vocabulary has a Standard concept for them: defects."
        if found
        else "No code is unmapped that the vocabulary has a Standard concept for."
    )
