"""Facts that another resource says as well, left out by the option `duplicates: apply` (`mapping.duplicate_rules`).

Of rows that a rule with types takes for one datum, those of the first of its types count. Each row that counts leaves a
fact about the datum, whose name has the place of its type; a row of a later type depends on the facts of the earlier
ones, and so is mapped again when the first of them comes or the last of them goes, whichever night that is. A datum is
known by a key of what the rule compares; nothing else is. Rules without types are only counted: nothing says which row
would stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from pipeline.fhir.identity import content_key
from pipeline.staging.schemas import REFERENCE, REFERENCE_VALUE, SCHEMAS
from pipeline.transform.mapping.duplicate_rules import FACT, DuplicateRule, concept_column
from pipeline.transform.plan import Worker
from pipeline.transform.routing import EVENT_COLUMNS

__all__ = ["CountedRows", "without_duplicates"]

_ROW = "__row"


@dataclass(frozen=True)
class CountedRows:
    """Rows that count, those that do not, and what both leave behind."""

    rows: pl.DataFrame
    #: of the rows that were given, those that another resource has as well: all columns
    left_out: pl.DataFrame
    #: SCHEMAS[REFERENCE_VALUE], of the rows that count
    facts: pl.DataFrame
    #: SCHEMAS[REFERENCE], of all rows that may be left out
    references: pl.DataFrame


def without_duplicates(worker: Worker, resource: str, rows: pl.DataFrame) -> CountedRows:
    """Takes rows of events with concept_id, type_concept_id and table."""
    facts, references = pl.DataFrame(schema=SCHEMAS[REFERENCE_VALUE]), pl.DataFrame(schema=SCHEMAS[REFERENCE])
    result = CountedRows(rows, rows.clear(), facts, references)
    if not worker.derivation.options.applies_duplicates(resource):
        return result
    rows = rows.with_row_index(_ROW)
    data = [found for rule in worker.plan.mappings.duplicates if rule.types for found in _data(rule, rows)]
    if not data:
        return result
    found = _with_covered(worker, pl.concat(data))
    left_out = found.filter("is_covered").select(_ROW).unique()
    kept = rows.join(left_out, on=_ROW, how="anti", maintain_order="left")
    return CountedRows(
        kept.drop(_ROW),
        rows.join(left_out, on=_ROW, how="semi", maintain_order="left").drop(_ROW),
        _facts(rows, found.join(left_out, on=_ROW, how="anti")),
        _references(rows, found),
    )


def _data(rule: DuplicateRule, rows: pl.DataFrame) -> list[pl.DataFrame]:
    """_ROW, key of the datum and place of the type, of the rows that a rule is about."""
    places = {concept: place for place, concept in enumerate(rule.types)}
    columns = [EVENT_COLUMNS[rule.table].get(name, name) for name in rule.same if name != concept_column(rule.table)]
    texts = [
        pl.col(name).cast(pl.String).fill_null("") if name in rows.columns else pl.lit("")
        for name in ("person_id", "concept_id", *columns)
    ]
    about = rows.filter(
        (pl.col("table") == rule.table) & (pl.col("concept_id") != 0) & pl.col("type_concept_id").is_in(list(places))
    ).select(
        _ROW,
        pl.concat_str(texts, separator="\x1f").alias("text"),
        pl.col("type_concept_id").replace_strict(places, return_dtype=pl.Int64).alias("place"),
    )
    if about.is_empty():
        return []
    keys = pl.Series("key", [content_key(FACT, rule.name, text) for text in about["text"]], dtype=pl.Int64)
    return [about.select(_ROW, "place").with_columns(keys)]


def _with_covered(worker: Worker, found: pl.DataFrame) -> pl.DataFrame:
    """Adds `has_<place>` of the earlier types, and is_covered: one of them has the datum."""
    last = int(found["place"].max() or 0)  # type: ignore[arg-type]
    for place in range(last):
        found = worker.derivation.with_fact(found, "key", f"{FACT}{place}", f"has_{place}")
    covered = [(pl.col("place") > place) & pl.col(f"has_{place}").is_not_null() for place in range(last)]
    return found.with_columns(
        pl.any_horizontal(covered).alias("is_covered") if covered else pl.lit(False).alias("is_covered")
    )


def _facts(rows: pl.DataFrame, counting: pl.DataFrame) -> pl.DataFrame:
    lines = rows.select(_ROW, "surrogate_id", "file_number", "line")
    return counting.join(lines, on=_ROW, how="inner", maintain_order="left").select(
        pl.col("key").alias("surrogate_id"),
        pl.concat_str(pl.lit(FACT), pl.col("place").cast(pl.String)).alias("name"),
        pl.col("surrogate_id").alias("owner_surrogate_id"),
        pl.lit("1").alias("value"),
        "file_number",
        "line",
    )


def _references(rows: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    owners = found.join(rows.select(_ROW, "surrogate_id"), on=_ROW, how="inner", maintain_order="left")
    parts = [
        owners.filter(pl.col("place") > place).select(
            pl.col("surrogate_id").alias("from_surrogate_id"),
            pl.lit(f"{FACT}{place}").alias("role"),
            pl.col("key").alias("to_surrogate_id"),
            pl.when(pl.col(f"has_{place}").is_null())
            .then(pl.lit("pending"))
            .otherwise(pl.lit("resolved"))
            .alias("state"),
        )
        for place in range(int(found["place"].max() or 0))  # type: ignore[arg-type]
    ]
    return pl.concat([pl.DataFrame(schema=SCHEMAS[REFERENCE]), *parts])
