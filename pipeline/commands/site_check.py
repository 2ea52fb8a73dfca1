"""`epic-omop site check`: words for people around `pipeline.extract.site_check`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import JsonOption, words_console

if TYPE_CHECKING:
    from pipeline.core.settings import SiteSettings
    from pipeline.extract.http.recording import AccessLog, RequestBudget
    from pipeline.warehouse.runtime import Runtime

__all__ = ["site_check"]


def site_check(
    site: Annotated[str, typer.Argument(help="Name of a site in sites.yaml.")],
    as_json: JsonOption = False,
) -> None:
    """Try everything but the export itself: key, discovery, clock, token, scopes, capabilities, groups.

    Costs nothing of a group's kick-off window. Exit code 1 when something is wrong; each line says what to do.

    Example: epic-omop site check north
    """
    from pipeline.commands.findings import print_findings
    from pipeline.core.findings import any_failed
    from pipeline.extract.asked_types import with_asked_types
    from pipeline.extract.site_check import check_site
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    settings = with_asked_types(runtime.settings, runtime.settings.site(site))
    console = words_console(as_document=as_json, highlight=True)
    with _recorded(runtime, settings) as (access, budget), console.status("asking the site"):
        findings = list(check_site(settings, runtime.clock, access=access, budget=budget))
    print_findings(console, findings, f"Site {site}", as_json=as_json)
    if any_failed(findings):
        raise typer.Exit(1)
    console.print("Nothing is in the way of the first run, as far as this was checked.")


@contextmanager
def _recorded(runtime: Runtime, site: SiteSettings) -> Iterator[tuple[AccessLog | None, RequestBudget | None]]:
    """The warehouse's access log and budget, where there is a warehouse on this first day."""
    from pipeline.extract.access_log import WarehouseAccessLog
    from pipeline.extract.request_budget import WarehouseRequestBudget

    with ExitStack() as stack:
        if not _has_warehouse(runtime):
            yield None, None
            return
        access = stack.enter_context(WarehouseAccessLog(runtime.connect, site, runtime.clock))
        yield access, stack.enter_context(WarehouseRequestBudget(runtime.connect, site, runtime.clock))


def _has_warehouse(runtime: Runtime) -> bool:
    """Whether there is one that runs: a look at a site starts no server."""
    from pipeline.core.errors import WarehouseError
    from pipeline.warehouse.embedded.server import EmbeddedServer

    settings = runtime.settings
    try:
        if settings.database_url is None and EmbeddedServer(settings.home).url_if_running() is None:
            return False
        with runtime.connect() as connection:
            row = connection.execute("SELECT to_regclass(%s)", [f"{settings.etl_schema}.access_log"]).fetchone()
            return bool(row and row[0])
    except WarehouseError:
        return False
