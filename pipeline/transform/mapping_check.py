"""Everything that is wrong in a folder of mappings, at once, each problem with file and line.

Reading (`read_mappings`) finds what has the wrong form. Here is what form does not show: paths outside the subset or
to elements that FHIR R4 does not have, rules and types that do not exist, columns that nobody reads, rules that miss
a column (a row is run through each view as the pipeline would do it), and concepts that are not in the vocabulary.
"""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from omop_schema.cdm_fields import TABLES, polars_schema
from pipeline.core.errors import MappingError
from pipeline.core.resource_types import RESOURCE_TYPES
from pipeline.sql_on_fhir.fhirpath import FhirPathError, parse
from pipeline.sql_on_fhir.r4 import Types, element_problems, elements_of
from pipeline.sql_on_fhir.view_definition import compile_columns
from pipeline.staging.parts import StagedExport
from pipeline.transform.concepts import index as concept_index
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.events import derived, event_rows, refuse_incomplete
from pipeline.transform.mapping.mappings import (
    ConceptRule,
    MappingReading,
    Mappings,
    ResourceMapping,
    ViewMapping,
    read_mappings,
)
from pipeline.transform.mapping.overlays import entries
from pipeline.transform.mapping.rule_reads import texts_of_pipeline, texts_of_rules
from pipeline.transform.mapping.sources import MappingProblem, Row, column_nodes, line_of, node_at, plain
from pipeline.transform.plan import JSON_TYPES, PlannedView, SiteMapping, TransformPlan, Worker
from pipeline.transform.routing import EVENT_COLUMNS, to_staged
from pipeline.transform.rules import DERIVATIONS

__all__ = ["KnownConcepts", "check_mappings", "demo_concepts", "indexed_concepts"]

_TYPE_CONCEPT = "Type Concept"
_CODE_SET = pl.Int32()
#: How the release of the demonstration vocabulary begins (demo_vocabulary/VOCABULARY.csv).
_DEMO_RELEASE = "epic-omop demo"


# --- concepts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownConcepts:
    """A vocabulary to judge concept ids by."""

    #: What it is called in messages.
    name: str
    #: ids → concept_id, domain_id, standard_concept, invalid_reason, target_concept_id
    concepts: Callable[[list[int]], pl.DataFrame]
    #: Whether an id that is missing there is wrong: not so in the demonstration vocabulary, which is a small part.
    is_whole: bool


def indexed_concepts(index: ConceptIndex) -> KnownConcepts:
    """The vocabulary that is loaded, which may be the demonstration vocabulary."""
    is_demo = index.release.startswith(_DEMO_RELEASE)
    return KnownConcepts(f"vocabulary {index.release}", index.concepts, is_whole=not is_demo)


def demo_concepts(folder: Path) -> KnownConcepts:
    """The demonstration vocabulary in `folder`, which needs no database."""
    frame = pl.read_csv(folder / "CONCEPT.csv", separator="\t", quote_char=None, infer_schema=False)
    frame = frame.select(
        pl.col("concept_id").cast(pl.Int64),
        "domain_id",
        *(
            pl.when(pl.col(name) != "").then(pl.col(name)).alias(name)
            for name in ("standard_concept", "invalid_reason")
        ),
        pl.lit(None, dtype=pl.Int64).alias("target_concept_id"),
    )
    return KnownConcepts(
        "the demonstration vocabulary", lambda ids: frame.filter(pl.col("concept_id").is_in(ids)), is_whole=False
    )


# --- the check -----------------------------------------------------------------------------------------------------


def check_mappings(
    folder: Path,
    site: str | None = None,
    site_mappings: Path | None = None,
    concepts: KnownConcepts | None = None,
) -> list[MappingProblem]:
    """Every problem of the mappings in `folder`, with a site's own over them, in the order of files and lines.

    Rules of every option are looked at, not only those that hold under a site's. Without `concepts` no concept id is
    judged.
    """
    reading = read_mappings(folder, site, None, site_mappings)
    problems = set(reading.problems)
    with _rehearsal(reading, folder) as worker:
        for name, mapping in reading.resources.items():
            found = list(_ResourceCheck(mapping, reading.sources.resources[name], worker, reading).problems())
            problems.update(found)
            if not found and reading.mappings is not None:
                problems.update(_rehearsed(mapping, reading.sources.resources[name], worker))
    for row in reading.sources.tables["unmapped_types.csv"].values():
        if row.values["resource_type"] in reading.resources:
            problems.add(row.problem(f"{row.values['resource_type']} has a mapping as well"))
    if concepts is not None:
        problems.update(_concept_problems(reading, concepts))
    return sorted(problems)


class _ResourceCheck:
    """What is wrong with one mapping, without running it."""

    def __init__(self, mapping: ResourceMapping, node: yaml.Node, worker: Worker, reading: MappingReading) -> None:
        self.mapping = mapping
        self.node = node
        self.worker = worker
        self.priorities = reading.sources.priority
        #: of every form of the first view that options choose from
        self.resource_columns: dict[str, str | None] = {}
        for view in mapping.views:
            if view.kind == "resource":
                self.resource_columns |= view.column_types

    def problems(self) -> Iterator[MappingProblem]:
        if self.mapping.resource not in RESOURCE_TYPES:
            yield self._problem(["resource"], f"FHIR R4 has no resource {self.mapping.resource}")
        yield from self._filters()
        seen: list[ViewMapping] = []
        for number, view in enumerate(self.mapping.views):
            if any(view.name == other.name and not _exclude_each_other(view, other) for other in seen):
                yield self._problem(["views", number, "name"], f"the view {view.name} is there twice")
            seen.append(view)
            yield from self._paths(number, view)
            yield from self._columns(number, view)
            yield from self._rules(number, view)

    def _problem(self, location: Iterable[Any], message: str) -> MappingProblem:
        return MappingProblem(*line_of(node_at(self.node, location)), message)

    def _filters(self) -> Iterator[MappingProblem]:
        status = self.mapping.status
        if status and status.column not in self.resource_columns:
            yield self._problem(["status", "column"], _unknown("column", status.column, self.resource_columns))
        for name in sorted(set(status.keep) & set(status.exclude)) if status else ():
            yield self._problem(["status", "exclude", name], f"status: {name} is both kept and excluded")
        for number, rule in enumerate(self.mapping.exclude):
            yield from self._condition(["exclude", number, "when"], rule.when, self.resource_columns)

    def _condition(self, location: list[Any], when: str, columns: Mapping[str, str | None]) -> Iterator[MappingProblem]:
        if when not in columns:
            yield self._problem(location, _unknown("column", when, columns))
        elif self.worker.column_dtype(columns[when]) != pl.Boolean:
            yield self._problem(location, f"the column {when} is not of type boolean")

    # --- paths ---

    def _paths(self, number: int, view: ViewMapping) -> Iterator[MappingProblem]:
        node = node_at(self.node, ["views", number])
        pairs = entries(node)
        shared = {"resource": self.mapping.resource, "name": view.name}
        if "constant" in pairs:
            shared["constant"] = plain(pairs["constant"][1])
        root: Types = frozenset({self.mapping.resource}) if elements_of(self.mapping.resource) else None
        found: list[MappingProblem] = []
        for condition in pairs["where"][1].value if "where" in pairs else ():
            path = entries(condition).get("path")
            if path:
                text = str(path[1].value)
                select = [{"column": [{"name": "x", "path": "id"}]}]
                found += self._path(path[0], text, root, {**shared, "where": [{"path": text}], "select": select})
        if "select" in pairs:
            found += self._selects(pairs["select"][1], shared, root, lambda select: [select])
        if not found:  # what no single path shows: names that are there twice, parts of a unionAll that differ
            found += self._compiled(node, {**shared, **dict(view.definition)})
        yield from found

    def _selects(
        self, selects: yaml.Node, shared: Mapping[str, Any], this: Types, within: Callable[[Any], list[Any]]
    ) -> Iterator[MappingProblem]:
        """Each path alone, in the loops that it stands in; `within` puts a select into them."""
        for select in selects.value if isinstance(selects, yaml.SequenceNode) else ():
            pairs = entries(select)
            inner, wrapped = this, within
            for kind in ("forEach", "forEachOrNull", "repeat"):
                if kind in pairs:
                    key, value = pairs[kind]
                    texts = [str(item.value) for item in value.value] if kind == "repeat" else [str(value.value)]
                    loop: dict[str, Any] = {kind: texts if kind == "repeat" else texts[0]}
                    probe = within({**loop, "column": [{"name": "x", "path": "$this"}]})
                    inner = _types(texts[0], self.mapping.resource, this)
                    for text in texts:  # `repeat` goes on from what its other paths lead to
                        at = inner if kind == "repeat" and text != texts[0] else this
                        yield from self._path(key, text, at, {**shared, "select": probe})
                    wrapped = _nested(loop, within)
            for column in pairs["column"][1].value if "column" in pairs else ():
                path = entries(column).get("path")
                if path:
                    view = {**shared, "select": wrapped({"column": [plain(column)]})}
                    yield from self._path(column, str(path[1].value), inner, view)
                    yield from self._type(column)
            for nested in ("select", "unionAll"):
                if nested in pairs:
                    yield from self._selects(pairs[nested][1], shared, inner, wrapped)

    def _path(self, node: yaml.Node, text: str, this: Types, view: Mapping[str, Any]) -> Iterator[MappingProblem]:
        compiled = list(self._compiled(node, view, text))
        yield from compiled
        if not compiled:
            for problem in element_problems(parse(text), self.mapping.resource, this)[0]:
                yield MappingProblem(*line_of(node), f"{text}: {problem.reason} (position {problem.position + 1})")

    def _type(self, column: yaml.Node) -> Iterator[MappingProblem]:
        """A type that begins with a capital letter and has no converter would give objects, which no column holds."""
        pair = entries(column).get("type")
        if pair and pair[1].value[:1].isupper() and pair[1].value not in self.worker.column_types:
            yield MappingProblem(*line_of(column), _unknown("type", str(pair[1].value), self.worker.column_types))

    def _compiled(self, node: yaml.Node, view: Mapping[str, Any], text: str = "") -> Iterator[MappingProblem]:
        try:
            compile_columns(dict(view), dict.fromkeys(self.worker.column_types, _unchanged))
        except MappingError as error:
            cause = error.__cause__
            if isinstance(cause, FhirPathError):
                message = f"{text or cause.path}: {cause.reason} (position {cause.position + 1})"
            else:
                message = re.sub(r"^View \S+[:,] ", "", error.message.splitlines()[0])
            yield MappingProblem(*line_of(node), message)

    # --- columns and rules ---

    def _columns(self, number: int, view: ViewMapping) -> Iterator[MappingProblem]:
        """Columns that neither a table nor a rule nor the pipeline knows: mistyped, their values would be lost."""
        node = node_at(self.node, ["views", number])
        nodes = dict(column_nodes(entries(node).get("select", (None, None))[1]))
        known = self._known_columns(view)
        rules = texts_of_rules(None if view.kind == "resource" else view.derive)
        for name in view.column_types:
            if name in nodes and name not in known and not rules.has(name) and not texts_of_pipeline().has(name):
                tables = sorted({view.table} if view.table else _home_tables(view))
                where = f"the table {tables[0]}" if len(tables) == 1 else "any table"
                yield MappingProblem(
                    *line_of(nodes[name]),
                    f"{_unknown('column', name, known | rules.plain)}: neither {where} nor a rule has it",
                )
            if name in nodes and view.kind != "resource" and name in self.resource_columns and name != "resource_id":
                yield MappingProblem(*line_of(nodes[name]), f"the first view has a column {name} already")

    def _known_columns(self, view: ViewMapping) -> set[str]:
        roles = {role for columns in EVENT_COLUMNS.values() for role in columns.values()}
        views = self.mapping.views if view.kind == "resource" else (view,)
        known = {"resource_id"}
        for one in views:
            known |= set(polars_schema(one.table)) if one.table in TABLES else set()
            known |= roles if one.kind == "event" else set()
            known |= {"value", "about"} if one.kind == "reference_value" else set()
            known |= {one.code} if one.code else set()
            known |= {
                rule.when
                for rules in (one.home_table, one.type_concept_id, one.concept_id)
                for rule in rules
                if rule.when
            }
            known |= set(one.required)
        if view.kind == "resource":
            known |= {rule.when for rule in self.mapping.exclude}
            known |= {self.mapping.status.column} if self.mapping.status else set()
        return known

    def _rules(self, number: int, view: ViewMapping) -> Iterator[MappingProblem]:
        at = ["views", number]
        columns = {**self.resource_columns, **view.column_types}
        for position, name in enumerate(view.derive):
            if name not in DERIVATIONS:
                yield self._problem([*at, "derive", position], _unknown("rule", name, DERIVATIONS))
        made = texts_of_rules(view.derive)
        for key in ("home_table", "type_concept_id", "concept_id"):
            rules = getattr(view, key)
            for position, rule in enumerate(rules):
                if rule.when and not (rule.when not in columns and made.has(rule.when)):
                    yield from self._condition([*at, key, position, "when"], rule.when, columns)
            if rules and (rules[-1].when is not None or rules[-1].option):
                yield self._problem([*at, key, len(rules) - 1], f"the last rule of {key} must hold for all others")
        for position, home in enumerate(view.home_table):
            if home.table not in EVENT_COLUMNS:
                yield self._problem([*at, "home_table", position], _unknown("event table", home.table, EVENT_COLUMNS))
        if view.kind == "entity" and view.table not in TABLES:
            yield self._problem([*at, "table"], _unknown("table", str(view.table), TABLES))
        if view.priority and view.priority not in self.priorities:
            yield self._problem([*at, "priority"], _unknown("vocabulary priority", view.priority, self.priorities))
        if view.kind == "event":
            yield from self._event(at, view, columns)
        yield from self._whose_row(at, view)
        has_value = view.landed_line or "value" in view.column_types or made.has("value")
        if view.kind == "reference_value" and not has_value:
            yield self._problem(at, "a view that leaves a fact needs a column value")

    def _whose_row(self, at: list[Any], view: ViewMapping) -> Iterator[MappingProblem]:
        makes_rows = view.kind in {"event", "entity"}
        if makes_rows and view.row is None:
            yield self._problem(at, "say whether the view gives the resource's own row: `row: own` or `row: further`")
        if view.row and not makes_rows:
            yield self._problem([*at, "row"], "only a view of an event or an entity gives rows")
        if view.row == "own" and _is_repeated(view):
            yield self._problem([*at, "row"], "rows of a part that may be there repeatedly are further rows")

    def _event(self, at: list[Any], view: ViewMapping, columns: Mapping[str, str | None]) -> Iterator[MappingProblem]:
        if bool(view.code) == bool(view.concept_id):
            yield self._problem(at, "an event view needs either code or concept_id")
        if view.code and view.code not in columns:
            yield self._problem([*at, "code"], _unknown("column", view.code, columns))
        elif view.code and self.worker.column_dtype(columns[view.code]) != _CODE_SET:
            yield self._problem(
                [*at, "code"], f"the column {view.code} holds no codes: its type must be CodeableConcept"
            )
        for name in ("person_id", "start_date"):
            if name not in view.required:
                yield self._problem([*at, "required"], f"an event without {name} cannot be loaded: require it")
        for name in ("home_table", "type_concept_id"):
            if not getattr(view, name):
                yield self._problem(at, f"an event view needs {name}")


def _is_repeated(view: ViewMapping) -> bool:
    return bool(view.repeated_elements)


def _types(text: str, resource: str, this: Types) -> Types:
    try:
        return element_problems(parse(text), resource, this)[1]
    except FhirPathError:
        return None


def _nested(loop: Mapping[str, Any], within: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    return lambda select: within({**loop, "select": [select]})


def _home_tables(view: ViewMapping) -> set[str]:
    return {rule.table for rule in view.home_table}


def _exclude_each_other(one: ViewMapping, other: ViewMapping) -> bool:
    """Whether two forms of a view never hold together: an option has values for one that the other has not."""
    return any(
        name in other.option and not set(_values(wanted)) & set(_values(other.option[name]))
        for name, wanted in one.option.items()
    )


def _values(wanted: str | tuple[str, ...]) -> tuple[str, ...]:
    return (wanted,) if isinstance(wanted, str) else wanted


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"there is no {kind} {name}" + (f" (did you mean {close[0]}?)" if close else "")


def _unchanged(value: Any) -> Any:
    return value


# --- the rehearsal -------------------------------------------------------------------------------------------------


@contextmanager
def _rehearsal(reading: MappingReading, folder: Path) -> Iterator[Worker]:
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
                known=place / "known",
                facts=place / "facts",
                staged=StagedExport(place),
                landing=place,
            )
        )


def _index_files() -> Iterator[tuple[str, Mapping[str, pl.DataType]]]:
    """Every file of a concept index: the module names them `…_FILE`, with `…_SCHEMA` beside each."""
    names = vars(concept_index)
    for name in names:
        if name.endswith("_FILE"):
            yield names[name], names[f"{name.removesuffix('_FILE')}_SCHEMA"]


def _rehearsed(mapping: ResourceMapping, node: yaml.Node, worker: Worker) -> Iterator[MappingProblem]:
    """Run one row through every view: a rule that misses a column is told by the rule's own code."""
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
                made = derived(worker, view, rows).with_columns(pl.lit(1, dtype=pl.Int64).alias("row_key"))
                refuse_incomplete(worker, plan.mapping, view, made, _entity_tables(str(view.table)))
            elif view.kind == "reference_value":
                derived(worker, view, rows)
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
        value = None if column.type in JSON_TYPES else [] if isinstance(dtype, pl.List) else value
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


# --- concept ids ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    """Concept ids that stand in one place, alternatives in order; `domain`: the only one allowed."""

    concept_ids: tuple[int, ...]
    file: str
    line: int
    domain: str | None = None


def _concept_problems(reading: MappingReading, known: KnownConcepts) -> Iterator[MappingProblem]:
    named = [*_named_by_views(reading), *_named_by_tables(reading)]
    rows = known.concepts(sorted({concept_id for one in named for concept_id in one.concept_ids}))
    found = {row["concept_id"]: row for row in rows.to_dicts()}
    for one in named:
        reasons = [_judged(concept_id, found.get(concept_id), one.domain, known) for concept_id in one.concept_ids]
        if reasons and all(reasons):  # of alternatives, one that is right is enough
            yield MappingProblem(one.file, one.line, "; ".join(reasons))


def _judged(concept_id: int, row: Mapping[str, Any] | None, domain: str | None, known: KnownConcepts) -> str:
    """What is wrong with a concept id; nothing where it is right, or cannot be known."""
    if concept_id == 0:
        return ""
    if row is None:
        return f"concept {concept_id} is not in {known.name}" if known.is_whole else ""
    if row["standard_concept"] != "S" or row["invalid_reason"] is not None:
        target = row["target_concept_id"]
        instead = f"; its standard concept is {target}" if target else ""
        kind = "no longer valid" if row["invalid_reason"] is not None else "not Standard"
        return f"concept {concept_id} is {kind} in {known.name}{instead}"
    if domain and row["domain_id"] != domain:
        return f"concept {concept_id} is of domain {row['domain_id']}, not {domain}"
    return ""


def _named_by_views(reading: MappingReading) -> Iterator[_Named]:
    for resource, mapping in reading.resources.items():
        for number, view in enumerate(mapping.views):
            for key, domain in (("type_concept_id", _TYPE_CONCEPT), ("concept_id", None)):
                rules: tuple[ConceptRule, ...] = getattr(view, key)
                for position, rule in enumerate(rules):
                    node = node_at(reading.sources.resources[resource], ["views", number, key, position])
                    yield _Named(rule.concept_ids, *line_of(node), domain)


def _named_by_tables(reading: MappingReading) -> Iterator[_Named]:
    rows: list[Row] = [row for of in reading.sources.values.values() for row in of.values()]
    rows += reading.sources.tables["constants.csv"].values()
    for row in rows:
        ids = row.values["concept_id"].split("|")
        if all(part.isdecimal() for part in ids):
            yield _Named(tuple(int(part) for part in ids), row.file, row.line)
