"""What is done and written during one synthetic visit: Immunization, Procedure, DocumentReference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.shapes import Chooser, Resource, concept_variants, instant, local_date, plain_concept
from pipeline.sandbox.visit import Visit

__all__ = ["deeds"]

_PROCEDURE_STATUSES = Chooser(
    {"completed": 90, "in-progress": 4, "not-done": 3, "preparation": 1, "entered-in-error": 2}
)
_IMMUNIZATION_STATUSES = Chooser({"completed": 95, "not-done": 4, "entered-in-error": 1})


def deeds(visit: Visit) -> Iterator[tuple[str, Resource]]:
    """(resource type, resource): at most one vaccination and one document, up to two procedures."""
    rng = visit.rng
    if rng.random() < 0.25:
        yield "Immunization", _immunization(visit)
    for _ in range(rng.choices([0, 1, 2], [60, 32, 8])[0]):
        yield "Procedure", _procedure(visit)
    if rng.random() < 0.35:
        yield "DocumentReference", _document(visit)


@cache
def _vaccine_concepts() -> list[Resource]:
    return [plain_concept(code) for code in code_book().of("vaccine")]


@cache
def _procedure_concepts() -> list[Resource]:
    book = code_book()
    variants = [variant for code in book.of("procedure") for variant in concept_variants(code, "procedure")]
    return variants + [plain_concept(code) for code in book.of("local-procedure")] + [{"text": "Dressing check"}]


def _immunization(visit: Visit) -> Resource:
    rng = visit.rng
    when = local_date(visit.start)
    chance = rng.random()
    immunization: Resource = {
        "resourceType": "Immunization",
        "id": visit.new_id("Immunization"),
        "status": _IMMUNIZATION_STATUSES.pick(rng),
        "vaccineCode": rng.choice(_vaccine_concepts()),
        "occurrenceDateTime": when[:4] if chance < 0.02 else when[:7] if chance < 0.04 else when,
        "primarySource": rng.random() < 0.7,
        "lotNumber": f"DEMO{rng.randrange(1000):03}",
        "route": plain_concept(code_book().of("route")[1]),
        "doseQuantity": {"value": 0.5, "unit": "mL", "system": "http://unitsofmeasure.org", "code": "mL"},
    }
    if rng.random() < 0.3:
        del immunization["doseQuantity"], immunization["lotNumber"]
    return visit.belongs(immunization, "patient")


def _procedure(visit: Visit) -> Resource:
    rng = visit.rng
    procedure: Resource = {
        "resourceType": "Procedure",
        "id": visit.new_id("Procedure"),
        "status": _PROCEDURE_STATUSES.pick(rng),
        "code": rng.choice(_procedure_concepts()),
    }
    visit.belongs(procedure)
    if rng.random() < 0.7:
        procedure["performedDateTime"] = instant(visit.start + 900)
    else:
        procedure["performedPeriod"] = {"start": instant(visit.start + 900), "end": instant(visit.start + 2400)}
    if rng.random() < 0.6:
        procedure["performer"] = [{"actor": visit.practitioner()}]
    return procedure


def _document(visit: Visit) -> Resource:
    url = f"Binary/{visit.new_id('Binary')}"
    document: Resource = {
        "resourceType": "DocumentReference",
        "id": visit.new_id("DocumentReference"),
        "status": "current",
        "docStatus": "final" if visit.settled else "preliminary",
        "type": plain_concept(visit.rng.choice(code_book().of("note"))),
        "subject": visit.person.subject,
        "date": instant(visit.end),
        "content": [{"attachment": {"contentType": "text/html", "url": url}}],
    }
    document["context"] = {"encounter": [visit.encounter], "period": {"start": instant(visit.start)}}
    return document
