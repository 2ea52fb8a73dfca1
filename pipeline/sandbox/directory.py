"""What patients share: Organization, Location, Practitioner, PractitionerRole, Medication. No patient data."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.shapes import EPIC, Resource, concept_variants, epic_id, reference

__all__ = ["FAMILY_NAMES", "GIVEN_NAMES", "Directory"]

# Invented or plainly jocular, so that nobody takes them for real people.
_FAMILY = (
    "Testerson Samplewood Mockfield Demoulin Fakenham Fictus Placeholder Exampleton Dummett Synthwell Specimen "
    "Pretendre Nullman Mustermann Trialby Sandboxer Fabrique Notreal Imagino Phonyman Simula Draftsdale Lorem Ipsum"
)
_GIVEN = "Ada Ben Cleo Dora Eli Fern Gus Hana Ivo June Kai Lena Milo Nora Otis Pia Quinn Rosa Sol Tess Uma Vic Wren"
FAMILY_NAMES = tuple(_FAMILY.split())
GIVEN_NAMES = tuple(_GIVEN.split())

_SPECIALTIES = (
    ("207Q00000X", "Family Medicine"),
    ("207R00000X", "Internal Medicine"),
    ("207RC0000X", "Cardiovascular Disease"),
    ("208000000X", "Pediatrics"),
    ("207P00000X", "Emergency Medicine"),
)
_WARDS = ("Emergency Department", "Medical Ward 3 East", "Family Medicine Clinic", "Heart Clinic", "Laboratory Draw")


class Directory:
    """The shared resources of a world of `patients` patients; ids depend on the seed alone."""

    def __init__(self, seed: int, patients: int) -> None:
        self._seed = seed
        self.organizations = [epic_id(seed, "Organization", n) for n in range(2 + min(patients // 500, 8))]
        self.locations = [epic_id(seed, "Location", n) for n in range(len(self.organizations) * len(_WARDS))]
        self.practitioners = [epic_id(seed, "Practitioner", n) for n in range(5 + min(patients // 20, 400))]
        drugs = code_book().of("drug") + code_book().of("local-drug")
        self.drugs = drugs
        self.medications = [epic_id(seed, "Medication", drug.code, long=True) for drug in drugs]

    def practitioner_name(self, number: int) -> str:
        rng = Random(number)  # noqa: S311 - synthetic names, not secrets
        return f"{rng.choice(FAMILY_NAMES)}, {rng.choice(GIVEN_NAMES)}, MD"

    def resources(self) -> Iterator[tuple[str, Resource]]:
        yield from (("Organization", self._organization(n)) for n in range(len(self.organizations)))
        yield from (("Location", self._location(n)) for n in range(len(self.locations)))
        yield from (("Practitioner", self._practitioner(n)) for n in range(len(self.practitioners)))
        yield from (("PractitionerRole", self._role(n)) for n in range(len(self.practitioners)))
        yield from (("Medication", self._medication(n)) for n in range(len(self.medications)))

    def _organization(self, number: int) -> Resource:
        organization: Resource = {
            "resourceType": "Organization",
            "id": self.organizations[number],
            "active": True,
            "name": f"Demonstration Health {'Hospital' if number == 0 else f'Clinic {number}'}",
            "address": [{"city": "Nowhere", "state": "WI", "postalCode": f"5359{number}", "country": "US"}],
        }
        if number:
            organization["partOf"] = reference("Organization", self.organizations[0])
        return organization

    def _location(self, number: int) -> Resource:
        ward = _WARDS[number % len(_WARDS)]
        owner = self.organizations[number // len(_WARDS)]
        location: Resource = {
            "resourceType": "Location",
            "id": self.locations[number],
            "status": "active",
            "name": ward,
            "mode": "instance",
            "managingOrganization": reference("Organization", owner),
        }
        if number % 3 == 0:  # Epic often leaves the type out
            code = {"system": f"{EPIC}.10.686980.30", "code": str(100 + number), "display": ward}
            location["type"] = [{"coding": [code], "text": ward}]
        return location

    def _practitioner(self, number: int) -> Resource:
        family, given, _ = self.practitioner_name(number).split(", ")
        return {
            "resourceType": "Practitioner",
            "id": self.practitioners[number],
            "identifier": [
                {"use": "usual", "system": "http://hl7.org/fhir/sid/us-npi", "value": str(1_000_000_000 + number)}
            ],
            "active": True,
            "name": [{"use": "usual", "family": family, "given": [given], "suffix": ["MD"]}],
            "gender": ("female", "male", "unknown")[number % 3],
        }

    def _role(self, number: int) -> Resource:
        code, display = _SPECIALTIES[number % len(_SPECIALTIES)]
        taxonomy = {"system": "http://nucc.org/provider-taxonomy", "code": code, "display": display}
        return {
            "resourceType": "PractitionerRole",
            "id": epic_id(self._seed, "PractitionerRole", number),
            "active": True,
            "practitioner": reference("Practitioner", self.practitioners[number]),
            "organization": reference("Organization", self.organizations[number % len(self.organizations)]),
            "specialty": [{"coding": [taxonomy], "text": display}],
        }

    def _medication(self, number: int) -> Resource:
        drug = self.drugs[number]
        if drug.use == "local-drug":
            concept: Resource = {"coding": [drug.coding()], "text": drug.display}
        else:
            concept = concept_variants(drug, "drug")[number % 3]
        return {
            "resourceType": "Medication",
            "id": self.medications[number],
            "status": "active",
            "code": concept,
            "form": {"text": drug.display.rsplit(" ", 1)[-1].lower()},
        }
