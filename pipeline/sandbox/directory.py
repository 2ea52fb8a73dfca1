"""What patients share: Organization, Practitioner, PractitionerRole, Medication, and the places. No patient data."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.places import Places
from pipeline.sandbox.shapes import Resource, concept_variants, epic_id, reference

__all__ = ["FAMILY_NAMES", "GIVEN_NAMES", "Directory"]

# Invented or plainly jocular, so that nobody takes them for real people.
_FAMILY = (
    "Testerson Samplewood Mockfield Demoulin Fakenham Fictus Placeholder Exampleton Dummett Synthwell Specimen "
    "Pretendre Nullman Mustermann Trialby Sandboxer Fabrique Notreal Imagino Phonyman Simula Draftsdale Lorem Ipsum"
)
_GIVEN = "Ada Ben Cleo Dora Eli Fern Gus Hana Ivo June Kai Lena Milo Nora Otis Pia Quinn Rosa Sol Tess Uma Vic Wren"
FAMILY_NAMES = tuple(_FAMILY.split())
GIVEN_NAMES = tuple(_GIVEN.split())

_TOWN = {"city": "Nowhere", "state": "WI", "country": "US"}
#: Of the first organizations: nine digits and a state by its name; another country.
_ADDRESSES = (
    {"city": "Nowhere", "state": "Wisconsin", "postalCode": "53593-9179", "country": "USA"},
    {"city": "Nirgendwo", "state": "BE", "postalCode": "10115", "country": "DE"},
)
_SPECIALTIES = (
    ("207Q00000X", "Family Medicine"),
    ("207R00000X", "Internal Medicine"),
    ("207RC0000X", "Cardiovascular Disease"),
    ("208000000X", "Pediatrics"),
    ("207P00000X", "Emergency Medicine"),
)
#: Every fourth role names the system of specialties as some do: without its path.
_SPECIALTY_SYSTEMS = ("http://nucc.org/provider-taxonomy", "http://nucc.org")
_PAYERS = ("IMAGINARY MUTUAL", "Fictional Health Plan")


class Directory:
    """The shared resources of a world of `patients` patients; ids depend on the seed alone."""

    def __init__(self, seed: int, patients: int) -> None:
        self._seed = seed
        self.organizations = [epic_id(seed, "Organization", n) for n in range(2 + min(patients // 500, 8))]
        self.payers = [epic_id(seed, "Organization", "payer", n) for n in range(len(_PAYERS))]
        self.pharmacy = epic_id(seed, "Organization", "pharmacy")
        self.places = Places(seed, self.organizations)
        self.practitioners = [epic_id(seed, "Practitioner", n) for n in range(5 + min(patients // 20, 400))]
        drugs = code_book().of("drug") + code_book().of("local-drug")
        self.drugs = drugs
        self.pharmacy_name = "Imaginary Mail Order Pharmacy"
        self.medications = [epic_id(seed, "Medication", drug.code, long=True) for drug in drugs]

    def payer_name(self, number: int) -> str:
        return _PAYERS[number]

    def practitioner_name(self, number: int) -> str:
        rng = Random(number)  # noqa: S311 - synthetic names, not secrets
        return f"{rng.choice(FAMILY_NAMES)}, {rng.choice(GIVEN_NAMES)}, MD"

    def resources(self) -> Iterator[tuple[str, Resource]]:
        yield from (("Organization", self._organization(n)) for n in range(len(self.organizations)))
        yield from (("Organization", each) for each in self._other_organizations())
        yield from (("Location", each) for each in self.places.locations())
        yield from (("Practitioner", self._practitioner(n)) for n in range(len(self.practitioners)))
        yield from (("PractitionerRole", self._role(n)) for n in range(len(self.practitioners)))
        yield from (("Medication", self._medication(n)) for n in range(len(self.medications)))

    def _organization(self, number: int) -> Resource:
        organization: Resource = {
            "resourceType": "Organization",
            "id": self.organizations[number],
            "active": True,
            "name": f"Demonstration Health {'Hospital' if number == 0 else f'Clinic {number}'}",
            "address": [_ADDRESSES[number] if number < len(_ADDRESSES) else {**_TOWN, "postalCode": f"5359{number}"}],
        }
        if number:
            organization["partOf"] = reference("Organization", self.organizations[0])
        return organization

    def _other_organizations(self) -> Iterator[Resource]:
        """Who pays, and who sends drugs by mail."""
        named = {**dict(zip(self.payers, _PAYERS, strict=True)), self.pharmacy: self.pharmacy_name}
        for organization, name in named.items():
            yield {"resourceType": "Organization", "id": organization, "active": True, "name": name}

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
        taxonomy = {"system": _SPECIALTY_SYSTEMS[number % 4 == 1], "code": code, "display": display}
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
