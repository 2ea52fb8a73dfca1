"""Sub-encounters: an Encounter with `partOf` is a visit_detail of its topmost parent's visit, once that is loaded.

Until then, and when the parent goes, it is a visit of its own. Events on it carry the parent's visit and the detail.
Both forms keep their ids, so that an encounter that changes sides and comes back finds its own again.
"""

from __future__ import annotations

import polars as pl

from omop_schema.cdm import polars_schema
from omop_schema.etl import LINEAGE_COLUMNS, LINEAGE_TABLES
from pipeline.publication.context import LINE, Publication
from pipeline.publication.ids import LINKS
from pipeline.publication.steps.lineage import lineage_rows
from pipeline.publication.steps.links import note_pending
from pipeline.publication.steps.merges import with_survivors
from pipeline.transform.routing import fitted
from pipeline.warehouse.copying import copy_frame, read_frame, temporary_table

__all__ = ["link_details", "mark_emergency_stays", "place_children"]

#: visit_detail column → visit_occurrence column, where they differ.
_DETAIL_NAMES = {
    name: name.replace("visit_detail", "visit", 1)
    for name in polars_schema("visit_detail")
    if name.startswith("visit_detail_") and name != "visit_detail_id"
}
#: Columns that a visit and its form as a detail share, under the detail's names.
_SHARED = [
    name
    for name in polars_schema("visit_detail")
    if _DETAIL_NAMES.get(name, name) in polars_schema("visit_occurrence")
    and name not in {"visit_occurrence_id", "preceding_visit_detail_id"}
]
#: Table → its column for the detail; visit_detail holds the stays of an encounter in locations, and its children.
_DETAIL_LINKS = {
    table: "parent_visit_detail_id" if table == "visit_detail" else "visit_detail_id"
    for table in LINEAGE_TABLES
    if table == "visit_detail" or {"visit_occurrence_id", "visit_detail_id"} <= set(polars_schema(table))
}


_ANY_DETAIL = "SELECT count(*) FROM (SELECT FROM id_map WHERE cdm_table = 'visit_detail' LIMIT 1) AS any_row"


def place_children(p: Publication) -> None:
    """Sub-encounters to visit_detail, others to visit_occurrence; loaded events follow. Visits are there already."""
    arriving = _arriving(p)
    if p.children.is_empty() and not p.count(_ANY_DETAIL):
        return
    temporary_table(p.connection, "wanted_child", p.children.rename({"from": "child", "next": "parent", "last": "top"}))
    _demote(p, arriving)
    _insert(p, arriving)
    _promote(p)
    _move_events(p)
    _read_details(p)


def link_details(p: Publication, rows: pl.DataFrame, table: str) -> pl.DataFrame:
    """Staged rows with the row ids of detail and visit where their encounter is a detail. Adds `linked_visit`.

    visit_occurrence_id still holds surrogate ids of all others.
    """
    if p.details.is_empty() or table not in _DETAIL_LINKS:
        return rows.with_columns(pl.lit(None, dtype=pl.Int64).alias("linked_visit"))
    found = p.details.rename({"surrogate_id": "visit_occurrence_id", "visit_row_id": "linked_visit"})
    rows = rows.join(found, on="visit_occurrence_id", how="left", maintain_order="left")
    return rows.with_columns(
        pl.col("detail_row_id").alias(_DETAIL_LINKS[table]),
        pl.when(pl.col("linked_visit").is_null()).then("visit_occurrence_id").alias("visit_occurrence_id"),
    ).drop("detail_row_id")


# --- sub-encounters of this export -------------------------------------------------------------------------------------


def _arriving(p: Publication) -> pl.DataFrame:
    """This export's sub-encounters as rows of visit_detail; links still are surrogate ids."""
    if p.children.is_empty():
        return pl.DataFrame()
    parts = [p.loaded(part) for part in p.staged.frames("visit_occurrence")]
    links = p.children.rename({"from": "surrogate_id"})
    rows = [part.join(links, on="surrogate_id", how="inner", maintain_order="left") for part in parts]
    if not rows:
        return pl.DataFrame()
    visits = with_survivors(p, pl.concat(rows), "visit_detail")
    nested = p.children["from"].implode()
    return visits.select(
        *LINE,
        "row_key",
        *(
            fitted(pl.col(_DETAIL_NAMES.get(name, name)), "visit_detail", name, kind, required=False).alias(name)
            for name, kind in polars_schema("visit_detail").items()
            if name in _SHARED
        ),
        pl.col("last").alias("visit_occurrence_id"),
        pl.when(pl.col("next").is_in(nested)).then("next").alias("parent_visit_detail_id"),
    )


def _insert(p: Publication, rows: pl.DataFrame) -> None:
    if rows.is_empty():
        return
    links = [name for name in rows.columns if name in LINKS]
    note_pending(p, rows, [name for name in links if name != "visit_occurrence_id"], "visit_occurrence")
    rows = p.ids.linked(rows, links)
    ids = p.ids.existing["visit_detail"]
    own = ids.rename({"row_id": "visit_detail_id"})
    parents = ids.rename({"surrogate_id": "parent_visit_detail_id", "row_id": "parent_row_id"})
    rows = (
        rows.join(own, on="surrogate_id", maintain_order="left")
        .join(parents, on="parent_visit_detail_id", how="left", maintain_order="left")
        .with_columns(pl.col("parent_row_id").alias("parent_visit_detail_id"))
        .unique("visit_detail_id", keep="first", maintain_order=True)
    )
    columns = [name for name in polars_schema("visit_detail") if name in rows.columns]
    p.report.rows_inserted["visit_detail"] += copy_frame(p.connection, f"{p.cdm}.visit_detail", rows.select(columns))
    copy_frame(
        p.connection,
        "lineage_visit_detail",
        lineage_rows(rows.rename({"visit_detail_id": "row_id"}), p.export.export_id),
    )


# --- encounters that change sides --------------------------------------------------------------------------------------


def _demote(p: Publication, arriving: pl.DataFrame) -> None:
    """Loaded visits whose parent is here now become details; ids for these and for the arriving ones."""
    demoted = read_frame(
        p.connection,
        "SELECT child FROM pg_temp.wanted_child JOIN lineage_visit_occurrence ON surrogate_id = child"
        " WHERE NOT EXISTS (SELECT FROM pg_temp.changed WHERE changed.surrogate_id = child)",
        {"child": pl.Int64},
    )["child"]
    own = pl.concat([arriving["surrogate_id"], demoted]) if not arriving.is_empty() else demoted
    parents = p.children["next"].filter(p.children["next"].is_in(p.children["from"].implode()))
    p.ids.assign("visit_detail", own, [parents])
    temporary_table(p.connection, "demoted", pl.DataFrame({"child": demoted}))
    if demoted.is_empty():
        return
    names = [name for name in _SHARED if name != "visit_detail_id"]
    source = ", ".join(f"visit.{_DETAIL_NAMES.get(name, name)}" for name in names)
    p.connection.execute(
        f"INSERT INTO {p.cdm}.visit_detail (visit_detail_id, {', '.join(names)}, visit_occurrence_id,"
        f" parent_visit_detail_id) SELECT map.row_id, {source}, top.row_id, parent.row_id"
        " FROM pg_temp.demoted JOIN pg_temp.wanted_child USING (child)"
        " JOIN lineage_visit_occurrence AS lineage ON lineage.surrogate_id = child"
        f" JOIN {p.cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = lineage.row_id"
        " JOIN id_map AS map ON map.surrogate_id = child AND map.cdm_table = 'visit_detail'"
        " JOIN id_map AS top ON top.surrogate_id = wanted_child.top AND top.cdm_table = 'visit_occurrence'"
        " LEFT JOIN id_map AS parent ON parent.surrogate_id = wanted_child.parent"
        " AND parent.cdm_table = 'visit_detail' AND wanted_child.parent IN (SELECT child FROM pg_temp.wanted_child)"
    )
    _move_lineage(p, "demoted", "visit_occurrence", "visit_detail")


def _promote(p: Publication) -> None:
    """Loaded details whose parent is gone, or is not named any more, become visits."""
    promoted = read_frame(
        p.connection,
        "SELECT lineage.surrogate_id FROM id_map AS map JOIN lineage_visit_detail AS lineage"
        " ON lineage.surrogate_id = map.surrogate_id AND lineage.row_id = map.row_id"
        " WHERE map.cdm_table = 'visit_detail'"
        " AND NOT EXISTS (SELECT FROM pg_temp.wanted_child WHERE child = map.surrogate_id)"
        " AND NOT EXISTS (SELECT FROM pg_temp.changed WHERE changed.surrogate_id = map.surrogate_id)",
        {"child": pl.Int64},
    )["child"]
    temporary_table(p.connection, "promoted", pl.DataFrame({"child": promoted}))
    if promoted.is_empty():
        return
    p.ids.assign("visit_occurrence", promoted, [])
    names = [name for name in _SHARED if name != "visit_detail_id"]
    target = ", ".join(_DETAIL_NAMES.get(name, name) for name in names)
    p.connection.execute(
        f"INSERT INTO {p.cdm}.visit_occurrence (visit_occurrence_id, {target})"
        f" SELECT map.row_id, {', '.join(f'detail.{name}' for name in names)} FROM pg_temp.promoted"
        " JOIN id_map AS own ON own.surrogate_id = child AND own.cdm_table = 'visit_detail'"
        f" JOIN {p.cdm}.visit_detail AS detail ON detail.visit_detail_id = own.row_id"
        " JOIN id_map AS map ON map.surrogate_id = child AND map.cdm_table = 'visit_occurrence'"
    )
    _move_lineage(p, "promoted", "visit_detail", "visit_occurrence")


def _move_lineage(p: Publication, moved: str, source: str, target: str) -> None:
    """Lineage of encounters (temporary table `moved`) from one table to the other; their former rows go."""
    p.connection.execute(
        f"INSERT INTO lineage_{target} ({', '.join(LINEAGE_COLUMNS)})"
        f" SELECT new.row_id, lineage.surrogate_id, lineage.row_key, lineage.export_id FROM pg_temp.{moved}"
        f" JOIN id_map AS old ON old.surrogate_id = child AND old.cdm_table = '{source}'"
        f" JOIN id_map AS new ON new.surrogate_id = child AND new.cdm_table = '{target}'"
        f" JOIN lineage_{source} AS lineage ON lineage.surrogate_id = child AND lineage.row_id = old.row_id"
    )
    for statement in (
        (
            f"DELETE FROM {p.cdm}.{source} AS row USING pg_temp.{moved}, id_map AS old"
            f" WHERE old.surrogate_id = child AND old.cdm_table = '{source}' AND row.{source}_id = old.row_id"
        ),
        (
            f"DELETE FROM lineage_{source} AS lineage USING pg_temp.{moved}, id_map AS old"
            f" WHERE old.surrogate_id = child AND old.cdm_table = '{source}' AND lineage.surrogate_id = child"
            " AND lineage.row_id = old.row_id"
        ),
    ):
        deleted = p.connection.execute(statement).rowcount
    p.report.rows_deleted[source] += deleted
    p.report.rows_inserted[target] += deleted


def _move_events(p: Publication) -> None:
    """Rows that were linked to an encounter's other form, or to a former top of its chain."""
    p.connection.execute(
        "CREATE TEMP TABLE placed ON COMMIT DROP AS"
        " SELECT detail.row_id AS detail_id, own.row_id AS own_visit_id, top.row_id AS visit_id"
        " FROM pg_temp.wanted_child AS child"
        " JOIN id_map AS detail ON detail.surrogate_id = child.child AND detail.cdm_table = 'visit_detail'"
        " LEFT JOIN id_map AS own ON own.surrogate_id = child.child AND own.cdm_table = 'visit_occurrence'"
        " JOIN id_map AS top ON top.surrogate_id = child.top AND top.cdm_table = 'visit_occurrence'"
        f" JOIN {p.cdm}.visit_detail AS row ON row.visit_detail_id = detail.row_id"
        " WHERE row.visit_occurrence_id <> top.row_id OR child.child IN (SELECT surrogate_id FROM pg_temp.changed)"
        " OR child.child IN (SELECT child FROM pg_temp.demoted)"
    )
    p.connection.execute(
        "CREATE TEMP TABLE unplaced ON COMMIT DROP AS"
        " SELECT detail.row_id AS detail_id, own.row_id AS visit_id FROM id_map AS detail"
        " JOIN id_map AS own ON own.surrogate_id = detail.surrogate_id AND own.cdm_table = 'visit_occurrence'"
        f" JOIN {p.cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = own.row_id"
        " WHERE detail.cdm_table = 'visit_detail' AND (detail.surrogate_id IN (SELECT surrogate_id FROM pg_temp.changed)"
        " OR detail.surrogate_id IN (SELECT child FROM pg_temp.promoted))"
    )
    p.connection.execute("ANALYZE pg_temp.placed; ANALYZE pg_temp.unplaced")
    for table, detail in _DETAIL_LINKS.items():
        for statement in (
            (
                f"UPDATE {p.cdm}.{table} AS row SET visit_occurrence_id = placed.visit_id, {detail} = placed.detail_id"
                f" FROM pg_temp.placed WHERE row.visit_occurrence_id = placed.own_visit_id AND row.{detail} IS NULL"
            ),
            (
                f"UPDATE {p.cdm}.{table} AS row SET visit_occurrence_id = placed.visit_id FROM pg_temp.placed"
                f" WHERE row.{detail} = placed.detail_id AND row.visit_occurrence_id IS DISTINCT FROM placed.visit_id"
            ),
            (
                f"UPDATE {p.cdm}.{table} AS row SET visit_occurrence_id = unplaced.visit_id, {detail} = NULL"
                f" FROM pg_temp.unplaced WHERE row.{detail} = unplaced.detail_id"
            ),
        ):
            p.connection.execute(statement)


def _read_details(p: Publication) -> None:
    """The details among the encounters that this export's rows refer to."""
    p.details = read_frame(
        p.connection,
        "SELECT map.surrogate_id, map.row_id, detail.visit_occurrence_id FROM pg_temp.wanted_child AS child"
        " JOIN id_map AS map ON map.surrogate_id = child.child AND map.cdm_table = 'visit_detail'"
        f" JOIN {p.cdm}.visit_detail AS detail ON detail.visit_detail_id = map.row_id",
        dict(p.details.schema),
    )


# --- emergency to inpatient --------------------------------------------------------------------------------------------


def mark_emergency_stays(p: Publication) -> None:
    """9201 becomes 262 for a stay with an emergency part (specification, "Encounter"), and back when that goes.

    Stays in a location that says of itself to be an emergency room are emergency visits, as long as it does. Facts:
    `inpatient_visit` of the encounter, `emergency_location` of the location.
    """
    emergency = "name = 'emergency_location' LIMIT 1"
    if p.count(
        f"SELECT count(*) FROM ((SELECT FROM reference_value WHERE {emergency}) UNION ALL"
        f" (SELECT FROM pg_temp.former_fact WHERE {emergency})) AS any_fact"
    ):
        p.connection.execute(
            f"UPDATE {p.cdm}.visit_detail AS detail SET visit_detail_concept_id = 9201"
            " FROM reference_value AS fact JOIN lineage_visit_detail AS lineage USING (surrogate_id)"
            " WHERE fact.name = 'inpatient_visit' AND fact.value = '9201' AND detail.visit_detail_id = lineage.row_id"
            " AND detail.visit_detail_concept_id = 9203 AND NOT EXISTS"
            " (SELECT FROM lineage_care_site AS site JOIN reference_value AS emergency USING (surrogate_id)"
            " WHERE site.row_id = detail.care_site_id AND emergency.name = 'emergency_location')"
        )
    p.connection.execute(
        f"UPDATE {p.cdm}.visit_detail AS detail SET visit_detail_concept_id = 9203"
        " FROM reference_value AS fact JOIN lineage_care_site AS site USING (surrogate_id)"
        f" WHERE fact.name = 'emergency_location' AND detail.care_site_id = site.row_id"
        " AND detail.visit_detail_concept_id = 9201"
    )
    p.connection.execute(
        f"UPDATE {p.cdm}.visit_occurrence AS visit SET visit_concept_id = wanted.concept_id FROM ("
        f" SELECT lineage.row_id, CASE WHEN EXISTS (SELECT FROM {p.cdm}.visit_detail AS detail"
        "  WHERE detail.visit_occurrence_id = lineage.row_id AND detail.visit_detail_concept_id = 9203)"
        "  THEN 262 ELSE 9201 END AS concept_id"
        " FROM reference_value AS fact JOIN lineage_visit_occurrence AS lineage"
        "  ON lineage.surrogate_id = fact.surrogate_id"
        " WHERE fact.name = 'inpatient_visit' AND fact.value = '9201') AS wanted"
        " WHERE visit.visit_occurrence_id = wanted.row_id AND visit.visit_concept_id IN (9201, 262)"
        " AND visit.visit_concept_id <> wanted.concept_id"
    )
