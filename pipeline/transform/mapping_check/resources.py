"""One mapping without running it: filters, columns that nobody reads, rules and tables that do not fit together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl
import yaml

from omop_schema.cdm_fields import TABLES, polars_schema
from pipeline.core.resource_types import RESOURCE_TYPES
from pipeline.transform.column_types import column_dtype
from pipeline.transform.mapping.mappings import (
    ITEM_NUMBER,
    MAPS_OF_TYPES,
    ConceptRule,
    MappingReading,
    ResourceMapping,
    TableRule,
    ViewMapping,
)
from pipeline.transform.mapping.overlays import entries
from pipeline.transform.mapping.sources import MappingProblem, column_nodes, line_of, node_at
from pipeline.transform.mapping_check.names import unknown
from pipeline.transform.mapping_check.paths import PathCheck
from pipeline.transform.plan import Worker
from pipeline.transform.routing import EVENT_COLUMNS
from pipeline.transform.rules import RULES, Rule

__all__ = ["ResourceCheck"]

_CODE_SET = pl.Int32()
#: What every row has before the rules, whatever its view says.
_OF_EVERY_ROW = frozenset({"index", "resource_id", "surrogate_id", "file_number", "line"})


class ResourceCheck:
    """What is wrong with one mapping, without running it."""

    def __init__(self, mapping: ResourceMapping, node: yaml.Node, worker: Worker, reading: MappingReading) -> None:
        self.mapping = mapping
        self.node = node
        self.worker = worker
        self.sources = reading.sources
        self.paths = PathCheck(mapping, node, worker.column_types)
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
            yield from self.paths.of_view(number, view)
            yield from self._columns(number, view)
            yield from self._view(number, view)

    def _problem(self, location: Iterable[Any], message: str) -> MappingProblem:
        return MappingProblem(*line_of(node_at(self.node, location)), message)

    def _filters(self) -> Iterator[MappingProblem]:
        status = self.mapping.status
        if status and status.column not in self.resource_columns:
            yield self._problem(["status", "column"], unknown("column", status.column, self.resource_columns))
        for name in sorted(set(status.keep) & set(status.exclude)) if status else ():
            yield self._problem(["status", "exclude", name], f"status: {name} is both kept and excluded")
        made = frozenset[str]().union(*(rule.all_writes for view in self.mapping.views for rule in _rules_of(view)))
        for number, name in enumerate(self.mapping.contact):
            if name not in self.resource_columns and name not in made:
                yield self._problem(["contact", number], unknown("column", name, self.resource_columns))
        for number, rule in enumerate(self.mapping.exclude):
            yield from self._condition(["exclude", number, "when"], rule.when, self.resource_columns)

    def _condition(self, location: list[Any], when: str, columns: Mapping[str, str | None]) -> Iterator[MappingProblem]:
        if when not in columns:
            yield self._problem(location, unknown("column", when, columns))
        elif column_dtype(columns[when]) != pl.Boolean:
            yield self._problem(location, f"the column {when} is not of type boolean")

    # --- columns ---

    def _columns(self, number: int, view: ViewMapping) -> Iterator[MappingProblem]:
        """Columns that neither a table nor a rule nor the pipeline reads: mistyped, their values would be lost."""
        node = node_at(self.node, ["views", number])
        nodes = dict(column_nodes(entries(node).get("select", (None, None))[1]))
        known = self._known_columns(view)
        for name, kind in view.column_types.items():
            for value_map in sorted(MAPS_OF_TYPES.get(kind or "", frozenset()) - set(self.sources.values)):
                yield MappingProblem(*line_of(nodes[name]), f"there is no value map {value_map}, which {kind} needs")
            if name in nodes and name not in known:
                tables = sorted({view.table} if view.table else {rule.table for rule in view.home_table})
                where = f"the table {tables[0]}" if len(tables) == 1 else "any table"
                message = f"{unknown('column', name, known)}: neither {where} nor a rule has it"
                yield MappingProblem(*line_of(nodes[name]), message)
            if name in nodes and view.kind != "resource" and name in self.resource_columns and name != "resource_id":
                yield MappingProblem(*line_of(nodes[name]), f"the first view has a column {name} already")

    def _known_columns(self, view: ViewMapping) -> set[str]:
        """What reads a view's columns: its table, its rules, its conditions; of the first view those of all views."""
        known = {"resource_id", ITEM_NUMBER}
        for one in self.mapping.views if view.kind == "resource" else (view,):
            known |= _read_by(one)
        if view.kind == "resource":
            known |= {rule.when for rule in self.mapping.exclude}
            known |= {self.mapping.status.column} if self.mapping.status else set()
            known |= set(self.mapping.contact)
        return known

    # --- views ---

    def _view(self, number: int, view: ViewMapping) -> Iterator[MappingProblem]:
        at = ["views", number]
        columns = {**self.resource_columns, **view.column_types}
        made: frozenset[str] = frozenset().union(*(rule.all_writes for rule in _rules_of(view)))
        yield from self._derive(at, view, columns)
        yield from self._choices(at, view, columns, made)
        for position, home in enumerate(view.home_table):
            if home.table not in EVENT_COLUMNS:
                yield self._problem([*at, "home_table", position], unknown("event table", home.table, EVENT_COLUMNS))
        if view.kind == "entity" and view.table not in TABLES:
            yield self._problem([*at, "table"], unknown("table", str(view.table), TABLES))
        if view.priority and view.priority not in self.sources.priority:
            yield self._problem([*at, "priority"], unknown("vocabulary priority", view.priority, self.sources.priority))
        if view.kind == "event":
            yield from self._event(at, view, columns)
        yield from self._whose_row(at, view)
        has_value = view.landed_line or "value" in view.column_types or "value" in made
        if view.kind == "fact" and not has_value:
            yield self._problem(at, "a view that leaves a fact needs a column value")

    def _derive(self, at: list[Any], view: ViewMapping, columns: Iterable[str]) -> Iterator[MappingProblem]:
        """Rules that do not exist, or for which something is missing; each may read what those before it make."""
        known = {*columns, *_OF_EVERY_ROW, *(("value",) if view.landed_line else ())}
        for position, name in enumerate(view.derive):
            rule, place = RULES.get(name), [*at, "derive", position]
            if rule is None:
                yield self._problem(place, unknown("rule", name, RULES))
                continue
            for column in sorted(set(rule.reads) - known):
                reason = f"lacks the column {column}, which the rule {name} reads"
                yield self._problem(place, f"the view {view.name} {reason}")
            known |= rule.all_writes
            for thing in self._missing_settings(rule):
                yield self._problem(place, f"there is no {thing}, which the rule {name} needs")

    def _missing_settings(self, rule: Rule) -> Iterator[str]:
        constants = {row.values["name"] for row in self.sources.tables["constants.csv"].values()}
        yield from (f"value map {name}" for name in rule.value_maps if name not in self.sources.values)
        yield from (f"vocabulary priority {name}" for name in rule.priorities if name not in self.sources.priority)
        yield from (f"constant {name}" for name in rule.constants if name not in constants)

    def _choices(
        self, at: list[Any], view: ViewMapping, columns: Mapping[str, str | None], made: frozenset[str]
    ) -> Iterator[MappingProblem]:
        """Lists of which the first entry counts whose condition holds."""
        for key in ("home_table", "type_concept_id", "concept_id", "result_concept_id"):
            rules = getattr(view, key)
            for position, rule in enumerate(rules):
                if rule.when and not (rule.when not in columns and rule.when in made):
                    yield from self._condition([*at, key, position, "when"], rule.when, columns)
            if rules and (rules[-1].when is not None or rules[-1].option):
                yield self._problem([*at, key, len(rules) - 1], f"the last rule of {key} must hold for all others")

    def _whose_row(self, at: list[Any], view: ViewMapping) -> Iterator[MappingProblem]:
        makes_rows = view.kind in {"event", "entity"}
        if makes_rows and view.row is None:
            yield self._problem(at, "say whether the view gives the resource's own row: `row: own` or `row: further`")
        if view.row and not makes_rows:
            yield self._problem([*at, "row"], "only a view of an event or an entity gives rows")
        if view.row == "own" and view.repeated_elements:
            yield self._problem([*at, "row"], "rows of a part that may be there repeatedly are further rows")

    def _event(self, at: list[Any], view: ViewMapping, columns: Mapping[str, str | None]) -> Iterator[MappingProblem]:
        if bool(view.code) == bool(view.concept_id):
            yield self._problem(at, "an event view needs either code or concept_id")
        if view.code and view.code not in columns:
            yield self._problem([*at, "code"], unknown("column", view.code, columns))
        elif view.code and column_dtype(columns[view.code]) != _CODE_SET:
            yield self._problem(
                [*at, "code"], f"the column {view.code} holds no codes: its type must be CodeableConcept"
            )
        for name in ("person_id", "start_date"):
            if name not in view.required:
                yield self._problem([*at, "required"], f"an event without {name} cannot be loaded: require it")
        for name in ("home_table", "type_concept_id"):
            if not getattr(view, name):
                yield self._problem(at, f"an event view needs {name}")


def _rules_of(view: ViewMapping) -> list[Rule]:
    return [RULES[name] for name in view.derive if name in RULES]


def _read_by(view: ViewMapping) -> set[str]:
    """Columns that the rows of a view are made of, wherever they come from."""
    known = set(polars_schema(view.table)) if view.table in TABLES else set()
    known |= (
        {role for columns in EVENT_COLUMNS.values() for role in columns.values()} if view.kind == "event" else set()
    )
    known |= {"value", "about"} if view.kind == "fact" else set()
    known |= {view.code} if view.code else set()
    concepts = (*view.type_concept_id, *view.concept_id, *view.result_concept_id)
    choices: tuple[TableRule | ConceptRule, ...] = (*view.home_table, *concepts)
    known |= {rule.when for rule in choices if rule.when}
    known |= {*view.required, *view.row_key}
    return known.union(*(rule.columns for rule in _rules_of(view)))


def _exclude_each_other(one: ViewMapping, other: ViewMapping) -> bool:
    """Whether two forms of a view never hold together: an option has values for one that the other has not."""
    return any(
        name in other.option and not set(_values(chosen)) & set(_values(other.option[name]))
        for name, chosen in one.option.items()
    )


def _values(chosen: str | tuple[str, ...]) -> tuple[str, ...]:
    return (chosen,) if isinstance(chosen, str) else chosen
