"""`epic-omop hydrate`: words for people around `pipeline.load.hydration`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.ingest import load_and_report
from pipeline.commands.output import JsonOption, print_json, words_console
from pipeline.commands.rest_progress import print_hydrations, rest_progress

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `hydrate` to the program."""
    app.command("hydrate")(hydrate)


def hydrate(
    site: Annotated[str, typer.Argument(help="Name of a site in sites.yaml.")],
    export: Annotated[
        list[int] | None,
        typer.Option("--export", help="Look through this landed export; repeat for several. Default: the newest ones."),
    ] = None,
    load: Annotated[bool, typer.Option("--load/--no-load", help="Also load what was fetched.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Fetch by reference what a site's exports refer to and lack: medications, practitioners, places, results.

    Each resource is fetched once and remembered (`hydrate_again_days`); requests keep to `requests_per_second`. Safe to
    stop: run again, it continues. What a night's run does by itself with `hydrate: true`.

    Example: epic-omop hydrate north
    """
    from pipeline.load.hydration import hydrate as hydrate_exports
    from pipeline.load.hydration import newest_exports
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    settings = runtime.settings.site(site)
    console = words_console(as_document=as_json)
    exports = [runtime.landing.open(site, number) for number in export or ()] or newest_exports(runtime, settings)
    with rest_progress(console, "references") as show:
        result = hydrate_exports(runtime, settings, exports, progress=show)
    print_hydrations(console, [result])
    if result.landed and load:
        load_and_report(console, runtime, settings, result.landed, as_json=as_json)
    elif as_json:
        print_json({"exports": []})
    if result.error:
        raise result.error
