"""`epic-omop health`: whether the services answer, for people, containers and systemd."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.findings import print_findings
from pipeline.commands.output import JsonOption, words_console
from pipeline.core.errors import EpicOmopError
from pipeline.core.findings import Finding, any_failed

if TYPE_CHECKING:
    from pipeline.core.settings import Settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("health")(health)


class Service(StrEnum):
    warehouse = "warehouse"
    daemon = "daemon"
    webserver = "webserver"


def health(
    services: Annotated[
        list[Service] | None,
        typer.Argument(help="Ask these only; all of them where none is named.", show_default=False),
    ] = None,
    url: Annotated[
        str, typer.Option("--url", help="Where Dagster's webserver is.", envvar="EPIC_OMOP_UI_URL")
    ] = "http://127.0.0.1:3000",
    as_json: JsonOption = False,
) -> None:
    """Ask whether the services answer: PostgreSQL, Dagster's daemon and its webserver. Starts and changes nothing.

    Exit code 0: all of them do; 1: one does not. Whether the nights went well is what `epic-omop status` says.

    Example: epic-omop health daemon webserver --json
    """
    from pipeline.core.settings import load_settings

    settings = load_settings()
    findings = [_finding(service, settings, url) for service in services or list(Service)]
    print_findings(words_console(as_document=False), findings, "", as_json=as_json)
    if any_failed(findings):
        raise typer.Exit(1)


def _finding(service: Service, settings: Settings, url: str) -> Finding:
    from pipeline.operations.health import warehouse_finding, webserver_finding

    if service is Service.warehouse:
        return warehouse_finding(settings)
    if service is Service.webserver:
        return webserver_finding(url)
    if not (settings.home / "dagster" / "dagster.yaml").exists():
        return Finding("daemon", "failed", "There has been no Dagster in this home.", "Start it: epic-omop ui.")
    from pipeline.orchestration.liveness import daemon_finding

    try:
        return daemon_finding(settings)
    except EpicOmopError as error:
        return Finding("daemon", "failed", error.message, error.advice or "")
