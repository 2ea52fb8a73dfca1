"""Codes without a concept: which each resource has, in which element. An event without any code has one that is NULL.

Kept by resource, so that what is counted changes with the resource: `etl.unmapped_code` says at any time what a fresh load
would say. What is unknown is decided elsewhere (`pipeline.transform.concepts.look_ups`, and by the resolver for an event's code).
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from pipeline.fhir.identity import content_key
from pipeline.staging import schemas
from pipeline.transform.column_names import unmapped, unmapped_element
from pipeline.transform.mapping.mappings import ResourceMapping, ViewMapping
from pipeline.transform.plan import Worker

__all__ = ["NO_CODES", "unmapped_elements", "unmapped_event_codes", "unmapped_of_fact"]

NO_CODES = pl.DataFrame(schema=schemas.SCHEMAS[schemas.UNMAPPED])

_LINE = ["surrogate_id", "file_number", "line"]


def unmapped_event_codes(
    worker: Worker, mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame
) -> pl.DataFrame:
    """Of rows with `concept_id`, the codes of those where it is 0, NULL where the element is missing or says nothing.

    Columns: schemas.SCHEMAS[UNMAPPED].
    """
    if view.concept_id or view.code is None:
        return NO_CODES
    missing = rows.filter(pl.col("concept_id") == 0)
    chosen = {number: (system, code) for number, system, code in _distinct(missing, view.code)}
    return _counted(worker, mapping, view.code, missing.select(*_LINE, pl.col(view.code).alias("code_set")), chosen)


def _distinct(rows: pl.DataFrame, code: str) -> list[tuple[int | None, str | None, str | None]]:
    return rows.select(code, "source_system", "source_code").unique(code, maintain_order=True).rows()


def unmapped_elements(worker: Worker, mapping: ResourceMapping, rows: pl.DataFrame) -> pl.DataFrame:
    """What is marked `unmapped_<element>`: units, values, routes, classes … Columns: schemas.SCHEMAS[UNMAPPED]."""
    found = [NO_CODES]
    for name in rows.columns:
        element = unmapped_element(name)
        if element is not None:
            marked = rows.select(*_LINE, pl.col(name).alias("code_set")).filter(pl.col("code_set").is_not_null())
            if isinstance(marked.schema["code_set"], pl.List):
                marked = marked.explode("code_set").drop_nulls("code_set")
            first: dict[int | None, tuple[str | None, str | None]] = {
                number: worker.sets.first_coding(number) for number in marked["code_set"].unique()
            }
            found.append(_counted(worker, mapping, element, marked, first))
    return pl.concat(found)


def unmapped_of_fact(worker: Worker, mapping: ResourceMapping, view: ViewMapping, rows: pl.DataFrame) -> pl.DataFrame:
    """The same of a view that leaves a fact, of its own columns: the resource's others are counted with its rows."""
    own = [name for name in map(unmapped, view.column_types) if name in rows.columns]
    return unmapped_elements(worker, mapping, rows.select(*_LINE, *own)) if own else NO_CODES


def _counted(
    worker: Worker,
    mapping: ResourceMapping,
    element: str,
    marked: pl.DataFrame,
    codings: Mapping[int | None, tuple[str | None, str | None]],
) -> pl.DataFrame:
    """One row a line and coding. `marked`: _LINE and code_set; `codings`: the coding that each code set is named by."""
    if marked.is_empty():
        return NO_CODES
    may_show_text = mapping.resource in worker.plan.site.text_source_value_types
    tried = worker.resolver.tried(set(codings.values()))
    named = []
    for number, (system, code) in codings.items():
        text = worker.sets.text_of(number) if may_show_text and number is not None else None
        display = worker.sets.display_of(number, system, code) if code and number is not None else None
        if code is None and number is not None and may_show_text:
            display = text
        key = content_key(mapping.resource, element, system, code, display)
        is_text = not code and number is not None and worker.sets.text_of(number) is not None
        said = "its text: unknown" if is_text else tried[system, code]
        named.append((number, key, mapping.resource, element, system, code, display, text, said))
    schema: dict[str, type[pl.DataType]] = {"code_set": pl.Int32}
    schema |= {name: schemas.SCHEMAS[schemas.UNMAPPED][name] for name in _CODING}
    counted = marked.group_by(*_LINE, "code_set", maintain_order=True).agg(pl.len().cast(pl.Int64).alias("count"))
    rows = counted.join(
        pl.DataFrame(named, schema=schema, orient="row"), on="code_set", nulls_equal=True, maintain_order="left"
    )
    return rows.select(list(NO_CODES.columns))


_CODING = ("coding_id", "resource_type", "element", "system", "code", "display", "text", "tried")
