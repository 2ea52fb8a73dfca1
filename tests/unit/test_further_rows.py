"""A row that cannot be made: the resource's own is a dead letter, a further one is left out. Every view of every mapping."""

from __future__ import annotations

import copy
import re

import pytest

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.sql_on_fhir.r4 import elements_of, is_array
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.salvage import _REPEATED_OF_CONVERTERS
from tests.transforming import transform
from tests.unit.test_dates import RESOURCES

OPTIONS = MappingOptions(notes="on", device_alone="manufacture_date")
MAPPINGS = load_mappings(MAPPINGS_FOLDER, None, OPTIONS)

DAY = "2024-03-10"
#: What each type needs to be loaded, beside what it always needs: above all a date.
DATES = {
    "AllergyIntolerance": {"recordedDate": DAY},
    "Condition": {"recordedDate": DAY},
    "Coverage": {"period": {"start": DAY}},
    "Device": {"manufactureDate": DAY},
    "DeviceUseStatement": {"recordedOn": DAY},
    "DiagnosticReport": {"issued": f"{DAY}T09:00:00Z"},
    "DocumentReference": {"date": f"{DAY}T09:00:00Z"},
    "Encounter": {"period": {"start": DAY, "end": "2024-03-12"}},
    "FamilyMemberHistory": {"date": DAY},
    "ImagingStudy": {"started": DAY},
    "Immunization": {"occurrenceDateTime": DAY},
    "MedicationAdministration": {"effectiveDateTime": DAY},
    "MedicationDispense": {"whenHandedOver": DAY},
    "MedicationRequest": {"authoredOn": DAY},
    "MedicationStatement": {"effectiveDateTime": DAY},
    "Observation": {"effectiveDateTime": DAY},
    "Patient": {"birthDate": "1960-05-04"},
    "Practitioner": {},
    "PractitionerRole": {"practitioner": {"reference": "Practitioner/d"}},
    "Procedure": {"performedDateTime": DAY},
    "QuestionnaireResponse": {"authored": DAY},
    "Specimen": {"collection": {"collectedDateTime": DAY}},
    "Location": {"name": "x"},
    "Organization": {"name": "x"},
}
PERSON = ("subject", "patient", "beneficiary")
HISTORY = {"category": [{"coding": [{"code": "medical-history"}]}]}
REFUTED = {"verificationStatus": {"coding": [{"code": "refuted"}]}}

#: Own rows: (type, view) → a resource that has just this row, and what is changed so that it cannot be made, and where
#: the dead letter says that is. Where nothing is given, the person is missing.
OWN = {
    ("AllergyIntolerance", "allergy"): ({}, {}, "patient"),
    ("AllergyIntolerance", "substance"): ({}, {}, "patient"),
    ("Condition", "condition_occurrence"): ({}, {}, "subject"),
    ("Condition", "not_confirmed"): (REFUTED, {}, "subject"),
    ("Condition", "medical_history"): (HISTORY, {"recordedDate": "2024-02-30"}, "recordedDate"),
    ("Coverage", "payer_plan_period"): ({}, {"period": {"start": "garbage"}}, "period.start"),
    ("DeviceUseStatement", "device_exposure"): ({}, {"recordedOn": "garbage"}, "recordedOn"),
    ("DiagnosticReport", "report"): ({}, {}, "subject"),
    ("DocumentReference", "note"): ({}, {"date": "2024-13"}, "date"),
    ("Encounter", "visit"): ({}, {"period": {"start": "00.00.0000"}}, "period.start"),
    ("Immunization", "drug_exposure"): ({}, {"occurrenceDateTime": "x"}, "occurrence.ofType(dateTime)"),
    ("Location", "care_site"): ({}, {"name": 5}, "name"),
    ("MedicationAdministration", "drug_exposure"): ({}, {}, "subject"),
    ("MedicationDispense", "drug_exposure"): ({}, {}, "subject"),
    ("MedicationRequest", "drug_exposure"): ({}, {}, "subject"),
    ("MedicationStatement", "drug_exposure"): ({}, {}, "subject"),
    ("Observation", "value"): ({}, {"effectiveDateTime": "infinity"}, "effective.ofType(dateTime)"),
    ("Organization", "care_site"): ({}, {"name": 5}, "name"),
    ("Patient", "person"): ({}, {"birthDate": "2024-02-30"}, "birthDate"),
    ("Practitioner", "provider"): ({}, {"gender": 5}, "gender"),
    ("Procedure", "procedure_occurrence"): ({}, {}, "subject"),
    ("Specimen", "specimen"): ({}, {}, "subject"),
}

NUMBER = {"code": {"text": "x"}, "valueQuantity": {"value": 1}}
BROKEN_NUMBER = {"code": {"text": "x"}, "valueQuantity": {"value": "many"}}
REACTION = {"manifestation": [{"text": "x"}]}
OMB = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race"


def races(*codes):
    return [{"url": OMB, "extension": [{"url": "ombCategory", "valueCoding": {"code": code}} for code in codes]}]


#: Further rows: (type, view) → what makes some of them, of which some cannot be made; the table; how many can; the path.
FURTHER = {
    ("AllergyIntolerance", "reaction"): (
        {"reaction": [REACTION, {"manifestation": ["x"]}, {"manifestation": [{"text": "x"}, 1]}, "x"]},
        ("observation", 3),
        {"reaction[1].manifestation[0]", "reaction[2].manifestation[1]", "reaction[3].onset"},
    ),
    ("Condition", "condition_stage"): (
        {"stage": [{"summary": {"text": "x"}}, {"summary": "x"}, {"type": {"text": "x"}}, "x"]},
        ("observation", 1),
        {"stage[1].summary", "stage[3].summary"},
    ),
    ("Procedure", "focal_device"): (
        {"focalDevice": [{"manipulated": {"reference": "Device/own"}}, {"manipulated": 5}, "x"]},
        ("device_exposure", 1),
        {"focalDevice[1]", "focalDevice[1].manipulated", "focalDevice[2]"},
    ),
    ("Encounter", "stay"): (
        {"location": [{"location": {"reference": "Location/l"}}, {"location": 5}, {"location": {"reference": 5}}]},
        ("visit_detail", 1),
        {"location[1].location", "location[2].location"},
    ),
    ("Observation", "component"): (
        {"component": [NUMBER, BROKEN_NUMBER, NUMBER, BROKEN_NUMBER]},
        ("observation", 3),
        {f"component[{number}].value.ofType(Quantity).value" for number in (1, 3)},
    ),
    ("Patient", "death"): ({"deceasedDateTime": "2020-02-30"}, ("death", 0), "deceased.ofType(dateTime)"),
    ("FamilyMemberHistory", "family_history"): (
        {"condition": [{"code": {"text": "x"}}, {"code": ["x"]}]},
        ("observation", 1),
        "condition[1].code",
    ),
    ("ImagingStudy", "procedure_occurrence"): (
        {"procedureCode": [{"text": "x"}, "x"]},
        ("procedure_occurrence", 1),
        "procedureCode[1]",
    ),
    ("QuestionnaireResponse", "answer"): (
        {
            "item": [
                {
                    "linkId": "g",
                    "item": [
                        {"linkId": "1", "answer": [{"valueInteger": 1}, {"valueInteger": "x"}]},
                        {"linkId": "2", "answer": [{"valueInteger": 2}]},
                        {"linkId": 3, "answer": [{"valueInteger": 2}]},
                    ],
                }
            ]
        },
        ("observation", 2),
        {"item[0].item[0].answer[1].value.ofType(integer)", "item[0].item[2].linkId"},
    ),
    ("DiagnosticReport", "presented_form"): (
        {
            "presentedForm": [
                {"contentType": "text/plain", "data": 5},
                {"contentType": 5, "data": "eA=="},
                {"contentType": "text/plain", "data": "eA==", "title": ["x"]},
                "x",
                {"contentType": "text/plain", "data": "eA=="},
                {"contentType": "text/plain", "data": "x"},
            ]
        },
        ("note", 1),
        {"presentedForm[0]", "presentedForm[1]", "presentedForm[2]", "presentedForm[3]", "presentedForm[5]"},
    ),
    ("Device", "device_exposure"): ({"manufactureDate": "2020-02-30"}, ("device_exposure", 0), "manufactureDate"),
}


def arrays_beside_the_own_row(kind, mapping):
    """Elements that FHIR has repeatedly and that views of facts and of further rows read, and no view of the own row."""
    of_own, of_others = set(), set()
    for view in mapping.views:
        words = set(re.findall(r"[A-Za-z]\w*", str(dict(view.definition))))
        types = {_REPEATED_OF_CONVERTERS.get(one) for one in view.column_types.values()}
        if view.kind == "resource":
            of_own |= words - types
            of_others |= types
        else:
            (of_own if view.row == "own" else of_others).update(words | types)
    known = elements_of(kind) or {}
    return {name for name in (of_others - of_own) & known.keys() if is_array(kind, name)}


#: Further rows that lack nothing as long as the resource's own row can be made: their parts are the resource's.
ALWAYS = {
    ("AllergyIntolerance", "reaction_to_substance"),  # like reaction
    ("Condition", "condition_severity"),
    ("Patient", "race"),
    ("Patient", "ethnicity"),
    ("Patient", "gender_identity"),
    ("Encounter", "discharge_against_advice"),
    ("DiagnosticReport", "conclusion"),
    ("DiagnosticReport", "contained_component"),  # like an Observation's own
    ("DiagnosticReport", "contained_result"),
    ("Observation", "component_note"),
    ("Observation", "contained_component"),
    ("Observation", "contained_result"),
    ("Observation", "note"),
}


def made(kind, name, *changes):
    found = {"resourceType": kind, "id": name, **copy.deepcopy(RESOURCES.get(kind, {})), **DATES.get(kind, {})}
    for change in changes:
        found |= change
    return found


def without_person(resource):
    return {name: value for name, value in resource.items() if name not in PERSON}


@pytest.fixture(scope="module")
def transformed(tmp_path_factory):
    resources = [made("Patient", "p1")]
    for (kind, view), (has, change, _) in OWN.items():
        resources.append(made(kind, f"{view}-sound", has))
        resources.append(made(kind, view, has, change) if change else without_person(made(kind, view, has)))
    resources += [made(kind, view, change) for (kind, view), (change, _, _) in FURTHER.items()]
    resources += NOTHING_LEFT + OTHERS
    return transform(tmp_path_factory.mktemp("further"), resources, OPTIONS)


def test_every_view_says_whose_row_it_gives():
    views = {
        (kind, view.name): view.row
        for kind, mapping in MAPPINGS.resources.items()
        for view in mapping.views
        if view.kind in {"event", "entity"}
    }
    assert {name for name, row in views.items() if row == "own"} == OWN.keys()
    assert {name for name, row in views.items() if row == "further"} == FURTHER.keys() | ALWAYS


@pytest.mark.parametrize("name", OWN, ids="/".join)
def test_an_own_row_that_cannot_be_made_is_a_dead_letter(name, transformed):
    kind, view = name
    assert transformed.outcomes[f"{kind}/{view}-sound"] == "loaded"
    assert transformed.outcomes[f"{kind}/{view}"].startswith("rejected:")
    assert transformed.paths[f"{kind}/{view}"] == f"{kind}.{OWN[name][2]}"
    assert f"{kind}/{view}" not in transformed.rows


@pytest.mark.parametrize("name", FURTHER, ids="/".join)
def test_a_further_row_that_cannot_be_made_is_left_out(name, transformed):
    kind, view = name
    _, (table, count), path = FURTHER[name]
    reference = f"{kind}/{view}"
    assert transformed.outcomes[reference] == ("excluded:device_not_use" if kind == "Device" else "loaded")
    assert len(transformed.rows.get(reference, {}).get(table, [])) == count
    paths = {path for code, path in transformed.issues[reference] if code == "row_left_out"}
    assert paths == {f"{kind}.{path}" for path in ({path} if isinstance(path, str) else path)}


BAD_CODE = {"url": "code", "valueCoding": {"system": ["x"], "code": "y"}}
MADE_OF_TWO = {"resourceType": "Device", "id": "d", "manufactureDate": ["2020-01-01", "2020-01-02"]}
COMPONENTS = {"component": [BROKEN_NUMBER, BROKEN_NUMBER]}
#: Resources without an own row, of which no row at all can be made.
NOTHING_LEFT = [
    {name: value for name, value in made("Observation", "panel", COMPONENTS).items() if name != "valueString"},
    made("FamilyMemberHistory", "all", {"condition": [{"code": "x"}]}),
    made("FamilyMemberHistory", "undated", {"date": "2024-02-30"}),
    made("ImagingStudy", "all", {"procedureCode": ["x"]}),
    made("QuestionnaireResponse", "all", {"item": ["x"]}),
    {"resourceType": "Medication", "id": "all", "code": "x"},
    {"resourceType": "Questionnaire", "id": "all", "item": [{"linkId": "1", "code": [{"system": 5, "code": "x"}]}]},
    made(
        "QuestionnaireResponse", "code", {"item": [{"linkId": "1", "definition": 5, "answer": [{"valueInteger": 1}]}]}
    ),
    made("QuestionnaireResponse", "coding", {"item": [{"linkId": "1", "extension": [BAD_CODE], "answer": [{}]}]}),
    made("DeviceUseStatement", "contained", {"device": {"reference": "#d"}, "contained": [MADE_OF_TWO]}),
]


@pytest.mark.parametrize("resource", NOTHING_LEFT, ids=lambda one: f"{one['resourceType']}/{one['id']}")
def test_a_resource_of_which_no_row_is_left_is_a_dead_letter(resource, transformed):
    reference = f"{resource['resourceType']}/{resource['id']}"
    assert transformed.outcomes[reference].startswith("rejected:")
    assert transformed.paths[reference]
    assert reference not in transformed.rows


#: Facts and addresses, which are rows of other tables or of none, and parts that are there once.
OTHERS = [
    made("Encounter", "diagnosis", {"diagnosis": [{"condition": {"reference": "Condition/c"}, "rank": 1}, "x"]}),
    made("Encounter", "class", {"class": "AMB"}),
    made("Patient", "address", {"address": ["x", {"use": "home", "state": "TX"}]}),
    made("Patient", "addresses", {"address": "x"}),
    made("Patient", "races", {"extension": races("2106-3", "2054-5"), "deceasedDateTime": "2020-02-30"}),
    made("Observation", "own", {"component": [NUMBER], "valueString": 5}),
    made("Observation", "comparator", {"component": [NUMBER, NUMBER | {"valueQuantity": {"comparator": "~"}}]}),
    made("Observation", "nested", {"component": [[[NUMBER]], NUMBER]}),
]


MEDICATION, DEVICE = {"resourceType": "Medication", "id": "m"}, {"resourceType": "Device", "id": "d"}
CODED = {"code": {"text": "x"}}
#: Contained resources: what is contained, whether it is what the reference means.
CONTAINED = {
    "medication": [([], False), ([MEDICATION], False), ([MEDICATION | {"id": "n"} | CODED], False)],
    "device": [([], False), ([DEVICE], True), ([DEVICE | {"id": "e"}], False)],
}
CONTAINED["medication"].append(([MEDICATION, MEDICATION | CODED], True))


def test_a_contained_resource_that_is_not_there_is_an_issue(tmp_path):
    """Of a provider or a place it is one in any case: tests/unit/test_references.py."""
    resources, expected = [], {}
    for kind in sorted(kind for kind in MAPPINGS.resources if "lacks_contained" in str(MAPPINGS.resources[kind])):
        element, of = ("device", "device") if kind.startswith("Device") else ("medicationReference", "medication")
        for number, (contained, is_there) in enumerate(CONTAINED[of]):
            change = {element: {"reference": f"#{of[0]}"}, "contained": contained}
            resources.append(made(kind, f"c{number}", change))
            resources[-1].pop("medicationCodeableConcept", None)
            path = f"{kind}.device" if of == "device" else f"{kind}.medication.ofType(Reference)"
            expected[f"{kind}/c{number}"] = [] if is_there else [("reference_contained", path)]
    found = transform(tmp_path, resources)
    assert len(expected) == 5 * 3 + 4
    assert set(found.outcomes.values()) == {"loaded"}
    assert {name: found.issues.get(name, []) for name in expected} == expected


def test_a_fact_that_cannot_be_read_is_left_out(transformed):
    assert transformed.facts["Encounter/diagnosis"]["condition_status"] == ["1"]
    assert transformed.issues["Encounter/diagnosis"] == [("row_left_out", "Encounter.diagnosis[1].condition")]


TWO_PLACES = {
    "location": [
        {"location": {"reference": "Location/a"}, "status": "planned"},
        {"location": {"reference": "Device/b"}, "period": {"start": "garbage"}},
        {"location": {"reference": "Location/c"}, "period": {"start": "2024-03-11", "end": "2024-03-10"}},
        {"location": {"reference": "#d"}, "period": {"start": "garbage"}},
    ]
}
TWO_REACTIONS = {"reaction": [REACTION | {"onset": onset} for onset in ("garbage", DAY, "2024-02-30")]}
TWO_DIAGNOSES = {"diagnosis": [{"condition": {"reference": "Device/x"}}, {"condition": {"reference": "#c"}}]}


def test_two_broken_items_of_an_array_are_two_issues(tmp_path):
    resources = [
        made("Encounter", "places", TWO_PLACES),
        made("Encounter", "uses", TWO_DIAGNOSES),
        made("AllergyIntolerance", "reactions", TWO_REACTIONS),
    ]
    found = transform(tmp_path, resources)
    assert set(found.issues["Encounter/places"]) == {
        ("date_invalid", "Encounter.location[1].period.start"),
        ("date_invalid", "Encounter.location[3].period.start"),
        ("end_before_start", "Encounter.location[2].period.end"),
        ("reference_type_unusable", "Encounter.location[1].location"),
        ("reference_contained", "Encounter.location[3].location"),
    }
    assert len(found.rows["Encounter/places"]["visit_detail"]) == 1, (
        "two say nothing but the visit; all have their issues"
    )
    assert set(found.issues["Encounter/uses"]) == {
        ("reference_type_unusable", "Encounter.diagnosis[0].condition"),
        ("reference_contained", "Encounter.diagnosis[1].condition"),
    }
    assert set(found.issues["AllergyIntolerance/reactions"]) == {
        ("date_invalid", f"AllergyIntolerance.reaction[{number}].onset") for number in (0, 2)
    }


def test_an_element_that_is_there_once_in_another_shape_is_a_dead_letter(transformed):
    assert transformed.outcomes["Encounter/class"] == "rejected:wrong_type"
    assert transformed.outcomes["Observation/own"] == "rejected:wrong_type"


def test_an_address_that_cannot_be_read_leaves_the_person(transformed):
    assert transformed.row("Patient/address", "location")["state"] == "TX"
    assert transformed.outcomes["Patient/addresses"] == "loaded"
    assert transformed.row("Patient/addresses", "person")["location_id"] is None
    assert transformed.issues["Patient/address"] == [("row_left_out", "Patient.address[0]")]
    assert transformed.issues["Patient/addresses"] == [("row_left_out", "Patient.address")]


#: Type and element → where it stands in a resource of which nothing else is wrong.
ARRAYS_BESIDE = {
    (kind, element)
    for kind, mapping in MAPPINGS.resources.items()
    for element in arrays_beside_the_own_row(kind, mapping)
}


#: Elements of which all rows or facts of a resource are made.
ALL_OF_IT = {
    ("FamilyMemberHistory", "condition"),
    ("ImagingStudy", "procedureCode"),
    ("QuestionnaireResponse", "item"),
    ("Questionnaire", "item"),
}


def test_arrays_beside_the_own_row_are_found():
    """The walk below tries what there is: these are known to be read for facts or further rows alone."""
    known = {("Patient", "link"), ("PractitionerRole", "specialty"), ("DiagnosticReport", "presentedForm")}
    known |= {("Device", "udiCarrier"), ("Questionnaire", "item"), ("AllergyIntolerance", "reaction")}
    assert known - ARRAYS_BESIDE == set()


@pytest.mark.parametrize("broken", [["x"], "x", [["x"]]], ids=str)
def test_an_array_beside_the_own_row_does_not_take_the_resource_along(broken, tmp_path):
    sound = [made(kind, f"{element}-sound") for kind, element in sorted(ARRAYS_BESIDE)]
    changed = [made(kind, element, {element: broken}) for kind, element in sorted(ARRAYS_BESIDE)]
    found = transform(tmp_path, [made("Patient", "p1"), *sound, *changed], OPTIONS)
    wrong = {}
    for kind, element in sorted(ARRAYS_BESIDE):
        name = f"{kind}/{element}"
        paths = {path for code, path in found.issues.get(name, ()) if code == "row_left_out"}
        is_there = any((path or "").startswith(f"{kind}.{element}") for path in paths)
        if (kind, element) in ALL_OF_IT:  # nothing is left
            is_as_expected = found.outcomes[name].startswith("rejected") and found.paths[name]
        else:
            is_as_expected = found.outcomes[name] == found.outcomes[f"{name}-sound"] and is_there
        if not is_as_expected:
            wrong[name] = (found.outcomes[name], found.paths.get(name), paths)
    assert wrong == {}


def test_the_other_further_rows_stay(transformed):
    assert len(transformed.rows["Patient/races"]["observation"]) == 2
    assert "death" not in transformed.rows["Patient/races"]
    for name in ("comparator", "nested"):
        assert len(transformed.rows[f"Observation/{name}"]["observation"]) == 2
        # Of a number and of a text: about one component, whatever view reads it.
        found = [path for code, path in transformed.issues[f"Observation/{name}"] if code == "row_left_out"]
        assert len({path.split("]")[0] for path in found}) == 1


@pytest.mark.parametrize("depth", [50, 240])
def test_items_may_be_nested_as_deeply_as_json_is_read(depth, tmp_path):
    item = {"linkId": "1", "answer": [{"valueInteger": "x"}, {"valueInteger": 1}]}
    for _ in range(depth // 2):
        item = {"linkId": "g", "item": [item]}
    found = transform(tmp_path, [made("QuestionnaireResponse", "deep", {"item": [item]})])
    assert found.outcomes["QuestionnaireResponse/deep"] in {
        "loaded",
        "rejected:wrong_type",
        "rejected:evaluation_failed",
    }


def deep(first, *, depth=2000, last=""):
    return f'{{{first}"extension": {"[" * depth}{"]" * depth}{last}}}'.encode()


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (deep('"resourceType":"Patient","id":"d1",'), "Patient/d1"),
        (deep("", last=', "id" : "d2" , "resourceType": "Patient"'), "Patient/d2"),
        (
            deep('"contained":[{"id":"x","resourceType":"Device"}],"resourceType":"Patient","id":"d\\u0033",'),
            "Patient/d3",
        ),
        (deep('"name":"\\"id\\":\\"x","resourceType":"Patient","id":"d4",'), "Patient/d4"),
        (deep('"resourceType":"Patient","id":5,'), "Patient/None"),
        (deep('"id":"d5",'), "Patient/None"),
        (deep('"resourceType":"Patient","id":"d6\\u0000",'), "Patient/None"),
        (deep('"resourceType":"Patient","id":"d7","note":" x",', depth=1000), "Patient/d7"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_dead_letter_of_what_is_nested_too_deeply_names_the_resource(line, name, tmp_path):
    found = transform(tmp_path, [], lines={"Patient": [line]})
    assert found.outcomes == {name: "rejected:nested_too_deeply"}


#: Columns that read the resource as a whole: what is wrong in it, and where the dead letter says that is.
WHOLE = [
    ("MedicationRequest", {"dosageInstruction": [{"text": "x"}, {"text": 5}]}, "dosageInstruction[1].text"),
    ("MedicationStatement", {"dosage": [{"text": "x"}, "x"]}, "dosage[1]"),
    ("MedicationRequest", {"dosageInstruction": [{"timing": "x"}]}, "dosageInstruction[0].timing"),
    ("Location", {"address": {"line": 5}}, None),
    (
        "DocumentReference",
        {"content": [{"attachment": {"contentType": "text/plain", "data": 5}}]},
        "content[0].attachment.data",
    ),
    ("Organization", {"type": [{"text": "x"}, {"coding": "x"}]}, "type[1].coding"),
]


def test_dead_letters_say_where_in_the_resource(tmp_path):
    resources = [made(kind, f"w{number}", change) for number, (kind, change, _) in enumerate(WHOLE)]
    found = transform(tmp_path, resources, OPTIONS)
    for number, (kind, change, path) in enumerate(WHOLE):
        name = f"{kind}/w{number}"
        if path is None:  # a further row
            assert found.issues[name] == [("row_left_out", f"{kind}.address.line")], change
        else:
            assert found.paths[name] == f"{kind}.{path}", change
