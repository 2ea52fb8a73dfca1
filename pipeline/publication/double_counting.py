"""One exposure in several records: which of them has a more definite one in its place. Frames in, frames out.

An order, what was dispensed on it and what was given of it are one exposure. Records of one order belong together by
what they name; with the option `double_counting: overlap` also those of one encounter, patient and ingredient that share a
day. docs/decisions/0023-double-counting.md says why it is publication that decides. What is stored of records, and
when they are looked at, is `pipeline.publication.steps.medication_records`.
"""

from __future__ import annotations

import polars as pl

__all__ = ["COUNTED_ELSEWHERE", "ENCOUNTER", "ORDER", "ORDER_FACT", "PRECEDENCE", "RECORD", "RECORD_SCHEMA", "covered"]

#: Why a record has no row.
COUNTED_ELSEWHERE = "counted_elsewhere"

#: Resource type → the most definite record comes first. The request itself is the order that the others name.
PRECEDENCE = {"MedicationAdministration": 1, "MedicationDispense": 2, "MedicationRequest": 3}

#: The fact in which a record names its orders (value: surrogate id). It is kept in `etl.medication_record`, not as a fact.
ORDER_FACT = "medication_order"

#: By what records belong together.
ORDER, ENCOUNTER = "order", "encounter"

#: What counts, or is counted elsewhere: the rows of a resource in one table.
RECORD = ["surrogate_id", "cdm_table"]

#: A record, once for each table, order and encounter; what it is about is there for encounters alone.
RECORD_SCHEMA: dict[str, type[pl.DataType]] = {
    "surrogate_id": pl.Int64,
    "precedence": pl.Int16,
    "link": pl.String,
    "linked_surrogate_id": pl.Int64,
    "cdm_table": pl.String,
    "person_surrogate_id": pl.Int64,
    "concept_id": pl.Int32,
    "start_date": pl.Date,
    "end_date": pl.Date,
}

_OF_ORDER = ["linked_surrogate_id", "cdm_table"]
_OF_ENCOUNTER = [*_OF_ORDER, "person_surrogate_id", "substance"]


def covered(records: pl.DataFrame, better: pl.DataFrame, ingredients: pl.DataFrame) -> pl.DataFrame:
    """Those of `records` that have one of `better` in their place (RECORD): of the same order, or of the same encounter,
    patient and substance with a day in common, in the same table.

    Both RECORD_SCHEMA. `ingredients`: concept_id, substance (Int32), one row for each ingredient of a drug; what has none
    is its own substance.
    """
    of_order = _of(records, ORDER).join(_of(better, ORDER).select(_OF_ORDER).unique(), on=_OF_ORDER, how="semi")
    found = [of_order.select(RECORD)]
    one, other = (_with_substances(_of(frame, ENCOUNTER), ingredients) for frame in (records, better))
    if not one.is_empty() and not other.is_empty():
        found.append(_sharing_a_day(one, other))
    return pl.concat(found).unique()


def _of(records: pl.DataFrame, link: str) -> pl.DataFrame:
    return records.filter(pl.col("link") == link)


def _with_substances(records: pl.DataFrame, ingredients: pl.DataFrame) -> pl.DataFrame:
    """Each record once for each of its substances; without those whose drug is unknown."""
    known = records.filter(pl.col("concept_id") != 0)
    known = known.join(ingredients, on="concept_id", how="left")
    return known.with_columns(pl.coalesce("substance", "concept_id").alias("substance"))


def _sharing_a_day(records: pl.DataFrame, better: pl.DataFrame) -> pl.DataFrame:
    """RECORD of those during which one of `better` lasts: more of them have begun by its last day than ended before
    its first. Sorted once, instead of each compared with each."""
    begun = _counted(better, "start_date", "begun")
    ended = _counted(better, "end_date", "ended")
    records = records.sort("end_date").join_asof(
        begun, left_on="end_date", right_on="start_date", by=_OF_ENCOUNTER, check_sortedness=False
    )
    records = records.sort("start_date").join_asof(
        ended,
        left_on="start_date",
        right_on="end_date",
        by=_OF_ENCOUNTER,
        allow_exact_matches=False,
        suffix="_of_better",
        check_sortedness=False,
    )
    shares = pl.col("begun").fill_null(0) > pl.col("ended").fill_null(0)
    return records.filter(shares).select(RECORD)


def _counted(records: pl.DataFrame, day: str, name: str) -> pl.DataFrame:
    """How many records of each encounter, patient and substance have come to that day of theirs by then."""
    ordered = records.select(*_OF_ENCOUNTER, day).sort(day)
    return ordered.with_columns((pl.int_range(pl.len(), dtype=pl.Int64).over(_OF_ENCOUNTER) + 1).alias(name))
