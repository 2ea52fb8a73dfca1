"""Sub-encounters: an Encounter with `partOf` is a visit_detail of its topmost parent's visit, once that is loaded.

Until then, and when the parent goes, it is a visit of its own. Events on it carry the parent's visit and the detail.
Both forms keep their ids, so that an encounter that changes sides and comes back finds its own again.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from omop_schema.cdm import polars_schema
from pipeline.publication.ids import LINKS
from pipeline.publication.sql import Database
from pipeline.publication.steps.lineage import lineage_rows
from pipeline.publication.steps.links import waiting_links
from pipeline.publication.steps.merges import with_survivors
from pipeline.publication.tables import DETAIL_LINKS, DETAIL_NAMES, SHARED_BY_DETAILS, sides, table_names, visit_columns
from pipeline.publication.values import DETAIL_SCHEMA, LINE, Decisions, Entities, RowCounts, Written
from pipeline.transform.routing import fitted
from pipeline.warehouse.copying import copy_frame

__all__ = ["link_details", "mark_emergency_stays", "place_children"]


def place_children(db: Database, export_id: int, decisions: Decisions, entities: Entities) -> Entities:
    """Sub-encounters to visit_detail, others to visit_occurrence; loaded events follow. Visits are there already.

    Returns the entities with the details that staged rows refer to, and all that was written.
    """
    children = decisions.children
    arriving, references = _arriving(decisions)
    if children.is_empty() and not db.value("any_detail"):
        return entities
    db.put("sub_encounter", children.rename({"from": "child", "next": "parent", "last": "top"}))
    written = Written(RowCounts(), [*entities.written.references, *references])
    written.counts.add(entities.written.counts)
    _demote(db, decisions, entities, arriving, written.counts)
    _insert(db, export_id, entities, arriving, written)
    _promote(db, entities, written.counts)
    db.execute("placed_encounters")
    for table, detail in DETAIL_LINKS.items():
        db.execute("place_events", table=table, detail=detail)
    return replace(entities, details=db.frame("details", DETAIL_SCHEMA), written=written)


def link_details(rows: pl.DataFrame, table: str, details: pl.DataFrame) -> pl.DataFrame:
    """Staged rows with the row ids of detail and visit where their encounter is a detail. Adds `linked_visit`.

    visit_occurrence_id still is the surrogate id of all others. `details`: DETAIL_SCHEMA.
    """
    if details.is_empty() or table not in DETAIL_LINKS:
        return rows.with_columns(pl.lit(None, dtype=pl.Int64).alias("linked_visit"))
    found = details.rename({"surrogate_id": "visit_occurrence_id", "visit_row_id": "linked_visit"})
    rows = rows.join(found, on="visit_occurrence_id", how="left", maintain_order="left")
    return rows.with_columns(
        pl.col("detail_row_id").alias(DETAIL_LINKS[table]),
        pl.when(pl.col("linked_visit").is_null()).then("visit_occurrence_id").alias("visit_occurrence_id"),
    ).drop("detail_row_id")


# --- sub-encounters of this export -------------------------------------------------------------------------------------


def _arriving(decisions: Decisions) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """This export's sub-encounters as rows of visit_detail, and whose they are where their patient is replaced; links
    still are surrogate ids."""
    children = decisions.children
    if children.is_empty():
        return pl.DataFrame(), []
    links = children.rename({"from": "surrogate_id"})
    rows = [
        decisions.loaded(part).join(links, on="surrogate_id", how="inner", maintain_order="left")
        for part in decisions.staged.frames("visit_occurrence")
    ]
    if not rows:
        return pl.DataFrame(), []
    visits, references = with_survivors(pl.concat(rows), "visit_detail", decisions.merged)
    nested = children["from"].implode()
    visits = visits.select(
        *LINE,
        "row_key",
        *(
            fitted(pl.col(DETAIL_NAMES.get(name, name)), "visit_detail", name, kind, required=False).alias(name)
            for name, kind in polars_schema("visit_detail").items()
            if name in SHARED_BY_DETAILS
        ),
        pl.col("last").alias("visit_occurrence_id"),
        pl.when(pl.col("next").is_in(nested)).then("next").alias("parent_visit_detail_id"),
    )
    return visits, references


def _insert(db: Database, export_id: int, entities: Entities, rows: pl.DataFrame, written: Written) -> None:
    if rows.is_empty():
        return
    links = [name for name in rows.columns if name in LINKS]
    waiting = [name for name in links if name != "visit_occurrence_id"]
    written.references.extend(waiting_links(rows, waiting, "visit_occurrence", entities.ids, entities.stand_ins))
    rows = entities.ids.linked(rows, links)
    ids = entities.ids.existing["visit_detail"]
    own = ids.rename({"row_id": "visit_detail_id"})
    parents = ids.rename({"surrogate_id": "parent_visit_detail_id", "row_id": "parent_row_id"})
    rows = (
        rows.join(own, on="surrogate_id", maintain_order="left")
        .join(parents, on="parent_visit_detail_id", how="left", maintain_order="left")
        .with_columns(pl.col("parent_row_id").alias("parent_visit_detail_id"))
        .unique("visit_detail_id", keep="first", maintain_order=True)
    )
    columns = [name for name in polars_schema("visit_detail") if name in rows.columns]
    written.counts.inserted["visit_detail"] += copy_frame(db.connection, f"{db.cdm}.visit_detail", rows.select(columns))
    lineage = lineage_rows(rows.rename({"visit_detail_id": "row_id"}), export_id)
    copy_frame(db.connection, "lineage_visit_detail", lineage)


# --- encounters that change sides --------------------------------------------------------------------------------------


def _demote(db: Database, decisions: Decisions, entities: Entities, arriving: pl.DataFrame, counts: RowCounts) -> None:
    """Loaded visits whose parent is here now become details; ids for these and for the arriving ones."""
    demoted = db.frame("visits_to_demote", {"child": pl.Int64})["child"]
    own = pl.concat([arriving["surrogate_id"], demoted]) if not arriving.is_empty() else demoted
    children = decisions.children
    parents = children["next"].filter(children["next"].is_in(children["from"].implode()))
    entities.ids.assign("visit_detail", own, [parents])
    db.put("demoted", pl.DataFrame({"child": demoted}))
    if not demoted.is_empty():
        db.execute("demote_visits", **visit_columns())
        _move(db, "demoted", "visit_occurrence", "visit_detail", counts)


def _promote(db: Database, entities: Entities, counts: RowCounts) -> None:
    """Loaded details whose parent is gone, or is not named any more, become visits."""
    promoted = db.frame("details_to_promote", {"child": pl.Int64})["child"]
    db.put("promoted", pl.DataFrame({"child": promoted}))
    if not promoted.is_empty():
        entities.ids.assign("visit_occurrence", promoted, [])
        db.execute("promote_details", **visit_columns())
        _move(db, "promoted", "visit_detail", "visit_occurrence", counts)


def _move(db: Database, moved: str, source: str, target: str, counts: RowCounts) -> None:
    """Lineage of encounters (temporary table `moved`) from one table to the other; their former rows go."""
    rows = db.execute("move_encounters", **sides(moved, source, target))
    # Their person is not always that of the parent, whose change moves them: a newborn in the mother's stay.
    db.execute("note_moved", moved=moved, **table_names(target))
    counts.deleted[source] += rows
    counts.inserted[target] += rows


# --- emergency to inpatient --------------------------------------------------------------------------------------------


def mark_emergency_stays(db: Database) -> None:
    """9201 becomes 262 for a stay with an emergency part (specification, "Encounter"), and back when that goes.

    Stays in a location that says of itself to be an emergency room are emergency visits, as long as it does. Facts:
    `inpatient_visit` of the encounter, `emergency_location` of the location.
    """
    if db.value("any_emergency_location"):
        db.execute("emergency_stays_back")
    db.execute("emergency_stays")
