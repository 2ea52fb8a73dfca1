"""`epic-omop status`: where every site stands, what needs a person, and what to do, on one screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omop_schema.exports import ExportKind
from pipeline.commands.output import (
    Column,
    JsonOption,
    Listing,
    print_json,
    print_listing,
    print_paragraph,
    words_console,
)
from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Terminal, bold, styled, words
from pipeline.commands.warehouse_state import is_installed, settings_texts

if TYPE_CHECKING:
    import psycopg

    from pipeline.landing.usage import LandingUsage
    from pipeline.operations.alerts.kinds import Condition
    from pipeline.operations.site_status import DagsterRuns, SiteStatus
    from pipeline.warehouse.runtime import Runtime

__all__ = ["InstanceStatus", "look", "register"]


def register(app: typer.Typer) -> None:
    app.command("status")(status)


def status(
    site: Annotated[str | None, typer.Option("--site", help="Everything about this site.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where everything stands: each site's last and next run, what runs, waits and failed, what needs a person.

    Exit code 0: nothing needs a person; 1: something does, and it says what and the command for it. Alerts are sent by
    the same rules (docs/alerts.md).

    Example: epic-omop status --site north
    """
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    console = words_console(as_document=as_json)
    with runtime.connect() as connection:
        if not is_installed(connection, runtime.settings.etl_schema):
            _say_empty(console, runtime, as_json=as_json)
            return
        if site is not None:
            known_site(runtime, site)
        found = look(runtime, connection, site)
    if as_json:
        print_json(_as_json(found))
    else:
        _print(console, found, with_everything=site is not None)
    if found.needs_person:
        raise typer.Exit(1)


@dataclass(frozen=True)
class InstanceStatus:
    """All that is shown. `dagster` is None where there has been none in this home."""

    home: str
    sites_file: str
    at: datetime
    release: str | None
    dagster: DagsterRuns | None
    sites: Sequence[SiteStatus]
    conditions: Sequence[Condition]
    usage: LandingUsage
    missing_lines: int
    notes: Sequence[str]

    @property
    def needs_person(self) -> bool:
        return any(condition.needs_person for condition in self.conditions)


def look(runtime: Runtime, connection: psycopg.Connection, site: str | None) -> InstanceStatus:
    """Of all sites, or of one. `connection` has the etl schema on its search_path. Raises ConfigurationError."""
    from pipeline.commands.landing import usage
    from pipeline.load.landed_lines import missing_lines
    from pipeline.operations.alerts.circumstances import DagsterState
    from pipeline.operations.alerts.rules import current_conditions
    from pipeline.operations.site_status import site_statuses
    from pipeline.warehouse.vocabulary import current_release

    settings, dagster = runtime.settings, _dagster(runtime)
    stopped = frozenset(name for name, runs in dagster.sites.items() if not runs.schedule) if dagster else frozenset()
    state = DagsterState(dagster.daemon, stopped) if dagster else None
    conditions = current_conditions(connection, runtime, lambda: state)
    sites = list(site_statuses(connection, runtime, dagster))
    conditions += _further_failures(sites, conditions)
    conditions.sort(key=lambda one: (not one.needs_person, one.site or "", one.key))
    release = current_release(runtime.url, etl_schema=settings.etl_schema)
    return InstanceStatus(
        str(settings.home),
        str(settings.sites_file),
        runtime.clock.now(),
        release.release if release else None,
        dagster,
        [found for found in sites if site in (None, found.site)],
        [one for one in conditions if site is None or one.site in (None, site)],
        usage(runtime, connection),
        missing_lines(connection),
        settings_texts(runtime, connection),
    )


def _further_failures(sites: Sequence[SiteStatus], known: Sequence[Condition]) -> list[Condition]:
    """Failed exports that no alert is about, such as folders that were loaded by hand."""
    from pipeline.operations.alerts.kinds import AlertKind, Condition

    keys = {condition.key for condition in known}
    further = [
        Condition(
            AlertKind.RUN_FAILED,
            site.site,
            f"Export {one.export}{_of(one.group)} is {one.state}: {one.error or 'no reason is known'}",
            f"{one.kind}:{one.group}",
            _command(site, one.kind),
        )
        for site in sites
        for one in site.failed
    ]
    return [condition for condition in further if condition.key not in keys]


def _command(site: SiteStatus, kind: str) -> str:
    """What does a failed export once more."""
    if kind == ExportKind.REPLAY:
        return f"epic-omop dead-letters replay --site {site.site}"
    if kind == ExportKind.FOLDER or not site.is_nightly:
        return f"epic-omop ingest --site {site.site} --from FOLDER"
    return f"epic-omop run --site {site.site}"


def _dagster(runtime: Runtime) -> DagsterRuns | None:
    """None: there has been no Dagster in this home."""
    if not (runtime.settings.home / "dagster" / "dagster.yaml").exists():  # Dagster takes seconds to import
        return None
    from pipeline.orchestration.site_runs import read_runs

    return read_runs(runtime.settings, runtime.clock.now())


def _say_empty(console: Terminal, runtime: Runtime, *, as_json: bool) -> None:
    if as_json:
        print_json({"home": str(runtime.settings.home), "warehouse": "empty", "needs_person": False, "sites": []})
    console.print("The warehouse is empty: `epic-omop db init` makes its schemas, `epic-omop demo` shows the way.")


# --- for programs ------------------------------------------------------------------------------------------


def _as_json(found: InstanceStatus) -> dict[str, Any]:
    return {
        "home": found.home,
        "checked_at": found.at,
        "warehouse": "ready",
        "vocabulary": found.release,
        "daemon": found.dagster.daemon if found.dagster else None,
        "needs_person": found.needs_person,
        "problems": [
            {
                "kind": condition.kind.value,
                "site": condition.site,
                "severity": condition.severity,
                "needs_person": condition.needs_person,
                "what": condition.what,
                "meaning": condition.text.meaning,
                "to_do": condition.text.to_do,
                "command": condition.command,
            }
            for condition in found.conditions
        ],
        "sites": [_site_as_json(site) for site in found.sites],
        "landing": asdict(found.usage) | {"days_left": found.usage.days_left},
        "missing_lines": found.missing_lines,
        "notes": list(found.notes),
    }


def _site_as_json(site: SiteStatus) -> dict[str, Any]:
    return asdict(site) | {"state": site.state}


# --- for people --------------------------------------------------------------------------------------------

_STATES = {"ok": "green", "failed": "bold red", "waiting": "yellow", "off": "yellow", "never": "dim"}
_SITE = (
    Column("site", "site", "code"),
    Column("state", "state", "code", _STATES),
    Column("last_published", "published", "time"),
    Column("last_run", "last run", "code", {"FAILURE": "bold red"}),
    Column("next_run", "next run", "time"),
    Column("open_dead_letters", "dead letters", "count"),
)


def _print(console: Terminal, found: InstanceStatus, *, with_everything: bool) -> None:
    from pipeline.load.landed_lines import missing_sentence

    console.print(f"Home: {found.home}", soft_wrap=True)
    console.print(f"Vocabulary: {found.release or 'none (epic-omop vocabulary load FOLDER)'}")
    if found.dagster and not found.dagster.daemon and any(runs.schedule for runs in found.dagster.sites.values()):
        console.print(
            "Dagster's daemon does not run: no night begins by itself. Start it: epic-omop ui", style="yellow"
        )
    if not found.sites:
        console.print(f"No site yet: write {found.sites_file}, or load a folder with `epic-omop ingest`.")
        return
    print_listing(console, Listing("", _SITE, [_row(site) for site in found.sites]))
    for site in found.sites:
        _print_details(console, site, list(_details(site, with_everything=with_everything)))
    _print_conditions(console, found.conditions)
    console.print(found.usage.sentence())
    if found.missing_lines:
        console.print(missing_sentence(found.missing_lines), style="yellow")
    for note in found.notes:
        console.print(note)


def _row(site: SiteStatus) -> tuple[Any, ...]:
    next_run = site.runs.next_run if site.runs and site.runs.schedule else "off" if site.is_nightly else None
    last_run = site.runs.last.status if site.runs and site.runs.last else None
    return site.site, site.state, site.last_published, last_run, next_run, site.open_dead_letters


def _print_details(console: Terminal, site: SiteStatus, details: Sequence[tuple[str, str]]) -> None:
    if not details:
        return
    console.print(bold(site.site))
    for label, text in details:
        print_paragraph(console, text, indent=4 + len(label), first=f"  {label}: ")


def _details(site: SiteStatus, *, with_everything: bool) -> Iterator[tuple[str, str]]:
    """What asks to be read, or all there is."""
    for run in site.runs.unfinished if site.runs else ():
        yield "run", f"{run.job} {run.status} since {_time(run.created_at)}"
    for export in site.running:
        progress = f", {export.progress}" if export.progress else ""
        look = f", next look {_time(export.next_look)}" if export.next_look else ""
        yield "now", f"export {export.export} of {export.group or 'a folder'}: {export.state}{progress}{look}"
    if site.last_error and not site.failed:
        yield "last error", site.last_error
    yield from (("waiting", text) for text in _waiting(site))
    if site.is_nightly and not (site.runs and site.runs.schedule):
        yield "next", f"schedule off (epic-omop site enable {site.site})"
    elif site.runs is not None and not site.runs.sensor:
        yield "next", f"sensor off (epic-omop site enable {site.site})"
    elif with_everything and site.runs is not None:
        yield "next", f"schedule {_time(site.runs.next_run)}"
    if site.requests.is_spent or (with_everything and site.requests.this_hour):
        yield "requests this hour", _requests(site)
    yield from (("last exports", text) for text in site.exports_lack)
    if with_everything:
        if site.last_export:
            yield "published", f"export {site.last_export}, {_time(site.last_published)}"
        for code in site.unmapped:
            named = f"{code.resource_type}.{code.element} {code.code or '(text only)'}"
            yield "unmapped", f"{named}: {code.count:,}"


def _waiting(site: SiteStatus) -> Iterator[str]:
    for one in site.waiting:
        if one.why == "cool-down" and not one.attempts:
            yield f"group {one.group} is in its cool-down until {_time(one.until)}"
            continue
        refused = "" if one.attempts == 1 else f" (refused {one.attempts} times)"
        again = _time(one.until)
        if site.runs is None or not (site.runs.sensor and site.runs.daemon):
            again = f"by hand from {again} on, as Dagster's sensor does not run"
        yield f"group {one.group}: kick-off again {again}{refused}: {one.why}"


def _requests(site: SiteStatus) -> str:
    if site.requests.budget is None:
        return f"{site.requests.this_hour:,}"
    return f"{site.requests.this_hour:,} of {site.requests.budget:,}{', spent' if site.requests.is_spent else ''}"


def _print_conditions(console: Terminal, conditions: Sequence[Condition]) -> None:
    """The worst first: what happened, and the command that helps."""
    for condition in conditions:
        mark = styled("✗", "bold red") if condition.needs_person else styled("!", "yellow")
        about = f" {condition.site}:" if condition.site else ""
        console.print(words(mark, bold(f"{about} {condition.text.title}.")))
        print_paragraph(console, condition.what, indent=4)
        print_paragraph(console, condition.text.to_do, indent=4)
        console.print(words("    → ", bold(condition.command)), soft_wrap=True)


def _of(group: str | None) -> str:
    return f" of {group}" if group else ""


def _time(value: datetime | None) -> str:
    return f"{value:%Y-%m-%d %H:%M %Z}" if value else "never"
