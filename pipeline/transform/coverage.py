"""How many codes have a concept: counted by table, element and system while rows are made, and added up by publication.

Here is counted what `etl.coverage` holds; which codes lack a concept is `pipeline.transform.unmapped`.
"""

from __future__ import annotations

import polars as pl

from pipeline.staging.schemas import MAPPING, SCHEMAS
from pipeline.transform.column_names import unmapped_element
from pipeline.transform.mapping.mappings import ResourceMapping, ViewMapping
from pipeline.transform.plan import Worker

__all__ = ["NO_RATE", "event_coverage", "other_coverage"]

NO_RATE = pl.DataFrame(schema=SCHEMAS[MAPPING])


def event_coverage(mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame) -> pl.DataFrame:
    """Of the codes that decide what rows are, by table and system; those of a view with a fixed concept do not count.

    `rows` with table, concept_id and source_system. Columns: schemas.SCHEMAS[MAPPING].
    """
    if view.concept_id or rows.is_empty():
        return NO_RATE
    counted = rows.group_by("table", "source_system", maintain_order=True).agg(
        (pl.col("concept_id") != 0).sum().alias("mapped"), pl.len().alias("total")
    )
    return _rates(
        counted.with_columns(
            pl.lit(mapping.resource).alias("resource_type"),
            pl.lit(view.code or "").alias("element"),
            pl.col("source_system").alias("system"),
            pl.lit(True).alias("is_event"),
        )
    )


def other_coverage(worker: Worker, mapping: ResourceMapping, rows: pl.DataFrame) -> pl.DataFrame:
    """Of units, values, routes …: elements that have one code set a row, in a column of their name beside
    `unmapped_<element>`. `rows` with home_table. Columns: schemas.SCHEMAS[MAPPING]."""
    found = [NO_RATE]
    for name in rows.columns:
        element = unmapped_element(name)
        if element is None or rows.schema.get(element) != pl.Int32 or rows[element].null_count() == rows.height:
            continue
        counted = (
            rows.lazy()
            .filter(pl.col(element).is_not_null())
            .group_by(pl.col("home_table").alias("table"), pl.col(element).alias("code_set"), maintain_order=True)
            .agg(pl.col(name).is_null().sum().alias("mapped"), pl.len().alias("total"))
            .collect()
        )
        systems = {number: worker.sets.first_coding(number)[0] for number in counted["code_set"].unique()}
        counted = counted.with_columns(
            pl.lit(mapping.resource).alias("resource_type"),
            pl.lit(element).alias("element"),
            pl.col("code_set").replace_strict(systems, default=None, return_dtype=pl.String).alias("system"),
            pl.lit(False).alias("is_event"),
        )
        key = ["resource_type", "table", "element", "system", "is_event"]
        found.append(_rates(counted.group_by(key, maintain_order=True).agg(pl.col("mapped", "total").sum())))
    return pl.concat(found)


def _rates(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.col(name).cast(kind) for name, kind in SCHEMAS[MAPPING].items())
