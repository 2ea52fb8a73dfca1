"""What can be read of a resource of which a view fails: a part that is broken does not take the resource along.

The resource's own row decides: where the first view or that of the own row fails, nothing is read. Of parts that may be
there repeatedly (components, reactions, places, diagnoses, addresses) those that fail are left out, each one by itself.
An element that is there once and has another shape fails its view, and with it the resource.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.fhir.view_definition import EVALUATION_ERRORS, Problem
from pipeline.omop.plan import PlannedView, ResourcePlan

__all__ = ["CONVERSION_ERRORS", "LeftOut", "Salvaged", "salvaged"]

CONVERSION_ERRORS = (*EVALUATION_ERRORS, KeyError, IndexError, OverflowError)

#: Converters of a column of the first view whose value is a row of its own, and the element that it is made of.
_ROWS_OF_COLUMNS = {"patient_location": "address", "site_location": "address"}


@dataclass(frozen=True)
class LeftOut:
    """Parts of one resource that a view fails on. `parts`: how many."""

    problem: Problem
    parts: int


@dataclass(frozen=True)
class Salvaged:
    """Rows of every view of one resource, each ended by the mark, and what was left out; or why there are none."""

    rows: list[list[Any]]
    left_out: list[LeftOut]
    problem: Problem | None = None


def salvaged(resource: dict[str, Any], mark: int, plan: ResourcePlan) -> Salvaged:
    """The rows of the views, run one by one."""
    found = Salvaged([], [])
    for view in plan.views:
        rows = _rows_of(view, resource, mark)
        if rows is None:
            problem = view.explain(resource) or Problem(
                "evaluation_failed", plan.mapping.resource, "an element has an unexpected form"
            )
            whole, parts = _without_broken_parts(view, resource)
            rows = _rows_of(view, whole, mark) if parts else None
            if rows is None:
                return Salvaged([], [], problem)
            found.left_out.append(LeftOut(problem, parts))
        found.rows.append(rows)
    return found


def _rows_of(view: PlannedView, resource: dict[str, Any], mark: int) -> list[Any] | None:
    rows: list[Any] = []
    try:
        view.alone().bind([rows])(resource, mark)
    except CONVERSION_ERRORS:
        return None
    return rows


def _without_broken_parts(view: PlannedView, resource: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The resource without the parts that the view fails on, and how many those are."""
    if view.mapping.kind == "resource":
        names = {_ROWS_OF_COLUMNS[column.type] for column in view.columns if column.type in _ROWS_OF_COLUMNS}
    elif view.mapping.row == "own":
        names = set()
    else:
        names = set(view.mapping.repeated_elements)
    whole, parts = _pruned(resource, names, lambda part: _rows_of(view, part, 0) is not None)
    for name in names & whole.keys() if view.mapping.kind == "resource" else ():
        if not isinstance(whole[name], list) and _rows_of(view, whole, 0) is None:  # no part of it can be told apart
            whole, parts = {key: value for key, value in whole.items() if key != name}, parts + 1
    return whole, parts


def _pruned(
    element: dict[str, Any], names: set[str], can_be_read: Callable[[dict[str, Any]], bool]
) -> tuple[dict[str, Any], int]:
    """An element without those items of its lists `names`, at any depth, with which it alone cannot be read."""
    whole, removed = dict(element), 0
    for name in names & element.keys():
        if not isinstance(element[name], list):
            continue
        bare = {key: value for key, value in element.items() if key not in names}
        items = []
        for item in element[name]:

            def alone(part: Any, bare: dict[str, Any] = bare, name: str = name) -> bool:
                return can_be_read({**bare, name: [part]})

            if alone(item):
                items.append(item)
                continue
            inner, parts = _pruned(item, names, alone) if isinstance(item, dict) else ({}, 0)
            if parts and alone(inner):
                items.append(inner)
                removed += parts
            else:
                removed += 1
        whole[name] = items
    return whole, removed
