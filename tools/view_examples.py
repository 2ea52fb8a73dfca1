"""Which rows of golden cases are those of a view: the examples beside the lines of docs/mapping/.

A case says which rows a resource makes and not by which view. A row counts as a view's where no other view can have made
it: by the view's own conditions, which are evaluated, and by its fixed concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.sql_on_fhir.view_definition import EVALUATION_ERRORS, compile_view
from pipeline.transform.mapping.mappings import ResourceMapping, ViewMapping
from pipeline.transform.routing import EVENT_COLUMNS
from tools.column_lines import tables_of
from tools.concept_names import concept_of_code
from tools.golden_cases import GoldenCase, golden_cases

__all__ = ["ViewExample", "examples_of", "has_settings", "is_of_an_edge"]

#: Topics of cases about the edges of data: their values would puzzle a reader who looks for the usual.
_EDGES = frozenset({"decimals", "data_types", "foreign_tables", "modifiers", "systems", "facts", "identifier"})


@dataclass(frozen=True)
class ViewExample:
    """A row that a view made of a resource: the row's columns, all values as texts."""

    case: GoldenCase
    given: Mapping[str, Any]
    row: Mapping[str, Any]


def examples_of(mapping: ResourceMapping, view: ViewMapping) -> Iterator[ViewExample]:
    """The view's rows in cases of one resource, plain cases first."""
    views = [each for each in mapping.views if each.kind in ("event", "entity")]
    if view.name not in {each.name for each in views}:  # it is there under an option
        views.append(view)
    applies = {each.name: compile_view({"resource": mapping.resource, **each.definition}) for each in views}
    cases = [case for case in golden_cases().values() if case.resource == mapping.resource]
    for case in sorted(cases, key=_strangeness):
        given = [resource for resource in case.resources() if resource.get("resourceType") == mapping.resource]
        for table in tables_of(view):
            for row in case.rows().get(table, ()):
                owner = _owner(row, given)
                there = [each for each in views if owner and _applies(applies[each.name], owner)]
                makers = [each for each in there if table in tables_of(each) and _can_be_of(each, table, row, there)]
                if owner and view in makers and (len(makers) == 1 or (view.concept_id and _concept(table, row))):
                    yield ViewExample(case, owner, row)


def has_settings(case: GoldenCase) -> bool:
    """Whether it is loaded under settings of its own, or in two exports."""
    return bool(case.document.keys() & {"site", "instance", "values", "mappings", "then"})


def is_of_an_edge(case: GoldenCase) -> bool:
    """Whether it is about data that hardly occur."""
    return case.topic in _EDGES


def _strangeness(case: GoldenCase) -> int:
    """How far it is from a resource that is loaded as it is under the settings that all have."""
    has_accounts = bool(case.document.keys() & {"issues", "pending", "outcomes"})
    return 4 * has_settings(case) + 2 * has_accounts + is_of_an_edge(case)


def _owner(row: Mapping[str, Any], resources: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The resource that the row is of: the only one, or the one that has more of the row's values than all others."""
    if len(resources) < 2:
        return resources[0] if resources else None
    values = [str(value) for value in row.values() if len(str(value)) > 1]
    scores = [sum(value in str(each) for value in values) for each in resources]
    best = max(scores)
    return resources[scores.index(best)] if scores.count(best) == 1 else None


def _applies(view: Any, resource: Mapping[str, Any]) -> bool:
    try:
        return bool(view(dict(resource)))
    except EVALUATION_ERRORS:
        return False


def _can_be_of(view: ViewMapping, table: str, row: Mapping[str, Any], views: list[ViewMapping]) -> bool:
    """A view of fixed concepts makes rows of these, one of codes those of all others."""
    if view.kind != "event":
        return True
    concept = _concept(table, row)
    if view.concept_id:
        return not concept or concept in _fixed(view)
    return not any(concept in _fixed(each) for each in views)


def _concept(table: str, row: Mapping[str, Any]) -> int:
    column = next((name for name, role in EVENT_COLUMNS.get(table, {}).items() if role == "concept_id"), "")
    return int(row.get(column) or 0)


def _fixed(view: ViewMapping) -> set[int]:
    found = {concept_of_code(target) for rule in view.concept_id for target in rule.targets}
    return {concept for concept in found if concept is not None}
