"""What `status` and `verify` say of settings that changed after rows were loaded: a sentence each, none where all is well."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from pipeline.core.cdm_source import CdmSource
from pipeline.core.errors import EpicOmopError
from pipeline.load.fingerprints import site_rules
from pipeline.load.old_settings import SiteFingerprints, old_settings
from pipeline.load.vocabulary_changes import compared_with_another, vocabulary_name
from pipeline.publication.derived import rules_are_old
from pipeline.publication.steps.derived_rows import derived_options
from pipeline.warehouse.configured_sites import refuse_missing_site
from pipeline.warehouse.runtime import Runtime

__all__ = ["instance_notes", "settings_notes"]


def settings_notes(runtime: Runtime, connection: psycopg.Connection) -> Iterator[str]:
    """Of all sites that have something loaded. `connection` has etl on its search_path; reads only."""
    sites = connection.execute("SELECT DISTINCT site FROM site_resource_type ORDER BY site").fetchall()
    for (site,) in sites:
        try:
            refuse_missing_site(connection, runtime.settings, site)
            yield from _of_site(runtime, connection, site)
        except EpicOmopError as error:
            yield f"{error.message} {error.advice}".strip()


def instance_notes(source: CdmSource, connection: psycopg.Connection) -> Iterator[str]:
    """Of a warehouse that does not say whose it is: two of them cannot be distinguished in a study of several instances.
    `connection` has etl and cdm on its search_path; reads only."""
    if source.unnamed and connection.execute("SELECT FROM cdm_source").fetchone() is not None:
        variables = ", ".join(f"EPIC_OMOP_{column.upper()}" for column in source.unnamed)
        columns = ", ".join(source.unnamed)
        yield (
            f"The table cdm_source does not say whose data this is: {columns} are as the software has them. Set {variables};"
            " the next load writes them."
        )


def _of_site(runtime: Runtime, connection: psycopg.Connection, name: str) -> Iterator[str]:
    settings = runtime.settings
    site = settings.site_or_folder(name)
    rules = site_rules(runtime, site)
    old = old_settings(connection, name, SiteFingerprints(rules.fingerprints, frozenset(rules.mappings.resources)))
    command = f"`epic-omop remap --site {name}`"
    if compared := compared_with_another(runtime, connection, name, rules):
        yield (
            f"Site {name}: its rows were compared with vocabulary {compared} last, and the active one is"
            f" {vocabulary_name(rules.mark)}. {command} or the next load compares them; with --dry-run it says what would"
            " change."
        )
    if old.count:
        rejected = f" ({old.rejected:,} of them are rejected by those of today)" if old.rejected else ""
        yield (
            f"Site {name}: {old.count:,} resources{rejected} with {old.rows:,} rows are under old settings, mappings,"
            f" vocabulary or software. {command} maps them again; the next export maps those that it holds."
        )
    options = derived_options(site, settings)
    if rules_are_old(connection, cdm=settings.cdm_schema, etl=settings.etl_schema, options=options):
        yield (
            f"Site {name}: observation periods and eras are under old settings (such as go_live_date)."
            f" {command} or the next load computes them again."
        )
    interrupted = connection.execute(
        "SELECT started_at FROM remap WHERE site = %s AND finished_at IS NULL", (name,)
    ).fetchone()
    if interrupted:
        yield f"Site {name}: a remap begun at {interrupted[0]:%Y-%m-%d %H:%M} UTC has not ended. {command} continues with it."
