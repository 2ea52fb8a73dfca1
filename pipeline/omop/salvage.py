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

__all__ = ["CONVERSION_ERRORS", "Salvaged", "salvaged"]

CONVERSION_ERRORS = (*EVALUATION_ERRORS, KeyError, IndexError, OverflowError)

#: Converters of a column of the first view whose value is a row of its own, and the element that it is made of.
_ROWS_OF_COLUMNS = {"patient_location": "address", "site_location": "address"}


@dataclass(frozen=True)
class Salvaged:
    """Rows of every view of one resource, each ended by the mark, and why parts were left out; or why there are none."""

    rows: list[list[Any]]
    left_out: list[Problem]
    problem: Problem | None = None


def salvaged(resource: dict[str, Any], mark: int, plan: ResourcePlan) -> Salvaged:
    """The rows of the views, run one by one."""
    found = Salvaged([], [])
    for view in plan.views:
        rows = _rows_of(view, resource, mark)
        if rows is None:
            whole, left_out = _without_broken_parts(view, resource)
            rows = _rows_of(view, whole, mark) if left_out else None
            if rows is None:
                return Salvaged([], [], _problem(view, resource))
            found.left_out.extend(left_out)
        found.rows.append(rows)
    return found


def _rows_of(view: PlannedView, resource: dict[str, Any], mark: int) -> list[Any] | None:
    rows: list[Any] = []
    try:
        view.alone().bind([rows])(resource, mark)
    except CONVERSION_ERRORS:
        return None
    return rows


def _problem(view: PlannedView, resource: dict[str, Any]) -> Problem:
    """The slow path: which FHIRPath failed, and why."""
    unexpected = Problem("evaluation_failed", resource["resourceType"], "an element has an unexpected form")
    return view.explain(resource) or unexpected


def _without_broken_parts(view: PlannedView, resource: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The resource without the parts that the view fails on, and what is wrong with each of them."""
    if view.mapping.kind == "resource":
        names = {_ROWS_OF_COLUMNS[column.type] for column in view.columns if column.type in _ROWS_OF_COLUMNS}
    elif view.mapping.kind == "reference_value" or view.mapping.is_further:
        names = set(view.mapping.repeated_elements)
    else:
        names = set()
    try:
        whole, left_out = _pruned(resource, names, view, lambda pruned: pruned)
    except RecursionError:  # nested more deeply than can be taken apart
        return resource, []
    if view.mapping.kind == "resource" and _rows_of(view, whole, 0) is None:  # no part can be told from the others
        left_out += [_problem(view, whole)] * len(names & whole.keys())
        whole = {key: value for key, value in whole.items() if key not in names}
    return whole, left_out


def _pruned(
    element: dict[str, Any],
    names: set[str],
    view: PlannedView,
    resource_of: Callable[[dict[str, Any]], dict[str, Any]],
) -> tuple[dict[str, Any], list[Problem]]:
    """An element without those items of its lists `names`, at any depth, of which each alone makes the view fail.

    `resource_of` puts the element into the resource, without any other part.
    """
    whole, left_out = dict(element), []
    bare = {key: value for key, value in element.items() if key not in names}
    for name in sorted(names & element.keys()):
        if not isinstance(element[name], list):
            continue

        def alone(part: Any, name: str = name) -> dict[str, Any]:
            return resource_of({**bare, name: [part]})

        items = []
        for item in element[name]:
            if _rows_of(view, alone(item), 0) is None:
                inner, problems = _pruned(item, names, view, alone) if isinstance(item, dict) else (item, [])
                if problems and _rows_of(view, alone(inner), 0) is not None:
                    items.append(inner)
                    left_out += problems
                else:
                    left_out.append(_problem(view, alone(item)))
            else:
                items.append(item)
        whole[name] = items
    return whole, left_out
