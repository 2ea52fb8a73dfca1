"""`epic-omop site enable` and `disable`: words for people around `pipeline.orchestration.switches`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.terminal import echo
from pipeline.core.errors import UsageError

__all__ = ["site_disable", "site_enable"]

_Name = Annotated[str, typer.Argument(help="Name of a site in sites.yaml.")]


def site_enable(site: _Name) -> None:
    """Switch a site's nightly schedule and its sensor on, as the UI does. Dagster must run: `epic-omop ui`, or compose.

    A running Dagster sees it within a minute. Try the site first: `site check`, then `run --site`.

    Example: epic-omop site enable north
    """
    _turn(site, on=True)


def site_disable(site: _Name) -> None:
    """Switch a site's schedule and sensor off. Exports that are open at the site stay open; `export --site` continues.

    Example: epic-omop site disable north
    """
    _turn(site, on=False)


def _turn(name: str, *, on: bool) -> None:
    from pipeline.core.settings import load_settings
    from pipeline.orchestration.switches import open_instance, read_switches, turn

    settings = load_settings()
    site = settings.site(name)
    if site.fhir_url is None or not (site.groups or site.patients_file):
        raise UsageError(
            f"Site {name} has nothing that runs by itself.", "It needs a fhir_url with groups, or with a patients_file."
        )
    with open_instance(settings) as instance:
        turn(instance, site, on=on)
        switches = read_switches(instance, site)
    if not on:
        echo(f"Schedule and sensor of site {name} are off.")
        return
    echo(f"Schedule and sensor of site {name} are on: {site.schedule} in {site.time_zone}.")
    if not switches.daemon:
        echo("Dagster's daemon does not run; they begin with `epic-omop ui` or docker-compose.yml.")
