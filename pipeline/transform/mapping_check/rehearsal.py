"""One row through every view of a mapping, as the pipeline would do it: what only running shows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import polars as pl
import yaml

from pipeline.transform.column_types import CONVERTED_TYPES
from pipeline.transform.concepts import index as concept_index
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.events import apply_rules, event_rows, refuse_incomplete
from pipeline.transform.mapping.mappings import MappingReading, Mappings, ResourceMapping, ViewMapping
from pipeline.transform.mapping.sources import MappingProblem, line_of, node_at
from pipeline.transform.plan import PlannedView, SiteMapping, TransformPlan, Worker
from pipeline.transform.ports import NO_PORTS
from pipeline.transform.routing import to_staged

__all__ = ["rehearsal", "rehearse"]


@contextmanager
def rehearsal(reading: MappingReading, folder: Path) -> Iterator[Worker]:
    """A worker as the pipeline has it, with an empty vocabulary and no facts."""
    empty = Mappings(folder, {}, {}, {}, {}, {}, {})
    with tempfile.TemporaryDirectory(prefix="epic-omop-check-") as name:
        place = Path(name)
        for file, schema in _index_files():
            pl.DataFrame(schema=dict(schema)).write_parquet(place / file)
        yield Worker(
            TransformPlan(
                site=SiteMapping("check", "UTC", (), 1 << 20),
                instance_zone="UTC",
                surrogate_salt="",
                identifier_secret=b"",
                as_of=date(2024, 1, 1),
                mappings=reading.mappings or empty,
                index=ConceptIndex(place, "check", ""),
                fixed={},
            ),
            NO_PORTS,
        )


def _index_files() -> Iterator[tuple[str, Mapping[str, pl.DataType]]]:
    """Every file of a concept index: the module names them `…_FILE`, with `…_SCHEMA` beside each."""
    names = vars(concept_index)
    for name in names:
        if name.endswith("_FILE"):
            yield names[name], names[f"{name.removesuffix('_FILE')}_SCHEMA"]


def rehearse(mapping: ResourceMapping, node: yaml.Node, worker: Worker) -> Iterator[MappingProblem]:
    """Run one row through every view: what a table needs and no column gives fails here."""
    plan = worker.resource_plan(mapping.resource)
    assert plan is not None
    first = _sample(plan.views[0], worker).with_columns(
        pl.lit(0, dtype=pl.Int32).alias("index"),
        pl.lit("1").alias("resource_id"),
        pl.lit(1, dtype=pl.Int64).alias("surrogate_id"),
        pl.lit(1, dtype=pl.Int32).alias("file_number"),
        pl.lit(1, dtype=pl.Int64).alias("line"),
    )
    numbers = {view.name: number for number, view in enumerate(mapping.views)}
    for compiled in plan.views[1:]:
        view = compiled.mapping
        rows = _sample(compiled, worker).join(first, how="cross")
        try:
            if view.kind == "event":
                event_rows(worker, plan.mapping, view, rows)
            elif view.kind == "entity":
                made = apply_rules(worker, view, rows).with_columns(pl.lit(1, dtype=pl.Int64).alias("row_key"))
                refuse_incomplete(worker, plan.mapping, view, made, _entity_tables(str(view.table)))
            elif view.kind == "fact":
                apply_rules(worker, view, rows)
        except (pl.exceptions.PolarsError, LookupError, TypeError, ValueError, AttributeError) as error:
            yield MappingProblem(*line_of(node_at(node, ["views", numbers[view.name]])), _missing(view, error))


def _entity_tables(table: str) -> Callable[[pl.DataFrame], dict[str, pl.DataFrame]]:
    return lambda kept: {table: to_staged(kept, table)}


def _sample(view: PlannedView, worker: Worker) -> pl.DataFrame:
    """One row in the form that the view gives: every text is a date, every code the same; what is JSON is left out."""
    code = worker.sets.add_concept({"text": "check"})
    columns = []
    for column, dtype in zip(view.columns, view.dtypes, strict=True):
        if column.name == "resource_id":
            continue
        value = {pl.String(): "2020-01-01", pl.Boolean(): False, pl.Int32(): code, pl.Float64(): 1.0}.get(dtype, 1)
        converted = CONVERTED_TYPES.get(column.type or "")
        value = None if converted and converted.is_json else [] if isinstance(dtype, pl.List) else value
        columns.append(pl.Series(column.name, [value], dtype=dtype))
    return pl.DataFrame(columns) if columns else pl.DataFrame({"__row": [1]}).select()


def _missing(view: ViewMapping, error: Exception) -> str:
    rules = f"the rules {', '.join(view.derive)}" if view.derive else "the view"
    if isinstance(error, pl.exceptions.ColumnNotFoundError):
        found = re.search(r'"([^"]+)"', str(error))
        return f"the view {view.name} lacks the column {found[1] if found else ''}, which {rules} or the table need"
    if isinstance(error, KeyError):
        return f"the view {view.name}: there is no value map or constant {error.args[0]}, which {rules} need"
    return f"the view {view.name} cannot be run: {rules} fail on a sample row ({type(error).__name__})"
