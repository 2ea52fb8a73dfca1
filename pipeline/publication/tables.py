"""Names for scripts that are executed table by table: keys, lineage, columns and conditions, from the schema's facts.

The only place that makes SQL of the facts about tables; its texts are in `pipeline.publication.sql`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from omop_schema.cdm import CDM_TABLES, polars_schema, primary_key, sequence_name
from omop_schema.contact import CONTACT_TABLES
from omop_schema.etl import LINEAGE_COLUMNS, LINEAGE_TABLES, lineage_table_name
from pipeline.publication.link_roles import FOLLOWING, Place, roles_to
from pipeline.publication.sql import fragment

__all__ = [
    "DERIVED_OF_PERSONS",
    "DETAIL_LINKS",
    "DETAIL_NAMES",
    "EVENT_COLUMNS",
    "OF_PERSONS",
    "SHARED_BY_DETAILS",
    "columns_set",
    "contact_names",
    "event_names",
    "merge_names",
    "own_key",
    "patients_by_rows",
    "place_names",
    "sides",
    "table_names",
    "target_rows",
    "update_names",
    "visit_columns",
]

#: Tables with rows of persons that resources make, and those with rows that follow from them.
OF_PERSONS = [table for table in LINEAGE_TABLES if table != "person" and "person_id" in polars_schema(table)]
DERIVED_OF_PERSONS = [
    table for table in CDM_TABLES if table not in LINEAGE_TABLES and "person_id" in polars_schema(table)
]

#: CDM table → its columns for the row that a row belongs to: the row's id, and the concept of the field with that id.
EVENT_COLUMNS = {
    "observation": ("observation_event_id", "obs_event_field_concept_id"),
    "measurement": ("measurement_event_id", "meas_event_field_concept_id"),
    "note": ("note_event_id", "note_event_field_concept_id"),
}

#: Table of `CONTACT_TABLES` → the column of its own date.
_OWN_DATES = {table: next(name for name in polars_schema(table) if name.endswith("_date")) for table in CONTACT_TABLES}

#: visit_detail column → visit_occurrence column, where they differ.
DETAIL_NAMES = {
    name: name.replace("visit_detail", "visit", 1)
    for name in polars_schema("visit_detail")
    if name.startswith("visit_detail_") and name != "visit_detail_id"
}
#: Columns that a visit and its form as a detail share, under the detail's names.
SHARED_BY_DETAILS = [
    name
    for name in polars_schema("visit_detail")
    if DETAIL_NAMES.get(name, name) in polars_schema("visit_occurrence")
    and name not in {"visit_occurrence_id", "preceding_visit_detail_id"}
]
#: Table → its column for the detail; visit_detail has the stays of an encounter in locations, and its children.
DETAIL_LINKS = {
    table: "parent_visit_detail_id" if table == "visit_detail" else "visit_detail_id"
    for table in LINEAGE_TABLES
    if table == "visit_detail"
    or (
        {"visit_occurrence_id", "visit_detail_id"} <= set(polars_schema(table))
        and (table, "visit_detail_id") not in FOLLOWING
    )
}

#: Tables whose rows are on a visit and, where that is of a sub-encounter, on its detail.
_ON_DETAILS = frozenset(
    place.table
    for role in roles_to("visit_occurrence")
    for place in role.places
    if "visit_detail_id" in polars_schema(place.table)
)


def own_key(table: str) -> str:
    """The column by which lineage names a row."""
    return primary_key(table) or "person_id"


@cache
def table_names(table: str) -> dict[str, str]:
    """table, own (its key) and lineage."""
    return {"table": table, "own": own_key(table), "lineage": lineage_table_name(table)}


def contact_names() -> Iterator[dict[str, str]]:
    """Names of each table whose rows have a day of contact: `table_names`, start (its own date), and contact_of_visit: the
    expression, with a comma, of the day that a row's visit gives; empty of a table without visits."""
    for table in CONTACT_TABLES:
        has_visit = "visit_occurrence_id" in polars_schema(table) and (table, "visit_occurrence_id") not in FOLLOWING
        visit = "visit.visit_start_date, " if has_visit else ""
        yield {**table_names(table), "start": _OWN_DATES[table], "contact_of_visit": visit}


def event_names(table: str, event_table: str) -> dict[str, str]:
    """Names of a table whose rows belong to rows of another one."""
    event_id, event_field = EVENT_COLUMNS[table]
    return {
        **table_names(table),
        "event_id": event_id,
        "event_field": event_field,
        "event_table": event_table,
        "event_own": own_key(event_table),
        "event_lineage": lineage_table_name(event_table),
    }


def update_names(table: str, columns: Iterable[str]) -> dict[str, str]:
    """Lists of columns to compare and to write, of the row as it is (row) and as it is to be (new)."""
    names = list(columns)
    return {
        **table_names(table),
        "columns": ", ".join(names),
        "row_columns": ", ".join(f"row.{name}" for name in names),
        "new_columns": ", ".join(f"new.{name}" for name in names),
    }


def columns_set(columns: Iterable[str], source: str = "excluded") -> str:
    """The columns as `source` has them: by default the row that could not be inserted."""
    return ", ".join(f"{name} = {source}.{name}" for name in columns)


def place_names(place: Place, target: str = "") -> dict[str, str]:
    """Names of a place that links fill, and in which rows. `target`: the table whose rows go, where links are taken out;
    a row on a sub-encounter keeps to that when its visit goes, so that only its detail counts."""
    of_rows, on_detail = place.rows.value, place.column == "visit_occurrence_id" and place.table in _ON_DETAILS
    return {
        **table_names(place.table),
        "place_column": place.column,
        "column": "visit_detail_id" if target == "visit_detail" else place.column,
        "of_rows": of_rows,
        "of_other_rows": of_rows.replace("lineage.", "sibling."),
        "set_detail": ", visit_detail_id = target.detail_id" if on_detail else "",
        "unset_detail": ", visit_detail_id = NULL" if on_detail else "",
        "without_detail": " AND row.visit_detail_id IS NULL" if on_detail and target != "visit_detail" else "",
    }


def target_rows(target: str, cdm: str) -> str:
    """Which row a link leads to: an entity table's rows as a relation (surrogate_id, row_id, detail_id), to be joined by
    the surrogate id that a resource refers to. A sub-encounter stands for its topmost parent's visit and its own detail;
    of all others detail_id is NULL."""
    rows = [fragment("entity_targets", target=target, target_own=own_key(target), cdm=cdm)]
    if target == "visit_occurrence":
        rows.append(fragment("detail_targets", cdm=cdm))
    return " UNION ALL ".join(rows)


def merge_names(table: str, columns: Sequence[str], key: Sequence[str]) -> dict[str, str]:
    """Names of a table whose rows are compared with those of the temporary table `fresh_<table>`, which has these columns.

    `key`: the columns that two equal rows have in common; the others are updated."""
    values = [name for name in columns if name not in key]
    return {
        **table_names(table),
        "sequence": sequence_name(table) or "",
        "columns": ", ".join(columns),
        "key": ", ".join(key),
        "same_key": " AND ".join(f"fresh.{name} = row.{name}" for name in key),
        "set_values": ", ".join(f"{name} = fresh.{name}" for name in values),
        "row_values": ", ".join(f"row.{name}" for name in values),
        "fresh_values": ", ".join(f"fresh.{name}" for name in values),
    }


def patients_by_rows(cdm: str) -> str:
    """Whose the resources in `judged` are by their rows, as a relation (surrogate_id, patient)."""
    return " UNION ".join(fragment("patients_in_table", cdm=cdm, **table_names(table)) for table in OF_PERSONS)


def visit_columns() -> dict[str, str]:
    """The columns that visits and details share, under both names, and as values of a row of either."""
    details = [name for name in SHARED_BY_DETAILS if name != "visit_detail_id"]
    visits = [DETAIL_NAMES.get(name, name) for name in details]
    return {
        "detail_columns": ", ".join(details),
        "visit_columns": ", ".join(visits),
        "detail_values": ", ".join(f"detail.{name}" for name in details),
        "visit_values": ", ".join(f"visit.{name}" for name in visits),
    }


def sides(moved: str, source: str, target: str) -> dict[str, str]:
    """Names for encounters (temporary table `moved`) that go from one table to the other."""
    return {
        "moved": moved,
        "source": source,
        "source_own": own_key(source),
        "source_lineage": lineage_table_name(source),
        "target": target,
        "target_lineage": lineage_table_name(target),
        "lineage_columns": ", ".join(LINEAGE_COLUMNS),
    }
