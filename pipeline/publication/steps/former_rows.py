"""Rows that earlier versions of the changed resources made: they go, and event ids are remembered by meaning for reuse."""

from __future__ import annotations

import polars as pl

from omop_schema.etl import LINEAGE_TABLES
from pipeline.publication.ids import ENTITY_TABLES
from pipeline.publication.removed_persons import remove_moved_events, remove_rows_of_persons
from pipeline.publication.sql import Database
from pipeline.publication.tables import table_names
from pipeline.publication.unlink import unlink
from pipeline.publication.values import Decisions, FormerRows, RowCounts

__all__ = ["remove_former_rows", "remove_nlp_of_left_notes"]

_ROW_IDS = {"surrogate_id": pl.Int64, "row_key": pl.Int64, "row_id": pl.Int64}


def remove_former_rows(db: Database, decisions: Decisions) -> FormerRows:
    """Delete what earlier versions of the changed resources made. Makes the temporary table `former`."""
    counts = RowCounts()
    if not db.execute("former"):
        return FormerRows()
    _unlink_details(db, decisions)
    ids = {table: _remove_events(db, table, counts) for table in LINEAGE_TABLES if table not in ENTITY_TABLES}
    for table in reversed(ENTITY_TABLES):
        if table == "location":  # rows by content, which others may share: see `remove_unused_locations`
            db.execute("left_locations")
        else:
            _remove_entities(db, decisions, table, counts)
        db.execute("remove_former_lineage", **table_names(table))
    removed_from = frozenset(ENTITY_TABLES) - {"location"}
    return FormerRows(counts, ids, removed_from, left_locations=True)


def remove_nlp_of_left_notes(db: Database, former: FormerRows) -> RowCounts:
    """Delete the rows of note_nlp, which others fill, whose note went and did not come back under its id."""
    counts = RowCounts()
    notes = former.ids.get("note")
    if notes is not None and not notes.is_empty():
        db.put("left_note", notes.select("row_id"))
        counts.deleted["note_nlp"] += db.execute("remove_nlp_of_notes")
    return counts


def _unlink_details(db: Database, decisions: Decisions) -> None:
    """Rows on sub-encounters that are not loaded any more: they wait for the encounter, without a visit."""
    kept = [decisions.rows("visit_occurrence").select("surrogate_id"), decisions.children.select(surrogate_id="from")]
    db.put("kept_encounter", pl.concat(kept))
    if db.execute("removed_details"):
        unlink(db, "visit_detail", "removed_detail")


def _remove_events(db: Database, table: str, counts: RowCounts) -> pl.DataFrame:
    """Columns surrogate_id, row_key, row_id: the rows that were removed."""
    rows = db.frame("former_rows", _ROW_IDS, **table_names(table))
    if not rows.is_empty():
        counts.deleted[table] += db.execute("remove_former_rows", **table_names(table))
        db.execute("remove_former_lineage", **table_names(table))
    return rows


def _remove_entities(db: Database, decisions: Decisions, table: str, counts: RowCounts) -> None:
    """Rows whose resource no longer makes one (entered in error, cancelled); links to them become pending."""
    remade = decisions.rows(table).select("surrogate_id").unique()
    if table == "person":  # a merged patient's events follow the survivor, and then the row goes: see `merges`
        remade = pl.concat([remade, decisions.merged.select(surrogate_id="from")])
    if table == "visit_occurrence":  # what becomes a detail goes without unlinking anything
        _remove_visits_of_children(db, decisions, counts)
    db.put(f"remade_{table}", remade)
    removed = db.execute("removed_entities", **table_names(table))
    # Of replaced patients that are not loaded any more, the events are with their survivors.
    if table == "person" and db.execute("removed_patients"):
        counts.deleted.update(remove_moved_events(db))
    if removed:
        if table == "person":
            counts.deleted.update(remove_rows_of_persons(db))
        unlink(db, table, f"removed_{table}")
        counts.deleted[table] += db.execute("remove_entities", **table_names(table))


def _remove_visits_of_children(db: Database, decisions: Decisions, counts: RowCounts) -> None:
    """Former visits of changed encounters that are sub-encounters now: their events follow them, see `visits`."""
    db.put("child_now", decisions.children.select(pl.col("from").alias("surrogate_id")))
    counts.deleted["visit_occurrence"] += db.execute("remove_visits_of_children")
    db.execute("remove_lineage_of_children")
