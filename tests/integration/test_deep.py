"""`verify --deep`: it is silent where incremental loads are right, and finds whatever is not as a fresh load makes it."""

from __future__ import annotations

from pipeline.quality.deep.model import DeepReport, DeepRequest
from pipeline.quality.deep.run import verify_deep
from tests.integration.support import Warehouse, encounter, observation, patient, reference

EVERYBODY = DeepRequest(persons=None)


def told(report: DeepReport) -> list[str]:
    return [difference.told() for difference in report.differences]


def test_a_pending_reference_that_overwrites_the_corrected_one_is_found(warehouse: Warehouse) -> None:
    """Issue: night 1 refers to a visit that is not there, night 2 brings it and refers to another one."""
    warehouse.load(
        {
            "Patient": [patient()],
            "Encounter": [encounter("e2")],
            "Observation": [observation(encounter=reference("Encounter", "e1"))],
        }
    )
    warehouse.load(
        {
            "Patient": [patient()],
            "Encounter": [encounter("e1"), encounter("e2")],
            "Observation": [observation(encounter=reference("Encounter", "e2"))],
        }
    )
    for request in (EVERYBODY, DeepRequest(persons=5)):
        report = verify_deep(warehouse.runtime, request)
        print(report)
        assert told(report) == []
