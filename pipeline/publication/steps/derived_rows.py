"""Derived tables as a step of publication: whose rows changed, and the refresh in the same transaction."""

from __future__ import annotations

from importlib.metadata import version

from omop_schema.cdm import TABLES
from omop_schema.etl import LINEAGE_TABLES
from omop_schema.versions import CDM_VERSION, IG_VERSION
from pipeline.core.settings import Settings, SiteSettings
from pipeline.publication.context import Publication
from pipeline.publication.derived import DerivedOptions, Fact, note_affected_persons, refresh_derived

__all__ = ["derived_options", "note_persons", "refresh"]


def derived_options(site: SiteSettings, settings: Settings, **facts: Fact) -> DerivedOptions:
    """What the settings say of a site's derived rows. `facts`: of the site, for `metadata`."""
    return DerivedOptions(site=site.name, go_live=site.go_live_date, instance_zone=settings.time_zone, facts=facts)


def note_persons(p: Publication) -> None:
    """Note the persons of the changed resources' rows: once before these go, once when the new ones are there.

    When an empty warehouse is filled everybody is computed, and nobody noted.
    """
    note_affected_persons(p.connection, cdm=p.cdm, etl=p.etl, tables=() if p.is_bulk else LINEAGE_TABLES)


def refresh(p: Publication) -> None:
    """Bring derived rows in line, as of the export's time in the site's zone."""
    if p.is_bulk:
        for table in TABLES:
            if p.report.rows_inserted[table]:
                p.connection.execute(f"ANALYZE {p.cdm}.{table}")
    site = p.site
    as_of = p.export.transaction_time.astimezone(site.zone).date()
    options = derived_options(
        site,
        p.settings,
        last_export=p.export.transaction_time,
        cdm_version=CDM_VERSION,
        ig_version=IG_VERSION,
        software_version=version("epic-omop"),
    )
    derived = refresh_derived(
        p.connection,
        cdm=p.cdm,
        vocab=p.vocab,
        etl=p.etl,
        as_of=as_of,
        persons=None if p.is_bulk else "affected_person",
        options=options,
    )
    for table, change in derived.changes.items():
        p.report.rows_inserted[table] += change.inserted
        p.report.rows_deleted[table] += change.deleted
        p.report.rows_updated[table] += change.updated
    p.report.warnings += derived.warnings
    p.report.derived_seconds = derived.seconds
