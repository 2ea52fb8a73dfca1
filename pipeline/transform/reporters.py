"""Who reported what a resource says: the patient or somebody close to them, as opposed to those who care for them.

Not here: who the provider of a row is (`references`, `participants`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.fhir.identity import parse_reference

__all__ = ["REPORTERS", "is_reported_by_patient"]

#: Types of columns that say it, by the elements that name who reported: the first whose type is known decides.
#: A performer of a Procedure, MedicationAdministration or Immunization did it, and so reports nothing.
REPORTERS = {
    f"reported_by_patient({'/'.join(elements)})": elements
    for elements in (
        ("asserter", "recorder"),
        ("author",),
        ("informationSource",),
        ("performer",),
        ("reportedReference",),
        ("source",),
    )
}

_OF_PATIENT = frozenset(("Patient", "RelatedPerson"))
_USUAL = ("Practitioner/", "PractitionerRole/", "Organization/", "CareTeam/")


def is_reported_by_patient(*elements: str) -> Callable[[dict[str, Any]], bool | None]:
    """Converter resource → True where a Patient or RelatedPerson is among those that the deciding element names."""

    def convert(resource: dict[str, Any]) -> bool | None:
        for name in elements:
            found = resource.get(name)
            if not found:
                continue
            references = found if found.__class__ is list else [found]
            if len(references) == 1:  # nearly all, and mostly to who cares for the patient
                text = (references[0] or {}).get("reference")
                if text.__class__ is str and text.startswith(_USUAL):
                    return None
            types = {_type_of(reference, resource) for reference in references if reference} - {None}
            if types:
                return True if types & _OF_PATIENT else None
        return None

    return convert


def _type_of(reference: dict[str, Any], resource: dict[str, Any]) -> str | None:
    """The type of the resource that a reference leads to, as far as the reference or a contained resource says it."""
    named, text = reference.get("type"), reference.get("reference")
    named = named.rpartition("/")[2] if named.__class__ is str and named else None
    if text.__class__ is not str:
        return named
    if parsed := parse_reference(text):
        return parsed[0]
    if text.startswith("#"):
        contained = (one for one in resource.get("contained") or () if one.get("id") == text[1:])
        return next((one.get("resourceType") for one in contained), named)
    if "?" in text:
        return text.partition("?")[0].rpartition("/")[2] or named
    of_patient = (resource.get("subject") or resource.get("patient") or {}).get("reference")
    return named or ("Patient" if text == of_patient else None)
