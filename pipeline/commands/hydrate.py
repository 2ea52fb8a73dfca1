"""`epic-omop hydrate`: words for people around `pipeline.load.hydration`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.ingest import ingest_landed
from pipeline.commands.terminal import MofNCompleteColumn, Terminal, progress

if TYPE_CHECKING:
    from pipeline.load.hydration import Hydration

__all__ = ["register", "rest_progress", "tell_hydrations"]


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
) -> None:
    """Fetch by reference what a site's exports refer to and lack: medications, practitioners, places, results.

    Each resource is fetched once and remembered (`hydrate_again_days`); requests keep to `requests_per_second`. Safe to
    stop: run again, it goes on. What a night's run does by itself with `hydrate: true`.
    """
    from pipeline.load.hydration import hydrate as hydrate_exports
    from pipeline.load.hydration import newest_exports
    from pipeline.warehouse.runtime import Runtime

    runtime = Runtime.from_environment()
    settings = runtime.settings.site(site)
    console = Terminal()
    exports = [runtime.landing.open(site, number) for number in export or ()] or newest_exports(runtime, settings)
    with rest_progress(console, "references") as show:
        result = hydrate_exports(runtime, settings, exports, progress=show)
    tell_hydrations(console, [result])
    if result.landed and load:
        ingest_landed(console, runtime, settings, result.landed)
    if result.error:
        raise result.error


def tell_hydrations(console: Terminal, results: Sequence[Hydration]) -> None:
    """What came of hydrations, a line each; nothing of one that had nothing to do."""
    for result in results:
        if result.asked or result.refused_types or result.unusable:
            console.print(f"Hydration: {result.told()}")
        if result.error:
            console.print(f"Hydration ended early: {result.error}", style="yellow")


@contextmanager
def rest_progress(console: Terminal, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for single requests; the value is the callback (done, total), which any thread may call."""
    bar = progress(console, MofNCompleteColumn())
    task = bar.add_task(what, total=None, visible=False)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
