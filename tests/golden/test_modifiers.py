"""The table of modifier elements (mappings/modifier_elements.csv) says what the mapping does with each (f2o-063).

Every element that R4 calls a modifier, in a type that is mapped or a data type, is in it (`r4_modifiers.csv`, made from
the definitions of R4, CC0); every line but those that are not read names a golden case that shows what it says.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.mapping.mappings import read_mappings
from tests.golden.test_golden import CASES, Case

_CASES = {case.name: case for case in CASES}
#: Lines without a case: nothing reads the element.
_NOT_READ = "not_read"
_ANY = "*"


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


ROWS = _rows(MAPPINGS_FOLDER / "modifier_elements.csv")


@pytest.mark.requirement("f2o-063")
def test_every_modifier_of_r4_is_in_the_table() -> None:
    expected = {row["element"] for row in _rows(Path(__file__).with_name("r4_modifiers.csv"))}
    assert {row["element"] for row in ROWS} == expected


@pytest.mark.requirement("f2o-063")
def test_what_a_mapping_filters_by_is_in_the_table() -> None:
    """Of a new type above all: R4's modifiers are listed for the types that are mapped."""
    elements = {row["element"] for row in ROWS}
    missing = []
    for name, mapping in read_mappings(MAPPINGS_FOLDER).resources.items():
        if mapping.status is not None:
            path = mapping.views[0].column_paths[mapping.status.column]
            element = f"{name}.{path.split('.')[0]}"
            missing += [element] if element not in elements | {"Bundle.type"} else []  # which R4 calls no modifier
    assert missing == []


@pytest.mark.requirement("f2o-063")
def test_every_status_of_a_mapping_is_in_the_table() -> None:
    """The filters and the table say the same."""
    said = {(row["element"], row["value"]): row["does"] for row in ROWS}
    wrong = []
    for name, mapping in read_mappings(MAPPINGS_FOLDER).resources.items():
        if mapping.status is None or f"{name}.status" not in {row["element"] for row in ROWS}:
            continue
        wrong += [
            f"{name}.status {value}"
            for value in mapping.status.keep
            if said.get((f"{name}.status", value), "").startswith(("excluded", "rejected"))
        ]
        wrong += [
            f"{name}.status {value}"
            for value, reason in mapping.status.exclude.items()
            if said.get((f"{name}.status", value)) != f"excluded:{reason}"
        ]
        missing = {(f"{name}.status", value) for value in (*mapping.status.keep, *mapping.status.exclude)} - said.keys()
        wrong += [f"{name}.status {value} is missing" for _, value in missing]
    assert wrong == []


@pytest.mark.requirement("f2o-063")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['element']}-{row['value']}-{row['does']}")
def test_a_line_is_true(row: dict[str, str]) -> None:
    does = row["does"]
    if does in {"kept", _NOT_READ}:
        assert row["why"], "what has no effect needs a reason"
    if does == _NOT_READ:
        return
    case = _CASES[row["case"]]
    named = list(_named(case, row["element"], row["value"]))
    assert named, "the case has no resource with this value"
    assert any(_shows(case, resource, does) for resource in named)


def _shows(case: Case, resource: dict[str, Any], does: str) -> bool:
    """Whether the case, which is held against a real load elsewhere, says of the resource what the line says."""
    name = f"{resource['resourceType']}/{resource['id']}"
    outcome = (case.document.get("outcomes") or {}).get(name, "loaded")
    issues = (case.document.get("issues") or {}).get(name, [])
    kind, _, detail = does.partition(":")
    if kind == "excluded":
        return bool(outcome == does)
    if kind == "rejected":
        return bool(outcome.partition(" at ")[0] == does)
    if kind == "issue":
        return detail in issues
    if kind == "kept":
        return outcome in {"loaded", "excluded:device_not_use"} and not issues
    if kind == "merged":
        return bool(outcome == "loaded" and len((case.document.get("rows") or {}).get("person", ())) <= 1)
    table, _, column = does.partition(".")
    return any(column in line for line in (case.document.get("rows") or {}).get(table, ()))


def _named(case: Case, element: str, value: str) -> Iterator[dict[str, Any]]:
    """The resources of a case that have the value in the element; of a data type, anywhere."""
    kind, *path = element.split(".")
    for resource in [*(case.document.get("fhir") or ()), *(case.document.get("then") or ())]:
        if resource["resourceType"] == kind:
            found = _values(resource, path)
            if value in found or (path[-1].endswith("[x]") and _has_choice(resource, path[-1], value)):
                yield resource
        elif kind[:1] == _ANY or not any(other["resourceType"] == kind for other in case.document["fhir"]):
            anywhere = _anywhere(resource, path[-1])
            if (value in {"", _ANY} and anywhere) or value in anywhere:
                yield resource


def _has_choice(resource: dict[str, Any], name: str, value: str) -> bool:
    stem = name.removesuffix("[x]")
    return f"{stem}{value[:1].upper()}{value[1:]}" in resource or value in _values(resource, [f"{stem}Boolean"])


def _values(element: Any, path: list[str]) -> list[str]:
    if isinstance(element, list):
        return [value for item in element for value in _values(item, path)]
    if path:
        return _values(element.get(path[0]), path[1:]) if isinstance(element, dict) else []
    if isinstance(element, dict):
        codes = [coding.get("code") for coding in element.get("coding") or ()]
        return [str(code) for code in (*codes, element.get("type")) if code is not None]
    return [str(element).lower() if isinstance(element, bool) else str(element)] if element is not None else []


def _anywhere(element: Any, name: str) -> list[str]:
    if isinstance(element, list):
        return [value for item in element for value in _anywhere(item, name)]
    if not isinstance(element, dict):
        return []
    own = ["set"] if isinstance(element.get(name), list) else _values(element, [name])
    return [*own, *(value for item in element.values() for value in _anywhere(item, name))]
