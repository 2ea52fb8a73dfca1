"""Merged patients: `Patient.link` of type replaced-by moves events to the survivor, and back when the link goes.

Whose events were moved is kept in `etl.reference` under the role `person_id`: from the event's resource to the patient
to whom it belongs by its own words. The replaced patient has no row in person or death meanwhile; its id is kept.
"""

from __future__ import annotations

import polars as pl

from pipeline.publication.link_roles import LINK_ROLES
from pipeline.publication.sql import Database
from pipeline.publication.tables import OF_PERSONS, table_names
from pipeline.publication.values import Decisions, RowCounts

__all__ = ["move_events", "with_survivors"]

#: Tables whose rows follow a survivor.
_EVENT_TABLES = [table for table in OF_PERSONS if table != "death"]


def with_survivors(rows: pl.DataFrame, table: str, merged: pl.DataFrame) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """Staged rows with the survivor's surrogate id as person_id, and the rows for `etl.reference` that say whose they
    are; a replaced patient's own rows are left out. `merged`: CHAIN_SCHEMA."""
    if merged.is_empty() or "person_id" not in rows.columns or table == "person":
        return rows, []
    if table == "death":
        rows = rows.join(merged, left_on="surrogate_id", right_on="from", how="anti", maintain_order="left")
    survivor = merged.select(pl.col("from").alias("person_id"), pl.col("last").alias("survivor"))
    rows = rows.join(survivor, on="person_id", how="left", maintain_order="left")
    moved = rows.filter(pl.col("survivor").is_not_null())
    references = []
    if not moved.is_empty():
        references.append(
            moved.select(
                pl.col("surrogate_id").alias("from_surrogate_id"),
                pl.lit("person_id").alias("role"),
                pl.col("person_id").alias("to_surrogate_id"),
                pl.lit("resolved").alias("state"),
            ).unique(maintain_order=True)
        )
    rows = rows.with_columns(pl.coalesce("survivor", "person_id").alias("person_id")).drop("survivor")
    return rows, references


def move_events(db: Database, decisions: Decisions) -> RowCounts:
    """Bring loaded rows to where this publication's merges say; the rows of persons are there, those of events not."""
    counts = RowCounts()
    moved_before = db.value("any_moved_event")
    merged = decisions.merged
    if merged.is_empty() and not moved_before:
        return counts
    db.put("merged_patient", merged.select(pl.col("from").alias("patient"), "last"))
    if db.execute("merged_persons"):
        _follow_survivors(db, counts)
    if moved_before:
        _bring_back(db)
    return counts


def _follow_survivors(db: Database, counts: RowCounts) -> None:
    """The events of patients who are replaced from now on; then their rows in person and death go."""
    db.execute("merged_are_affected")
    for table in _EVENT_TABLES:
        db.execute("follow_survivors", **table_names(table))
    db.execute("forget_links_of_merged", {"roles": [name for name in LINK_ROLES if name.startswith("person.")]})
    for table in ("death", "person"):
        counts.deleted[table] += db.execute("remove_merged", **table_names(table))


def _bring_back(db: Database) -> None:
    """Events that were moved, and whose patient is replaced by another one now, or by none."""
    db.execute("owners_of_moved")
    for table in _EVENT_TABLES:
        db.execute("bring_back", **table_names(table))
    db.execute("forget_moved")
