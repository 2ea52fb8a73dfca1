"""From events to tables: the table of the concept's domain, and which event column fills which OMOP column.

An event is a row with role names (`start_date`, `concept_id`, `value_as_number` …) that does not know its table yet.
A column that a table does not have is left out there; a required one that an event does not have gets its rule here.
"""

from __future__ import annotations

import polars as pl

from omop_schema.cdm_fields import column_length, polars_schema, required_columns
from omop_schema.contact import CONTACT_DATE
from pipeline.staging.schemas import KEY_COLUMNS, staged_columns
from pipeline.transform.column_names import exact

__all__ = ["DOMAIN_TABLES", "VALUE_DOMAINS", "exact_numbers", "route", "to_staged", "to_table"]

#: f2o-037: the domain of the resolved concept decides. A domain that is not named here stays in the home table if
#: that takes any domain (observation), else goes to observation, the CDM's table for all that has no other.
DOMAIN_TABLES = {
    "Condition": "condition_occurrence",
    "Drug": "drug_exposure",
    "Procedure": "procedure_occurrence",
    "Measurement": "measurement",
    "Observation": "observation",
    "Device": "device_exposure",
    "Specimen": "specimen",
}

#: Domains of which the table holds a concept as value.
VALUE_DOMAINS = frozenset(("Measurement", "Observation"))


_SHARED = {
    "person_id": "person_id",
    "visit_occurrence_id": "visit_occurrence_id",
    "provider_id": "provider_id",
}


def _dated(prefix: str, stem: str, *, ends: bool) -> dict[str, str]:
    """OMOP column → event column, for the columns that differ between tables only by their names."""
    start = f"{stem}_start" if ends else stem
    columns = {
        f"{prefix}_concept_id": "concept_id",
        f"{prefix}_source_concept_id": "source_concept_id",
        f"{prefix}_source_value": "source_value",
        f"{prefix}_type_concept_id": "type_concept_id",
        f"{start}_date": "start_date",
        f"{start}_datetime": "start_datetime",
    }
    if ends:
        columns |= {f"{stem}_end_date": "end_date", f"{stem}_end_datetime": "end_datetime"}
    return {**_SHARED, **columns}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_VALUES = _same(
    *("value_as_number", "value_as_concept_id", "value_source_value", "value_as_source_concept_id"),
    *("unit_concept_id", "unit_source_value", "unit_source_concept_id"),
)

EVENT_COLUMNS: dict[str, dict[str, str]] = {
    "condition_occurrence": {
        **_dated("condition", "condition", ends=True),
        **_same("condition_status_concept_id", "condition_status_source_value", "stop_reason"),
    },
    "drug_exposure": {
        **_dated("drug", "drug_exposure", ends=True),
        **_same(
            "stop_reason",
            "refills",
            "quantity",
            "days_supply",
            "sig",
            "verbatim_end_date",
            "route_concept_id",
            "lot_number",
        ),
        **_same("route_source_value", "dose_unit_source_value"),
    },
    "procedure_occurrence": {
        **_dated("procedure", "procedure", ends=False),
        "procedure_end_date": "end_date",
        "procedure_end_datetime": "end_datetime",
        "quantity": "whole_quantity",
        **_same("modifier_concept_id", "modifier_source_value"),
    },
    "device_exposure": {
        **_dated("device", "device_exposure", ends=True),
        "quantity": "whole_quantity",
        "production_id": "lot_number",
        **_same("unique_device_id"),
    },
    "measurement": {
        **_dated("measurement", "measurement", ends=False),
        **_VALUES,
        **_same("operator_concept_id", "range_low", "range_high"),
    },
    "observation": {
        **_dated("observation", "observation", ends=False),
        **_VALUES,
        **_same("value_as_string", "value_as_date", "qualifier_concept_id", "qualifier_source_value"),
    },
    "note": {
        **_SHARED,
        "note_class_concept_id": "concept_id",
        "note_type_concept_id": "type_concept_id",
        "note_source_value": "source_value",
        "note_date": "start_date",
        "note_datetime": "start_datetime",
        **_same("note_title", "note_text", "encoding_concept_id", "language_concept_id"),
    },
    "specimen": {
        "person_id": "person_id",
        "specimen_concept_id": "concept_id",
        "specimen_type_concept_id": "type_concept_id",
        "specimen_date": "start_date",
        "specimen_datetime": "start_datetime",
        "specimen_source_value": "source_value",
        **_same("quantity", "unit_source_value", "unit_concept_id"),
        **_same("anatomic_site_concept_id", "anatomic_site_source_value"),
    },
}

#: The CDM's integers have 32 bits.
_MOST_PIECES = 2**31 - 1

#: Columns of lineage, which have the same name in events and in staging.
_OF_LINEAGE = frozenset((*KEY_COLUMNS, CONTACT_DATE))

#: Required by the CDM, and what stands in where the source has nothing.
_END_REQUIRED = ("drug_exposure_end_date",)


def route(domain: str, home: str) -> pl.Expr:
    """The table of a row from its concept's domain (column `domain`); unmapped rows stay in `home` (a column)."""
    table = pl.col(domain).replace_strict(DOMAIN_TABLES, default=None, return_dtype=pl.String)
    return pl.when(pl.col(domain).is_null()).then(pl.col(home)).otherwise(table.fill_null("observation"))


def to_table(events: pl.DataFrame, table: str) -> pl.DataFrame:
    """Events of one table in the shape of `staged_columns(table)`."""
    names = EVENT_COLUMNS[table]
    required = set(required_columns(table))
    if set(_END_REQUIRED) & set(names):
        end = pl.coalesce("end_date", "start_date") if "end_date" in events.columns else pl.col("start_date")
        events = events.with_columns(end.alias("end_date"))
    if table == "device_exposure" and "quantity" in events.columns and "whole_quantity" not in events.columns:
        pieces = pl.col("quantity")  # of a drug that is a device: its column takes whole numbers only
        whole = (pieces == pieces.round()) & pieces.is_between(0, _MOST_PIECES)
        events = events.with_columns(pl.when(whole).then(pieces.cast(pl.Int64, strict=False)).alias("whole_quantity"))
    return events.select(
        _column(events, table, name, kind, names.get(name, name if name in _OF_LINEAGE else None), name in required)
        for name, kind in staged_columns(table).items()
    )


def exact_numbers(events: pl.DataFrame, table: str) -> pl.DataFrame | None:
    """surrogate_id, row_key and, as text, the numbers of an event table that a double cannot hold; None without any."""
    texts = [
        pl.col(exact(source)).alias(name)
        for name, source in EVENT_COLUMNS[table].items()
        if exact(source) in events.columns and polars_schema(table)[name] == pl.Float64
    ]
    if not texts:
        return None
    found = events.select("surrogate_id", "row_key", *texts)
    names = found.columns[2:]
    found = found.filter(pl.any_horizontal(pl.col(names).is_not_null()))
    return None if found.is_empty() else found


def to_staged(rows: pl.DataFrame, table: str) -> pl.DataFrame:
    """Rows whose columns already have the table's names, in the shape of `staged_columns(table)`."""
    required = set(required_columns(table))
    return rows.select(
        _column(rows, table, name, kind, name, name in required) for name, kind in staged_columns(table).items()
    )


def _column(
    events: pl.DataFrame, table: str, name: str, kind: pl.DataType, source: str | None, required: bool
) -> pl.Expr:
    if source is None or source not in events.columns:
        missing = 0 if required and name.endswith("_concept_id") else None
        return pl.lit(missing, dtype=kind).alias(name)
    return fitted(pl.col(source), table, name, kind, required=required).alias(name)


def fitted(source: pl.Expr, table: str, name: str, kind: pl.DataType, *, required: bool) -> pl.Expr:
    """A value in the column's type: text cut to its length (50 characters: truncate, never fail), concepts not NULL."""
    if kind == pl.String:
        length = column_length(table, name)
        return source.str.slice(0, length) if length else source
    expression = source.cast(kind)
    return expression.fill_null(0) if required and name.endswith("_concept_id") else expression
