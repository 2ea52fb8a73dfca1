"""Results: the value of an event whose table holds none, as one more row in observation that belongs to the event's row.

An Observation's code may be of domain Procedure, Condition, Drug, Device or Specimen: its row goes to that table (f2o-037),
which has no column for what was found. A mapping says by `result_concept_id` that the value is kept. Not here: which row
belongs to which view's (`events.event_links`).
"""

from __future__ import annotations

import polars as pl

from pipeline.fhir.identity import content_key
from pipeline.staging.schemas import EVENT_LINK, SCHEMAS
from pipeline.transform.routing import EVENT_COLUMNS

__all__ = ["ENTRY", "NO_LINKS", "VALUES", "with_results"]

#: Column: the number of the row before concepts were looked up; the rows of one code's concepts share it.
ENTRY = "entry"

NO_LINKS = pl.DataFrame(schema=SCHEMAS[EVENT_LINK])

_HOLDERS = [table for table, columns in EVENT_COLUMNS.items() if "value_as_concept_id" in columns]
_TABLE = "observation"
#: What a row may say beside its concept.
VALUES = ("value_as_number", "value_as_concept_id", "value_as_string", "value_source_value")
#: An odd constant, and the number of these rows: their keys follow from those of the rows to which they belong.
_MIX, _RESULT = -7046029254386353131, content_key("result")


def with_results(rows: pl.DataFrame, concept: pl.Expr) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows and their results, and which belongs to which row (SCHEMAS[EVENT_LINK]).

    rows: coded events with `table`, `row_key` and ENTRY. `concept`: that of a result. A value that another row of the same
    code holds makes none; of several rows that lack one value the first in the order of tables gets it.
    """
    values = [pl.col(name) for name in VALUES if name in rows.columns]
    is_held = pl.col("table").is_in(_HOLDERS)
    lost = rows.filter(~is_held & pl.any_horizontal(value.is_not_null() for value in values))
    if lost.is_empty():
        return rows, NO_LINKS
    lost = lost.join(rows.filter(is_held), on=ENTRY, how="anti", maintain_order="left")
    one_value = [ENTRY, "value_as_concept_id"]
    lost = lost.sort("table", maintain_order=True).unique(one_value, keep="first", maintain_order=True)
    results = lost.with_columns(
        concept.alias("concept_id"),
        pl.lit(_TABLE).alias("table"),
        (pl.col("row_key") * _MIX + pl.lit(_RESULT, dtype=pl.Int64)).alias("row_key"),
        pl.col("table").alias("event_table"),
        pl.col("row_key").alias("event_row_key"),
    )
    links = results.select(pl.lit(_TABLE).alias("cdm_table"), pl.exclude("table")).select(*SCHEMAS[EVENT_LINK])
    return pl.concat([rows, results.select(rows.columns)]), links
