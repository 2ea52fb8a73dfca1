"""What can be read of a resource of which a view fails: a part that is broken does not take the resource along.

The resource's own row decides: where the first view or that of the own row fails, nothing is read. Of parts that may be
there repeatedly (components, reactions, places, diagnoses, addresses, forms of a report) those that fail are left out,
each one by itself. An element that is there once and has another shape fails its view, and with it the resource.
Here is also where in a resource what fails is, down to the item of an array.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.core.line_codes import RejectionCode
from pipeline.sql_on_fhir.r4 import elements_of, is_array
from pipeline.sql_on_fhir.view_definition import EVALUATION_ERRORS, Problem
from pipeline.transform.plan import PlannedView, ResourcePlan

__all__ = ["CONVERSION_ERRORS", "Salvaged", "salvaged"]

CONVERSION_ERRORS = (*EVALUATION_ERRORS, KeyError, IndexError, OverflowError)

#: Converters that are given a whole resource, and the repeated element that what they find is made of. In the first
#: view these are the columns that say nothing about the resource's own row, or can be missing there.
_REPEATED_OF_CONVERTERS = {
    "patient_location": "address",
    "site_location": "address",
    "is_unsupported": "presentedForm",
    "attached_text": "presentedForm",
    "attached_binary": "presentedForm",
    "text_language": "presentedForm",
    "device_identifier": "udiCarrier",
    "device_lot": "udiCarrier",
    "device_summary": "udiCarrier",
    "questionnaire_codes": "item",
    "visit_provider": "participant",
    "role_specialty": "specialty",
}

_Trail = tuple[tuple[str, int], ...]
_Fails = Callable[[Any], bool]


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
                return Salvaged([], [], _problem_in_place(view, resource))
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
    unexpected = Problem(RejectionCode.EVALUATION_FAILED, resource["resourceType"], "an element has an unexpected form")
    return view.explain(resource) or unexpected


# --- parts that are left out -----------------------------------------------------------------------------------------


def _without_broken_parts(view: PlannedView, resource: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The resource without the parts that the view fails on, and what is wrong with each of them."""
    names = _repeated_parts(view, resource["resourceType"])
    try:
        whole, left_out = _pruned(resource, names, view, lambda pruned: pruned)
    except RecursionError:  # nested more deeply than can be taken apart
        return resource, []
    if names & whole.keys() and _rows_of(view, whole, 0) is None:  # the parts cannot be distinguished
        without = {key: value for key, value in whole.items() if key not in names}
        if _rows_of(view, without, 0) is not None:
            left_out += [_problem_in_place(view, whole)]
            whole = without
    return whole, left_out


def _repeated_parts(view: PlannedView, resource_type: str) -> set[str]:
    """Names of the elements whose items are parts of the view's rows, or rows of it; none of an own row."""
    of_converters = {_REPEATED_OF_CONVERTERS[one.type] for one in view.columns if one.type in _REPEATED_OF_CONVERTERS}
    if view.mapping.kind == "resource":
        return of_converters
    if view.mapping.kind != "fact" and not view.mapping.is_further:
        return set()
    return {*view.mapping.repeated_elements, *_arrays_of_paths(view, resource_type), *of_converters}


def _arrays_of_paths(view: PlannedView, resource_type: str) -> set[str]:
    """Elements of the resource that the view's paths name and FHIR has repeatedly: of `link.where(…).other`, link."""
    known = elements_of(resource_type) or {}
    where = [item["path"] for item in view.mapping.definition.get("where", ())]
    words = {word for path in (*where, *(column.path for column in view.columns)) for word in _WORD.findall(path)}
    return {word for word in words & known.keys() if is_array(resource_type, word)}


_WORD = re.compile(r"[A-Za-z]\w*")


def _pruned(
    element: dict[str, Any],
    names: set[str],
    view: PlannedView,
    resource_of: Callable[[dict[str, Any]], dict[str, Any]],
    trail: _Trail = (),
) -> tuple[dict[str, Any], list[Problem]]:
    """An element without those items of its lists `names`, at any depth, of which each alone makes the view fail.

    `resource_of` puts the element into the resource, without any other part; `trail`: where it is.
    """
    whole, left_out = dict(element), []
    bare = {key: value for key, value in element.items() if key not in names}
    for name in sorted(names & element.keys()):
        if not isinstance(element[name], list):
            continue

        def alone(part: Any, name: str = name) -> dict[str, Any]:
            return resource_of({**bare, name: [part]})

        items = []
        for number, item in enumerate(element[name]):
            if _rows_of(view, alone(item), 0) is None:
                place = (*trail, (name, number))
                inner, problems = _pruned(item, names, view, alone, place) if isinstance(item, dict) else (item, [])
                if problems and _rows_of(view, alone(inner), 0) is not None:
                    items.append(inner)
                    left_out += problems
                else:
                    left_out.append(_problem_at(_problem(view, alone(item)), place))
            else:
                items.append(item)
        whole[name] = items
    return whole, left_out


# --- where it is -----------------------------------------------------------------------------------------------------


def _problem_at(problem: Problem, trail: _Trail) -> Problem:
    """The problem of an item, with the numbers of the items in its path: `Observation.component[1].code`."""
    resource_type, _, path = problem.path.partition(".")
    rest = list(_steps(path))
    names = [name for name, _ in trail]
    for length in range(min(len(names), len(rest)), 0, -1):
        if names[-length:] == rest[:length]:
            rest = rest[length:]
            break
    return replace(problem, path=".".join([resource_type, *(f"{name}[{number}]" for name, number in trail), *rest]))


def _steps(path: str) -> Iterator[str]:
    """The steps of a FHIRPath, without conditions and `repeat`: they say of several items what a number says of one."""
    step, depth = "", 0
    for character in f"{path}.":
        if character == "." and not depth:
            if step and not step.startswith(("$this", "where(", "repeat(", "iif(")):
                yield step
            step = ""
            continue
        depth += (character == "(") - (character == ")")
        step += character


def _problem_in_place(view: PlannedView, resource: dict[str, Any]) -> Problem:
    """The problem; where a column reads the resource as a whole, with the path of the element that makes it fail."""
    problem = _problem(view, resource)
    resource_type = resource["resourceType"]
    reads_whole = problem.path == resource_type or problem.path.startswith(f"{resource_type}.iif(")
    if not reads_whole or problem.code == RejectionCode.NOT_A_RESOURCE:
        return problem

    def fails(changed: Any) -> bool:
        return _rows_of(view, changed, 0) is None

    return replace(problem, path=_smallest(resource, fails, resource_type))


#: Not more elements of an object are tried, and not deeper ones: what is more is not a valid FHIR resource.
_MOST_ELEMENTS, _MOST_STEPS = 100, 8
_ELEMENT = re.compile(r"[A-Za-z]{1,64}")


def _smallest(value: Any, fails: _Fails, path: str, steps: int = 0) -> str:
    """The path of the smallest part of a value without which it would not fail. `fails` puts a value in its place."""
    if steps == _MOST_STEPS:
        return path
    if isinstance(value, list):
        for number, item in enumerate(value):
            if fails([item]):
                if not fails(item):  # what is wrong is that it is an array
                    return path
                return _smallest(item, lambda part: fails([part]), f"{path}[{number}]", steps + 1)
    elif isinstance(value, dict):
        for name in list(value)[:_MOST_ELEMENTS]:
            others = {key: item for key, item in value.items() if key != name}
            if name != "resourceType" and _ELEMENT.fullmatch(name) and not fails(others):
                return _smallest(value[name], _with_element(value, name, fails), f"{path}.{name}", steps + 1)
    return path


def _with_element(value: dict[str, Any], name: str, fails: _Fails) -> _Fails:
    return lambda part: fails({**value, name: part})
