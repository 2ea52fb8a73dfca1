"""What is done as it seldom comes: with a device, by the patient, reported by somebody, at a time that only a text says."""

from __future__ import annotations

from typing import Any

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.people import Person
from pipeline.sandbox.seldom.building import Way, observation, of_person, reporter
from pipeline.sandbox.shapes import Resource, instant, plain_concept, reference

__all__ = ["DEEDS"]


def _procedure(person: Person, name: str, code: str, **elements: Any) -> Resource:
    usual = {
        "status": "completed",
        "code": plain_concept(code_book().get(code)),
        "performedDateTime": instant(person.lately),
    }
    return of_person(person, "Procedure", name, **(usual | elements))


def _with_device(person: Person) -> list[Resource]:
    implant = of_person(
        person,
        "Device",
        "implant",
        status="active",
        udiCarrier=[{"deviceIdentifier": f"1111111111{person.index % 10000:04}"}],
        lotNumber=f"IMPLANT{person.index}",
        type={"text": "Imaginary stent"},
    )
    action = {"coding": [{"system": "http://hl7.org/fhir/device-action", "code": "implanted"}]}
    focal = {"action": action, "manipulated": reference("Device", implant["id"])}
    return [implant, _procedure(person, "with device", "415070008", focalDevice=[focal])]


def _by_the_patient(person: Person) -> list[Resource]:
    """Who did it reports nothing."""
    return [_procedure(person, "by the patient", "29303009", performer=[{"actor": person.subject}])]


def _subpotent(person: Person) -> list[Resource]:
    return [_immunization(person, "subpotent", "140", isSubpotent=True, occurrenceDateTime=instant(person.lately))]


def _told(person: Person) -> list[Resource]:
    return [_procedure(person, "told", "71651007", asserter=reporter(person))]


def _as_a_text(person: Person) -> list[Resource]:
    unsure = {"occurrenceString": "In childhood", "recorded": instant(person.lately)}
    return [_immunization(person, "as a text", "03", primarySource=False, **unsure)]


def _immunization(person: Person, name: str, code: str, **elements: Any) -> Resource:
    usual = {"status": "completed", "vaccineCode": plain_concept(code_book().get(code))}
    return of_person(person, "Immunization", name, **(usual | elements))


def _received_alone(person: Person) -> list[Resource]:
    """Nobody wrote when the specimen was taken."""
    specimen = of_person(
        person,
        "Specimen",
        "received",
        status="available",
        type=plain_concept(code_book().get("119297000")),
        receivedTime=instant(person.lately),
    )
    value = {"value": 13.5, "unit": "g/dL", "system": "http://unitsofmeasure.org", "code": "g/dL"}
    of_specimen = {"valueQuantity": value, "specimen": reference("Specimen", specimen["id"])}
    return [specimen, observation(person, "of specimen", "718-7", **of_specimen)]


DEEDS: tuple[Way, ...] = (_with_device, _by_the_patient, _subpotent, _told, _as_a_text, _received_alone)
