"""Every look-up in every mapping: what is unknown is counted, what is mapped or without a concept by rule is not.

All mappings are walked for the elements that are looked up: one that is new, and missing here, fails.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.staging import schemas
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.routing import staged_columns
from tests.transforming import Rows, Transforming, index_of, lines_of

SYSTEM, CODE, DISPLAY = "urn:example:unknown", "unheard-of", "What nobody has heard of"
UNKNOWN = {"coding": [{"system": SYSTEM, "code": CODE, "display": DISPLAY}]}
CODING = UNKNOWN["coding"][0]
OF_P1 = {"subject": {"reference": "Patient/p1"}}
OMB = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-"


def category(name: str, extension: str, coding: dict[str, str]) -> dict[str, Any]:
    return {"url": f"{OMB}{name}", "extension": [{"url": extension, "valueCoding": coding}]}


VISIT = {"resourceType": "Encounter", "status": "finished", **OF_P1, "period": {"start": "2024-03-10"}}
RESULT = {"resourceType": "Observation", "status": "final", **OF_P1, "effectiveDateTime": "2024-03-10"}
DRUG = {
    "medicationCodeableConcept": {"coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "1"}]}
}
DOCUMENT = {"resourceType": "DocumentReference", "status": "current", **OF_P1, "date": "2024-03-10T09:00:00Z",
    "content": [{"attachment": {"contentType": "text/plain", "data": "eA=="}}]}  # fmt: skip
AMBULATORY = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}
KNOWN = {"coding": [{"system": "http://loinc.org", "code": "1-8"}]}

#: element as it is counted → resource with an unknown code there
CASES: dict[str, dict[str, Any]] = {
    "AllergyIntolerance.code": {"resourceType": "AllergyIntolerance", "patient": OF_P1["subject"], "code": UNKNOWN,
        "recordedDate": "2024-03-10"},
    "AllergyIntolerance.manifestation": {"resourceType": "AllergyIntolerance", "patient": OF_P1["subject"],
        "code": KNOWN, "recordedDate": "2024-03-10", "reaction": [{"manifestation": [UNKNOWN]}]},
    "AllergyIntolerance.category": {"resourceType": "AllergyIntolerance", "patient": OF_P1["subject"],
        "code": DRUG["medicationCodeableConcept"], "recordedDate": "2024-03-10", "category": [CODE]},
    "Condition.code": {"resourceType": "Condition", **OF_P1, "code": UNKNOWN, "recordedDate": "2024-03-10"},
    "Condition.clinical_status": {"resourceType": "Condition", **OF_P1, "code": KNOWN, "recordedDate": "2024-03-10",
        "clinicalStatus": UNKNOWN},
    "Condition.severity": {"resourceType": "Condition", **OF_P1, "code": KNOWN, "recordedDate": "2024-03-10",
        "severity": UNKNOWN},
    "Condition.stage": {"resourceType": "Condition", **OF_P1, "code": KNOWN, "recordedDate": "2024-03-10",
        "stage": [{"summary": UNKNOWN}]},
    "Condition.stage_type": {"resourceType": "Condition", **OF_P1, "code": KNOWN, "recordedDate": "2024-03-10",
        "stage": [{"summary": KNOWN, "type": UNKNOWN}]},
    "Coverage.kind": {"resourceType": "Coverage", "status": "active", "beneficiary": OF_P1["subject"], "type": UNKNOWN,
        "period": {"start": "2024-03-10"}},
    "DeviceUseStatement.code": {"resourceType": "DeviceUseStatement", "status": "active", **OF_P1,
        "recordedOn": "2024-03-10", "device": {"reference": "#d"},
        "contained": [{"resourceType": "Device", "id": "d", "type": UNKNOWN}]},
    "DiagnosticReport.code": {"resourceType": "DiagnosticReport", "status": "final", **OF_P1, "code": UNKNOWN,
        "effectiveDateTime": "2024-03-10"},
    "DiagnosticReport.language": {"resourceType": "DiagnosticReport", "status": "final", **OF_P1, "code": KNOWN,
        "effectiveDateTime": "2024-03-10", "conclusion": "none", "language": CODE},
    "DocumentReference.code": {**DOCUMENT, "type": UNKNOWN},
    "DocumentReference.language": {**DOCUMENT, "language": CODE},
    "Encounter.class": {**VISIT, "class": CODING},
    "Encounter.admit_source": {**VISIT, "hospitalization": {"admitSource": UNKNOWN}},
    "Encounter.discharge_disposition": {**VISIT, "hospitalization": {"dischargeDisposition": UNKNOWN}},
    "Encounter.diagnosis_use": {**VISIT, "class": AMBULATORY, "diagnosis": [
        {"condition": {"reference": "Condition/c"}, "use": UNKNOWN, "rank": 1}]},
    "FamilyMemberHistory.relationship": {"resourceType": "FamilyMemberHistory", "status": "completed",
        "patient": OF_P1["subject"], "date": "2024-03-10", "relationship": UNKNOWN, "condition": [{"code": KNOWN}]},
    "FamilyMemberHistory.code": {"resourceType": "FamilyMemberHistory", "status": "completed",
        "patient": OF_P1["subject"], "date": "2024-03-10", "condition": [{"code": UNKNOWN}]},
    "ImagingStudy.code": {"resourceType": "ImagingStudy", "status": "available", **OF_P1, "started": "2024-03-10",
        "procedureCode": [UNKNOWN]},
    "Immunization.code": {"resourceType": "Immunization", "status": "completed", "patient": OF_P1["subject"],
        "vaccineCode": UNKNOWN, "occurrenceDateTime": "2024-03-10"},
    "Immunization.route": {"resourceType": "Immunization", "status": "completed", "patient": OF_P1["subject"],
        "vaccineCode": KNOWN, "occurrenceDateTime": "2024-03-10", "route": UNKNOWN},
    "Location.place_of_service": {"resourceType": "Location", "type": [UNKNOWN]},
    "Organization.place_of_service": {"resourceType": "Organization", "type": [UNKNOWN]},
    "MedicationAdministration.code": {"resourceType": "MedicationAdministration", "status": "completed", **OF_P1,
        "medicationCodeableConcept": UNKNOWN, "effectiveDateTime": "2024-03-10"},
    "MedicationAdministration.route": {"resourceType": "MedicationAdministration", "status": "completed", **OF_P1,
        **DRUG, "effectiveDateTime": "2024-03-10", "dosage": {"route": UNKNOWN}},
    "MedicationAdministration.dose_unit": {"resourceType": "MedicationAdministration", "status": "completed", **OF_P1,
        **DRUG, "effectiveDateTime": "2024-03-10", "dosage": {"dose": {"value": 1, "system": SYSTEM, "code": CODE}}},
    "MedicationDispense.code": {"resourceType": "MedicationDispense", "status": "completed", **OF_P1,
        "medicationCodeableConcept": UNKNOWN, "whenHandedOver": "2024-03-10"},
    "MedicationDispense.route": {"resourceType": "MedicationDispense", "status": "completed", **OF_P1, **DRUG,
        "whenHandedOver": "2024-03-10", "dosageInstruction": [{"route": UNKNOWN}]},
    "MedicationRequest.code": {"resourceType": "MedicationRequest", "status": "active", "intent": "order", **OF_P1,
        "medicationCodeableConcept": UNKNOWN, "authoredOn": "2024-03-10"},
    "MedicationRequest.route": {"resourceType": "MedicationRequest", "status": "active", "intent": "order", **OF_P1,
        **DRUG, "authoredOn": "2024-03-10", "dosageInstruction": [{"route": UNKNOWN}]},
    "MedicationStatement.code": {"resourceType": "MedicationStatement", "status": "active", **OF_P1,
        "medicationCodeableConcept": UNKNOWN, "effectiveDateTime": "2024-03-10"},
    "MedicationStatement.route": {"resourceType": "MedicationStatement", "status": "active", **OF_P1, **DRUG,
        "effectiveDateTime": "2024-03-10", "dosage": [{"route": UNKNOWN}]},
    "Observation.code": {**RESULT, "code": UNKNOWN},
    "Observation.unit": {**RESULT, "code": KNOWN, "valueQuantity": {"value": 1, "system": SYSTEM, "code": CODE}},
    "Observation.value_code": {**RESULT, "code": KNOWN, "valueCodeableConcept": UNKNOWN},
    "Observation.interpretation": {**RESULT, "code": KNOWN, "interpretation": [UNKNOWN]},
    "Patient.race": {"resourceType": "Patient", "birthDate": "1960", "extension": [category("race", "ombCategory", CODING)]},
    "Patient.ethnicity": {"resourceType": "Patient", "birthDate": "1960",
        "extension": [category("ethnicity", "detailed", CODING)]},
    "Patient.race_other": {"resourceType": "Patient", "birthDate": "1960",
        "extension": [{"url": f"{OMB}race", "valueCodeableConcept": UNKNOWN}]},
    "Patient.ethnicity_other": {"resourceType": "Patient", "birthDate": "1960",
        "extension": [category("ethnicity", "other", CODING)]},
    "Patient.gender_identity": {"resourceType": "Patient", "birthDate": "1960",
        "extension": [{"url": f"{OMB}genderIdentity", "valueCodeableConcept": UNKNOWN}]},
    "Patient.gender": {"resourceType": "Patient", "birthDate": "1960", "gender": CODE},
    "Patient.birth_sex": {"resourceType": "Patient", "birthDate": "1960",
        "extension": [{"url": f"{OMB}birthsex", "valueCode": CODE}]},
    "Practitioner.gender": {"resourceType": "Practitioner", "gender": CODE},
    "Practitioner.specialty": {"resourceType": "Practitioner", "qualification": [
        {"code": {"coding": [{"system": "http://nucc.org/provider-taxonomy", "code": CODE, "display": DISPLAY}]}}]},
    "Procedure.code": {"resourceType": "Procedure", "status": "completed", **OF_P1, "code": UNKNOWN,
        "performedDateTime": "2024-03-10"},
    "Procedure.device_code": {"resourceType": "Procedure", "status": "completed", **OF_P1, "code": KNOWN,
        "performedDateTime": "2024-03-10", "focalDevice": [{"manipulated": {"reference": "#d"}}],
        "contained": [{"resourceType": "Device", "id": "d", "type": UNKNOWN}]},
    "Procedure.body_site": {"resourceType": "Procedure", "status": "completed", **OF_P1, "code": KNOWN,
        "performedDateTime": "2024-03-10", "bodySite": [UNKNOWN]},
    "QuestionnaireResponse.value_code": {"resourceType": "QuestionnaireResponse", "status": "completed", **OF_P1,
        "authored": "2024-03-10", "item": [{"linkId": "1", "answer": [{"valueCoding": CODING}]}]},
    "QuestionnaireResponse.unit": {"resourceType": "QuestionnaireResponse", "status": "completed", **OF_P1,
        "authored": "2024-03-10", "item": [{"linkId": "1", "answer": [
            {"valueQuantity": {"value": 1, "system": SYSTEM, "code": CODE}}]}]},
    "Specimen.code": {"resourceType": "Specimen", **OF_P1, "type": UNKNOWN, "collection": {"collectedDateTime": "2024-03-10"}},
    "Specimen.unit": {"resourceType": "Specimen", **OF_P1, "type": KNOWN, "collection": {
        "collectedDateTime": "2024-03-10", "quantity": {"value": 1, "system": SYSTEM, "code": CODE}}},
    "Specimen.body_site": {"resourceType": "Specimen", **OF_P1, "type": KNOWN, "collection": {
        "collectedDateTime": "2024-03-10", "bodySite": UNKNOWN}},
}  # fmt: skip

#: Columns of code sets that are looked up elsewhere, or for what they say beside a concept.
_NOT_COUNTED = {
    "DiagnosticReport.value_code": "of a result that the report contains: as of an Observation",
    "DiagnosticReport.interpretation": "the same",
    "DiagnosticReport.unit": "the same",
    "Device.code": "of the statement that refers to the device",
    "Encounter.former_classes": "the class is counted",
    "Encounter.types": "the crosswalk of types stands beside the class",
    "Patient.race_detailed": "counted as race",
    "Patient.ethnicity_detailed": "counted as ethnicity",
    "MedicationDispense.quantity_unit": "made to fit the strength; the table has no concept of it",
    "MedicationRequest.quantity_unit": "made to fit the strength; the table has no concept of it",
    "QuestionnaireResponse.code": "the question's",
    "QuestionnaireResponse.interpretation": "has none",
}

_CODED = {
    "CodeableConcept",
    "Coding",
    "Quantity",
    "medication_code",
    "merged_types",
    "contained_device_code",
    "other_category",
}


def test_every_coded_element_has_a_case() -> None:
    mappings = load_mappings(MAPPINGS_FOLDER)
    coded = {
        f"{name}.{column}"
        for name, mapping in mappings.resources.items()
        for view in mapping.views
        for column, kind in view.column_types.items()
        if kind in _CODED
    }
    assert coded - CASES.keys() - _NOT_COUNTED.keys() == set()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Transforming:
    folder = tmp_path_factory.mktemp("look-ups")
    file = folder / "lines"
    known = [("LOINC", "1-8", 1, "Measurement"), ("RxNorm", "1", 2, "Drug"), ("SNOMED", "44054006", 3, "Condition")]
    fixed = {(f"{number}", number) for number in load_mappings(MAPPINGS_FOLDER).fixed_concepts}
    own = [("Fixed", code, number, "Visit") for code, number in sorted(fixed)]
    index = index_of(folder / "index", [*known, *own])
    return Transforming(index, folder, file, mapping=MappingOptions(notes="on"))


def transformed(transforming: Transforming, resources: list[dict[str, Any]]) -> Rows:
    raws = [orjson.dumps({"id": f"x{number}", **resource}) for number, resource in enumerate(resources)]
    lines = lines_of(raws, transforming._file)
    transforming.gather_facts(lines)
    return transforming.run(lines)


def counted(rows: Rows) -> dict[str, list[tuple[Any, ...]]]:
    """id-less: element → (system, code, display, count)."""
    by_element: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows.get(schemas.UNMAPPED, []):
        named = dict(zip(schemas.SCHEMAS[schemas.UNMAPPED], row, strict=True))
        key = f"{named['resource_type']}.{named['element']}"
        by_element.setdefault(key, []).append((named["system"], named["code"], named["display"], named["count"]))
    return by_element


def test_an_unknown_code_is_counted_in_every_element(found: Transforming) -> None:
    by_element = counted(transformed(found, list(CASES.values())))
    without = [
        element
        for element in CASES
        if not any(
            code == CODE and count >= 1 for _, code, _, count in by_element.get(element.removesuffix("_other"), [])
        )
    ]
    assert without == []
    assert (SYSTEM, CODE, DISPLAY, 1) in by_element["Encounter.class"]


def test_what_has_no_concept_by_rule_is_not_counted(found: Transforming) -> None:
    act = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
    home = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
    null_flavor = "http://terminology.hl7.org/CodeSystem/v3-NullFlavor"
    omb = "urn:oid:2.16.840.1.113883.6.238"
    place = "http://terminology.hl7.org/CodeSystem/v3-RoleCode"
    cases: list[dict[str, Any]] = [
        {**VISIT, "class": {"system": act, "code": "AMB"}, "hospitalization": {"dischargeDisposition": {
            "coding": [{"system": home, "code": "home"}]}}},
        {**VISIT, "class": {"system": act, "code": "FLD"}},
        {"resourceType": "Patient", "birthDate": "1960", "gender": "unknown", "extension": [
            category("race", "ombCategory", {"system": null_flavor, "code": "UNK"}),
            category("ethnicity", "ombCategory", {"system": omb, "code": "2135-2"})]},
        {"resourceType": "Patient", "birthDate": "1960", "gender": "other", "extension": [
            category("race", "ombCategory", {"system": omb, "code": "2131-1"})]},
        {"resourceType": "Location", "type": [{"coding": [{"system": place, "code": "HOSP"}]}]},
        {**VISIT, "class": AMBULATORY, "diagnosis": [
            {"condition": {"reference": "Condition/a"}, "use": {"coding": [{"code": "DD"}]}},
            {"condition": {"reference": "Condition/b"}, "use": {"coding": [{"code": "billing"}]}, "rank": 2}]},
        {**DOCUMENT, "type": KNOWN, "language": "en-US"},
        {"resourceType": "AllergyIntolerance", "patient": OF_P1["subject"], "recordedDate": "2024-03-10",
         "code": DRUG["medicationCodeableConcept"], "category": ["food", "of nothing"]},
        {"resourceType": "Condition", **OF_P1, "code": KNOWN, "recordedDate": "2024-03-10",
         "clinicalStatus": {"coding": [{"code": "active"}]}, "verificationStatus": {"coding": [{"code": "refuted"}]}},
        {"resourceType": "Immunization", "status": "completed", "patient": OF_P1["subject"], "vaccineCode": KNOWN,
         "occurrenceDateTime": "2024-03-10", "route": {"coding": [
             {"system": "http://terminology.hl7.org/CodeSystem/v3-RouteOfAdministration", "code": "IM"}]}},
    ]  # fmt: skip
    assert counted(transformed(found, cases)) == {}


#: Event views whose concept is fixed: their code is a value, and NULL where there is none.
_CODE_IS_VALUE = {"FamilyMemberHistory.code"}


def _without(value: Any, code: Any, instead: list[Any]) -> Any:
    """The value with what `instead` holds, or nothing, where `code` stands."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if item != code or instead}
        return {key: instead[0] if item == code else _without(item, code, instead) for key, item in kept.items()}
    if isinstance(value, list):
        kept_items = [item for item in value if item != code or instead]
        return [instead[0] if item == code else _without(item, code, instead) for item in kept_items]
    return value


@pytest.mark.parametrize("instead", [[], [{}], [{"coding": []}], [{"coding": [{"system": SYSTEM}]}]], ids=str)
def test_an_event_without_a_code_is_counted_by_its_element(found: Transforming, instead: list[Any]) -> None:
    elements = [element for element in CASES if element.endswith(".code") and element not in _CODE_IS_VALUE]
    if not instead:
        elements.remove("ImagingStudy.code")  # it has a row for each code
    rows = transformed(found, [_without(CASES[element], UNKNOWN, instead) for element in elements])
    by_element = counted(rows)
    assert [element for element in elements if (None, None, None, 1) not in by_element.get(element, [])] == []
    assert by_element.keys() == set(elements)


@pytest.mark.parametrize("instead", [{}, {"class": {}}, {"class": {"system": SYSTEM}}], ids=str)
def test_a_visit_without_a_class_is_counted(found: Transforming, instead: dict[str, Any]) -> None:
    place = {"location": [{"location": {"reference": "Location/l"}}]}
    by_type = {"type": [{"coding": [{"system": "http://snomed.info/sct", "code": "30346009"}]}]}
    assert counted(transformed(found, [{**VISIT, **place, **instead}])) == {"Encounter.class": [(None, None, None, 1)]}
    assert counted(transformed(found, [{**VISIT, **by_type, "class": AMBULATORY}])) == {}


def test_a_medication_that_is_not_there_is_counted(found: Transforming) -> None:
    case = _without(CASES["MedicationRequest.code"], UNKNOWN, [])
    for reference in ({"reference": "Medication/later"}, {"reference": "#m"}, {"display": " "}):
        by_element = counted(transformed(found, [{**case, "medicationReference": reference}]))
        assert by_element == {"MedicationRequest.code": [(None, None, None, 1)]}


TEXT = {"url": "text", "valueString": "White"}


@pytest.mark.parametrize("name", ["race", "ethnicity"])
def test_a_category_that_is_not_said_as_us_core_has_it(found: Transforming, name: str) -> None:
    code = {"race": "2106-3", "ethnicity": "2135-2"}[name]
    concept = {"race": 8527, "ethnicity": 38003563}[name]
    omb = {"system": "urn:oid:2.16.840.1.113883.6.238", "code": code}
    absent = {"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}
    unknown = (None, None, None, 1)
    cases: list[tuple[dict[str, Any], int, list[Any]]] = [
        ({"extension": [{"url": "ombCategory", "valueCoding": omb}, TEXT]}, concept, []),
        ({"extension": [absent, TEXT]}, 0, []),
        ({"extension": [TEXT]}, 0, [unknown]),
        ({"extension": [{"url": "ombCategory", "valueCoding": {}}]}, 0, [unknown]),
        ({"extension": [{"url": "ombCategory", "valueCode": code}]}, concept, []),
        ({"extension": [{"url": "ombCategory", "valueCodeableConcept": {"coding": [omb]}}]}, concept, []),
        ({"valueCodeableConcept": {"coding": [omb]}}, concept, []),
        ({"valueCodeableConcept": {"text": "White"}}, 0, [unknown]),
        ({"valueCodeableConcept": "White"}, 0, [unknown]),
        ({"valueString": "White"}, 0, [unknown]),
        ({"valueCoding": {"system": SYSTEM, "code": CODE}}, 0, [(SYSTEM, CODE, None, 1)]),
        ({}, 0, [unknown]),
        ({"extension": []}, 0, [unknown]),
    ]
    columns = list(staged_columns("person"))
    for extension, expected, uncounted in cases:
        person = {"resourceType": "Patient", "birthDate": "1960", "extension": [{"url": f"{OMB}{name}", **extension}]}
        rows = transformed(found, [person])
        assert counted(rows) == ({f"Patient.{name}": uncounted} if uncounted else {}), extension
        (row,) = rows["person"]
        assert dict(zip(columns, row, strict=True))[f"{name}_concept_id"] == expected, extension


def test_codes_that_others_do_not_expect(found: Transforming) -> None:
    omb = "urn:oid:2.16.840.1.113883.6.238"
    detailed = {"system": omb, "code": "2036-2", "display": "Filipino"}
    cases: list[dict[str, Any]] = [
        {**VISIT, "class": {"code": "AMB"}},
        {"resourceType": "Patient", "birthDate": "1960", "extension": [category("race", "detailed", detailed)]},
        {"resourceType": "Patient", "birthDate": "1960", "extension": [category("race", "ombCategory", detailed)]},
        {"resourceType": "Patient", "birthDate": "1960", "gender": "X"},
    ]
    assert counted(transformed(found, cases)) == {
        "Encounter.class": [(None, "AMB", None, 1)],
        "Patient.race": [(omb, "2036-2", "Filipino", 1)],  # a detailed code that is said to be one is its group
        "Patient.gender": [("administrative-gender", "X", None, 1)],
    }


# --- shapes ----------------------------------------------------------------------------------------------------------


def _wrong(value: Any) -> Any:
    """The value in another shape: an object as an array and as a text, a primitive as an array."""
    yield [value]
    yield {"a": "b"} if not isinstance(value, dict) else "a text"


def _single_elements(value: Any, owner: str, path: tuple[Any, ...] = ()) -> Any:
    """Paths of all elements of a resource that R4 has at most once."""
    from pipeline.sql_on_fhir.r4 import single_element

    for name, item in value.items():
        if name in {"resourceType", "id", "contained", "extension"}:
            continue
        found = single_element(frozenset({owner}), name)
        if found.is_single:
            yield (*path, name)
        for place, inner in enumerate(item) if isinstance(item, list) else [(None, item)]:
            if isinstance(inner, dict) and found.types and len(found.types) == 1:
                step = (*path, name) if place is None else (*path, name, place)
                yield from _single_elements(inner, next(iter(found.types)), step)


def test_another_shape_is_a_dead_letter_with_its_path(found: Transforming) -> None:
    cases, paths = [], []
    for element, resource in CASES.items():
        for path in _single_elements(resource, resource["resourceType"]):
            holder: Any = resource
            for step in path:
                holder = holder[step]
            for wrong in _wrong(holder):
                case = copy.deepcopy(resource)
                holder_of = case
                for step in path[:-1]:
                    holder_of = holder_of[step]
                holder_of[path[-1]] = wrong
                cases.append(case)
                paths.append((element, path, type(wrong).__name__))
    rows = transformed(found, cases)
    refused = pl.DataFrame(rows[schemas.REJECTION], schema=schemas.REJECTION_SCHEMA, orient="row")
    by_id = {row["resource_id"]: row for row in refused.to_dicts()}
    accepted = [paths[number] for number in range(len(cases)) if f"x{number}" not in by_id]
    # Of a status only the code is read; another system than NUCC's is no specialty.
    # Reactions, stages and diagnoses are further rows and facts: each is left out by itself, with an issue; so are devices.
    further = {"reaction", "stage", "diagnosis", "focalDevice"}
    read = [item for item in accepted if item[1][-1] not in {"system", "display"} and item[1][0] not in further]
    assert read == []
    assert len(by_id) > 200
    assert all(row["path"] for row in by_id.values())


# --- white space -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [" ", "\t", "\n", "\u00a0", "\u2003", "\u3000", " \u00a0 "])
def test_white_space_is_not_content(found: Transforming, space: str) -> None:
    sct = "http://snomed.info/sct"
    plain: list[dict[str, Any]] = [
        {"resourceType": "Condition", **OF_P1, "code": {"coding": [{"system": sct, "code": "44054006"}]},
         "recordedDate": "2024-03-10", "category": [{"coding": [{"code": "encounter-diagnosis"}]}]},
        {**RESULT, "code": KNOWN, "valueQuantity": {"value": 1}},
        {**RESULT, "code": {**KNOWN}, "valueString": "text"},
    ]  # fmt: skip
    spaced: list[dict[str, Any]] = [
        {"resourceType": "Condition", "subject": {"reference": f"{space}Patient/p1{space}", "display": space},
         "code": {"coding": [{"system": f"{sct}{space}", "code": f"{space}44054006{space}", "display": space}],
                  "text": space},
         "recordedDate": f"2024-03-10{space}", "category": [{"coding": [{"code": f"encounter-diagnosis{space}"}]}],
         "encounter": {"reference": space}, "onsetDateTime": space},
        {**RESULT, "status": f"{space}final", "code": KNOWN,
         "valueQuantity": {"value": 1, "unit": space, "code": space, "system": space}},
        {**RESULT, "code": {**KNOWN, "text": space}, "valueString": f"text{space}"},
    ]  # fmt: skip
    expected, rows = transformed(found, plain), transformed(found, spaced)
    for kind in ("condition_occurrence", "measurement", "observation", "unmapped"):
        assert rows.get(kind) == expected.get(kind), kind


# --- large resources -------------------------------------------------------------------------------------------------


def _transform_large(folder: Path, resource: bytes, codes: list[tuple[str, str, int, str]]) -> int:
    """In a process of its own with a memory limit: the rows of one large resource."""
    import resource as limits

    limits.setrlimit(limits.RLIMIT_DATA, (1536 * 1024**2, limits.RLIM_INFINITY))
    transforming = Transforming(index_of(folder / "index", codes), folder, folder / "lines")
    rows = transformed(transforming, [orjson.loads(resource)])
    return sum(len(rows.get(kind, ())) for kind in ("measurement", "observation"))


_MANY = 16_000


def test_nothing_is_quadratic_in_the_size_of_a_resource(tmp_path: Path) -> None:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    codes = [("LOINC", str(number), number, "Measurement") for number in range(1, _MANY + 1)]
    coding = [{"system": "http://loinc.org", "code": str(number)} for number in range(1, _MANY + 1)]
    one = {"code": {"coding": coding[:1]}}
    cases: list[tuple[dict[str, Any], int]] = [
        ({**RESULT, "code": {"coding": coding[:1] * _MANY}, "valueInteger": 1}, 1),
        ({**RESULT, "code": {"coding": coding}, "valueInteger": 1}, 1),
        ({**RESULT, **one, "component": [{**one, "valueInteger": 1}] * 10_000}, 10_000),
        ({**RESULT, **one, "valueString": "x" * 900_000, "extension": [{"url": "u"}] * 10_000}, 1),
        ({**RESULT, **one, "valueInteger": 1, "category": [{"coding": coding}] * 4,
          "performer": [{"reference": f"Practitioner/{number}"} for number in range(_MANY)]}, 1),
    ]  # fmt: skip
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, (case, expected) in enumerate(cases):
            folder = tmp_path / str(number)
            folder.mkdir()
            assert pool.submit(_transform_large, folder, orjson.dumps(case), codes).result() == expected, number
