"""One synthetic visit, put together: the Encounter (`stays.py`), and what is written during it.

Diagnoses, orders, what was done, results and what became of orders have modules of their own. Nothing is built here.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sandbox.deeds import deeds
from pipeline.sandbox.diagnoses import diagnoses
from pipeline.sandbox.medications import carried_out
from pipeline.sandbox.orders import medication_requests
from pipeline.sandbox.results import LAB_PANELS, lab_panel, single_results, vital_signs
from pipeline.sandbox.shapes import Resource
from pipeline.sandbox.stays import encounter, status_of
from pipeline.sandbox.visit import Visit

__all__ = ["visit_resources"]


def visit_resources(visit: Visit) -> Iterator[tuple[str, Resource]]:
    """Everything of one visit, as (resource type, resource); a visit that did not happen is only an Encounter."""
    status = status_of(visit)
    happened = status not in ("planned", "cancelled")
    conditions = list(diagnoses(visit)) if happened else []
    yield "Encounter", encounter(visit, status, conditions)
    if not happened:
        return
    yield from (("Condition", condition) for condition in conditions)
    yield from vital_signs(visit)
    yield from single_results(visit)
    for panel in LAB_PANELS:
        if visit.rng.random() < panel.chance:
            yield from lab_panel(visit, panel)
    for request in medication_requests(visit):
        yield "MedicationRequest", request
        yield from carried_out(visit, request)
    yield from deeds(visit)
