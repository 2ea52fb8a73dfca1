"""Persons whose row goes, because their Patient was deleted or counts no more: nothing of theirs may stay.

Their resources become `excluded` with the reason `person_removed`, and are forgotten as known lines; until the Patient
is there again, a line of theirs that comes is rejected because its person is missing. `etl.reference` remembers under the role
`person_removed` whose they are, so that they are mapped again when the Patient is there.
"""

from __future__ import annotations

from collections import Counter

from pipeline.publication.sql import Database
from pipeline.publication.tables import DERIVED_OF_PERSONS, OF_PERSONS, table_names

__all__ = ["PERSON_REMOVED", "remove_moved_events", "remove_rows_of_persons"]

PERSON_REMOVED = "person_removed"


def remove_rows_of_persons(db: Database) -> Counter[str]:
    """Delete the rows of the persons in `pg_temp.removed_person` (row_id, surrogate_id), before theirs; deleted rows by
    table. Whose resources they were is in `pg_temp.of_removed_person` (surrogate_id, patient)."""
    db.execute("of_removed_person")
    deleted: Counter[str] = Counter({"note_nlp": db.execute("remove_nlp_of_persons")})
    for table in reversed(OF_PERSONS):  # events before the visits that they belong to
        deleted[table] = db.execute("remove_rows_of_persons", **table_names(table))
    for table in DERIVED_OF_PERSONS:
        db.execute("remove_derived_of_persons", **table_names(table))
    db.execute("rowless_of_removed", patients="removed_person")
    _forget_resources(db)
    return +deleted


def remove_moved_events(db: Database) -> Counter[str]:
    """Delete the rows of replaced patients that are in `pg_temp.removed_patient` (surrogate_id): they are with their
    survivors. Deleted rows by table; the survivors join `pg_temp.affected_person`."""
    db.execute("moved_events_of_removed")
    deleted: Counter[str] = Counter({"note_nlp": db.execute("remove_nlp_of_moved")})
    for table in reversed(OF_PERSONS):
        deleted[table] = db.execute("remove_moved_rows", **table_names(table))
        db.execute("remove_moved_lineage", **table_names(table))
    db.execute("rowless_of_removed", patients="removed_patient")
    _forget_resources(db)
    return +deleted


def _forget_resources(db: Database) -> None:
    """Nothing is kept of the resources in `pg_temp.of_removed_person` but whose they are. The links of their records of
    medications join `pg_temp.left_link`: others may count in their place."""
    db.execute("forget_resources_of_removed", {"person_removed": PERSON_REMOVED})
    db.execute("forget_records_of_removed")
