"""`epic-omop explain`: how a row came about, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Terminal, bold, document, words
from pipeline.commands.warehouse_state import refuse_empty
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from pipeline.quality.explanation import CodingAnswer, Explanation, Known
    from pipeline.warehouse.runtime import Runtime

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command(
        "explain", epilog="Examples: epic-omop explain measurement 42 · epic-omop explain Observation/abc --site north"
    )(explain)


def explain(
    what: Annotated[str, typer.Argument(help="A CDM table, or a resource as Type/id.")],
    row: Annotated[int | None, typer.Argument(help="The row's primary key, after a table.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="The site of a resource that several have.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for a program to read.")] = False,
) -> None:
    """Show how a row came about: landed line, codings, what each resolved to and why, which one counted, table, row.

    Codes and the row are shown, not the line. It is a look at a patient's data, and leaves an entry in the access log.
    """
    import orjson

    from pipeline.quality.explanation import find_resource, find_row
    from pipeline.warehouse.runtime import Runtime

    if ("/" in what) == (row is not None):
        raise UsageError(
            "Give either a table with a row, or a resource.",
            "Such as: explain measurement 42, or explain Observation/abc.",
        )
    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
    if site is not None:
        known_site(runtime, site)
    with runtime.connect() as connection:
        found = find_row(connection, what, row) if row is not None else find_resource(connection, what, site)
    found = [known for known in found if site in (None, known.site)]
    explained = [_explained(runtime, known) for known in found]
    if as_json:
        content = orjson.dumps([item.as_json() for item in explained], option=orjson.OPT_INDENT_2, default=str)
        document(content.decode() + "\n")
        return
    console = Terminal(highlight=False)
    for item in explained:
        _print(console, item)


def _explained(runtime: Runtime, known: Known) -> Explanation:
    from pipeline.load.fingerprints import site_rules
    from pipeline.quality.explanation import explain as chain
    from pipeline.warehouse.access_looks import record_look

    site = known_site(runtime, known.site)
    record_look(
        runtime,
        "report",
        site=known.site,
        resource_type=known.line.resource_type,
        resources=1,
        export_id=known.line.export_id,
        detail="explain",
    )
    rules = site_rules(runtime, site)
    with runtime.connect() as connection:
        return chain(connection, runtime.landing, site, rules, known, runtime.settings.cdm_schema)


def _print(console: Terminal, item: Explanation) -> None:
    landed = item.landed
    console.print(words(bold(item.resource), f" of {item.site}"))
    console.print(f"  line      {landed['line']} of {landed['file'] or 'a file'} of export {landed['export_id']}")
    console.print(f"  outcome   {item.outcome}{f': {item.reason}' if item.reason else ''}")
    console.print(f"  mapped    by vocabulary {item.vocabulary}")
    for element in item.elements:
        asked = f" (as {element.purpose})" if element.purpose else ""
        console.print(words(bold(f"  {element.path}"), asked))
        for coding in element.codings:
            _print_coding(console, coding)
        if element.routing:
            console.print(f"    table: {element.routing}")
    for row in item.rows:
        console.print(words(bold(f"  {row['table']} {row['row_id']}")))
        for name, value in row["columns"].items():
            console.print(f"    {name} = {value}")
    if not item.rows:
        console.print("  It has no row.")
    for note in item.notes:
        console.print(f"  Note: {note}")


def _print_coding(console: Terminal, coding: CodingAnswer) -> None:
    mark = "✓" if coding.counts else "·"
    display = f" ({coding.display})" if coding.display else ""
    console.print(f"    {mark} {coding.system or 'no system'} {coding.code}{display}")
    console.print(f"        looked up as {coding.tried}; answered by {coding.answered_by}; {coding.why}")
    if coding.source_concept is not None:
        console.print(f"        source {coding.source_concept.concept_id} {coding.source_concept.name}")
    for kind, concepts in (("standard", coding.standard), ("value", coding.values)):
        for one in concepts:
            console.print(f"        {kind} {one.concept_id} {one.name} [{one.vocabulary_id}, {one.domain_id}]")
