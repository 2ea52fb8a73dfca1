"""One synthetic person: Patient, Coverage, AllergyIntolerance, Device, CarePlan, Goal. Visits are in `visits.py`.

Names, addresses, numbers and phones are plainly invented: 555-01xx phones, streets and cities that do not exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.directory import FAMILY_NAMES, GIVEN_NAMES, Directory
from pipeline.sandbox.shapes import (
    DAY,
    EPIC,
    Resource,
    epic_id,
    hl7_status,
    instant,
    local_date,
    plain_concept,
    reference,
)

__all__ = ["Person"]

_YEAR = 365.25 * DAY
_US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition"
_OMB = "urn:oid:2.16.840.1.113883.6.238"
_NULL_FLAVOR = "http://terminology.hl7.org/CodeSystem/v3-NullFlavor"
_RACES = {
    "2106-3": "White",
    "2054-5": "Black or African American",
    "2028-9": "Asian",
    "1002-5": "American Indian or Alaska Native",
    "2076-8": "Native Hawaiian or Other Pacific Islander",
    "2131-1": "Other Race",
}
_RACE_WEIGHTS = (60, 14, 8, 3, 1, 5)
_ETHNICITIES = {"2135-2": "Hispanic or Latino", "2186-5": "Not Hispanic or Latino"}
_ZIPS = ("53593", "53711", "60601", "03601", "54650")


@dataclass(frozen=True)
class Person:
    """Who the patient is. `phone_version` counts the changes of the phone number so far."""

    seed: int
    index: int
    rng: Random
    directory: Directory
    now: int
    """Seconds since 1970 of the world's first day."""
    phone_version: int = 0

    @cached_property
    def id(self) -> str:
        return epic_id(self.seed, "Patient", self.index, long=self.index % 7 == 3)

    @cached_property
    def born(self) -> int:
        """Seconds since 1970, negative for most; between 1 and 95 years before the world's first day."""
        rng = Random(f"{self.seed}/{self.index}/born")  # noqa: S311 - a reproducible world, no secrets
        return int(self.now - (1 + 94 * rng.betavariate(1.6, 1.4)) * _YEAR)

    @cached_property
    def name(self) -> str:
        return f"{FAMILY_NAMES[self.index * 7 % len(FAMILY_NAMES)]}, {GIVEN_NAMES[self.index % len(GIVEN_NAMES)]}"

    @cached_property
    def subject(self) -> Resource:
        return reference("Patient", self.id, self.name)

    @property
    def dead(self) -> bool:
        return self.index % 25 == 9

    def resources(self) -> Iterator[tuple[str, Resource]]:
        yield "Patient", self._patient()
        if self.rng.random() < 0.8:
            yield "Coverage", self._coverage()
        yield from (("AllergyIntolerance", allergy) for allergy in self._allergies())
        if self.rng.random() < 0.05:
            yield "Device", self._device()
        if self.rng.random() < 0.2:
            yield "CarePlan", self._care_plan()
            yield "Goal", self._goal()

    def _patient(self) -> Resource:
        family, given = self.name.split(", ")
        sex = "female" if self.rng.random() < 0.53 else "male"
        patient: Resource = {
            "resourceType": "Patient",
            "id": self.id,
            "extension": list(self._extensions(sex)),
            "identifier": [
                {"use": "usual", "type": {"text": "EPI"}, "system": f"{EPIC}.5.737384.0", "value": f"E{self.index:07}"},
                {
                    "use": "usual",
                    "type": {"text": "MRN"},
                    "system": f"{EPIC}.5.737384.14",
                    "value": f"T{self.index:06}",
                },
            ],
            "active": True,
            "name": [{"use": "official", "text": f"{given} {family}", "family": family, "given": [given]}],
            "telecom": [{"system": "phone", "value": self._phone(), "use": "home"}],
            "gender": sex if self.rng.random() < 0.97 else self.rng.choice(["other", "unknown"]),
            "birthDate": self._birth_date(),
            "address": [self._address()],
            "managingOrganization": reference("Organization", self.directory.organizations[0]),
        }
        if self.rng.random() < 0.6:
            number = self.index % len(self.directory.practitioners)
            name = self.directory.practitioner_name(number)
            patient["generalPractitioner"] = [reference("Practitioner", self.directory.practitioners[number], name)]
        return patient | self._death()

    def _extensions(self, sex: str) -> Iterator[Resource]:
        races = self.rng.choices(list(_RACES), _RACE_WEIGHTS, k=2 if self.rng.random() < 0.06 else 1)
        if self.rng.random() < 0.93:
            yield _omb_extension("us-core-race", [_omb(code, _RACES[code]) for code in dict.fromkeys(races)])
        else:
            unknown = {"system": _NULL_FLAVOR, "code": "UNK", "display": "Unknown"}
            yield _omb_extension("us-core-race", [unknown])
        if self.rng.random() < 0.9:
            code = "2135-2" if self.rng.random() < 0.18 else "2186-5"
            yield _omb_extension("us-core-ethnicity", [_omb(code, _ETHNICITIES[code])])
        if self.rng.random() < 0.85:
            yield {"url": f"{_US_CORE}/us-core-birthsex", "valueCode": sex[0].upper()}

    def _birth_date(self) -> str:
        born = local_date(self.born)
        precision = self.rng.random()
        return born[:4] if precision < 0.01 else born[:7] if precision < 0.02 else born

    def _address(self) -> Resource:
        return {
            "use": "home",
            "line": [f"{self.index + 1} Imaginary Street"],
            "city": "Nowhere",
            "state": self.rng.choice(["WI", "IL"]),
            "postalCode": self.rng.choice(_ZIPS),
            "country": "US",
        }

    def _phone(self) -> str:
        return f"608-555-{100 + (self.index + 31 * self.phone_version) % 100:04}"

    def _death(self) -> Resource:
        if not self.dead:
            return {"deceasedBoolean": False}
        if self.index % 3 == 0:
            return {"deceasedBoolean": True}
        return {"deceasedDateTime": instant(self.now - self.rng.randrange(5, 60) * DAY)}

    def _coverage(self) -> Resource:
        coverage: Resource = {
            "resourceType": "Coverage",
            "id": epic_id(self.seed, "Coverage", self.index),
            "status": "active",
            "beneficiary": self.subject,
            "payor": [{"display": "IMAGINARY MUTUAL"}],
        }
        if self.rng.random() < 0.9:
            coverage["period"] = {"start": f"{2018 + self.index % 6}-01-01"}
        return coverage

    def _allergies(self) -> Iterator[Resource]:
        book = code_book()
        known, substances, reactions = book.of("allergy"), book.of("allergy-substance"), book.of("allergy-reaction")
        for number in range(self.rng.choices([0, 1, 2], [45, 40, 15])[0]):
            allergy: Resource = {
                "resourceType": "AllergyIntolerance",
                "id": epic_id(self.seed, "AllergyIntolerance", self.index, number),
                "clinicalStatus": hl7_status("allergyintolerance-clinical", "active"),
                "verificationStatus": hl7_status("allergyintolerance-verification", "confirmed"),
                "type": self.rng.choice(["allergy", "intolerance"]),
                "category": [self.rng.choice(["medication", "food", "environment"])],
                "code": plain_concept(self.rng.choice(known + substances)),
                "patient": self.subject,
            }
            if self.rng.random() < 0.85:
                allergy["recordedDate"] = instant(self.now - self.rng.randrange(30, 2000) * DAY)
            if self.rng.random() < 0.5:
                allergy["reaction"] = [{"manifestation": [plain_concept(self.rng.choice(reactions))]}]
            yield allergy

    def _device(self) -> Resource:
        return {
            "resourceType": "Device",
            "id": epic_id(self.seed, "Device", self.index),
            "udiCarrier": [{"deviceIdentifier": f"0000000000{self.index % 10000:04}"}],
            "status": "active",
            "lotNumber": f"LOT{self.index}",
            "type": {"text": "Imaginary infusion pump"},
            "patient": self.subject,
        }

    def _care_plan(self) -> Resource:
        return {
            "resourceType": "CarePlan",
            "id": epic_id(self.seed, "CarePlan", self.index),
            "status": "active",
            "intent": "plan",
            "category": [{"text": "Longitudinal care"}],
            "subject": self.subject,
        }

    def _goal(self) -> Resource:
        return {
            "resourceType": "Goal",
            "id": epic_id(self.seed, "Goal", self.index),
            "lifecycleStatus": "active",
            "description": {"text": "Walk 30 minutes a day"},
            "subject": self.subject,
        }


def _omb(code: str, display: str) -> dict[str, str]:
    return {"system": _OMB, "code": code, "display": display}


def _omb_extension(name: str, codings: list[dict[str, str]]) -> Resource:
    parts: list[Resource] = [{"url": "ombCategory", "valueCoding": coding} for coding in codings]
    parts.append({"url": "text", "valueString": ", ".join(coding["display"] for coding in codings)})
    return {"extension": parts, "url": f"{_US_CORE}/{name}"}
