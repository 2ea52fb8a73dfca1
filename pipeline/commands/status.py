"""`epic-omop status`: each site's last and next run; what runs, waits, and failed."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import typer

from omop_schema.exports import OPEN_STATES, ExportKind, ExportState, sql_values
from pipeline.commands.terminal import Table, Terminal, Text, lines
from pipeline.commands.warehouse_state import is_installed, print_settings_notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from pipeline.core.settings import SiteSettings
    from pipeline.orchestration.switches import SiteSwitches
    from pipeline.quality.report import UnmappedCode
    from pipeline.warehouse.runtime import Runtime

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("status")(status)


def status() -> None:
    """Show where everything stands: the warehouse, the vocabulary, each site's exports and dead letters."""
    from pipeline.commands.landing import usage
    from pipeline.load.landed_lines import missing_lines, missing_sentence
    from pipeline.quality.report import unmapped_by_site
    from pipeline.warehouse.export_jobs import sites_with_exports
    from pipeline.warehouse.runtime import Runtime
    from pipeline.warehouse.vocabulary import current_release

    runtime = Runtime.from_environment()
    console = Terminal(highlight=False)
    settings = runtime.settings
    with runtime.connect() as connection:
        if not is_installed(connection, settings.etl_schema):
            console.print(
                "The warehouse is empty: `epic-omop db init` makes its schemas, `epic-omop demo` shows the way."
            )
            return
        release = current_release(runtime.url, etl_schema=settings.etl_schema)
        console.print(f"Home: {settings.home}", soft_wrap=True)
        console.print(f"Vocabulary: {release.release if release else 'none (epic-omop vocabulary load FOLDER)'}")
        names = sorted({*settings.sites, *sites_with_exports(connection)})
        if not names:
            console.print(f"No site yet: write {settings.sites_file}, or load a folder with `epic-omop ingest`.")
            return
        unmapped = unmapped_by_site(connection, most=5)
        for name in names:
            console.print(_site_table(_row(connection, runtime, name, unmapped.get(name, ()))))
        console.print(usage(runtime, connection).sentence(), soft_wrap=True)
        if missing := missing_lines(connection):
            console.print(missing_sentence(missing), style="yellow", soft_wrap=True)
        print_settings_notes(console, runtime, connection)


#: What is shown of a site, one line each: nine columns of a table would be five letters wide in a terminal of 80.
_LABELS = (
    "site", "last published", "now", "next", "requests this hour", "open dead letters", "last error",
    "last exports lack", "most frequent unmapped codes",
)  # fmt: skip


def _site_table(row: tuple[str | Text, ...]) -> Table:
    table = Table(_LABELS[0], str(row[0]), box=None, pad_edge=False)
    for label, value in zip(_LABELS[1:], row[1:], strict=True):
        table.add_row(label, value)
    table.add_row("", "")
    return table


def _row(
    connection: psycopg.Connection, runtime: Runtime, site: str, unmapped: Sequence[UnmappedCode]
) -> tuple[str | Text, ...]:
    last = connection.execute(
        f"SELECT export_id, published_at FROM export_job WHERE site = %s AND state = '{ExportState.PUBLISHED}'"
        f" AND kind <> '{ExportKind.REPLAY}'"
        " ORDER BY published_at DESC LIMIT 1",
        (site,),
    ).fetchone()
    dead_letters = connection.execute("SELECT count(*) FROM dead_letter_open WHERE site = %s", (site,)).fetchone()
    failed = connection.execute(
        "SELECT export_id, state, error FROM export_job WHERE site = %s ORDER BY export_id DESC LIMIT 1", (site,)
    ).fetchone()
    error = f"export {failed[0]} {failed[1]}: {failed[2]}" if failed and failed[2] else "–"
    return (
        site,
        f"export {last[0]}, {_time(last[1])}" if last else "never",
        _now(connection, site),
        _next(connection, runtime, site),
        _requests(connection, runtime, site),
        f"{dead_letters[0]:,}" if dead_letters and dead_letters[0] else "·",
        error,
        _notes(connection, site),
        _unmapped(unmapped),
    )


def _unmapped(codes: Sequence[UnmappedCode]) -> Text:
    """Codes of the site's resources as they are now that have no concept."""
    found = [f"{code.resource_type}.{code.element} {code.code or '(text only)'}: {code.count:,}" for code in codes]
    return lines(found or ["·"])


def _notes(connection: psycopg.Connection, site: str) -> Text:
    """Of each group's last landed export: types that did not come, what the site reported, what is not there any more."""
    from pipeline.extract.notes import export_notes
    from pipeline.quality.report import vanished_counts, vanished_sentences

    rows = connection.execute(
        f"SELECT max(export_id) FROM export_job WHERE site = %s AND kind = '{ExportKind.BULK}' AND landed_at IS NOT NULL"
        " GROUP BY group_id ORDER BY 1",
        (site,),
    ).fetchall()
    ids = [row[0] for row in rows]
    sentences = [*export_notes(connection, ids).sentences(), *vanished_sentences(vanished_counts(connection, ids))]
    return lines(sentences or ["·"])


def _now(connection: psycopg.Connection, site: str) -> Text:
    """What is open: exports at the site and landed ones that wait to be loaded."""
    rows = connection.execute(
        "SELECT export_id, group_id, state, progress, next_poll_at FROM export_job WHERE site = %s"
        f" AND state IN {sql_values(OPEN_STATES)} ORDER BY export_id",
        (site,),
    ).fetchall()
    texts = []
    for export_id, group, state, progress, next_poll in rows:
        text = f"export {export_id} of {group or 'a folder'}: {state}"
        if progress:
            text += f", {progress}"
        if next_poll:
            text += f", next look {_time(next_poll)}"
        texts.append(text)
    return lines(texts or ["nothing runs"])


def _next(connection: psycopg.Connection, runtime: Runtime, site: str) -> Text:
    """The next scheduled run, the cool-downs that are in force, and the kick-offs that were refused for now."""
    from cronsim import CronSim

    from pipeline.warehouse.next_kick_offs import next_kick_offs

    known = runtime.settings.sites.get(site)
    switches = _switches(runtime, known) if known is not None and known.fhir_url is not None else None
    texts = []
    if known is not None and known.fhir_url is not None:
        at = _time(next(CronSim(known.schedule, runtime.clock.now().astimezone(known.zone))))
        texts += _schedule(known, switches, at)
    rows = connection.execute(
        "SELECT group_id, next_try FROM cool_down WHERE site = %s AND next_try > %s ORDER BY next_try",
        (site, runtime.clock.now()),
    ).fetchall()
    texts += [f"group {group} is in its cool-down until {_time(next_try)}" for group, next_try in rows]
    for entry in next_kick_offs(connection, known) if known is not None else ():
        refused = "" if entry.attempt == 1 else f" (refused {entry.attempt} times)"
        again = _time(entry.next_try)
        if switches is None or not (switches.sensor and switches.daemon):
            again = f"by hand from {again} on, as Dagster's sensor does not run"
        texts.append(f"group {entry.group_id}: kick-off again {again}{refused}: {entry.reason}")
    return lines(texts or ["by hand"])


def _switches(runtime: Runtime, site: SiteSettings) -> SiteSwitches | None:
    """None: there has been no Dagster in this home."""
    if not (runtime.settings.home / "dagster" / "dagster.yaml").exists():  # Dagster takes seconds to import
        return None
    from pipeline.orchestration.switches import open_instance, read_switches

    with open_instance(runtime.settings) as instance:
        return read_switches(instance, site)


def _schedule(site: SiteSettings, switches: SiteSwitches | None, at: str) -> list[str]:
    """What Dagster will do by itself; what is off is not announced."""
    if switches is None or not switches.schedule:
        return [f"schedule off (epic-omop site enable {site.name})"]
    lacks = [] if switches.daemon else ["Dagster's daemon does not run: epic-omop ui"]
    lacks += [] if switches.sensor or not site.groups else [f"sensor off: epic-omop site enable {site.name}"]
    return [f"schedule {at}", *lacks]


def _requests(connection: psycopg.Connection, runtime: Runtime, site: str) -> str:
    """Sent to the site since the hour began, and the budget where there is one."""
    from pipeline.extract.request_budget import requests_in_hour

    known = runtime.settings.sites.get(site)
    budget = known.request_budget_per_hour if known else None
    count = requests_in_hour(connection, site, runtime.clock.now())
    if budget is None:
        return f"{count:,}" if count else "·"
    spent = ", spent" if count >= budget else ""
    return f"{count:,} of {budget:,}{spent}"


def _time(value: datetime) -> str:
    return value.strftime("%Y-%m-%d %H:%M %Z")
