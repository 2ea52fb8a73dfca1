"""Deleted resources of an export → outcomes: their rows go as those of a resource that was entered in error.

To publication a deletion is a line that is excluded with the reason `deleted`: the rules of order (an older export
never overwrites a newer one, the last line of a resource wins), of unlinking and of accounting hold for it as well.
"""

from __future__ import annotations

import logging
from itertools import islice

import polars as pl
import xxhash

from pipeline.fhir.identity import SurrogateKeys
from pipeline.fhir.lines import PERSON_ERASED
from pipeline.landing.deletions import Deletion, read_deletions
from pipeline.landing.store import LandedExport, LandedFile
from pipeline.staging import schemas
from pipeline.staging.parts import StagedExport
from pipeline.staging.schemas import FileLines

__all__ = ["DELETED", "UNREADABLE", "stage_deletions"]

_log = logging.getLogger(__name__)

DELETED, UNREADABLE = "deleted", "deletion_unreadable"

_ENTRIES_A_PART = 100_000


def stage_deletions(export: LandedExport, staged: StagedExport, keys: SurrogateKeys) -> list[FileLines]:
    """Write an outcome for each entry of the export's files of deleted resources. Raises LandingError."""
    return [_stage(file, staged, keys) for file in export.deleted]


def _stage(file: LandedFile, staged: StagedExport, keys: SurrogateKeys) -> FileLines:
    entries = read_deletions(file.path)
    total = unreadable = 0
    while part := list(islice(entries, _ENTRIES_A_PART)):
        rows = [_outcome(file, entry, keys) for entry in part]
        frame = pl.DataFrame(rows, schema=schemas.OUTCOME_SCHEMA, orient="row")
        staged.write(schemas.OUTCOME, f"{file.number:06d}-{part[0].number:09d}", frame)
        total += len(part)
        unreadable += sum(entry.resource_type is None and not entry.is_erased for entry in part)
    if unreadable:
        _log.warning("%s: %d of %d entries name no deleted resource.", file.path.name, unreadable, total)
    return FileLines(file.number, total, 0)


def _outcome(file: LandedFile, entry: Deletion, keys: SurrogateKeys) -> tuple[object, ...]:
    """A row of OUTCOME_SCHEMA. The hash is of the deletion itself: the resource's own line is never taken for it."""
    digest = xxhash.xxh3_128_digest(f"DELETE {entry.resource_type}/{entry.resource_id}".encode())
    high, low = (int.from_bytes(half, "little", signed=True) for half in (digest[:8], digest[8:]))
    where = (file.number, entry.number, entry.byte_offset, entry.byte_length, high, low)
    if entry.resource_type is None or entry.resource_id is None:
        reason = PERSON_ERASED if entry.is_erased else UNREADABLE
        return (*where, file.resource_type, None, None, "excluded", reason, None)
    surrogate_id = keys.of(entry.resource_type, entry.resource_id)
    return (*where, entry.resource_type, entry.resource_id, surrogate_id, "excluded", DELETED, None)
