"""What an Observation found is in the warehouse whatever the domain of its code: in the code's row, or in one beside it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.transform.concepts.index import CONCEPT_FILE, CONCEPT_SCHEMA, INDEX_FILE, INDEX_SCHEMA
from pipeline.transform.routing import DOMAIN_TABLES, EVENT_COLUMNS
from tests.transforming import PATIENT, Transformed, transform

_QUANTITY = {"value": 5, "unit": "mg"}
#: value[x] of an Observation in R4: each of its types.
VALUES = {
    "valueQuantity": _QUANTITY,
    "valueCodeableConcept": {"coding": [{"system": "http://snomed.info/sct", "code": "nobody-knows"}]},
    "valueString": "clear",
    "valueBoolean": False,
    "valueInteger": 0,
    "valueRange": {"low": _QUANTITY},
    "valueRatio": {"numerator": _QUANTITY, "denominator": _QUANTITY},
    "valueSampledData": {"origin": _QUANTITY, "period": 1, "dimensions": 1, "data": "1 2"},
    "valueTime": "10:00:00",
    "valueDateTime": "2024-03-10",
    "valuePeriod": {"start": "2024-03-10"},
}
HOLDERS = {table for table, columns in EVENT_COLUMNS.items() if "value_as_concept_id" in columns}
OBSERVABLE = 900


def _code(domain: str) -> dict[str, object]:
    return {"coding": [{"system": "http://loinc.org", "code": domain}]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Transformed:
    """For each domain and type of value one Observation with it, and one with it in a component."""
    concepts = [("LOINC", domain, number, domain) for number, domain in enumerate(DOMAIN_TABLES, start=1)]
    concepts.append(("SNOMED", "363787002", OBSERVABLE, "Observation"))
    index = [(vocabulary, code, number, domain, "S", None, 1, number, domain, vocabulary, None, None)
             for vocabulary, code, number, domain in concepts]  # fmt: skip
    named = [
        (number, code, domain, vocabulary, "Class", "S", None, number) for vocabulary, code, number, domain in concepts
    ]
    resources = []
    for domain in DOMAIN_TABLES:
        for kind, value in VALUES.items():
            common = {
                "resourceType": "Observation",
                "status": "final",
                "subject": PATIENT,
                "effectiveDateTime": "2024-03-10",
            }
            own = {"code": _code(domain), kind: value}
            resources += [
                {**common, "id": f"{domain}-{kind}".replace(" ", ""), **own},
                {
                    **common,
                    "id": f"{domain}-{kind}-part".replace(" ", ""),
                    "code": _code("Observation"),
                    "component": [own],
                },
            ]
    frames = {
        INDEX_FILE: pl.DataFrame(index, schema=dict(INDEX_SCHEMA), orient="row").sort("vocabulary_id", "concept_code"),
        CONCEPT_FILE: pl.DataFrame(named, schema=dict(CONCEPT_SCHEMA), orient="row"),
    }
    folder: Path = tmp_path_factory.mktemp("results")
    return transform(folder, resources, index=frames)


@pytest.mark.requirement("f2o-037")
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(("domain", "table"), DOMAIN_TABLES.items())
def test_a_value_is_kept_once_whatever_the_domain(domain: str, table: str, kind: str, found: Transformed) -> None:
    for part in ("", "-part"):
        rows = found.rows[f"Observation/{domain}-{kind}{part}"]
        holders = [row for name in HOLDERS for row in rows.get(name, [])]
        (holder,) = holders
        assert any(
            holder[name] is not None for name in ("value_as_number", "value_as_concept_id", "value_source_value")
        )
        assert set(rows) == ({table} if table in HOLDERS else {table, "observation"})
        if table not in HOLDERS:
            assert (holder["observation_concept_id"], holder["observation_source_value"]) == (OBSERVABLE, domain)
