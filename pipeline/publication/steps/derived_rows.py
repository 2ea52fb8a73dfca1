"""Derived tables as a step of publication: whose rows changed, and the refresh in the same transaction."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version

import polars as pl

from omop_schema.cdm import TABLES
from omop_schema.etl import LINEAGE_TABLES
from omop_schema.versions import IG_VERSION
from pipeline.core.settings import Settings, SiteSettings
from pipeline.publication.derived import DerivedOptions, DerivedReport, Fact, refresh_derived
from pipeline.publication.specimens import has_specimen_visits
from pipeline.publication.sql import Database
from pipeline.publication.tables import OF_PERSONS, table_names
from pipeline.publication.values import Decisions, Incoming
from pipeline.publication.version import publication_version
from pipeline.staging import schemas

__all__ = ["derived_options", "make_affected_person", "note_persons", "refresh"]

#: Tables with rows of persons, in the order of lineage.
_WITH_PERSON = [table for table in LINEAGE_TABLES if table == "person" or table in OF_PERSONS]


def derived_options(site: SiteSettings, settings: Settings, **facts: Fact) -> DerivedOptions:
    """What the settings say of a site's derived rows. `facts`: of the site, for `metadata`."""
    return DerivedOptions(
        site=site.name,
        go_live=site.go_live_date,
        specimen_visits=has_specimen_visits(settings.cdm_version),
        gap_by_script=site.drug_era_gap_days == "ohdsi_script",
        period_gap_days=site.observation_period_gap_days,
        period_tail_days=site.observation_period_tail_days,
        period_months_before_birth=site.observation_period_months_before_birth,
        drop_doubted_deaths=site.doubted_deaths == "drop",
        table_go_live=site.go_live_dates,
        instance_zone=settings.time_zone,
        version=publication_version(settings.home),
        facts=facts,
    )


def make_affected_person(db: Database) -> None:
    """The temporary table `affected_person`: whose rows come from changed resources. Steps that move rows add to it."""
    db.execute("affected_person")


def note_persons(db: Database, tables: Collection[str] = _WITH_PERSON) -> None:
    """Note the persons of the changed resources' rows: once before these go, once when the new ones are there. A row
    may have gone, come, or changed its person."""
    for table in tables:
        db.execute("note_affected", **table_names(table))


def refresh(
    db: Database, incoming: Incoming, decisions: Decisions, written: Collection[str], *, everybody: bool
) -> DerivedReport:
    """Bring derived rows in line, as of the export's time in the site's zone.

    `everybody`: an empty warehouse is filled: nobody was noted. `written`: tables into which rows were inserted.
    """
    if everybody:
        for table in TABLES:
            if table in written:
                db.execute("count_tables", tables=f"{db.cdm}.{table}")
    moment = incoming.export.transaction_time
    options = derived_options(
        incoming.site,
        incoming.settings,
        last_export=moment,
        cdm_version=incoming.settings.cdm_version.label,
        ig_version=IG_VERSION,
        software_version=version("epic-omop"),
    )
    return refresh_derived(
        db.connection,
        cdm=db.cdm,
        vocab=db.vocab,
        etl=db.etl,
        as_of=moment.astimezone(incoming.site.zone).date(),
        persons=None if everybody else "affected_person",
        merged=decisions.merged.select(pl.col("from").alias("patient"), "last"),
        has_changes=decisions.has_changes or bool(incoming.staged.parts(schemas.REJECTION)),
        options=options,
    )
