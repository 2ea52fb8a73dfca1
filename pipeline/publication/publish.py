"""Publication: the staged parts of one export → PostgreSQL, in one transaction. Readers see before or after.

Changed resources replace exactly the rows that they made before, found by lineage. The steps are the modules of
`pipeline.publication.steps`; `_run` gives their order, and hands each what it takes (`values`). The accounting is checked
before the commit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version

import polars as pl
import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import Connection

from omop_schema.etl import LINEAGE_TABLES
from omop_schema.exports import ExportState
from omop_schema.versions import IG_VERSION
from pipeline.core.errors import AccountingError, CheckFailed, WarehouseError
from pipeline.landing.store import LandedExport
from pipeline.publication.ids import ENTITY_TABLES
from pipeline.publication.known_cache import KnownCache
from pipeline.publication.landed_line import LandedLine
from pipeline.publication.members import write_members
from pipeline.publication.report import PublicationReport
from pipeline.publication.specimens import SPECIMEN_RESULT, has_specimen_visits
from pipeline.publication.sql import Database
from pipeline.publication.steps import (
    accounts,
    bulk,
    derived_rows,
    devices,
    entities,
    events,
    former_rows,
    infusions,
    links,
    medication_records,
    panels,
    references,
    stand_ins,
    states,
    touched_rows,
    vanished,
    visits,
)
from pipeline.publication.steps.care_sites import relate_care_sites
from pipeline.publication.steps.cdm_source import InstanceSource, save_cdm_source
from pipeline.publication.steps.decide import decide
from pipeline.publication.steps.dependents import find_dependents
from pipeline.publication.steps.duplicates import count_duplicates
from pipeline.publication.steps.vocabulary_uses import VocabularyUses, save_uses
from pipeline.publication.unlink import remove_unused_locations
from pipeline.publication.values import Decisions, Entities, FormerRows, Incoming, RowCounts
from pipeline.staging.parts import StagedExport
from pipeline.staging.schemas import FileLines
from pipeline.transform.mapping.duplicate_rules import DuplicateRule
from pipeline.warehouse.cdm_version import refuse_other_version
from pipeline.warehouse.configured_sites import note_configured_site
from pipeline.warehouse.export_jobs import lock_warehouse
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
    uses: VocabularyUses,
    duplicates: Sequence[DuplicateRule] = (),
    confirmed: bool = False,
    over_newer: bool = False,
) -> None:
    """Publish a staged export and report it in `report`. The caller has the site's lock. `confirmed`: however much has
    vanished, it goes. `uses`: what the rows took from the vocabulary.
    `duplicates`: rules by which facts that two resources bring are counted.
    `over_newer`: its lines count also where newer exports are different.

    Raises AccountingError when the lines do not add up, CheckFailed when rows and sources do not, ConfirmationNeeded when
    much has vanished that nobody has
    confirmed (neither changes anything), WarehouseError when the server fails.
    """
    started = time.perf_counter()
    settings = runtime.settings
    with _keep_failed_check(runtime), transaction(runtime.url) as connection:
        db = _database(runtime, connection)
        lock_warehouse(db.connection)
        incoming = Incoming(
            export,
            staged,
            settings,
            settings.site_or_folder(export.site),
            fingerprints,
            runtime.clock.now(),
            is_first=not db.has_rows("resource_state"),
            confirmed=confirmed,
            over_newer=over_newer,
        )
        note_configured_site(db.connection, settings, export.site)
        _run(_Run(db, connection, incoming, files, known, duplicates, report))
        save_uses(db, export.site, export.export_id, uses, incoming.now)
        report.publish_seconds = time.perf_counter() - started
        _record(runtime, db, export, report, fingerprints)


@contextmanager
def _keep_failed_check(runtime: Runtime) -> Iterator[None]:
    """A check that rolled everything back is kept all the same, for alerts and `status`."""
    try:
        yield
    except CheckFailed as error:
        with suppress(psycopg.Error, WarehouseError), runtime.connect() as connection:
            touched_rows.save_failure(connection, error, runtime.clock.now())
        raise


def _database(runtime: Runtime, connection: Connection) -> Database:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    settings = runtime.settings
    db = Database(driver, settings.cdm_schema, settings.etl_schema, settings.vocab_schema)
    driver.execute(f"SET LOCAL search_path TO {db.etl}, {db.cdm}, {db.vocab}")
    # A database that was upgraded while the export was read: nothing of it is lost, it is loaded again.
    refuse_other_version(driver, db.cdm, settings.cdm_version)
    return db


@dataclass(frozen=True)
class _Run:
    """One publication. Only the functions of this module write into `report`."""

    db: Database
    #: the same transaction as SQLAlchemy has it
    connection: Connection
    incoming: Incoming
    files: Sequence[FileLines]
    #: is notified of every state that changes
    known: KnownCache
    duplicates: Sequence[DuplicateRule]
    report: PublicationReport


def _run(run: _Run) -> None:
    """All steps in their order."""
    step, db, incoming = run.report.step, run.db, run.incoming
    before = touched_rows.last_ids(db)
    with step("decide"):
        absences = vanished.judge(db, incoming)
        run.report.vanished = absences.counts
        run.report.warnings += absences.warnings
        decisions = decide(db, incoming, absences)
        is_bulk = bulk.is_bulk_load(db, incoming.staged)
        derived_rows.make_affected_person(db)
        if not is_bulk:  # when an empty warehouse is filled everybody is computed
            derived_rows.note_persons(db)
    bulk_load = None
    if is_bulk:
        with step("indices"):
            bulk_load = bulk.drop_indices(db, run.connection, is_first=incoming.is_first)
            run = replace(run, db=replace(db, emptied=bulk_load.emptied))
    standing = stand_ins.StandIns(run.db, decisions, is_first=incoming.is_first)
    _replace_rows(run, decisions, standing, bulk_load)
    with step("state"):
        states.save_states(run.db, incoming, decisions, run.known)
        vanished.forget(run.db, incoming, absences, run.known)
    with ThreadPoolExecutor(1) as parallel:
        # Counts and a file of our own, that need no server: it is busy with indices and derived tables meanwhile.
        outcomes = parallel.submit(accounts.final_outcomes, decisions)
        members = parallel.submit(_write_members, incoming, decisions)
        known = parallel.submit(run.known.prepare)
        with step(
            "dead letters"
        ):  # before the derived tables, which add issues of their own and count who was left out
            accounts.save_dead_letters(db, incoming, decisions)
            accounts.save_issues(db, incoming.export.export_id, decisions, incoming.now)
            run.report.value_checks = accounts.value_checks(db, decisions)
        _finish_tables(run, decisions, bulk_load)
        with step("accounts"):
            _save_accounts(run, outcomes)
        with step("dependents"):
            vanished.map_users_again(run.db, incoming, absences)
            applies = incoming.site.mapping.duplicates == "apply"
            run.report.dependents = find_dependents(
                run.db, incoming.export.site, decisions, standing, with_duplicates=applies
            )
        if decisions.has_changes:
            with step("checks"):
                touched_rows.check_touched_rows(run.db, before)
        with step("members"):
            members.result()
            known.result()
            run.known.seal(run.db.connection)


def _replace_rows(
    run: _Run, decisions: Decisions, standing: stand_ins.StandIns, bulk_load: bulk.BulkLoad | None
) -> None:
    """Rows of former versions go, those of this export come, and links lead to where they are to lead now."""
    step, db, incoming, report = run.report.step, run.db, run.incoming, run.report
    # A row may be removed before what refers to it has moved: links are looked at when all is in its place.
    db.connection.execute("SET CONSTRAINTS ALL DEFERRED")
    medication_records.note_left_links(db)
    if decisions.has_changes:
        with step("medication records"):
            medication_records.save_records(db, incoming, decisions)
    with step("former rows"):
        former = former_rows.remove_former_rows(db, decisions)
        report.add(former.counts)
    # A night in which nothing changed writes no rows, and asks for nothing that grows with the warehouse.
    unused = () if has_specimen_visits(incoming.settings.cdm_version) else (SPECIMEN_RESULT,)
    references.replace_facts(db, decisions, unused)
    if not incoming.is_first:
        db.execute("moved_stand_in")
    if not decisions.has_changes:
        with step("references"):
            references.replace_references(db, decisions, [])
            report.add(former_rows.remove_nlp_of_left_notes(db, former))
        return
    written, found = _write_rows(run, decisions, former, standing, bulk_load)
    with step("references"):
        references.replace_references(db, decisions, found)
        if not incoming.is_first:
            links.fill(db)
            stand_ins.follow(db, standing, written, former.removed_from)
        report.add(devices.count_once(db, incoming.site, decisions.staged.kinds()))
        visits.mark_emergency_stays(db)
        panels.link_members(db, incoming.site)
        infusions.end_infusions(db)
        report.add(relate_care_sites(db, standing))
        report.add(former_rows.remove_nlp_of_left_notes(db, former))


def _write_rows(
    run: _Run,
    decisions: Decisions,
    former: FormerRows,
    standing: stand_ins.StandIns,
    bulk_load: bulk.BulkLoad | None,
) -> tuple[Entities, list[pl.DataFrame]]:
    """The rows of this export: the entities, and the rows for `etl.reference` that were found."""
    step, db, export_id = run.report.step, run.db, run.incoming.export.export_id
    with step("entities"):
        made = entities.write_entities(db, run.incoming, decisions, standing)
        made = visits.place_children(db, export_id, decisions, made)
        run.report.add(made.written.counts)
    found = [*made.written.references]
    for table in decisions.staged.kinds():
        if table in LINEAGE_TABLES and table not in ENTITY_TABLES:
            with step(table):
                own = events.EventTable(table, export_id, decisions, made, former, bulk_load)
                written = events.write_events(db, own)
                run.report.add(written.counts)
                found += written.references
    with step("links"):
        if former.left_locations:
            run.report.rows_deleted["location"] += remove_unused_locations(db)
        events.link_rows(db, decisions)
    return made, found


def _finish_tables(run: _Run, decisions: Decisions, bulk_load: bulk.BulkLoad | None) -> None:
    step, db, report = run.report.step, run.db, run.report
    if bulk_load:
        with step("indices of state"):
            bulk.create_state_indices(db, bulk_load)
    with step("derived"):
        if not bulk_load:
            derived_rows.note_persons(db)
        written = [table for table, rows in report.rows_inserted.items() if rows]
        derived = derived_rows.refresh(db, run.incoming, decisions, written, everybody=bulk_load is not None)
        for table, change in derived.changes.items():
            report.add(
                RowCounts(
                    Counter({table: change.inserted}),
                    Counter({table: change.deleted}),
                    Counter({table: change.updated}),
                )
            )
        report.warnings += derived.warnings
        report.derived_seconds = derived.seconds
    with step("duplicates"):
        report.duplicates = count_duplicates(db, run.duplicates, everybody=bulk_load is not None)
    if bulk_load:
        with step("indices"):
            bulk.create_indices(db, bulk_load)


def _save_accounts(run: _Run, outcomes: Future[pl.DataFrame]) -> None:
    export_id = run.incoming.export.export_id
    run.report.mapping_rates = accounts.mapping_rates(run.incoming.staged)
    accounts.save_coverage(run.db, run.incoming, run.report.vocabulary_hash, run.incoming.now)
    saved = accounts.save_accounts(run.db, export_id, run.files, outcomes.result())
    run.report.outcomes.update(saved.outcomes)
    run.report.unchanged_by_content += saved.unchanged_by_content


def _write_members(incoming: Incoming, decisions: Decisions) -> None:
    export = incoming.export
    write_members(
        incoming.settings.home,
        export.site,
        export.export_id,
        incoming.staged,
        decisions.rejected,
        incoming.deletions,
    )


def _record(
    runtime: Runtime,
    db: Database,
    export: LandedExport,
    report: PublicationReport,
    fingerprints: Mapping[str, int],
) -> None:
    """Run metadata (f2o-040, 102), the job's state, and cdm_source where rows changed."""
    now = runtime.clock.now()
    db.execute(
        "save_publication",
        {
            "export_id": export.export_id,
            "now": now,
            "vocabulary_release": report.vocabulary_release,
            "vocabulary_hash": report.vocabulary_hash,
            "fingerprint": format(sum(fingerprints.values()) & (2**64 - 1), "016x"),
            "cdm_version": runtime.settings.cdm_version.label,
            "ig_version": IG_VERSION,
            "software_version": version("epic-omop"),
            "rows_inserted": Jsonb(dict(report.rows_inserted)),
            "rows_deleted": Jsonb(dict(report.rows_deleted)),
            "mapping_rates": Jsonb(report.mapping_rates),
            "transform_seconds": report.transform_seconds,
            "publish_seconds": report.publish_seconds,
            "vanished": Jsonb(report.vanished),
            "value_checks": Jsonb(report.value_checks),
            "duplicates": Jsonb(report.duplicates),
        },
    )
    if db.execute("publish_job", {"now": now, "export_id": export.export_id, "state": ExportState.PUBLISHED}) != 1:
        raise AccountingError(f"Export {export.export_id} has no row in export_job.", "Nothing was published.")
    source = InstanceSource(runtime.settings, export, report.vocabulary_release, now.date())
    save_cdm_source(db, source, has_changed=bool(report.changed_rows))
