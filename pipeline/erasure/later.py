"""Exports that land after a person was erased: what is theirs goes before anything is loaded.

A site without tombstones pays one look into an empty table.
"""

from __future__ import annotations

import logging

import psycopg

from pipeline.erasure.landed import Folder, erase_in, search
from pipeline.erasure.ownership import ErasedPersons
from pipeline.fhir.identity import SurrogateKeys
from pipeline.landing.store import LandedExport
from pipeline.warehouse.erased import erased_patients
from pipeline.warehouse.runtime import Runtime

__all__ = ["note_digests", "without_erased"]

_log = logging.getLogger(__name__)


def without_erased(runtime: Runtime, connection: psycopg.Connection, export: LandedExport) -> LandedExport:
    """The export without lines of erased persons, also in its files. The caller holds the site's lock.

    Commits. Raises LandingError, also when the disk is full.
    """
    patients = erased_patients(connection, export.site)
    connection.commit()
    if not patients:
        return export
    persons = ErasedPersons(SurrogateKeys(export.site, runtime.settings.surrogate_salt), patients)
    folder = Folder(
        runtime.landing.draft_of(export.site, export.export_id),
        export,
        (*export.files, *export.outcomes),
        export.deleted,
    )
    found = search([folder], persons)
    if found.same_person:
        _log.warning(
            "Export %d of site %s: %d patients say that they are the same person as one who was erased. What tied them"
            " is gone; they are loaded. Erase them as well if they are that person.",
            export.export_id,
            export.site,
            len(found.same_person),
        )
    if not found.lines:
        return export
    erased = erase_in(folder, found, runtime.clock.now())
    assert erased is not None, "a finished export"
    note_digests(connection, erased)
    connection.commit()
    count = sum(1 for _ in found.found())
    _log.info("Export %d of site %s: %d lines of erased persons cleaned.", export.export_id, export.site, count)
    return erased


def note_digests(connection: psycopg.Connection, export: LandedExport) -> None:
    """The SHA-256 of an export's files as they are now, in `etl.export_file`. Does not commit."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE export_file SET sha256 = %s WHERE export_id = %s AND file_number = %s AND sha256 <> %s",
            [(file.sha256, export.export_id, file.number, file.sha256) for file in (*export.files, *export.deleted)],
        )
