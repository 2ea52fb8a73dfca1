"""`epic-omop export` and `epic-omop site list`: words for people around `pipeline.extract.bulk`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.export_progress import ExportProgress, is_interactive
from pipeline.commands.output import (
    Column,
    CsvOption,
    JsonOption,
    Listing,
    print_json,
    print_listing,
    show,
    words_console,
)
from pipeline.commands.site_check import site_check
from pipeline.commands.site_switches import site_disable, site_enable
from pipeline.commands.tables import counts_listing
from pipeline.commands.terminal import Terminal, bold, words
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from pipeline.core.settings import SiteSettings
    from pipeline.extract.bulk import SiteExport
    from pipeline.landing.store import LandedExport
    from pipeline.warehouse.runtime import Runtime

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `export` and the `site` group to the program."""
    export_app = typer.Typer(invoke_without_command=True, help=export.__doc__)
    export_app.callback()(export)
    export_app.command("abandon")(abandon)
    export_app.command("retime")(retime)
    export_app.command("forget")(forget)
    app.add_typer(export_app, name="export")
    site_app = typer.Typer(no_args_is_help=True, help="The Epic sites of sites.yaml.")
    site_app.command("list")(site_list)
    site_app.command("check")(site_check)
    site_app.command("enable")(site_enable)
    site_app.command("disable")(site_disable)
    app.add_typer(site_app, name="site")


_SITE_HELP = "Name of a site in sites.yaml."


def export(
    context: typer.Context,
    site: Annotated[str | None, typer.Option("--site", help=_SITE_HELP)] = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", help="Only this group; repeat it for several. Default: all.")
    ] = None,
    resource_type: Annotated[
        list[str] | None, typer.Option("--type", help="Only this resource type; repeat it for several. Default: all.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since", parser=instant, help="Only what changed from then on (UTC), where the site knows `_since`."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a site's groups from Epic and land the files; nothing is loaded yet.

    Asked for are the site's resource_types; without them all types that have a mapping, as far as the site has them.
    An export takes from minutes to days. It is safe to stop this command: run again, it continues where it was.
    Epic allows one export of a group in a window (24 hours by default); inside it the command ends with exit
    code 75 and the time of the next try.

    Example: epic-omop export --site north --group E3iab --type Patient --type Condition
    """
    from pipeline.extract.bulk import export_groups
    from pipeline.extract.bulk.request import checked_request
    from pipeline.warehouse.runtime import Runtime

    if context.invoked_subcommand is not None:
        if site or group or since or resource_type:
            raise UsageError(
                f"Options of `export` stand behind `{context.invoked_subcommand}`.",
                f"Such as: epic-omop export {context.invoked_subcommand} --site SITE",
            )
        return
    if site is None:
        raise UsageError("Say which site to export.", "epic-omop export --site SITE; `site list` shows them.")
    runtime = Runtime.from_environment()
    request = checked_request(
        runtime.settings,
        runtime.settings.site(site),
        groups=group or (),
        resource_types=resource_type or (),
        since=since,
    )
    console = words_console(as_document=as_json)
    with ExportProgress(console) as progress:
        keep = progress.keep_future_time if is_interactive(console) else None
        result = export_groups(
            runtime, request.site, request.groups, progress.show, since=request.since, keep_future_time=keep
        )
    _show_result(console, result)
    if as_json:
        print_json([_as_json(landed, result) for landed in result.landed])
    for error in result.failures.values():
        raise error
    console.print(words("Load it with ", bold(f"epic-omop run --site {site}"), "."))


def instant(text: str) -> datetime:
    """A date or time as an option has it: with its own offset from UTC, or in UTC. Raises BadParameter."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a valid time such as 2026-03-01T04:00 or 2026-03-01T04:00-05:00."
        ) from None


def abandon(
    site: Annotated[str, typer.Option("--site", help=_SITE_HELP)],
    group: Annotated[str, typer.Option("--group", help="The group whose open export is given up.")],
) -> None:
    """Give up a group's open export, whatever its state, and delete its job at the site.

    The group is free again; inside Epic's window (24 hours by default) the next kick-off waits until that has passed.

    Example: epic-omop export abandon --site north --group g1
    """
    from pipeline.load.corrections import abandon as abandon_export
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    result = abandon_export(runtime, runtime.settings.site(site), group)
    console = Terminal()
    console.print(f"Export {result.export_id} of group {group} is given up.")
    if result.not_deleted:
        message = (
            f"Its job could not be deleted at the site: {result.not_deleted}. The site deletes it by itself in 14 days."
        )
        console.print(message.replace("..", "."))
    if result.next_try:
        console.print(f"Epic allows the next export of this group from {result.next_try:%Y-%m-%d %H:%M} UTC on.")


def retime(
    site: Annotated[str, typer.Option("--site", help="Name of the export's site.")],
    number: Annotated[int, typer.Option("--export", help="Number of the export.")],
    time: Annotated[
        datetime | None,
        typer.Option("--time", parser=instant, help="The time (UTC) that counts. Default: that of its kick-off."),
    ] = None,
    load: Annotated[bool, typer.Option("--load/--no-load", help="Load again what had counted as older.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Set the time of an export, which orders it among the others: for a transactionTime that cannot be right.

    An export whose time is in the future keeps out everything that comes after it.

    Example: epic-omop export retime --site north --export 12 --time 2026-03-01T04:00
    """
    from pipeline.commands.site_names import known_site
    from pipeline.load.corrections import retime as retime_export
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    settings = known_site(runtime, site)
    result = retime_export(runtime, site, number, time)
    words_console(as_document=as_json).print(f"The time of export {number} is {result.time:%Y-%m-%d %H:%M} UTC now.")
    _load_again(runtime, settings, result.load_again, load=load, as_json=as_json)


def forget(
    site: Annotated[str, typer.Option("--site", help="Name of the export's site.")],
    number: Annotated[int, typer.Option("--export", help="Number of the export.")],
    load: Annotated[bool, typer.Option("--load/--no-load", help="Load the newest other exports again.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Let an export count as if it had not come: everything else is newer. Its files stay in landing.

    Example: epic-omop export forget --site north --export 12
    """
    from pipeline.commands.site_names import known_site
    from pipeline.load.corrections import forget as forget_export
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    settings = known_site(runtime, site)
    result = forget_export(runtime, site, number)
    console = words_console(as_document=as_json)
    console.print(f"Export {number} is forgotten.")
    _load_again(runtime, settings, result.load_again, load=load, as_json=as_json)
    with runtime.connect() as connection:
        row = connection.execute("SELECT count(*) FROM resource_state WHERE export_id = %s", (number,)).fetchone()
    if row and row[0]:
        console.print(f"{row[0]:,} resources are in no other export that was loaded: what they made stays for now.")


def _load_again(
    runtime: Runtime, site: SiteSettings, numbers: Sequence[int], *, load: bool, as_json: bool = False
) -> None:
    from pipeline.commands.ingest import load_and_report

    console = words_console(as_document=as_json)
    if load and numbers:
        exports = [runtime.landing.open(site.name, number) for number in numbers]
        load_and_report(console, runtime, site, exports, as_json=as_json)
        return
    if as_json:
        print_json({"exports": []})
    if numbers:
        listed = ", ".join(map(str, numbers))
        console.print(f"To be loaded again, in this order: {listed} (epic-omop ingest --site {site.name} --export N).")


def site_list(as_json: JsonOption = False, as_csv: CsvOption = False) -> None:
    """List the sites of sites.yaml: address, groups, resource types (–: all that are mapped), time zone, schedule.

    Example: epic-omop site list --json
    """
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    sites = runtime.settings.sites
    console = words_console(as_document=False)
    listing = Listing("", _SITE, [_site_row(sites[name]) for name in sorted(sites)])
    if as_json or as_csv:
        show(console, listing, as_json=as_json, as_csv=as_csv)
        return
    if not sites:
        console.print(f"No sites yet: write {runtime.settings.sites_file} (see README, 'sites.yaml').")
        return
    print_listing(console, listing)


_SITE = (
    Column("site", "site", "code"),
    Column("fhir_url", "FHIR base URL", "path"),
    Column("groups", "groups", "code"),
    Column("resource_types", "types", "code"),
    Column("time_zone", "time zone", "code"),
    Column("schedule", "schedule", "code"),
)


def _site_row(site: SiteSettings) -> tuple[str | list[str] | None, ...]:
    """No types named: all that are mapped."""
    types = None if site.resource_types is None else sorted(site.resource_types)
    return site.name, site.fhir_url, list(site.groups), types, site.time_zone, site.schedule


def _lines_by_type(landed: LandedExport) -> Counter[str]:
    lines: Counter[str] = Counter()
    for file in landed.files:
        lines[file.resource_type] += file.lines
    return lines


def _as_json(landed: LandedExport, result: SiteExport) -> dict[str, Any]:
    return {
        "export": landed.export_id,
        "folder": str(landed.folder),
        "resources": dict(sorted(_lines_by_type(landed).items())),
        "notes": list(result.notes.get(landed.export_id, ())),
    }


def _show_result(console: Terminal, result: SiteExport) -> None:
    for landed in result.landed:
        title = f"Export {landed.export_id}: {landed.folder}"
        column = Column("resource_type", "resource type", "code")
        print_listing(console, counts_listing(title, column, _lines_by_type(landed)))
        for note in result.notes.get(landed.export_id, ()):
            console.print(note)
    for group, error in result.failures.items():
        console.print(f"Group {group}: {error}", style="yellow")
