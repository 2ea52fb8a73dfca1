"""Speed of compiled views: resources per second on one core, JSON parsing apart.

    python benchmarks/view_compiler.py [--ndjson FILE] [--seconds 3]

Without a file it makes small synthetic Observations of the shapes that US Core has: laboratory and vital-sign
quantities, coded and text values, and every tenth a panel with two components.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path
from typing import Any

import orjson

from pipeline.sql_on_fhir.view_definition import CompiledColumns, compile_columns

_CATEGORY = "category.coding.where(code = '{}').exists()"
_VALUES = [
    ("value", "value.ofType(Quantity).value", "decimal"),
    ("unit", "value.ofType(Quantity).unit", "string"),
    ("unit_system", "value.ofType(Quantity).system", "uri"),
    ("unit_code", "value.ofType(Quantity).code", "code"),
    ("comparator", "value.ofType(Quantity).comparator", "code"),
    ("value_concept", "value.ofType(CodeableConcept)", "CodeableConcept"),
    ("value_string", "value.ofType(string)", "string"),
    ("low", "referenceRange.first().low.value", "decimal"),
    ("high", "referenceRange.first().high.value", "decimal"),
]


def _columns(rows: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    return [{"name": name, "path": path, "type": type_name} for name, path, type_name in rows]


VIEW: dict[str, Any] = {
    "resource": "Observation",
    "where": [{"path": "status = 'final' or status = 'amended' or status = 'corrected'"}],
    "select": [
        {
            "column": _columns(
                [
                    ("id", "id", "id"),
                    ("status", "status", "code"),
                    ("effective", "effective.ofType(dateTime)", "dateTime"),
                    ("effective_start", "effective.ofType(Period).start", "dateTime"),
                    ("issued", "issued", "instant"),
                    ("is_laboratory", _CATEGORY.format("laboratory"), "boolean"),
                    ("is_vital_sign", _CATEGORY.format("vital-signs"), "boolean"),
                    ("is_survey", _CATEGORY.format("survey"), "boolean"),
                    ("subject", "subject", "Reference"),
                    ("encounter", "encounter", "Reference"),
                ]
            )
        },
        {
            "unionAll": [
                {"column": _columns([("code", "code", "CodeableConcept"), *_VALUES])},
                {"forEach": "component", "column": _columns([("code", "code", "CodeableConcept"), *_VALUES])},
            ]
        },
    ],
}


def synthetic_observations(number: int) -> list[dict[str, Any]]:
    """`number` Observations, each parsed from its own JSON, so that no object is shared."""
    return [orjson.loads(orjson.dumps(_observation(index))) for index in range(number)]


def _observation(index: int) -> dict[str, Any]:
    category = ("laboratory", "vital-signs", "survey")[index % 3]
    observation: dict[str, Any] = {
        "resourceType": "Observation",
        "id": f"obs.{index}",
        "status": "final",
        "category": [{"coding": [{"system": "urn:example:category", "code": category}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": f"{index % 97}-1"}], "text": "Test"},
        "subject": {"reference": f"Patient/{index % 50}"},
        "encounter": {"reference": f"Encounter/{index % 500}"},
        "effectiveDateTime": "2024-03-01T08:00:00+00:00",
        "issued": "2024-03-01T08:00:00.000+00:00",
        "referenceRange": [{"low": _quantity(1.5), "high": _quantity(9.5)}],
    }
    if index % 10 == 0:
        part = {"code": observation["code"], "valueQuantity": _quantity(80.0)}
        return observation | {"component": [part, part]}
    values = ({"valueQuantity": _quantity(4.2)}, {"valueCodeableConcept": {"text": "Positive"}}, {"valueString": "+"})
    return observation | values[index % 3]


def _quantity(value: float) -> dict[str, Any]:
    return {"value": value, "unit": "mg/dL", "system": "http://unitsofmeasure.org", "code": "mg/dL"}


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        return [orjson.loads(line) for line in lines]


def measure(view: CompiledColumns, resources: list[dict[str, Any]], seconds: float) -> tuple[float, float]:
    """(resources per second, rows per resource): the best of several passes over all resources."""
    best, rows, end = float("inf"), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        found: list[object] = []
        append = view.bind([found])
        start = time.perf_counter()
        for resource in resources:
            append(resource, None)
        rows = len(found) // (len(view.columns) + 1)
        best = min(best, time.perf_counter() - start)
    return len(resources) / best, rows / len(resources)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ndjson", type=Path, help="Observations, one a line, .gz allowed")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure")
    arguments = parser.parse_args()
    resources = read(arguments.ndjson) if arguments.ndjson else synthetic_observations(10_000)
    # Reference: the target's text alone; CodeableConcept: as the pipeline keeps a code set, by identity of content.
    view = compile_columns(VIEW, {"Reference": lambda reference: reference.get("reference"), "CodeableConcept": id})
    speed, rows = measure(view, resources, arguments.seconds)
    print(f"{speed:,.0f} resources/s ({len(resources):,} resources, {len(view.columns)} columns, {rows:.2f} rows each)")


if __name__ == "__main__":
    main()
