"""Publication: the staged parts of one export → PostgreSQL, in one transaction. Readers see before or after.

Changed resources replace exactly the rows that they made before, found by lineage. The steps are the modules of
`pipeline.publication`; `_run` gives their order. The accounting is checked before the commit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from omop_schema.etl import LINEAGE_TABLES
from omop_schema.exports import ExportState
from omop_schema.versions import CDM_VERSION, IG_VERSION
from pipeline.core.errors import AccountingError
from pipeline.landing.store import LandedExport
from pipeline.publication.context import LandedLine, Publication, PublicationReport
from pipeline.publication.ids import ENTITY_TABLES
from pipeline.publication.known_cache import KnownCache
from pipeline.publication.seen import write_seen
from pipeline.publication.steps import (
    accounts,
    bulk,
    derived_rows,
    links,
    merges,
    panels,
    references,
    rows,
    stand_ins,
    states,
    vanished,
    visits,
)
from pipeline.publication.steps.care_sites import relate_care_sites
from pipeline.publication.steps.decide import decide
from pipeline.staging.parts import StagedExport
from pipeline.staging.schemas import FileLines
from pipeline.warehouse.configured_sites import note_configured_site
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import transaction

__all__ = ["LandedLine", "PublicationReport", "publish_export"]


def publish_export(
    runtime: Runtime,
    export: LandedExport,
    staged: StagedExport,
    report: PublicationReport,
    *,
    files: Sequence[FileLines],
    fingerprints: Mapping[str, int],
    known: KnownCache,
    confirmed: bool = False,
    over_newer: bool = False,
) -> None:
    """Publish a staged export and tell it in `report`. The caller holds the site's lock. `confirmed`: however much has
    vanished, it goes. `over_newer`: its lines count also where newer exports said something else.

    Raises AccountingError when the lines do not add up, ConfirmationNeeded when much has vanished that nobody has
    confirmed (neither changes anything), WarehouseError when the server fails.
    """
    started = time.perf_counter()
    with transaction(runtime.url) as connection:
        publication = Publication(runtime, connection, export, staged, report, fingerprints, known, confirmed=confirmed)
        publication.over_newer = over_newer
        note_configured_site(publication.connection, runtime.settings, export.site)
        _run(publication, files)
        report.publish_seconds = time.perf_counter() - started
        _record(runtime, publication.connection, export, report, fingerprints)


def _run(p: Publication, files: Sequence[FileLines]) -> None:
    step = p.report.step
    with step("decide"):
        decide(p)
        p.is_bulk = bulk.is_bulk_load(p)
        derived_rows.note_persons(p)
    if p.is_bulk:
        with step("indices"):
            bulk.drop_indices(p)
    # A row may be removed before what refers to it has moved: links are looked at when all is in its place.
    p.connection.execute("SET CONSTRAINTS ALL DEFERRED")
    with step("former rows"):
        rows.remove_former_rows(p)
    # A night in which nothing changed writes no rows, and asks for nothing that grows with the warehouse.
    references.facts(p)
    changes = p.count("SELECT count(*) FROM (SELECT FROM pg_temp.changed LIMIT 1) AS any_change") > 0
    if changes:
        _write_rows(p)
    with step("references"):
        references.references(p)
        if changes:
            links.fill(p)
            stand_ins.follow(p)
            visits.mark_emergency_stays(p)
            panels.link_members(p)
            relate_care_sites(p)
    with step("state"):
        states.state(p)
        vanished.forget(p)
    with ThreadPoolExecutor(1) as beside:
        # Counts and a file of our own, that need no server: it is busy with indices and derived tables meanwhile.
        outcomes = beside.submit(accounts.final_outcomes, p)
        seen = beside.submit(_write_seen, p)
        known = beside.submit(p.known.prepare)
        _finish_tables(p)
        with step("accounts"):
            accounts.dead_letters(p)
            accounts.forget_accounts(p)
            accounts.issues(p)
            accounts.account(p, files, outcomes.result())
        with step("dependents"):
            vanished.map_users_again(p)
            references.find_dependents(p)
        with step("seen"):
            seen.result()
            known.result()
            p.known.seal(p.connection)


def _finish_tables(p: Publication) -> None:
    step = p.report.step
    if p.is_bulk:
        with step("indices of state"):
            bulk.create_state_indices(p)
    with step("derived"):
        derived_rows.note_persons(p)
        derived_rows.refresh(p)
    if p.is_bulk:
        with step("indices"):
            bulk.create_indices(p)


def _write_seen(p: Publication) -> None:
    deletions = [file.number for file in p.export.deleted]
    write_seen(p.settings.home, p.export.site, p.export.export_id, p.staged, p.refused, deletions)


def _write_rows(p: Publication) -> None:
    step = p.report.step
    with step("entities"):
        for table in ENTITY_TABLES:
            rows.entities(p, table)
            if table == "person":
                merges.move_events(p)
        visits.place_children(p)
    for table in p.staged.kinds():
        if table in LINEAGE_TABLES and table not in ENTITY_TABLES:
            with step(table):
                rows.events(p, table)
    with step("links"):
        rows.remove_unused_locations(p)
        references.link_events(p)


def _record(
    runtime: Runtime,
    connection: psycopg.Connection,
    export: LandedExport,
    report: PublicationReport,
    fingerprints: Mapping[str, int],
) -> None:
    """Run metadata (f2o-040, 102), the job's state, and cdm_source where rows changed."""
    now = runtime.clock.now()
    combined = format(sum(fingerprints.values()) & (2**64 - 1), "016x")
    connection.execute(
        "INSERT INTO publication (export_id, published_at, vocabulary_release, fingerprint, cdm_version, ig_version,"
        " software_version, rows_inserted, rows_deleted, mapping_rates, transform_seconds, publish_seconds, vanished)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (export_id) DO UPDATE SET"
        " (published_at, vocabulary_release, fingerprint, software_version, rows_inserted, rows_deleted, mapping_rates,"
        " transform_seconds, publish_seconds, vanished) = ROW(excluded.published_at, excluded.vocabulary_release,"
        " excluded.fingerprint, excluded.software_version, excluded.rows_inserted, excluded.rows_deleted,"
        " excluded.mapping_rates, excluded.transform_seconds, excluded.publish_seconds, excluded.vanished)",
        (
            export.export_id,
            now,
            report.vocabulary_release,
            combined,
            CDM_VERSION,
            IG_VERSION,
            version("epic-omop"),
            Jsonb(dict(report.rows_inserted)),
            Jsonb(dict(report.rows_deleted)),
            Jsonb(report.mapping_rates),
            report.transform_seconds,
            report.publish_seconds,
            Jsonb(report.vanished),
        ),
    )
    # What had kept it from being loaded is over; that its job is not deleted on the server is not.
    updated = connection.execute(
        f"UPDATE export_job SET state = '{ExportState.PUBLISHED}', published_at = %s,"
        " error = CASE WHEN status_url IS NOT NULL AND deleted_at IS NULL THEN error END WHERE export_id = %s",
        (now, export.export_id),
    )
    if updated.rowcount != 1:
        raise AccountingError(f"Export {export.export_id} has no row in export_job.", "Nothing was published.")
    if report.changed_rows:
        _cdm_source(connection, runtime.settings.cdm_schema, export.transaction_time.date(), now.date(), report)


def _cdm_source(
    connection: psycopg.Connection, schema: str, release: date, today: date, report: PublicationReport
) -> None:
    """One row for the instance; only a publication that changed rows changes it."""
    values: dict[str, Any] = {
        "cdm_source_name": "epic-omop",
        "cdm_source_abbreviation": "epic-omop",
        "cdm_holder": "epic-omop",
        "source_description": "Epic FHIR R4 bulk exports",
        "cdm_etl_reference": f"epic-omop {version('epic-omop')}, HL7 FHIR to OMOP {IG_VERSION}",
        "source_release_date": release,
        "cdm_release_date": today,
        "cdm_version": CDM_VERSION,
        "cdm_version_concept_id": 756265,
        "vocabulary_version": report.vocabulary_release[:20],
    }
    connection.execute(f"DELETE FROM {schema}.cdm_source")
    connection.execute(
        f"INSERT INTO {schema}.cdm_source ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})",
        tuple(values.values()),
    )
