"""`epic-omop report`: what the warehouse says about the quality of its own content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import (
    Column,
    CsvOption,
    JsonOption,
    Listing,
    print_csv,
    print_json,
    print_listing,
    refuse_both,
)
from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Terminal
from pipeline.commands.warehouse_state import refuse_empty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.quality.coverage import CoverageFall, CoverageNight, CoverageShare
    from pipeline.quality.mapping_report import MappingReport

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Reports over the whole warehouse.")


@app.callback()
def _group() -> None:
    """Keeps `report mapping` a command of a group while it is the only one."""


@app.command()
def mapping(
    site: Annotated[str | None, typer.Option("--site", help="Codes of this site only; tables are of all.")] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    limit: Annotated[int, typer.Option(min=1, help="The most frequent so many codes; documents have all.")] = 30,
) -> None:
    """Rows with a concept by table, and codes that stay unmapped although the vocabulary holds them.

    "defect" is a code that the loaded vocabulary has with a valid Standard concept: there should be none. As CSV: the codes.

    Example: epic-omop report mapping --site north --csv
    """
    from pipeline.quality.mapping_report import mapping_report
    from pipeline.transform.mapping.mappings import load_mappings
    from pipeline.warehouse.access_looks import EVERY_SITE, record_look
    from pipeline.warehouse.runtime import Runtime

    refuse_both(as_json=as_json, as_csv=as_csv)
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
        print_json(report.as_json())
    elif as_csv:
        print_csv(_codes(report, None))
    else:
        _print(Terminal(highlight=False), report, limit)


@app.command()
def coverage(
    site: Annotated[str | None, typer.Option("--site", help="Only this site.")] = None,
    nights: Annotated[int, typer.Option(min=1, help="The last so many nights.")] = 14,
    limit: Annotated[int, typer.Option(min=1, help="So many elements and systems; documents have all.")] = 30,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Codes that have a concept: by night and vocabulary release, and of the last night by table, element and system.

    As CSV: the last night.

    Example: epic-omop report coverage --site north
    """
    from pipeline.quality.coverage import coverage_falls, coverage_nights, last_night
    from pipeline.warehouse.runtime import Runtime
    from pipeline.warehouse.schema import ensure_schemas, schema_names

    refuse_both(as_json=as_json, as_csv=as_csv)
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
        print_json(content)
    elif as_csv:
        print_csv(_last_night(shares))
    else:
        _print_coverage(Terminal(highlight=False), by_night, shares[:limit], falls)


def _print_coverage(
    console: Terminal,
    nights: Sequence[CoverageNight],
    shares: Sequence[CoverageShare],
    falls: Sequence[CoverageFall],
) -> None:
    if not nights:
        console.print("No export has been counted yet: each is when it is loaded.")
        return
    trend = [(night.day, night.site, night.release, night.rows, night.mapped, night.share) for night in nights]
    print_listing(console, Listing("By night", _NIGHT, trend))
    print_listing(console, _last_night(shares))
    for fall in falls:
        console.print(f"Fell: {fall.sentence}")


_NIGHT = (
    Column("day", "night", "time"),
    Column("site", "site", "code"),
    Column("release", "vocabulary", "code"),
    Column("rows", "codes", "count"),
    Column("mapped", "with a concept", "count"),
    Column("share", "share", "share"),
)


def _last_night(shares: Sequence[CoverageShare]) -> Listing:
    columns = (
        Column("cdm_table", "table", "code"),
        Column("element", "element", "code"),
        Column("system", "system", "path"),
        Column("rows", "codes", "count"),
        Column("mapped", "with a concept", "count"),
        Column("share", "share", "share"),
    )
    rows = [
        (item.cdm_table, f"{item.resource_type}.{item.element}", item.system, item.rows, item.mapped, item.share)
        for item in shares
    ]
    return Listing("The last night", columns, rows)


def _tables(report: MappingReport) -> Listing:
    columns = (
        Column("table", "OMOP table", "code"),
        Column("rows", "rows", "count"),
        Column("mapped", "with a concept", "count"),
        Column("share", "share", "share"),
        Column("concept_column", "column", "code"),
    )
    rows = [
        (share.table, share.rows, share.mapped, share.mapped / share.rows, share.concept_column)
        for share in report.tables
    ]
    return Listing("Rows with a concept", columns, rows)


def _systems(report: MappingReport) -> Listing:
    columns = (
        Column("code_system", "code system", "path"),
        Column("places", "places", "count"),
        Column("defect", "defect", "count"),
        Column("no_standard", "no Standard concept", "count"),
        Column("absent", "not in the vocabulary", "count"),
    )
    rows = [
        (one.vocabulary_id or one.system or "(no system)", one.count, one.defect, one.no_standard, one.absent)
        for one in report.systems
    ]
    return Listing("Unmapped codes", columns, rows)


def _codes(report: MappingReport, limit: int | None) -> Listing:
    columns = (
        Column("code", "code", "code"),
        Column("places", "places", "count"),
        Column("finding", "finding", "code"),
        Column("element", "element", "code"),
        Column("code_system", "code system", "path"),
    )
    listing = Listing("The most frequent of them", columns)
    for code in report.codes[:limit]:
        element = f"{code.resource_type}.{code.element}"
        system = code.vocabulary_id or code.system
        listing.add(code.code or "(text only)", code.count, code.finding, element, system)
    return listing


def _print(console: Terminal, report: MappingReport, limit: int) -> None:
    print_listing(console, _tables(report))
    if not report.codes:
        console.print("Every code has a Standard concept.")
        return
    print_listing(console, _systems(report))
    print_listing(console, _codes(report, limit))
    found = len(report.defects)
    console.print(
        f"{found:,} codes are unmapped although the vocabulary has a Standard concept for them: defects."
        if found
        else "No code is unmapped that the vocabulary has a Standard concept for."
    )
