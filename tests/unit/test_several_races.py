"""The concept of a person with several races, whatever the release of the vocabulary (Themis #203)."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from pipeline.staging.schemas import staged_columns
from tests.transforming import Transforming, index_of, lines_of, write_no_facts

RACES = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race"
OMB = "urn:oid:2.16.840.1.113883.6.238"
CATEGORIES = [{"url": "ombCategory", "valueCoding": {"system": OMB, "code": code}} for code in ("2106-3", "2028-9")]
PATIENT = {
    "resourceType": "Patient",
    "id": "p1",
    "birthDate": "1980-05-04",
    "extension": [{"url": RACES, "extension": CATEGORIES}],
}


@pytest.mark.requirement("themis-issue-203-race-concept")
@pytest.mark.parametrize(
    ("known", "expected"), [((1546847, 44814659), 1546847), ((1546847,), 1546847), ((44814659,), 44814659), ((), 0)]
)
def test_the_former_concept_stands_in_where_the_vocabulary_lacks_the_newer(
    tmp_path: Path, known: tuple[int, ...], expected: int
) -> None:
    races = [("Race", str(number), number, "Race") for number in (8527, 8515, *known)]
    index = index_of(tmp_path / "index", races)
    write_no_facts(tmp_path / "facts")
    transforming = Transforming(index, tmp_path, tmp_path / "lines.ndjson")
    rows = transforming.run(lines_of([orjson.dumps(PATIENT)], tmp_path / "lines.ndjson"))
    ((*values,),) = rows["person"]
    assert dict(zip(staged_columns("person"), values, strict=True))["race_concept_id"] == expected
