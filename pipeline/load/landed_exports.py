"""Landed exports by their number, also those that the warehouse does not know: it is older than they are, or new.

Landing keeps with an export's files what the warehouse knew of it (`pipeline/landing/origin.py`).
"""

from __future__ import annotations

import logging

import psycopg

from omop_schema.exports import STATES_BEFORE_LANDING, ExportKind, ExportState, sql_values
from pipeline.core.errors import UsageError, WarehouseError
from pipeline.landing.origin import read_origin
from pipeline.landing.store import LandedExport
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import ExportJob
from pipeline.warehouse.runtime import Runtime

__all__ = ["landed_export", "refuse_pruned"]

_log = logging.getLogger(__name__)

_PRUNED = (
    "It had been pruned before this warehouse knew it: it holds what is left of it, and no type of it is complete."
)


def landed_export(runtime: Runtime, site: str, export_id: int) -> LandedExport:
    """The export as it was landed, known to the warehouse from now on if it was not.

    Raises LandingError when it is not in landing, WarehouseError when another export has its number by now.
    """
    landed = runtime.landing.open(site, export_id)
    with runtime.connect() as connection:
        job = export_jobs.find_job(connection, export_id)
        if job is not None and (job.site, job.kind) != (site, landed.kind):
            raise WarehouseError(
                f"In the warehouse, {export_id} is the number of another export ({job.kind}, site {job.site}).",
                f"Load its files as a folder: epic-omop ingest --site {site} --from {landed.folder / 'files'}",
            )
        if job is None:
            _create(runtime, connection, landed)
            _log.info("Export %d of site %s was not known to the warehouse.", export_id, site)
        elif not _has_files(connection, job):
            _save_landed(runtime, connection, landed)
        connection.commit()
    return landed


def refuse_pruned(connection: psycopg.Connection, export: LandedExport) -> None:
    """A warehouse that was restored, or is new, may load what is left of an export; one that has loaded it knows more."""
    if export.pruned_at is None:
        return
    row = connection.execute(
        "SELECT published_at IS NULL, ARRAY(SELECT file_number FROM export_file WHERE export_id = job.export_id)"
        " FROM export_job AS job WHERE export_id = %s",
        [export.export_id],
    ).fetchone()
    left = {file.number for file in (*export.files, *export.deleted)}
    if row is None or not row[0] or left != set(row[1]):
        raise UsageError(
            f"Export {export.export_id} of site {export.site} was pruned on {export.pruned_at:%Y-%m-%d}: landing holds only"
            " those of its lines that are needed.",
            "Its rows are in the warehouse. Load a newer export; `landing_keep` says how long exports stay whole.",
        )


def _create(runtime: Runtime, connection: psycopg.Connection, landed: LandedExport) -> None:
    origin = read_origin(landed.folder)
    export_jobs.create_job(
        connection,
        export_id=landed.export_id,
        site=landed.site,
        group=origin.group_id,
        kind=ExportKind(landed.kind),
        # A group's export of an earlier version does not say what was asked for: it is complete in no type. Nor is what
        # pruning has left of one.
        resource_types=() if landed.pruned_at else origin.resource_types,
        requested_at=origin.requested_at or landed.transaction_time,
        since=origin.since,
        notes=(*origin.notes, *([_PRUNED] if landed.pruned_at else [])),
        state=ExportState.FAILED,  # until it is loaded: it holds up no other export of its group
    )
    _save_landed(runtime, connection, landed)
    # The sequence of a restored or new database would come to this number again, and to those of later exports in landing,
    # while what follows from this one (a replay) is to be landed as well.
    store = runtime.landing
    highest = max((number for site in store.sites() for number in store.numbers(site)), default=landed.export_id)
    connection.execute(
        "SELECT setval(sequence, greatest(%s, nextval(sequence))) FROM"
        " (SELECT pg_get_serial_sequence('export_job', 'export_id')::regclass AS sequence) AS own",
        [highest],
    )


def _save_landed(runtime: Runtime, connection: psycopg.Connection, landed: LandedExport) -> None:
    """Also of a job that a warehouse, restored from the middle of the download, takes for unfinished."""
    connection.execute(
        "UPDATE export_job SET transaction_time = %s, landed_at = %s,"
        f" error = CASE WHEN state = '{ExportState.FAILED}' THEN 'It is landed and not loaded.' END,"
        f" state = CASE WHEN state IN {sql_values(STATES_BEFORE_LANDING)} THEN '{ExportState.LANDED}'"
        " ELSE state END WHERE export_id = %s",
        [landed.transaction_time, runtime.clock.now(), landed.export_id],
    )
    export_jobs.save_files(connection, landed, read_origin(landed.folder).gaps)


def _has_files(connection: psycopg.Connection, job: ExportJob) -> bool:
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM export_file WHERE export_id = %s) OR %s",
        [job.export_id, job.landed_at is not None],
    ).fetchone()
    return bool(row and row[0])
