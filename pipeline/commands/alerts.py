"""`epic-omop alerts`: inform people of what is wrong, list it, and try the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.output import Column, JsonOption, Listing, print_json, show
from pipeline.commands.site_names import known_site
from pipeline.commands.terminal import Terminal
from pipeline.commands.warehouse_state import refuse_empty
from pipeline.core.errors import ConfigurationError, EpicOmopError, PermanentError, TransientError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.operations.alerts.circumstances import DagsterState
    from pipeline.operations.alerts.run import AlertsReport
    from pipeline.warehouse.runtime import Runtime

__all__ = ["app", "observed_dagster"]

app = typer.Typer(
    no_args_is_help=True,
    help="Alerts: inform people of what is wrong with a night, list what is open, try the channels.\n\n"
    "Who is informed, and by what, stands in operations.yaml (docs/alerts.md).",
)


@app.command()
def run(as_json: JsonOption = False) -> None:
    """Look for what is wrong, and send what is due: each once to every channel, with its recovery. A timer calls it every
    few minutes. Ends with 0 where every message has left, whatever is wrong; 75 where one is tried again, 1 where a
    receiver refuses, 2 where the settings are wrong.

    Example: epic-omop alerts run
    """
    from pipeline.operations.alerts.run import run_alerts
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    report = run_alerts(runtime, dagster=lambda: observed_dagster(runtime))
    if as_json:
        print_json(_report_as_json(report))
    else:
        _print_report(Terminal(highlight=False), report)
    if error := _exit_error(report):
        raise error


@app.command("list")
def list_(
    site: Annotated[str | None, typer.Option("--site", help="Only this site.")] = None,
    history: Annotated[
        int, typer.Option("--history", min=0, max=3650, help="Also those that ended in the last so many days.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """List what is wrong at present, since when, and what to do; nothing is sent.

    Example: epic-omop alerts list --history 14
    """
    from pipeline.operations.alerts.listing import list_alerts
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    with runtime.connect() as connection:
        refuse_empty(connection, runtime.settings.etl_schema)
        if site is not None:
            known_site(runtime, site)
        entries = list_alerts(
            connection, runtime, site=site, history_days=history, dagster=lambda: observed_dagster(runtime)
        )
    if not entries and not as_json:
        Terminal().print("Nothing is wrong.")
        return
    listing = Listing(
        "Alerts",
        [
            Column("site", "site"),
            Column("kind", "kind", "code"),
            Column("severity", "severity", styles={"error": "red", "warning": "yellow"}),
            Column("since", "since", "time"),
            Column("until", "until", "time"),
            Column("what", "what happened"),
            Column("meaning", "what it means"),
            Column("to_do", "what to do"),
            Column("command", "command", "code"),
        ],
        stacked=True,
    )
    for entry in entries:
        text = entry.problem
        listing.add(
            *(entry.site or "", text.kind, text.severity, entry.since, entry.until),
            *(text.what, text.meaning, text.to_do, text.command),
        )
    show(Terminal(highlight=False), listing, as_json=as_json)


@app.command("test")
def try_(
    channel: Annotated[
        str | None, typer.Option("--channel", help="Only the channel of this name, or `heartbeat`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a test message to each channel of operations.yaml, and ask for the heartbeat's address. The warehouse is not
    needed. Ends as `alerts run` does.

    Example: epic-omop alerts test --channel email
    """
    from pipeline.core.operations_settings import load_operations
    from pipeline.operations.alerts.run import HEARTBEAT, try_channels, unknown_sites
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    alerts = load_operations(runtime.settings).alerts
    names = [one.name for one in alerts.channels] + ([HEARTBEAT] if alerts.heartbeat else [])
    if channel is not None and channel not in names:
        raise UsageError(f"There is no channel {channel!r}.", f"Channels of operations.yaml: {', '.join(names)}.")
    for sentence in unknown_sites(runtime.settings, alerts):
        Terminal(stderr=True, highlight=False).print(sentence, style="yellow", soft_wrap=True)
    results = try_channels(runtime, channel)
    listing = Listing(
        "Channels", [Column("channel", "channel", "code"), Column("result", "result"), Column("to_do", "what to do")]
    )
    for name, note, error in results:
        listing.add(name, error.message if error else note or "sent", error.advice if error else "")
    show(Terminal(highlight=False), listing, as_json=as_json)
    if error := _worst([(name, error) for name, _, error in results if error]):
        raise error


def observed_dagster(runtime: Runtime) -> DagsterState | None:
    """What Dagster's storage says; None where there has been no Dagster in this home. Dagster takes seconds to import."""
    if not (runtime.settings.home / "dagster" / "dagster.yaml").exists():
        return None
    from pipeline.orchestration.alert_sensors import read_dagster_state
    from pipeline.orchestration.switches import open_instance

    with open_instance(runtime.settings) as instance:
        return read_dagster_state(instance, runtime.settings)


def _print_report(console: Terminal, report: AlertsReport) -> None:
    if report.away is not None:
        console.print(f"The warehouse cannot be used: {report.away.message}", soft_wrap=True)
    if report.recorded is not None:
        recorded = report.recorded
        console.print(f"{recorded.open} open, {recorded.opened} of them new; {recorded.resolved} over.")
    for channel, subject in report.sent:
        console.print(f"Sent to {channel}: {subject}", soft_wrap=True)
    for channel, note in report.notes:
        console.print(f"{channel}: {note}", style="yellow", soft_wrap=True)
    for channel, (count, error) in report.waiting.items():
        console.print(f"{channel}: {count} wait for another try: {error}", style="yellow", soft_wrap=True)


def _report_as_json(report: AlertsReport) -> dict[str, Any]:
    recorded = report.recorded
    return {
        "open": recorded.open if recorded else None,
        "opened": recorded.opened if recorded else None,
        "resolved": recorded.resolved if recorded else None,
        "sent": [{"channel": channel, "subject": subject} for channel, subject in report.sent],
        "notes": [{"channel": channel, "note": note} for channel, note in report.notes],
        "failures": [{"channel": channel, "error": error.message} for channel, error in report.failures],
        "waiting": [
            {"channel": channel, "messages": count, "error": error}
            for channel, (count, error) in report.waiting.items()
        ],
        "heartbeat": report.heartbeat,
        "warehouse": report.away.message if report.away else None,
    }


def _exit_error(report: AlertsReport) -> EpicOmopError | None:
    if error := _worst(report.failures):
        return error
    if report.away is not None:
        return report.away
    if report.waiting:
        names = ", ".join(report.waiting)
        return TransientError(f"Messages to {names} wait for another try.", "`epic-omop alerts test` tries at once.")
    return None


def _worst(failures: Sequence[tuple[str, EpicOmopError]]) -> EpicOmopError | None:
    """All failures as one error: wrong settings before refusals before what may succeed later."""
    if not failures:
        return None
    order = (ConfigurationError, PermanentError, TransientError)
    ranked = sorted(
        failures, key=lambda item: next((n for n, kind in enumerate(order) if isinstance(item[1], kind)), 1)
    )
    first = ranked[0][1]
    kind = next((kind for kind in order if isinstance(first, kind)), PermanentError)
    message = " ".join(f"Channel {name}: {error.message}" for name, error in ranked)
    return kind(message, first.advice)
