"""`epic-omop mappings`: check the mappings, and show what holds for a resource, for people.

Words and layout only; the work is done in `pipeline/transform/mapping_check` and `pipeline/transform/mapping/mappings.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.output import (
    Column,
    CsvOption,
    JsonOption,
    Listing,
    listing_as_json,
    print_csv,
    print_json,
    print_listing,
    words_console,
)
from pipeline.commands.terminal import echo
from pipeline.commands.warehouse_state import is_installed
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from pipeline.core.settings import Settings
    from pipeline.transform.mapping.mappings import ConceptRule, MappingReading, ResourceMapping, TableRule, ViewMapping
    from pipeline.transform.mapping.sources import MappingProblem
    from pipeline.transform.mapping_check.concepts import KnownConcepts

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="The mappings: check them, and show what holds for a resource.\n\n"
    "A site's own part is in mappings/sites/SITE in the home, and is laid over the shared mappings.",
)

Site = Annotated[str, typer.Option("--site", help="With this site's own mappings laid over the shared ones.")]


@app.command()
def check(
    site: Site = "",
    vocabulary: Annotated[bool, typer.Option(help="Look up concept ids in the vocabulary that is loaded.")] = True,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Find everything that is wrong in the mappings, each with file and line. Exit code 1 if there is anything.

    Concept ids are looked up in the loaded vocabulary, or in the demonstration vocabulary where none is loaded; that
    one is small, so that an id which it lacks is not called wrong.

    Example: epic-omop mappings check --site north
    """

    from pipeline.core.settings import load_settings
    from pipeline.transform.mapping_check.check import check_mappings

    settings = load_settings()
    known = _known_concepts(settings) if vocabulary else None
    problems = check_mappings(settings.mappings, _check_site(site), settings.site_mappings_folder, known)
    columns = (Column("where", "where", "path"), Column("problem", "what is wrong"))
    listing = Listing("", columns, [(_place(problem, settings), problem.message) for problem in problems])
    if as_json:
        print_json({"concepts": known.name if known else None, "problems": listing_as_json(listing)})
    elif as_csv:
        print_csv(listing)
    if as_json or as_csv:
        raise typer.Exit(1 if problems else 0)
    console = words_console(as_document=False)
    judged = f"concepts looked up in {known.name}" if known else "concepts not looked up"
    if not problems:
        console.print(f"The mappings{f' of {site}' if site else ''} are right; {judged}.")
        return
    print_listing(console, listing)
    console.print(f"{len(problems):,} problem{'' if len(problems) == 1 else 's'}; {judged}.")
    raise typer.Exit(1)


def _place(problem: MappingProblem, settings: Settings) -> str:
    file = _short(problem.file, settings)
    return f"{file}:{problem.line}" if problem.line else file


@app.command()
def show(
    resource: Annotated[str, typer.Argument(help="The resource type, such as Observation.")],
    site: Site = "",
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show the mapping that holds for a resource: filters, tables, concepts, and each column with its path.

    With --site: under that site's options and own mappings; what comes from its own files is marked by file and line. As CSV:
    the columns of all views.

    Example: epic-omop mappings show Observation --site north
    """
    from pipeline.commands.site_names import site_of_mappings
    from pipeline.core.settings import load_settings
    from pipeline.transform.mapping.mappings import read_mappings

    settings = load_settings()
    options = site_of_mappings(settings, site).mapping if site else None
    reading = read_mappings(settings.mappings, site or None, options, settings.site_mappings_folder)
    mappings = reading.usable()
    mapping = mappings.resources.get(resource)
    if mapping is None:
        reason = mappings.unmapped_types.get(resource)
        if reason:
            echo(f"{resource} is not mapped: its resources are excluded, with the reason {reason}.")
            return
        raise UsageError(f"There is no mapping of {resource}.", f"There are: {', '.join(sorted(mappings.resources))}.")
    views = [(view, _columns(view, _own_places(reading, resource, view.name, settings))) for view in mapping.views]
    if as_json:
        print_json(_mapping_as_json(mapping, views))
        return
    if as_csv:
        rows = [(view.name, *row) for view, listing in views for row in listing.rows]
        print_csv(Listing("", (Column("view", "view", "code"), *_COLUMN), rows))
        return
    console = words_console(as_document=False)
    for line in _filters(mapping):
        console.print(line)
    for view, listing in views:
        console.print()
        for line in _view(view):
            console.print(line)
        if not any(row[3] for row in listing.rows):
            print_listing(console, Listing("", _COLUMN[:3], [row[:3] for row in listing.rows]))
            continue  # nothing is of a site's own
        print_listing(console, listing)


def _mapping_as_json(mapping: ResourceMapping, views: list[tuple[ViewMapping, Listing]]) -> dict[str, Any]:
    """`rules` and `filters` are the lines that people read."""
    return {
        "resource": mapping.resource,
        "filters": [line.strip() for line in list(_filters(mapping))[1:]],
        "views": [
            {
                "name": view.name,
                "kind": view.kind,
                "table": view.table,
                "rules": [line.strip() for line in list(_view(view))[1:]],
                "columns": listing_as_json(listing),
            }
            for view, listing in views
        ],
    }


def _check_site(site: str) -> str | None:
    from pipeline.commands.site_names import site_of_mappings
    from pipeline.core.settings import load_settings

    return site_of_mappings(load_settings(), site).name if site else None


def _known_concepts(settings: Settings) -> KnownConcepts:
    """The loaded vocabulary; the demonstration vocabulary where there is none. Makes no database for that."""
    from pipeline.core.errors import VocabularyError
    from pipeline.core.settings import MAPPINGS_FOLDER
    from pipeline.transform.mapping_check.concepts import demo_concepts, indexed_concepts
    from pipeline.warehouse.vocabulary import ensure_index

    url = _url_of_warehouse(settings)
    if url:
        try:
            index = ensure_index(
                url, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema, home=settings.home
            )
            return indexed_concepts(index)
        except VocabularyError:
            pass
    return demo_concepts(MAPPINGS_FOLDER / "demo_vocabulary")


def _url_of_warehouse(settings: Settings) -> str | None:
    """None where there is no database, or `db init` has not been run in it: mappings can be written before that."""
    from pipeline.warehouse.connection import connect, database_url
    from pipeline.warehouse.embedded.folder import find_server_folder

    if settings.database_url is None and find_server_folder(settings.home) is None:
        return None
    url = database_url(settings.database_url, settings.home)
    with connect(url) as connection:
        return url if is_installed(connection, settings.etl_schema) else None


def _short(file: str, settings: Settings) -> str:
    """A path below the mappings or the home without what all of them share."""
    for folder, name in ((settings.mappings, settings.mappings.name), (settings.home, settings.home.name)):
        if Path(file).is_relative_to(folder):
            return str(Path(name) / Path(file).relative_to(folder))
    return file


def _filters(mapping: ResourceMapping) -> Iterator[str]:
    yield mapping.resource
    status = mapping.status
    if status:
        yield f"  {status.column}: kept {', '.join(status.keep)}; missing: {status.missing}"
        for value, reason in status.exclude.items():
            yield f"    excluded {value}: {reason}"
    for rule in mapping.exclude:
        yield f"  excluded where {rule.when}: {rule.reason}"
    for url in mapping.known_modifiers:
        yield f"  modifier known: {url}"


def _view(view: ViewMapping) -> Iterator[str]:
    kinds = {
        "resource": "one row a resource; its columns are joined to every other view",
        "event": "events, in the table of their concept's domain",
        "entity": f"rows of {view.table}",
        "fact": f"the fact {view.fact or view.name}, for other resources",
    }
    yield f"{view.name}: {kinds[view.kind]}"
    for condition in view.definition.get("where", ()):
        yield f"  where {condition['path']}"
    if view.code:
        yield f"  codes: {view.code}" + (f", vocabularies by {view.priority}" if view.priority else "")
    for name in ("concept_id", "type_concept_id", "home_table", "result_concept_id"):
        for rule in getattr(view, name):
            yield f"  {name.replace('_', ' ')}: {_rule(rule)}"
    if view.derive:
        yield f"  rules: {', '.join(view.derive)}"
    if view.required:
        yield f"  required: {', '.join(view.required)}"


def _rule(rule: TableRule | ConceptRule) -> str:
    from pipeline.transform.mapping.mappings import ConceptRule

    value = " else ".join(map(str, rule.concept_ids)) if isinstance(rule, ConceptRule) else rule.table
    return f"{value} where {rule.when}" if rule.when else value


_COLUMN = (
    Column("column", "column", "code"),
    Column("path", "path", "path"),
    Column("type", "type", "code"),
    Column("from", "from", "path"),
)


def _columns(view: ViewMapping, own: dict[str, str]) -> Listing:
    types = view.column_types
    rows = [(name, path, types[name], own.get(name)) for name, path in view.column_paths.items()]
    return Listing("", _COLUMN, rows)


def _own_places(reading: MappingReading, resource: str, view: str, settings: Settings) -> dict[str, str]:
    """Column → file and line, for those that a site's own files give."""
    from pipeline.transform.mapping.overlays import entries
    from pipeline.transform.mapping.sources import column_nodes, line_of

    own = {}
    for node in entries(reading.sources.resources[resource])["views"][1].value:
        pairs = entries(node)
        if pairs["name"][1].value == view and "select" in pairs:
            for name, column in column_nodes(pairs["select"][1]):
                file, line = line_of(column)
                if Path(file).parent != settings.mappings:
                    own[name] = f"{_short(file, settings)}:{line}"
    return own
