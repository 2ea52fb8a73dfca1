"""Patients as they seldom come: races below OMB's groups, other extensions of sex, foreign addresses, births and deaths
that cannot be or that others contradict."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.sandbox.demographics import US_CORE, race_or_ethnicity
from pipeline.sandbox.people import Person
from pipeline.sandbox.shapes import DAY, Resource, instant, local_date

__all__ = ["CONTRADICTED_DEATH", "DIED_DAYS_AGO", "as_seldom"]

_PERIOD = 40
#: What can hardly be is in one Patient of so many.
_ODD_PERIOD = 200
#: The number of the person who died twice, and lived on: one of those who are dead.
CONTRADICTED_DEATH = 9
#: Days before the world's first day of the death that the Patient says; the discharge says two days later.
DIED_DAYS_AGO = 402

_OMB = "urn:oid:2.16.840.1.113883.6.238"


def as_seldom(person: Person, patient: Resource) -> Resource:
    """The Patient as it comes seldom, when it is the person's turn; else as it is."""
    change = _CHANGES.get(person.index % _PERIOD) or _ODD.get(person.index % _ODD_PERIOD)
    return change(person, patient) if change else patient


def _with(patient: Resource, *extensions: Resource, without: tuple[str, ...] = ()) -> Resource:
    """The Patient with further extensions, in the place of those of the same URL and of those that end in `without`."""
    replaced = (*(extension["url"] for extension in extensions), *without)
    kept = [extension for extension in patient["extension"] if not extension["url"].endswith(replaced)]
    return patient | {"extension": [*kept, *extensions]}


def _detailed_only(_: Person, patient: Resource) -> Resource:
    race = {"system": _OMB, "code": "2029-7", "display": "Asian Indian"}
    ethnicity = {"system": _OMB, "code": "2148-5", "display": "Mexican"}
    return _with(
        patient,
        race_or_ethnicity("us-core-race", [race], "detailed"),
        race_or_ethnicity("us-core-ethnicity", [ethnicity], "detailed"),
    )


def _sex_without_birth_sex(_: Person, patient: Resource) -> Resource:
    female = {"url": f"{US_CORE}/us-core-sex", "valueCode": "248152002"}
    return _with(patient, female, without=("birthsex",)) | {"gender": "male"}


def _birth_sex_beside_others(_: Person, patient: Resource) -> Resource:
    male = {"url": f"{US_CORE}/us-core-sex", "valueCode": "248153007"}
    return _with(patient, {"url": f"{US_CORE}/us-core-birthsex", "valueCode": "F"}, male) | {"gender": "male"}


def _gender_identity(_: Person, patient: Resource) -> Resource:
    coding = {"system": "http://snomed.info/sct", "code": "446151000124109", "display": "Identifies as male gender"}
    identity = {"coding": [coding], "text": "Male"}
    return _with(patient, {"url": f"{US_CORE}/us-core-genderIdentity", "valueCodeableConcept": identity})


def _gender_identity_of_fhir(_: Person, patient: Resource) -> Resource:
    identity = {"coding": [{"system": "http://hl7.org/fhir/gender-identity", "code": "non-binary"}]}
    url = "http://hl7.org/fhir/StructureDefinition/patient-genderIdentity"
    return _with(patient, {"url": url, "valueCodeableConcept": identity})


def _long_address(_: Person, patient: Resource) -> Resource:
    return _living(patient, state="Wisconsin", postalCode="53593-9179", country="USA")


def _foreign_address(_: Person, patient: Resource) -> Resource:
    return _living(patient, state="ON", postalCode="K1A 0B1", country="CA")


def _living(patient: Resource, **elements: str) -> Resource:
    return patient | {"address": [patient["address"][0] | elements]}


def _two_ethnicities(_: Person, patient: Resource) -> Resource:
    codes = {"2135-2": "Hispanic or Latino", "2186-5": "Not Hispanic or Latino"}
    codings = [{"system": _OMB, "code": code, "display": display} for code, display in codes.items()]
    return _with(patient, race_or_ethnicity("us-core-ethnicity", codings))


def _died_twice(person: Person, patient: Resource) -> Resource:
    return _without(patient, "deceasedBoolean") | {"deceasedDateTime": instant(person.now - DIED_DAYS_AGO * DAY)}


def _born_long_ago(_: Person, patient: Resource) -> Resource:
    return patient | {"birthDate": "1843-02-03"}


def _born_tomorrow(person: Person, patient: Resource) -> Resource:
    return patient | {"birthDate": local_date(person.now + 400 * DAY)}


def _without_sex(_: Person, patient: Resource) -> Resource:
    return _without(_with(patient, without=("birthsex",)), "gender")


def _without(patient: Resource, element: str) -> Resource:
    return {name: value for name, value in patient.items() if name != element}


_Change = Callable[[Person, Resource], Resource]
_CHANGES: dict[int, _Change] = {
    0: _detailed_only,
    1: _sex_without_birth_sex,
    2: _birth_sex_beside_others,
    3: _gender_identity,
    4: _gender_identity_of_fhir,
    5: _long_address,
    6: _foreign_address,
    11: _two_ethnicities,
}
_ODD: dict[int, _Change] = {
    CONTRADICTED_DEATH: _died_twice,
    7: _born_long_ago,
    8: _born_tomorrow,
    10: _without_sex,
}
