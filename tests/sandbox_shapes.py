"""The shapes of Epic on which mappings have failed: how each is recognised in NDJSON, and which row must come of it.

One table for two tests: the simulated Epic plays every shape (`unit/test_sandbox_shapes.py`), and what is loaded from
it is right (`integration/test_sandbox_shapes.py`). Shapes that no mapping fails on are in `unit/test_sandbox_generator.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["SHAPES", "WORLD", "Shape"]

Resource = dict[str, Any]

#: Of a world of so many patients every seed has every shape.
WORLD = 40

_EPIC = "urn:oid:1.2.840.114350."


@dataclass(frozen=True)
class Shape:
    """A resource of type `resource` for which `is_played` holds has what one of the other three says.

    `row`: a row of `table` for which this SQL condition (rows are `r`) holds; `excluded`: the reason why it is not
    mapped; `issue`: the code of an issue. `each`: not one such resource, but all that were loaded.
    """

    resource: str
    is_played: Callable[[Resource], Any]
    table: str = ""
    row: str = ""
    excluded: str = ""
    issue: str = ""
    each: bool = False

    def among(self, resources: list[Resource]) -> Iterator[Resource]:
        return (each for each in resources if each["resourceType"] == self.resource and self.is_played(each))


def _codes(value: Any) -> list[str]:
    """Codes of a CodeableConcept, or of a list of them."""
    concepts = value if isinstance(value, list) else [value or {}]
    return [coding.get("code", "") for concept in concepts for coding in concept.get("coding", [])]


def _first_system(value: Any) -> str:
    codings = (value or {}).get("coding") or [{}]
    return str(codings[0].get("system", ""))


def _participants(encounter: Resource) -> list[str]:
    return [code for each in encounter.get("participant", []) for code in _codes(each.get("type", []))]


def _attending_by_period(encounter: Resource) -> bool:
    return len([each for each in encounter.get("participant", []) if "period" in each]) == 2


def _extensions(patient: Resource, name: str) -> list[Resource]:
    return [each for each in patient.get("extension", []) if each["url"].endswith(name)]


def _parts(patient: Resource, name: str) -> set[str]:
    return {part["url"] for each in _extensions(patient, name) for part in each["extension"]}


def _dose_types(request: Resource) -> list[str]:
    return [
        _codes(dose["type"])[0]
        for dosage in request.get("dosageInstruction", [])
        for dose in dosage.get("doseAndRate", [])
        if "type" in dose
    ]


def _quantity(resource: Resource) -> Any:
    return resource.get("dispenseRequest", {}).get("quantity", {}).get("value")


def _reported_by(resource: Resource, element: str, resource_type: str) -> bool:
    said = resource.get(element) or {}
    references = said if isinstance(said, list) else [said]
    return any(each.get("reference", "").startswith(f"{resource_type}/") for each in references)


def _year(text: str) -> int:
    return int(text[:4])


def _of(table: str, resource: str, is_played: Callable[[Resource], Any], row: str, *, each: bool = False) -> Shape:
    return Shape(resource, is_played, table, row, each=each)


def _without(resource: str, is_played: Callable[[Resource], Any], reason: str) -> Shape:
    return Shape(resource, is_played, excluded=reason, each=True)


_PROVIDER = "r.provider_id IS NOT NULL"
_TOLD = "32865"

_VISITS = {
    "A.1 who referred, then who attended": _of(
        "visit_occurrence", "Encounter", lambda r: _participants(r) == ["REF", "ATND"], _PROVIDER
    ),
    "A.1 two attending, by period": _of("visit_occurrence", "Encounter", _attending_by_period, _PROVIDER),
    "A.2 a home by its physical type": _without(
        "Location",
        lambda r: _codes(r.get("physicalType")) == ["ho"] and r["name"].startswith("Home of"),
        "persons_home",
    ),
    "A.2 a home by its type": _without(
        "Location", lambda r: _codes(r.get("type", [])) == ["PTRES"] and "address" in r, "persons_home"
    ),
    "A.2 a visit at home": _of(
        "visit_occurrence",
        "Encounter",
        lambda r: r["class"]["code"] == "HH" and "location" in r,
        "r.care_site_id IS NULL",
    ),
    "A.3 unit, unit, hospital, room and bed": _of(
        "visit_detail",
        "Encounter",
        lambda r: len(r.get("location", [])) == 5 and "end" in r["period"],
        "r.care_site_id IN (SELECT care_site_id FROM cdm.care_site"
        " WHERE care_site_name IN ('Emergency Department', 'Medical Ward 3 East'))"
        " AND 1 = (SELECT count(*) FROM cdm.visit_detail d WHERE d.visit_occurrence_id = r.visit_occurrence_id)",
    ),
    "A.3 a transfer": _of(
        "visit_detail",
        "Encounter",
        lambda r: len(r.get("location", [])) == 10 and "end" in r["period"],
        "2 = (SELECT count(*) FROM cdm.visit_detail d WHERE d.visit_occurrence_id = r.visit_occurrence_id)",
    ),
    "A.10 a class by the system's former name": _of(
        "visit_occurrence",
        "Encounter",
        lambda r: r["class"]["system"] == "http://hl7.org/fhir/v3/ActCode",
        "r.visit_concept_id = 9201",
    ),
    "A.10 a discharge by NUBC's page": _of(
        "visit_occurrence",
        "Encounter",
        lambda r: (
            _first_system(r.get("hospitalization", {}).get("dischargeDisposition"))
            == "http://www.nubc.org/patient-discharge"
        ),
        "r.discharged_to_source_value = '30' AND r.discharged_to_concept_id = 0",
    ),
    "A.13 emergency, then inpatient": _of(
        "visit_occurrence", "Encounter", lambda r: "classHistory" in r, "r.visit_concept_id = 262"
    ),
    "A.13 a visit of the time before birth": _of(
        "visit_occurrence",
        "Encounter",
        lambda r: _year(r["period"]["start"]) < 1960,
        "NOT EXISTS (SELECT FROM cdm.observation_period p WHERE p.person_id = r.person_id"
        " AND p.observation_period_start_date <= r.visit_start_date)",
    ),
    "B.1 a death at discharge": _of(
        "visit_occurrence",
        "Encounter",
        lambda r: _codes(r.get("hospitalization", {}).get("dischargeDisposition")) == ["exp"],
        "r.discharged_to_source_value = 'exp'",
    ),
}
_PLACES = {
    "A.10 a specialty by NUCC's short name": _of(
        "provider",
        "Practitioner",
        lambda r: True,
        "r.specialty_source_value = '207R00000X'",
    ),
    "A.13 a state by its name, nine digits of the zip, a country": _of(
        "location",
        "Location",
        lambda r: r.get("address", {}).get("state") == "Wisconsin",
        "r.state = 'WI' AND r.zip IN ('53593', '535939179') AND r.country_source_value = 'USA'",
    ),
    "A.13 a position": _of("location", "Location", lambda r: "position" in r, "round(r.latitude) = 43"),
    "A.13 a site in another country": _of(
        "location",
        "Organization",
        lambda r: r.get("address", [{}])[0].get("country") == "DE",
        "r.zip = '10115' AND r.country_source_value = 'DE'",
    ),
}
_PERSONS = {
    "A.13 a patient in another country": _of(
        "location",
        "Patient",
        lambda r: r["address"][0]["country"] == "CA",
        "r.zip IS NULL AND r.country_source_value = 'CA'",
    ),
    "A.13 a patient's state by its name": _of(
        "location", "Patient", lambda r: r["address"][0]["state"] == "Wisconsin", "r.state = 'WI' AND r.zip = '535'"
    ),
    "A.13 detailed races and ethnicities alone": _of(
        "person",
        "Patient",
        lambda r: _parts(r, "us-core-race") == _parts(r, "us-core-ethnicity") == {"detailed", "text"},
        "r.race_concept_id = 8515 AND r.ethnicity_concept_id = 38003563",
    ),
    "A.13 the sex at birth before others": _of(
        "person",
        "Patient",
        lambda r: _extensions(r, "birthsex") and _extensions(r, "us-core-sex") and r["gender"] == "male",
        "r.gender_concept_id = 8532",
    ),
    "A.13 US Core's sex before the gender": _of(
        "person",
        "Patient",
        lambda r: not _extensions(r, "birthsex") and _extensions(r, "us-core-sex"),
        "r.gender_concept_id = 8532",
    ),
    "A.13 a gender identity of US Core": _of(
        "observation",
        "Patient",
        lambda r: _extensions(r, "us-core-genderIdentity"),
        "r.observation_source_value = '446151000124109'",
    ),
    "A.13 a gender identity of FHIR": _of(
        "observation",
        "Patient",
        lambda r: _extensions(r, "patient-genderIdentity"),
        "r.observation_source_value = 'non-binary'",
    ),
    "B.1 two ethnicities": _of(
        "observation",
        "Patient",
        lambda r: [len(each["extension"]) for each in _extensions(r, "us-core-ethnicity")] == [3],
        "r.value_as_concept_id = 38003563",
    ),
    "A.13 a payor by reference and name, the plan as a text": _of(
        "payer_plan_period",
        "Coverage",
        lambda r: "display" in r["payor"][0] and "reference" in r["payor"][0] and r.get("type") == {"text": "PPO"},
        "r.payer_source_value IN ('IMAGINARY MUTUAL', 'Fictional Health Plan') AND r.plan_source_value = 'PPO'",
    ),
    "A.13 a payor by reference alone": _of(
        "payer_plan_period",
        "Coverage",
        lambda r: r["payor"][0].keys() == {"reference"},
        "r.payer_source_value IN ('IMAGINARY MUTUAL', 'Fictional Health Plan')",
    ),
    "A.13 a payor by name alone": _of(
        "payer_plan_period", "Coverage", lambda r: r["payor"][0].keys() == {"display"}, "r.payer_source_value IS NULL"
    ),
    "A.13 a payor who is the patient": _of(
        "payer_plan_period",
        "Coverage",
        lambda r: len(r["payor"]) == 1 and _reported_by(r, "payor", "Patient"),
        "r.payer_source_value IS NULL AND r.plan_source_value = 'Self-pay'",
    ),
    "B.1 another death than at the discharge, and a visit long after it": Shape(
        "Patient", lambda r: r.get("deceasedDateTime", "9") < "2025-06", issue="activity_after_death"
    ),
    "B.1 born before 1850": _of("person", "Patient", lambda r: r["birthDate"] < "1850", "r.year_of_birth = 1843"),
    "B.1 born after the export": _of(
        "person", "Patient", lambda r: r["birthDate"] > "2026-03-01", "r.year_of_birth > 2026"
    ),
    "B.1 without a gender": _of("person", "Patient", lambda r: "gender" not in r, "r.gender_concept_id = 0"),
}
_DRUGS = {
    "A.4 three doses; a supply that only they tell": _of(
        "drug_exposure",
        "MedicationRequest",
        lambda r: _dose_types(r) == ["calculated", "admin-amount", "ordered"] and _quantity(r) == 180,
        "r.quantity = 180 AND r.drug_exposure_end_date - r.drug_exposure_start_date = 89",
    ),
    "A.4 bounds alone": _of(
        "drug_exposure",
        "MedicationRequest",
        lambda r: (
            "authoredOn" not in r and r["status"] == "completed" and _codes(r.get("category", [])) == ["community"]
        ),
        "r.drug_exposure_end_date - r.drug_exposure_start_date = 20 AND r.verbatim_end_date = r.drug_exposure_end_date",
    ),
    "A.4 an order from a pharmacy that sends by mail": _of(
        "drug_exposure", "MedicationRequest", lambda r: "performer" in r.get("dispenseRequest", {}), "true"
    ),
    "A.4 a dispense of that pharmacy": _of("drug_exposure", "MedicationDispense", lambda r: "performer" in r, "true"),
    "B.1 an order that was stopped": _of(
        "drug_exposure",
        "MedicationRequest",
        lambda r: r["status"] == "stopped" and _quantity(r) == 30 and "bounds" in str(r) and "authoredOn" in r,
        "r.drug_exposure_end_date - r.drug_exposure_start_date = 9 AND r.quantity = 30",
    ),
    "B.1 taken as needed": _of(
        "drug_exposure",
        "MedicationRequest",
        lambda r: r.get("dosageInstruction", [{}])[0].get("asNeededBoolean"),
        "r.drug_exposure_end_date - r.drug_exposure_start_date = 29",
    ),
    "A.6 a statement of the relative": _of(
        "drug_exposure",
        "MedicationStatement",
        lambda r: _reported_by(r, "informationSource", "RelatedPerson"),
        f"r.drug_type_concept_id = {_TOLD}",
    ),
    "A.6 an order that is reported": _of(
        "drug_exposure",
        "MedicationRequest",
        lambda r: _reported_by(r, "reportedReference", "RelatedPerson"),
        f"r.drug_type_concept_id = {_TOLD}",
    ),
    "A.9 a medication by its display alone": _of(
        "drug_exposure",
        "MedicationRequest",
        lambda r: r.get("medicationReference", {}).keys() == {"display"},
        "r.drug_concept_id = 0",
    ),
    "A.9 a Medication that never comes": _of(
        "drug_exposure",
        "MedicationRequest",
        lambda r: r.get("medicationReference", {}).get("display") == "Trial drug 4711",
        "r.drug_concept_id = 0",
    ),
    "A.12 an order without category": _of(
        "drug_exposure", "MedicationRequest", lambda r: "category" not in r, "r.drug_type_concept_id IN (32817, 32865)"
    ),
    "A.12 a statement without a source": _of(
        "drug_exposure",
        "MedicationStatement",
        lambda r: "informationSource" not in r,
        "r.drug_type_concept_id = 32817",
    ),
    "B.1 a supply of more than a year": Shape(
        "MedicationRequest", lambda r: _quantity(r) == 900, issue="days_supply_implausible"
    ),
    "B.1 a liquid by volume, taken by mass": _of(
        "drug_exposure", "MedicationRequest", lambda r: _quantity(r) == 80, "r.quantity = 80"
    ),
    "B.1 a dispense by daily dose": _of(
        "drug_exposure",
        "MedicationDispense",
        lambda r: "dosageInstruction" in r and r["quantity"]["value"] == 60,
        "r.drug_exposure_end_date - r.drug_exposure_start_date = 29",
    ),
    "B.1 an infusion whose rate changes": _of(
        "drug_exposure",
        "MedicationAdministration",
        lambda r: r["dosage"].get("rateQuantity", {}).get("value") == 100,
        "r.drug_exposure_end_datetime - r.drug_exposure_start_datetime = interval '4 hours'",
    ),
    "B.1 an infusion that is stopped": _without(
        "MedicationAdministration", lambda r: r["dosage"].get("rateQuantity", {}).get("value") == 0, "nothing_given"
    ),
}
_DIAGNOSES = {
    "A.6 a diagnosis that the relative told": _of(
        "condition_occurrence",
        "Condition",
        lambda r: _reported_by(r, "asserter", "RelatedPerson"),
        f"r.condition_type_concept_id = {_TOLD}",
    ),
    "A.6 a diagnosis that the relative recorded": _of(
        "condition_occurrence",
        "Condition",
        lambda r: _reported_by(r, "recorder", "RelatedPerson"),
        f"r.condition_type_concept_id = {_TOLD}",
    ),
    "A.6 an allergy that the relative told": _of(
        "observation",
        "AllergyIntolerance",
        lambda r: _reported_by(r, "asserter", "RelatedPerson"),
        f"r.observation_type_concept_id = {_TOLD}",
    ),
    "A.6 an allergy that the patient recorded": _of(
        "observation",
        "AllergyIntolerance",
        lambda r: _reported_by(r, "recorder", "Patient"),
        f"r.observation_type_concept_id = {_TOLD}",
    ),
    "A.7 an inactive diagnosis": Shape(
        "Condition", lambda r: _codes(r.get("clinicalStatus")) == ["inactive"], issue="clinical_status_not_active"
    ),
    "A.7 a diagnosis in remission": Shape(
        "Condition", lambda r: _codes(r.get("clinicalStatus")) == ["remission"], issue="clinical_status_not_active"
    ),
    "A.7 an age with a comparator": Shape(
        "Condition", lambda r: "comparator" in r.get("onsetAge", {}), issue="quantity_inexact"
    ),
    "A.7 a resolved allergy": Shape(
        "AllergyIntolerance",
        lambda r: _codes(r.get("clinicalStatus")) == ["resolved"],
        issue="clinical_status_not_active",
    ),
    "A.7 an inactive allergy": Shape(
        "AllergyIntolerance",
        lambda r: _codes(r.get("clinicalStatus")) == ["inactive"],
        issue="clinical_status_not_active",
    ),
    "A.11 a general and a specific code": _of(
        "condition_occurrence",
        "Condition",
        lambda r: _codes(r.get("code")) == ["E11", "E11.9"],
        "r.condition_source_value = 'E11.9'",
    ),
    "A.13 a status whose first coding is the site's": _of(
        "condition_occurrence",
        "Condition",
        lambda r: (
            _first_system(r.get("verificationStatus")).startswith(_EPIC)
            and _codes(r["verificationStatus"])[1:] == ["confirmed"]
        ),
        "true",
    ),
    "A.13 an allergy without category": _of(
        "observation",
        "AllergyIntolerance",
        lambda r: "category" not in r and _codes(r["code"]) == ["762952008"],
        "r.value_as_concept_id = 42538933",
    ),
    "A.13 no allergies on file": _without(
        "AllergyIntolerance", lambda r: r["code"]["text"] == "Not on File", "not_on_file"
    ),
    "A.13 the family": _of(
        "observation",
        "FamilyMemberHistory",
        lambda r: _codes(r["relationship"]) == ["MTH"],
        "r.qualifier_source_value = 'MTH'",
    ),
    "A.13 a severity": _of(
        "observation",
        "Condition",
        lambda r: "severity" in r,
        "r.observation_source_value = '24484000' AND r.observation_event_id IS NOT NULL",
    ),
    "A.13 a stage": _of(
        "observation",
        "Condition",
        lambda r: "stage" in r,
        "r.observation_source_value = '786005' AND r.observation_event_id IS NOT NULL",
    ),
    "B.1 an onset before birth": _of(
        "condition_occurrence",
        "Condition",
        lambda r: _year(r.get("onsetDateTime", "9999")) < _year(r.get("recordedDate", "0000")) - 32,
        "true",
    ),
    "B.1 an onset of long ago": _of(
        "condition_occurrence",
        "Condition",
        lambda r: _year(r.get("onsetDateTime", "9999")) < _year(r.get("recordedDate", "0000")) - 10,
        "s.contact_date > r.condition_start_date",
    ),
    "B.2 on the problem list": _of(
        "condition_occurrence",
        "Condition",
        lambda r: _codes(r.get("category", [])) == ["problem-list-item"],
        "EXISTS (SELECT FROM cdm.condition_occurrence o WHERE o.person_id = r.person_id"
        " AND o.condition_start_date = r.condition_start_date AND o.condition_concept_id = r.condition_concept_id"
        " AND o.condition_occurrence_id <> r.condition_occurrence_id)",
    ),
}
_RESULTS = {
    "A.6 a weight that the relative told": _of(
        "measurement",
        "Observation",
        lambda r: _reported_by(r, "performer", "RelatedPerson"),
        f"r.measurement_type_concept_id = {_TOLD}",
    ),
    "A.6 a pulse that the patient told": _of(
        "measurement",
        "Observation",
        lambda r: _reported_by(r, "performer", "Patient"),
        f"r.measurement_type_concept_id = {_TOLD}",
    ),
    "A.8 a panel of members": _without("Observation", lambda r: "hasMember" in r, "panel_without_value"),
    "A.8 a report with results": _without(
        "DiagnosticReport", lambda r: "result" in r and r["status"] == "final", "panel_without_value"
    ),
    "A.8 a result without a value": _of(
        "measurement",
        "Observation",
        lambda r: "dataAbsentReason" in r and r["status"] == "final",
        "r.value_as_number IS NULL",
    ),
    "A.8 a note's code": _of("observation", "DiagnosticReport", lambda r: "conclusion" in r, "true"),
    "A.10 an interpretation by the system's former name": _of(
        "measurement",
        "Observation",
        lambda r: _first_system(r.get("interpretation", [{}])[0]) == "http://hl7.org/fhir/v2/0078",
        "r.value_as_number = 6.4",
    ),
    "A.13 the text Negative": _of(
        "measurement", "Observation", lambda r: r.get("valueString") == "Negative", "r.value_as_concept_id = 9189"
    ),
    "A.13 a titre": _of(
        "measurement", "Observation", lambda r: r.get("valueString") == "1:128", "r.value_as_number = 128"
    ),
    "A.13 a number with thousands": _of(
        "measurement",
        "Observation",
        lambda r: r.get("valueString") == ">1,000",
        "r.value_as_number = 1000 AND r.operator_concept_id = 4172704",
    ),
    "A.13 a result of a procedure": _of(
        "observation",
        "Observation",
        lambda r: _codes(r["code"]) == ["29303009"],
        "r.value_as_concept_id = 9189 AND r.observation_event_id IS NOT NULL",
    ),
    "A.13 a specimen that was received": _of(
        "specimen", "Specimen", lambda r: "receivedTime" in r and "collection" not in r, "true"
    ),
    "B.2 a weight in pounds": _of(
        "measurement",
        "Observation",
        lambda r: r.get("valueQuantity", {}).get("code") == "[lb_av]",
        "r.value_as_number = 154 AND r.unit_source_value = '[lb_av]'",
    ),
    "B.2 a temperature that nobody survives": _of(
        "measurement",
        "Observation",
        lambda r: r.get("valueQuantity", {}).get("value") == 366 and r["valueQuantity"]["code"] == "Cel",
        "r.value_as_number = 366",
    ),
    "B.1 a number below 0": Shape(
        "Observation", lambda r: r.get("valueQuantity", {}).get("value") == -3.2, issue="value_negative"
    ),
}
_DEEDS = {
    "A.6 a procedure that the relative told": _of(
        "procedure_occurrence",
        "Procedure",
        lambda r: _reported_by(r, "asserter", "RelatedPerson"),
        f"r.procedure_type_concept_id = {_TOLD}",
    ),
    "A.6 a procedure that the patient did": _of(
        "procedure_occurrence",
        "Procedure",
        lambda r: any(_reported_by(each, "actor", "Patient") for each in r.get("performer", [])),
        f"r.procedure_type_concept_id <> {_TOLD}",
    ),
    "A.7 a dose that was too weak": Shape("Immunization", lambda r: r.get("isSubpotent"), issue="dose_subpotent"),
    "A.13 a vaccination at a time that a text says": _of(
        "drug_exposure", "Immunization", lambda r: "occurrenceString" in r, "r.drug_exposure_start_date IS NOT NULL"
    ),
    "A.13 the device of a procedure": _of(
        "device_exposure",
        "Procedure",
        lambda r: "focalDevice" in r,
        "r.unique_device_id LIKE '1111111111%'",
    ),
}
_EXCLUDED = {
    f"A.15 {resource_type}": _without(resource_type, lambda r: True, reason)
    for resource_type, reason in {
        "AdverseEvent": "adverse_event_report",
        "EpisodeOfCare": "episode_of_visits",
        "Claim": "cost_not_populated",
        "ExplanationOfBenefit": "cost_not_populated",
        "Flag": "alert_not_event",
        "RelatedPerson": "person_not_patient",
        "BodyStructure": "body_structure_not_event",
    }.items()
}
SHAPES: dict[str, Shape] = {
    **_VISITS,
    **_PLACES,
    **_PERSONS,
    **_DRUGS,
    **_DIAGNOSES,
    **_RESULTS,
    **_DEEDS,
    **_EXCLUDED,
}
