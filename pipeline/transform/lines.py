"""The transform stage: lines that are not unchanged → rows of staging (`pipeline.staging.schemas`).

Whoever calls it has read and compared the lines (`pipeline.load.worker`). They are parsed and run through the compiled
views. After the views everything is set-based: rules, concepts, routing.
Every line gets exactly one outcome here (`loaded`, `excluded`, `rejected`); publication may still turn `loaded` into
`superseded` or `rejected`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from pipeline.core.line_codes import RejectionCode
from pipeline.fhir.identity import content_key
from pipeline.staging import schemas
from pipeline.transform.addresses import COUNTRIES, country_name
from pipeline.transform.content import Contents
from pipeline.transform.events import (
    LEFT_OUT_BY_RULE,
    LEFT_OUT_SCHEMA,
    REFUSED_SCHEMA,
    EventRows,
    apply_rules,
    event_links,
    event_rows,
    numbered_path,
    refuse_incomplete,
)
from pipeline.transform.mapping.mappings import ViewMapping
from pipeline.transform.plan import Worker
from pipeline.transform.reading import ChunkReader, ReadResources
from pipeline.transform.references import is_reference, without_problems
from pipeline.transform.routing import to_staged
from pipeline.transform.unmapped import unmapped_elements, unmapped_of_fact

__all__ = ["LineBatch", "LinesTransform"]


@dataclass(frozen=True)
class LineBatch:
    """Lines of one resource type that are transformed together, with their positions in landing."""

    resource_type: str
    #: name of the parts that are written
    part: str
    #: the lines, by their index; what need not be transformed may be empty
    raws: list[bytes]
    #: columns index, file_number, line, byte_offset, byte_length, raw_hash_high, raw_hash_low
    positions: pl.DataFrame
    #: indexes of the lines that are transformed
    selected: list[int]
    #: file number → what the file is called below the site's landing folder
    file_names: Mapping[int, str]


class LinesTransform:
    """A batch of lines on its way into staging. `contents`: what the comparison has read of them already."""

    def __init__(self, worker: Worker, batch: LineBatch, contents: Contents) -> None:
        self.worker = worker
        self.batch = batch
        self.contents = contents
        self.read = ChunkReader(worker, batch.resource_type, batch.raws, batch.selected, contents)

    def run(self) -> None:
        """Write the parts."""
        self._write_outcomes(self._transformed())

    def _transformed(self) -> list[pl.DataFrame]:
        """Decisions on the resources that were read, type by type; their rows are written."""
        locations = self.worker.addresses.frame()
        return [
            _TypeTransform(self, resource_type, resources, locations).run()
            for resource_type, resources in sorted(self.read.types.items())
            if resources.resource_ids
        ]

    def _write(self, kind: str, frame: pl.DataFrame) -> None:
        self.worker.ports.parts.write(kind, self.batch.part, frame)

    # --- outcomes ---------------------------------------------------------------------------------------------------

    def _write_outcomes(self, mapped: list[pl.DataFrame]) -> None:
        """Outcome and rejection parts: the line columns joined to what was decided."""
        key_of = self.worker.keys.of
        excluded = pl.DataFrame(
            [
                (index, kind, given, key_of(kind, given) if given else None, "excluded", reason)
                for index, (kind, given, reason) in self.read.excluded.items()
            ],
            schema=_DECISION_SCHEMA,
            orient="row",
        )
        rejected = pl.DataFrame(
            [
                (
                    item.index,
                    item.resource_type or self.batch.resource_type,
                    item.resource_id,
                    key_of(item.resource_type, item.resource_id) if item.resource_type and item.resource_id else None,
                    "rejected",
                    item.reason,
                    item.stage,
                    item.code,
                    item.path,
                    None,
                )
                for item in self.read.rejected
            ],
            schema={
                **_DECISION_SCHEMA,
                "stage": pl.String,
                "code": pl.String,
                "path": pl.String,
                "cause": pl.Int64,
            },
            orient="row",
        )
        decided = [frame.filter(pl.col("outcome") != "rejected").select(*_DECISION_SCHEMA) for frame in mapped]
        refused = [
            rejected,
            *(frame.filter(pl.col("outcome") == "rejected").select(rejected.columns) for frame in mapped),
        ]
        rejections = self.batch.positions.join(pl.concat(refused), on="index", maintain_order="left")
        outcomes = self.batch.positions.join(
            pl.concat([excluded, *decided, *(frame.select(*_DECISION_SCHEMA) for frame in refused)]),
            on="index",
            maintain_order="left",
        )
        outcomes = outcomes.join(self.contents.frame(), on="index", how="left", maintain_order="left")
        self._write(schemas.OUTCOME, outcomes.select(*schemas.OUTCOME_SCHEMA))
        self._write(schemas.REJECTION, rejections.select(*schemas.REJECTION_SCHEMA))


_DECISION_SCHEMA = {
    "index": pl.Int32,
    "resource_type": pl.String,
    "resource_id": pl.String,
    "surrogate_id": pl.Int64,
    "outcome": pl.String,
    "reason": pl.String,
}


class _TypeTransform:
    """The set-based part: all resources of one type in one chunk."""

    def __init__(
        self, chunk: LinesTransform, resource_type: str, resources: ReadResources, locations: pl.DataFrame
    ) -> None:
        self.chunk = chunk
        self.worker = chunk.worker
        self.resource_type = resource_type
        self.read = resources
        self.mapping = resources.plan.mapping
        self.locations = locations

    def run(self) -> pl.DataFrame:
        """Write the parts of this type; return its decisions (index … reason, stage, code, path)."""
        self._reference_issues: list[pl.DataFrame] = []
        self._unmapped_of_facts: list[pl.DataFrame] = []
        resources = self._with_decision(self._follow_references(self._resource_frame(), self.mapping.resource_view))
        kept = resources.filter(pl.col("outcome").is_null()).drop(*_DECISION_COLUMNS)
        excluded = resources.filter(pl.col("outcome") == "excluded").drop(*_DECISION_COLUMNS)
        event_results: list[EventRows] = []
        by_view: dict[str, EventRows] = {}
        facts: list[pl.DataFrame] = []
        for number, view in enumerate(self.read.plan.views[1:], start=1):
            of = pl.concat([kept, excluded]) if view.mapping.of_excluded else kept
            rows = self.read.frame(number).join(of, on="index", how="inner", maintain_order="left")
            if rows.is_empty():
                continue
            rows = self._follow_references(rows, view.mapping)
            if view.mapping.landed_line:
                rows = self._with_landed_line(rows)
            if view.mapping.kind == "fact":
                facts.append(self._facts(view.mapping, rows))
            elif view.mapping.kind == "event":
                by_view[view.mapping.name] = event_rows(self.worker, self.mapping, view.mapping, rows)
                event_results.append(by_view[view.mapping.name])
            else:
                event_results.append(self._entity(view.mapping, rows))
        self._event_links = [
            event_links(by_view[view.mapping.name], [by_view[name] for name in view.mapping.events if name in by_view])
            for view in self.read.plan.views
            if view.mapping.events and view.mapping.name in by_view
        ] + [result.links for result in event_results]
        facts += [result.facts for result in event_results if not result.facts.is_empty()]
        event_results.append(self._parts_left_out(kept))
        decisions = self._decisions(resources, event_results, facts)
        loaded = decisions.filter(pl.col("outcome") == "loaded").select("surrogate_id")
        without_row = decisions.filter(
            (pl.col("outcome") == "excluded") & (pl.col("reason") == (self.mapping.excluded_unless_row or ""))
        )
        with_facts = pl.concat([frame.select("surrogate_id") for frame in (loaded, without_row, excluded)])
        self._write_rows(event_results, facts, loaded, kept, with_facts)
        by_rule = (pl.col("outcome") == "excluded") & pl.col("reason").is_in(LEFT_OUT_BY_RULE)
        self._write_value_checks(event_results, decisions.filter((pl.col("outcome") == "loaded") | by_rule))
        keys = pl.DataFrame({"surrogate_id": self.worker.references.taken_keys()}, schema={"surrogate_id": pl.Int64})
        self.worker.ports.parts.write(schemas.IDENTIFIER_KEY, f"{self.chunk.batch.part}-{self.resource_type}", keys)
        waiting = decisions.filter(pl.col("outcome").is_in(["loaded", "excluded"])).select("surrogate_id")
        self._write_references(event_results, waiting)
        return decisions

    def _resource_frame(self) -> pl.DataFrame:
        frame = self.read.frame(0)
        return frame.with_columns(
            self.worker.keys.of_all(self.resource_type, self.read.resource_ids).alias("surrogate_id"),
            pl.Series("resource_id", self.read.resource_ids, dtype=pl.String),
        ).with_columns(self.chunk.batch.positions.select("file_number", "line")[frame["index"]].get_columns())

    def _follow_references(self, rows: pl.DataFrame, view: ViewMapping) -> pl.DataFrame:
        """Rows of a view with NULL for references that cannot be followed; notes these as issues."""
        columns = [name for name, kind in view.column_types.items() if is_reference(kind)]
        rows, problems = without_problems(rows, columns)
        for name, found in problems.items():
            path = f"{self.resource_type}.{view.element_paths.get(name, name)}"
            path_of_row = numbered_path(self.mapping, view, path).alias("path")
            self._reference_issues.append(found.select("surrogate_id", "code", path_of_row))
        return rows

    def _parts_left_out(self, kept: pl.DataFrame) -> EventRows:
        """What the reading left out of resources (`pipeline.transform.salvage`): an issue for each part."""
        rows = [
            (index, problem.reason, "view", problem.code, problem.path, None) for index, problem in self.read.left_out
        ]
        found = pl.DataFrame(rows, schema=REFUSED_SCHEMA, orient="row")
        found = found.join(kept.select("index", "surrogate_id"), on="index", how="inner", maintain_order="left")
        return EventRows.of_left_out(found)

    def _with_landed_line(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Adds value: 'path below the site's landing folder|offset|length' of each resource's line."""
        names = self.chunk.batch.file_names
        path = pl.col("file_number").replace_strict(names, return_dtype=pl.String)
        lines = self.chunk.batch.positions.select("index", "byte_offset", "byte_length")
        return rows.join(lines, on="index", how="left", maintain_order="left").with_columns(
            pl.concat_str(path, "byte_offset", "byte_length", separator="|").alias("value")
        )

    def _with_decision(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Adds outcome, reason, stage, code, path where status filter or exclusions decide; NULL: kept so far."""
        excluded = pl.lit(None, dtype=pl.String)
        invalid = pl.lit(False)
        absent = pl.lit(False)
        status = self.mapping.status
        if status is not None:
            column = pl.col(status.column)
            excluded = column.replace_strict(dict(status.exclude), default=None, return_dtype=pl.String)
            known = (*status.keep, *status.exclude)
            invalid = column.is_not_null() & ~column.is_in(list(known))
            if status.missing == "reject":
                absent = column.is_null()
            elif status.missing == "exclude":
                excluded = pl.when(column.is_null()).then(pl.lit("status_missing")).otherwise(excluded)
        for rule in self.mapping.exclude:
            excluded = pl.coalesce(excluded, pl.when(pl.col(rule.when)).then(pl.lit(rule.reason)))
        path = f"{self.resource_type}.{self._path(status.column)}" if status else None
        refused = invalid | absent
        return frame.with_columns(
            pl.when(refused)
            .then(pl.lit("rejected"))
            .when(excluded.is_not_null())
            .then(pl.lit("excluded"))
            .alias("outcome"),
            pl.when(invalid)
            .then(pl.lit("the code is not one that FHIR defines here"))
            .when(absent)
            .then(pl.lit("the element is required"))
            .otherwise(excluded)
            .alias("reason"),
            pl.when(refused).then(pl.lit("transform")).alias("stage"),
            pl.when(invalid)
            .then(pl.lit(RejectionCode.CODE_INVALID))
            .when(absent)
            .then(pl.lit(RejectionCode.REQUIRED_MISSING))
            .alias("code_"),
            pl.when(refused).then(pl.lit(path, dtype=pl.String)).alias("path"),
        )

    def _path(self, column: str) -> str:
        return self.mapping.resource_view.column_paths.get(column, column)

    def _facts(self, view: ViewMapping, rows: pl.DataFrame) -> pl.DataFrame:
        """What other resources, or the derived tables, ask about: about the resource itself unless `about` says whom."""
        rows = apply_rules(self.worker, view, rows)
        self._unmapped_of_facts.append(unmapped_of_fact(self.worker, self.mapping, view, rows))
        about = pl.col("about") if "about" in rows.columns else pl.col("surrogate_id")
        return rows.select(
            about.alias("surrogate_id"),
            pl.lit(view.fact or view.name).alias("name"),
            pl.col("surrogate_id").alias("owner_surrogate_id"),
            pl.col("value").cast(pl.String),
            "file_number",
            "line",
        ).drop_nulls(["surrogate_id", "value"])

    def _entity(self, view: ViewMapping, rows: pl.DataFrame) -> EventRows:
        """Rows of a resource that *is* a row of its table, or several that `row_key` distinguishes."""
        table = view.table
        assert table is not None, "an entity view has a table"
        rows = apply_rules(self.worker, view, rows)
        rows = rows.with_columns(_entity_key(view, rows).alias("row_key"))
        return refuse_incomplete(self.worker, self.mapping, view, rows, lambda kept: {table: to_staged(kept, table)})

    def _decisions(
        self,
        resources: pl.DataFrame,
        results: list[EventRows],
        facts: list[pl.DataFrame],
    ) -> pl.DataFrame:
        """One row a resource: its outcome after all views. Whoever decides first decides."""
        rows = [frame.select("surrogate_id") for result in results for frame in result.tables.values()]
        made = rows + [frame.select(pl.col("owner_surrogate_id").alias("surrogate_id")) for frame in facts]
        any_row = _ids_of(made)
        decided = resources.select(
            "index",
            pl.lit(self.resource_type).alias("resource_type"),
            "resource_id",
            "surrogate_id",
            *_DECISION_COLUMNS,
        ).rename({"code_": "code"})
        decided = _with_refused(decided, _refused(results, any_row))
        decided = _with_excluded(decided, _excluded(results, any_row))
        if self.mapping.excluded_unless_row is not None:
            decided = _with_rowless(decided, _ids_of(rows), self.mapping.excluded_unless_row)
        is_reference_data = all(view.kind in {"resource", "fact"} for view in self.mapping.views)
        open_, has_row = pl.col("outcome").is_null(), pl.lit(is_reference_data) | _is_among(any_row)
        return decided.with_columns(
            pl.when(open_ & has_row)
            .then(pl.lit("loaded"))
            .when(open_)
            .then(pl.lit("excluded"))
            .otherwise("outcome")
            .alias("outcome"),
            pl.when(open_ & ~has_row).then(pl.lit("nothing_to_load")).otherwise("reason").alias("reason"),
        )

    def _write_rows(
        self,
        results: list[EventRows],
        facts: list[pl.DataFrame],
        loaded: pl.DataFrame,
        kept: pl.DataFrame,
        with_facts: pl.DataFrame,
    ) -> None:
        """Write rows of loaded resources only, and facts also of those that are excluded, as far as there are any: a resource
        that is rejected leaves nothing behind."""
        part = f"{self.chunk.batch.part}-{self.resource_type}"
        parts = self.worker.ports.parts

        def write(kind: str, frames: list[pl.DataFrame], key: str = "surrogate_id", of: pl.DataFrame = loaded) -> None:
            if frames:
                whole = pl.concat(frames)
                kept = whole[key].is_in(of["surrogate_id"].implode())
                parts.write(kind, part, whole if kept.all() else whole.filter(kept))

        tables: dict[str, list[pl.DataFrame]] = {}
        for result in results:
            for table, frame in result.tables.items():
                tables.setdefault(table, []).append(frame)
        if "location_id" in kept.columns:
            tables["location"] = [self._location_rows(kept)]
        for table in {table for result in results for table in result.exact}:
            texts = [result.exact[table] for result in results if table in result.exact]
            write(schemas.exact_kind(table), [pl.concat(texts, how="diagonal")])  # views have different columns
        for table, frames in tables.items():
            # In the order of the lines, so that ids do not depend on how a file was cut into chunks.
            write(table, [_in_order_of_lines(pl.concat(frames))])
        write(schemas.REFERENCE_VALUE, facts, "owner_surrogate_id", with_facts)
        write(schemas.ISSUE, [*(result.issues for result in results), *self._reference_issues], of=with_facts)
        write(schemas.EVENT_LINK, self._event_links)
        write(schemas.UNMAPPED, [*(result.unmapped for result in results), *self._unmapped_of_facts])
        if results:
            parts.write(schemas.MAPPING, part, pl.concat([result.rate for result in results]))

    def _write_value_checks(self, results: list[EventRows], counted: pl.DataFrame) -> None:
        """What rules about numbers found, also in resources that they left without a row."""
        found = [result.value_checks for result in results if not result.value_checks.is_empty()]
        if found:
            of_counted = pl.concat(found).join(counted, on="surrogate_id", how="semi", maintain_order="left")
            self.worker.ports.parts.write(
                schemas.VALUE_CHECK, f"{self.chunk.batch.part}-{self.resource_type}", of_counted
            )

    def _write_references(self, results: list[EventRows], waiting: pl.DataFrame) -> None:
        """What rows depend on, also those that are excluded until it comes."""
        if results:
            found = pl.concat([result.references for result in results])
            found = found.join(waiting, left_on="from_surrogate_id", right_on="surrogate_id", how="semi")
            part = f"{self.chunk.batch.part}-{self.resource_type}"
            self.worker.ports.parts.write(schemas.REFERENCE, part, found)

    def _location_rows(self, kept: pl.DataFrame) -> pl.DataFrame:
        """Location rows by content: the row's id stands for its content, so many resources share one."""
        rows = kept.select("surrogate_id", "file_number", "line", "location_id").drop_nulls("location_id")
        rows = rows.join(self.locations, on="location_id", how="inner", maintain_order="left")
        look_ups = self.worker.derivation.look_ups
        countries = look_ups.code_sets(rows["country_source_value"], COUNTRIES, named=country_name)
        rows = look_ups.of(rows.with_columns(countries.alias("country")), "country", "country", value_map=COUNTRIES)
        self._unmapped_of_facts.append(unmapped_elements(self.worker, self.mapping, rows))
        return to_staged(rows.with_columns(pl.col("location_id").alias("row_key")), "location")


def _ids_of(frames: list[pl.DataFrame]) -> pl.Series:
    """Their surrogate ids, each once."""
    return pl.concat(frames)["surrogate_id"].unique() if frames else pl.Series(dtype=pl.Int64)


def _is_among(ids: pl.Series) -> pl.Expr:
    return pl.col("surrogate_id").is_in(ids.implode())


def _with_refused(decided: pl.DataFrame, refused: pl.DataFrame) -> pl.DataFrame:
    """What is open and in `refused` (see `_refused`) is rejected; adds cause."""
    if refused.is_empty():
        return decided.with_columns(pl.lit(None, dtype=pl.Int64).alias("cause"))
    decided = decided.join(refused, on="index", how="left", suffix="_view", maintain_order="left")
    is_refused = pl.col("outcome").is_null() & pl.col("code_view").is_not_null()
    return decided.with_columns(
        pl.when(is_refused).then(pl.lit("rejected")).otherwise("outcome").alias("outcome"),
        *(
            pl.when(is_refused).then(f"{name}_view").otherwise(name).alias(name)
            for name in ("reason", "stage", "code", "path")
        ),
    )


def _with_excluded(decided: pl.DataFrame, reasons: pl.DataFrame) -> pl.DataFrame:
    """What is open and in `reasons` (see `_excluded`) is excluded."""
    if reasons.is_empty():
        return decided
    is_excluded = pl.col("outcome").is_null() & pl.col("exclude_reason").is_not_null()
    return decided.join(reasons, on="index", how="left", maintain_order="left").with_columns(
        pl.when(is_excluded).then(pl.lit("excluded")).otherwise("outcome").alias("outcome"),
        pl.coalesce("reason", "exclude_reason").alias("reason"),
    )


def _with_rowless(decided: pl.DataFrame, with_row: pl.Series, reason: str) -> pl.DataFrame:
    """What is open and has no row is excluded, although it may leave facts."""
    is_rowless = pl.col("outcome").is_null() & ~_is_among(with_row)
    return decided.with_columns(
        pl.when(is_rowless).then(pl.lit("excluded")).otherwise("outcome").alias("outcome"),
        pl.when(is_rowless).then(pl.lit(reason)).otherwise("reason").alias("reason"),
    )


def _refused(results: list[EventRows], any_row: pl.Series) -> pl.DataFrame:
    """REFUSED_SCHEMA, one row a line: whose own row cannot be made, or of which no row at all is left (`any_row`: surrogate
    ids of those with one) although there should be some."""
    left_out = pl.concat([_refused_schema(), *(result.left_out for result in results)], how="vertical")
    alone = left_out.filter(
        ~pl.col("surrogate_id").is_in(any_row.implode()) & ~pl.col("code").is_in(LEFT_OUT_BY_RULE)
    ).join(_excluded(results, any_row), on="index", how="anti", maintain_order="left")
    refused = pl.concat([*(result.refused for result in results), alone.select(*REFUSED_SCHEMA)])
    return refused.unique("index", keep="first", maintain_order=True)


def _excluded(results: list[EventRows], any_row: pl.Series) -> pl.DataFrame:
    """index and exclude_reason, one row a line: what a rule excludes, or of which an option leaves no row."""
    left_out = pl.concat([_refused_schema(), *(result.left_out for result in results)], how="vertical")
    by_option = left_out.filter(
        ~pl.col("surrogate_id").is_in(any_row.implode()) & pl.col("code").is_in(LEFT_OUT_BY_RULE)
    ).select("index", pl.col("code").alias("exclude_reason"))
    return pl.concat([*(result.excluded for result in results), by_option]).unique(
        "index", keep="first", maintain_order=True
    )


def _refused_schema() -> pl.DataFrame:
    return pl.DataFrame(schema=LEFT_OUT_SCHEMA)


def _in_order_of_lines(rows: pl.DataFrame) -> pl.DataFrame:
    """Sorted by file and line, those of one line as they are: most frames are so already."""
    if (rows["line"] + rows["file_number"].cast(pl.Int64) * _MOST_LINES).is_sorted():
        return rows
    return rows.sort("file_number", "line", maintain_order=True)


def _entity_key(view: ViewMapping, rows: pl.DataFrame) -> pl.Series:
    """row_key by the content of the view's `row_key` columns; a repeat of the same content is distinguished by its number."""
    if not view.row_key:
        return pl.repeat(content_key(view.name), rows.height, dtype=pl.Int64, eager=True)
    columns = [pl.col(name).cast(pl.String).fill_null("") for name in view.row_key]
    repeat = pl.int_range(pl.len()).over("file_number", "line", *view.row_key).cast(pl.String)
    content = rows.select(pl.concat_str(*columns, repeat, separator="\x1f")).to_series()
    return pl.Series([content_key(view.name, text) for text in content], dtype=pl.Int64)


#: No file of an export has so many.
_MOST_LINES = 1 << 32

_DECISION_COLUMNS = ("outcome", "reason", "stage", "code_", "path")
