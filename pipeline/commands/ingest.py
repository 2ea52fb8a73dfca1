"""`epic-omop ingest`, `run` and `verify`: landed files → OMOP, for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.output import (
    Column,
    JsonOption,
    Listing,
    listing_as_json,
    print_json,
    print_listing,
    words_console,
)
from pipeline.commands.tables import load_progress, load_report_as_json, print_load_report
from pipeline.commands.terminal import Terminal, styled, words
from pipeline.commands.warehouse_state import print_settings_notes, refuse_empty
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from pipeline.core.settings import SiteSettings
    from pipeline.landing.store import LandedExport
    from pipeline.load.load import LoadOptions
    from pipeline.load.resolving import NightResolution
    from pipeline.quality.deep.model import DeepReport, DeepRequest
    from pipeline.quality.report import LoadReport
    from pipeline.quality.verify import Check
    from pipeline.warehouse.runtime import Runtime

__all__ = ["load_and_report", "load_exports", "register"]

_CONFIRM = "Delete what has vanished by the site's policy, however much it is."


def register(app: typer.Typer) -> None:
    """Add `ingest`, `run` and `verify` to the program."""
    app.command("ingest")(ingest)
    app.command("run")(run)
    app.command("verify")(verify)


def ingest(
    site: Annotated[
        str, typer.Option("--site", help="Name under which the resources are kept; need not be in sites.yaml.")
    ],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of <ResourceType>*.ndjson or Bundle .json files, also .gz; or one file."),
    ] = None,
    export: Annotated[int | None, typer.Option("--export", help="Load this landed export instead (again).")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Map every line again, also over what newer exports contain.")
    ] = False,
    group: Annotated[
        str | None, typer.Option("--group", help="With --from: the folder is an export of this group.")
    ] = None,
    complete: Annotated[
        bool,
        typer.Option("--complete", help="With --group: it holds all that the group has of the types of its files."),
    ] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help=_CONFIRM)] = False,
    new_site: Annotated[
        bool, typer.Option("--new-site", help="The name is right, although it is nearly that of another site.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Load NDJSON files or Bundles into OMOP without a server: land, transform, publish in one transaction.

    The files are copied into landing first, Bundles as the resources in them; each line ends as loaded, unchanged,
    superseded, excluded or rejected. Run again, only what changed is loaded.

    Example: epic-omop ingest --site north --from /data/export
    """
    from pipeline.commands.site_names import known_site, loadable_site
    from pipeline.extract.bulk import folder_load, ingest_folder
    from pipeline.load.landed_exports import landed_export
    from pipeline.load.load import LoadOptions
    from pipeline.warehouse.runtime import Runtime

    _refuse_contradictions(source, export, group, is_complete=complete)
    runtime = Runtime.from_environment()
    runtime.settings.site_or_folder(site)  # a name that cannot be one is refused before a server is started
    if source is not None and not source.exists():
        raise UsageError(f"There is no folder {source}.", "--from names a folder with NDJSON files, or one file.")
    _prepare(runtime)
    console = words_console(as_document=as_json)
    options = LoadOptions(force=force, over_newer=force, confirmed=confirm)
    if source is None:
        # A site is known by its exports: by this one as well, which a new database has not heard of.
        if not runtime.landing.exists(site, export or 0):
            known_site(runtime, site)
        landed = landed_export(runtime, site, export or 0)
        settings = known_site(runtime, site)
        load_and_report(console, runtime, settings, [landed], options, as_json=as_json)
        return
    settings = loadable_site(runtime, site, is_new=new_site)
    with folder_load(runtime, site):
        with console.status("landing"):
            landed = ingest_folder(runtime, site, source, group=group, complete=complete)
        load_and_report(console, runtime, settings, [landed], options, as_json=as_json)


def _refuse_contradictions(source: Path | None, export: int | None, group: str | None, *, is_complete: bool) -> None:
    if (source is None) == (export is None):
        raise UsageError("Say what to load.", "Give --from FOLDER, or --export NUMBER for an export that is landed.")
    if (group is not None and source is None) or (is_complete and group is None):
        raise UsageError("--group goes with --from, and --complete with --group.", "See docs/vanished.md.")


def run(
    site: Annotated[str, typer.Option("--site", help="Name of a site in sites.yaml.")],
    group: Annotated[list[str] | None, typer.Option("--group", help="Only this group; repeat for several.")] = None,
    confirm: Annotated[bool, typer.Option("--confirm", help=_CONFIRM)] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a site's groups from Epic, transform and publish: what the nightly schedule does, in one command.

    Safe to stop: run again, it continues with the open export and the files that are there. Exit code 75: try later.

    Example: epic-omop run --site north
    """
    from pipeline.commands.export_progress import ExportProgress, is_interactive
    from pipeline.extract.bulk import export_groups
    from pipeline.extract.bulk.request import checked_groups
    from pipeline.load.load import LoadOptions
    from pipeline.load.resolving import resolve_and_remap, resolve_codes
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    settings = runtime.settings.site(site)
    groups = checked_groups(settings, group)
    _prepare(runtime)
    console = words_console(as_document=as_json)
    with ExportProgress(console) as progress:
        keep = progress.keep_future_time if is_interactive(console) else None
        result = export_groups(runtime, settings, groups, progress.show, keep_future_time=keep)
    if result.landed:
        resolve_codes(runtime, settings)
        options = LoadOptions(hydrate=True, confirmed=confirm)
        load_and_report(console, runtime, settings, result.landed, options, as_json=as_json)
        _print_resolution(console, resolve_and_remap(runtime, settings))
    elif as_json:
        print_json({"exports": []})
    for error in result.failures.values():
        raise error


def _print_resolution(console: Terminal, found: NightResolution) -> None:
    """What the site's resolvers said about codes that were unknown; nothing where it has none."""
    for report in found.reports:
        console.print(
            f"Resolver {report.resolver}: {report.exact - report.not_standard:,} codes resolved, {report.unknown:,} unknown,"
            f" {report.unanswered:,} without an answer.",
            soft_wrap=True,
        )
    for sentence in found.sentences():
        console.print(sentence, style="yellow", markup=False, soft_wrap=True)
    if found.remapped is not None:
        console.print(f"{found.remapped.mapped.total():,} resources were mapped again.")


def load_and_report(
    console: Terminal,
    runtime: Runtime,
    site: SiteSettings,
    exports: Sequence[LandedExport],
    options: LoadOptions | None = None,
    *,
    as_json: bool = False,
) -> None:
    """Load landed exports in the order of their times, with a bar, and print their results."""
    report = load_exports(console, runtime, site, exports, options)
    if as_json:
        print_json(load_report_as_json(report))
    else:
        print_load_report(console, report)


def load_exports(
    console: Terminal,
    runtime: Runtime,
    site: SiteSettings,
    exports: Sequence[LandedExport],
    options: LoadOptions | None = None,
) -> LoadReport:
    """Load landed exports in the order of their times, with a bar and a sentence for each."""
    from pipeline.commands.rest_progress import print_hydrations
    from pipeline.load.load import USUAL, load
    from pipeline.quality.report import load_report

    ids: list[int] = []
    for export in sorted(exports, key=lambda export: (export.transaction_time, export.export_id)):
        progress, shown = load_progress(console, options or USUAL)
        with progress:
            result = load(runtime, site, export, shown)
        reports = result.reports
        ids += [report.export_id for report in reports]
        first = reports[0]
        seconds = first.transform_seconds + first.publish_seconds
        console.print(
            f"Export {first.export_id} of {site.name}: {first.lines:,} lines in {seconds:.1f} s"
            f" (transform {first.transform_seconds:.1f}, publish {first.publish_seconds:.1f})."
        )
        for warning in dict.fromkeys(text for report in reports for text in report.warnings):
            console.print(warning, style="yellow", markup=False, soft_wrap=True)
        print_hydrations(console, result.hydrations)
        fetched = sum(landed.lines for hydration in result.hydrations for landed in hydration.landed)
        replayed = sum(report.lines for report in reports[1:]) - fetched
        if replayed:
            console.print(f"{replayed:,} lines that had waited for these resources went through again.")
    with runtime.connect() as connection:
        return load_report(connection, runtime.settings.cdm_schema, runtime.settings.vocab_schema, ids)


def verify(
    files: Annotated[bool, typer.Option("--files", help="Also read every landed file again (SHA-256).")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also load persons afresh beside the warehouse, and compare all their rows.")
    ] = False,
    persons: Annotated[
        int | None, typer.Option("--persons", min=1, help="With --deep: how many persons are chosen (50).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="With --deep: everything instead of a sample.")] = False,
    site: Annotated[str | None, typer.Option("--site", help="With --deep: only persons of this site.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="With --deep: which persons are chosen; by default another each day.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that nothing was lost: accounts of all files, sources of all rows, rows of all sources.

    With --deep, whether every row and link is what a fresh load of the landed lines makes (docs/verify.md).
    Exit code 0: everything holds; 70: something does not.

    Example: epic-omop verify --files
    """
    from pipeline.core.errors import AccountingError
    from pipeline.load.landed_lines import missing_lines, missing_sentence
    from pipeline.quality.verify import keep_answers
    from pipeline.warehouse.runtime import Runtime

    if not deep and (everything or persons is not None or site is not None or seed is not None):
        raise UsageError("--persons, --all, --site and --seed go with --deep.", "See docs/verify.md.")
    runtime = Runtime.from_environment()
    console = words_console(as_document=as_json)
    deep_report = None
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        if deep:
            from pipeline.commands.verify_deep import deep_request, refuse_differences, run_deep

            request = deep_request(runtime, persons=persons, everything=everything, site=site, seed=seed)
        checks = _checks(runtime, connection, with_files=files)
        accounts = _accounts(connection)
        print_listing(console, accounts)
        print_settings_notes(console, runtime, connection)
        _print_overlaps(console, runtime, connection)
        missing = missing_lines(connection)
    keep_answers(runtime, checks)
    if missing:
        console.print(missing_sentence(missing), style="yellow", soft_wrap=True)
    failed = _print_checks(console, checks)
    if deep:
        deep_report = run_deep(console, runtime, request)
    if as_json:
        print_json(_verify_as_json(checks, accounts, missing, (deep_report, request) if deep_report else None))
    if failed:
        advice = "\n".join(
            dict.fromkeys(check.advice or "Please report this with the lines above." for check in failed)
        )
        raise AccountingError(f"{len(failed)} of {len(checks)} checks failed.", advice)
    if deep_report:
        refuse_differences(deep_report)


def _verify_as_json(
    checks: Sequence[Check], accounts: Listing, missing: int, deep: tuple[DeepReport, DeepRequest] | None
) -> dict[str, Any]:
    from pipeline.commands.verify_deep import deep_as_json

    return {
        "checks": [
            {
                "name": check.name,
                "ok": check.ok,
                "problems": check.problems,
                "detail": check.detail or None,
                "advice": check.advice or None,
            }
            for check in checks
        ],
        "accounts": listing_as_json(accounts),
        "missing_lines": missing,
        "deep": deep_as_json(*deep) if deep else None,
    }


def _checks(runtime: Runtime, connection: psycopg.Connection, *, with_files: bool) -> list[Check]:
    """What must hold; `with_files` reads all that has landed."""
    from pipeline.quality.checks.model import Schemas
    from pipeline.quality.verify import (
        verify_access_log,
        verify_concepts,
        verify_landing,
        verify_warehouse,
    )

    settings = runtime.settings
    schemas = Schemas(settings.cdm_schema, settings.vocab_schema, settings.cdm_version)
    checks = [*verify_warehouse(connection, settings.cdm_schema), *verify_concepts(connection, schemas)]
    checks.append(verify_access_log(connection, settings.home))
    return [*checks, *verify_landing(connection, runtime.landing)] if with_files else checks


def _print_overlaps(console: Terminal, runtime: Runtime, connection: psycopg.Connection) -> None:
    """Exposures that may be counted twice, of all persons."""
    from pipeline.quality.overlaps import overlap_sentence, overlapping_exposures

    settings = runtime.settings
    overlaps = overlapping_exposures(connection, settings.cdm_schema, settings.vocab_schema)
    if overlaps:
        console.print(overlap_sentence(overlaps))


def _print_checks(console: Terminal, checks: Sequence[Check]) -> list[Check]:
    """The failed ones, each printed; or one line for all."""
    failed = [check for check in checks if not check.ok]
    for check in failed:
        console.print(words(styled("✗", "red"), f" {check.name}: {check.problems:,} {check.detail}"))
    if not failed:
        console.print(
            words(
                styled("✓", "green"), f" {len(checks)} checks hold: every line has one outcome, every row its source."
            )
        )
    return failed


_ACCOUNT = ("files", "lines", "loaded", "unchanged", "superseded", "excluded", "rejected")


def _accounts(connection: psycopg.Connection) -> Listing:
    """The last exports, the newest last."""
    rows = connection.execute(
        "SELECT export_id, site, count(*), sum(lines), sum(loaded), sum(unchanged), sum(superseded), sum(excluded),"
        " sum(rejected) FROM file_account GROUP BY export_id, site ORDER BY export_id DESC LIMIT 20"
    ).fetchall()
    keys = (Column("site", "site", "code"), Column("export", "export", "number"))
    listing = Listing("The last exports, line by line", (*keys, *(Column(name, name, "count") for name in _ACCOUNT)))
    for export_id, site, *counts in reversed(rows):
        listing.add(site, export_id, *(int(count or 0) for count in counts))
    return listing


def _prepare(runtime: Runtime) -> None:
    """Schemas are made on first use; a vocabulary cannot be."""
    from pipeline.core.errors import VocabularyError
    from pipeline.warehouse.schema import ensure_schemas, schema_names
    from pipeline.warehouse.vocabulary import current_release

    settings = runtime.settings
    ensure_schemas(runtime.url, **schema_names(settings))
    if current_release(runtime.url, etl_schema=settings.etl_schema) is None:
        raise VocabularyError(
            "No vocabulary is loaded, so no code could be mapped.",
            "Load an Athena download with `epic-omop vocabulary load FOLDER`; to try things out,"
            " `epic-omop vocabulary load mappings/demo_vocabulary` is in the project.",
        )
