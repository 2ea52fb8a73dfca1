# ruff: noqa: DTZ001 - the datetimes of OMOP columns carry no zone

"""Every date element of every mapping: which one counts, and that the others are issues. One table of cases."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pytest

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.transform.mapping.mappings import load_mappings
from tests.transforming import AS_OF, PATIENT, transform

BAD = ["garbage", "infinity", "2020-02-31", "2020-13", "00.00.0000", "2020-02-31T10:00:00Z", "last week"]
START, OTHER, END = "2024-03-10", "2024-05-06", "2024-04-01"

#: A resource of each type that lacks nothing but its dates.
RESOURCES = {
    "AllergyIntolerance": {"patient": PATIENT, "code": {"text": "x"}},
    "Condition": {"subject": PATIENT, "code": {"text": "x"}},
    "Coverage": {"status": "active", "beneficiary": PATIENT},
    "Device": {"status": "active", "patient": PATIENT, "type": {"text": "x"}},
    "DeviceUseStatement": {"status": "active", "subject": PATIENT, "device": {"reference": "Device/d"}},
    "DiagnosticReport": {"status": "final", "subject": PATIENT, "code": {"text": "x"}},
    "DocumentReference": {
        "status": "current",
        "subject": PATIENT,
        "type": {"text": "x"},
        "content": [{"attachment": {"contentType": "text/plain", "data": "eA=="}}],
    },
    "Encounter": {"status": "finished", "subject": PATIENT, "class": {"code": "AMB"}},
    "FamilyMemberHistory": {"status": "completed", "patient": PATIENT, "condition": [{"code": {"text": "x"}}]},
    "ImagingStudy": {"status": "available", "subject": PATIENT, "procedureCode": [{"text": "x"}]},
    "Immunization": {"status": "completed", "patient": PATIENT, "vaccineCode": {"text": "x"}},
    "MedicationAdministration": {
        "status": "completed",
        "subject": PATIENT,
        "medicationCodeableConcept": {"text": "x"},
    },
    "MedicationDispense": {"status": "completed", "subject": PATIENT, "medicationCodeableConcept": {"text": "x"}},
    "MedicationRequest": {
        "status": "active",
        "intent": "order",
        "subject": PATIENT,
        "medicationCodeableConcept": {"text": "x"},
    },
    "MedicationStatement": {"status": "active", "subject": PATIENT, "medicationCodeableConcept": {"text": "x"}},
    "Observation": {"status": "final", "subject": PATIENT, "code": {"text": "x"}, "valueString": "x"},
    "Patient": {},
    "Practitioner": {},
    "Procedure": {"status": "completed", "subject": PATIENT, "code": {"text": "x"}},
    "QuestionnaireResponse": {
        "status": "completed",
        "subject": PATIENT,
        "item": [{"linkId": "1", "answer": [{"valueInteger": 1}]}],
    },
    "Specimen": {"subject": PATIENT, "type": {"text": "x"}},
}


@dataclass(frozen=True)
class Dates:
    """The date columns of one type, in the order in which they count; the column of the table that they fill."""

    table: str
    start: str
    starts: tuple[str, ...]
    end: str = ""
    ends: tuple[str, ...] = ()


TABLE = {
    "AllergyIntolerance": Dates(
        "observation",
        "observation_date",
        ("onset_datetime", "onset_period_start", "recorded_date", "last_occurrence"),
    ),
    "Condition": Dates(
        "condition_occurrence",
        "condition_start_date",
        ("onset_datetime", "onset_period_start", "recorded_date"),
        "condition_end_date",
        ("abatement_datetime", "abatement_period_end"),
    ),
    "Coverage": Dates(
        "payer_plan_period", "payer_plan_period_start_date", ("start",), "payer_plan_period_end_date", ("end",)
    ),
    "Device": Dates("device_exposure", "device_exposure_start_date", ("manufacture_date",)),
    "DeviceUseStatement": Dates(
        "device_exposure",
        "device_exposure_start_date",
        ("timing_datetime", "timing_period_start", "timing_bounds_start", "timing_event", "recorded_on"),
        "device_exposure_end_date",
        ("timing_period_end", "timing_bounds_end"),
    ),
    "DiagnosticReport": Dates(
        "observation", "observation_date", ("effective_datetime", "effective_period_start", "issued")
    ),
    "DocumentReference": Dates("note", "note_date", ("document_date", "context_period_start")),
    "Encounter": Dates("visit_occurrence", "visit_start_date", ("start",), "visit_end_date", ("end",)),
    "FamilyMemberHistory": Dates("observation", "observation_date", ("recorded_date",)),
    "ImagingStudy": Dates("procedure_occurrence", "procedure_date", ("started",)),
    "Immunization": Dates("drug_exposure", "drug_exposure_start_date", ("occurrence", "recorded")),
    "MedicationAdministration": Dates(
        "drug_exposure",
        "drug_exposure_start_date",
        ("effective_datetime", "effective_period_start"),
        "drug_exposure_end_date",
        ("effective_period_end",),
    ),
    "MedicationDispense": Dates("drug_exposure", "drug_exposure_start_date", ("handed_over", "prepared")),
    "MedicationRequest": Dates(
        "drug_exposure",
        "drug_exposure_start_date",
        ("authored_on",),
        "drug_exposure_end_date",
        ("bounds_end", "validity_end"),
    ),
    "MedicationStatement": Dates(
        "drug_exposure",
        "drug_exposure_start_date",
        ("effective_datetime", "effective_period_start", "date_asserted"),
        "drug_exposure_end_date",
        ("effective_period_end",),
    ),
    "Observation": Dates(
        "observation",
        "observation_date",
        ("effective_datetime", "effective_instant", "effective_period_start", "effective_timing_event", "issued"),
    ),
    "Procedure": Dates(
        "procedure_occurrence",
        "procedure_date",
        ("performed_datetime", "performed_start"),
        "procedure_end_date",
        ("performed_end",),
    ),
    "QuestionnaireResponse": Dates("observation", "observation_date", ("authored",)),
    "Specimen": Dates("specimen", "specimen_date", ("collected_datetime", "collected_period_start", "received_time")),
}

#: Date columns that have cases of their own below: births, deaths, places, reactions.
OTHERS = {
    ("DiagnosticReport", "value_datetime"),  # a contained result's value
    # of results that a report or panel contains: as an Observation's own, by a rule of theirs
    *(
        (kind, f"contained_{name}")
        for kind in ("DiagnosticReport", "Observation")
        for name in ("datetime", "instant", "period_start", "timing_event", "issued")
    ),
    ("Patient", "birth_date"),
    ("Patient", "deceased_datetime"),
    ("Practitioner", "birth_date"),
    ("Encounter", "place_start"),
    ("Encounter", "place_end"),
    ("AllergyIntolerance", "reaction_onset"),
    ("DiagnosticReport", "effective_instant"),  # DiagnosticReport has none
    ("Observation", "value_datetime"),  # a value: not when something was
    ("QuestionnaireResponse", "value_datetime"),
}
#: Columns whose converter finds the dates: where they are.
PATHS = {
    "effective_timing_event": "effective.ofType(Timing).event.first()",
    "timing_event": "timing.ofType(Timing).event.first()",
    "bounds_end": "dosageInstruction.first().timing.repeat.bounds.ofType(Period).end",
    "bounds_end_unusable": "$this",
}

MAPPINGS = load_mappings(MAPPINGS_FOLDER, None, MappingOptions(notes="on", device_alone="manufacture_date"))
OPTIONS = {"notes": "on", "device_alone": "manufacture_date"}


def paths_of(resource_type):
    mapping = MAPPINGS.resources[resource_type]
    return {name: path for view in mapping.views for name, path in view.column_paths.items()}


def issue_path(resource_type, column):
    column = "bounds_end_unusable" if column == "bounds_end" else column
    return f"{resource_type}.{paths_of(resource_type)[column]}"


def _put(node, steps, value):
    """Set an element by the steps of a view's FHIRPath."""
    name, *rest = steps
    is_list = False
    while rest and (rest[0].startswith("ofType(") or rest[0] == "first()"):
        step, *rest = rest
        if step == "first()":
            is_list = True
        else:
            name += step[7].upper() + step[8:-1]
    if not rest:
        node[name] = [value] if is_list else value
        return node
    if is_list:
        (inner,) = node.setdefault(name, [{}])
    else:
        inner = node.setdefault(name, {})
    _put(inner, rest, value)
    return node


def resource(resource_type, name, **columns):
    made = {"resourceType": resource_type, "id": name, **copy.deepcopy(RESOURCES[resource_type])}
    for column, value in columns.items():
        _put(made, PATHS.get(column, paths_of(resource_type)[column]).split("."), value)
    return made


@dataclass(frozen=True)
class Case:
    """One resource, and what it becomes. Dates as text; `end` None: not compared; issues as (code, column)."""

    name: str
    resource_type: str
    columns: tuple[tuple[str, str], ...]
    outcome: str = "loaded"
    path: str | None = None
    start: str | None = None
    end: str | None = None
    issues: tuple[tuple[str, str], ...] = ()


def cases() -> Iterator[Case]:
    for kind, dates in TABLE.items():
        yield from start_cases(kind, dates.starts)
        yield from end_cases(kind, dates)


def start_cases(kind: str, starts: tuple[str, ...]) -> Iterator[Case]:
    for number, first in enumerate(starts):
        yield Case("alone", kind, ((first, START),), start=START)
        for bad in BAD:
            yield lacking(kind, first, bad)
        for code, odd in (("date_out_of_range", "1849-12-31"), ("date_out_of_range", "2027-01-01")):
            yield Case(odd, kind, ((first, odd),), start=odd, issues=((code, first),))
        yield Case(
            "epoch", kind, ((first, "1970-01-01T00:00:00Z"),), start="1970-01-01", issues=(("date_sentinel", first),)
        )
        yield Case("epoch-day", kind, ((first, "1970-01-01"),), start="1970-01-01")
        yield Case("first-year", kind, ((first, "1850-01-01"),), start="1850-01-01")
        yield Case("next-year", kind, ((first, "2026-12-31"),), start="2026-12-31")
        for second in starts[number + 1 :]:
            yield Case("both", kind, ((first, START), (second, OTHER)), start=START)
            yield Case("unread", kind, ((first, START), (second, "garbage")), start=START)
            for bad in BAD:
                issue = (("date_invalid", first),)
                yield Case(bad, kind, ((first, bad), (second, OTHER)), start=OTHER, issues=issue)
            for epoch in ("1970-01-01T00:00:00Z", "1969-12-31T18:00:00-06:00", "9999-12-31"):
                issue = (("date_sentinel", first),)
                yield Case(epoch, kind, ((first, epoch), (second, OTHER)), start=OTHER, issues=issue)


def lacking(kind: str, first: str, bad: str) -> Case:
    """No usable date: a dead letter. Of a Device, whose exposure is a further row, it is that the row is not there."""
    if kind == "Device":
        issues = (("date_invalid", first), ("row_left_out", first))
        return Case(bad, kind, ((first, bad),), outcome="excluded:device_not_use", issues=issues)
    return Case(bad, kind, ((first, bad),), outcome="rejected:date_invalid", path=issue_path(kind, first))


def end_cases(kind: str, dates: Dates) -> Iterator[Case]:
    first = dates.starts[0]
    for number, end in enumerate(dates.ends):
        without = {"Coverage": AS_OF.isoformat(), "Encounter": START, "MedicationAdministration": START}
        without |= {"MedicationRequest": "2024-04-08", "MedicationStatement": START, "DeviceUseStatement": ""}
        none = without.get(kind, "")
        unusable = START if kind == "Coverage" else none
        yield Case("end", kind, ((first, START), (end, END)), start=START, end=END)
        for is_open in ("9999-12-31", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00", "9999"):
            yield Case(is_open, kind, ((first, START), (end, is_open)), start=START, end=none)
        for bad in BAD:
            issue = (("date_invalid", end),)
            yield Case(bad, kind, ((first, START), (end, bad)), start=START, end=unusable, issues=issue)
        early = (("end_before_start", early_column(end)),)
        for one, other in (
            (START, "2024-03-09"),
            (f"{START}T10:00:00Z", f"{START}T09:59:59Z"),
            (f"{START}T10:00:00+02:00", f"{START}T08:30:00+01:00"),
        ):
            yield Case(other, kind, ((first, one), (end, other)), start=START, end=unusable, issues=early)
        for one, other in ((START, "2023"), (START, "2024-02"), ("2024-03", "2024-02-29"), ("2024-03", "2023")):
            begun = START if one == START else f"{one}-01"
            instead = unusable.replace(START, begun)
            instead = instead.replace("2024-04-08", "2024-04-08" if one == START else "2024-03-30")
            yield Case(other, kind, ((first, one), (end, other)), start=begun, end=instead, issues=early)
        for one, other in ((START, "2024"), (START, "2024-03"), (f"{START}T10:00:00Z", "2024"), ("2024-03", "2024")):
            begun = "2024-03-01" if one == "2024-03" else START
            yield Case(f"{one}/{other}", kind, ((first, one), (end, other)), start=begun, end=begun)
        yield Case("2024/2024-03", kind, ((first, "2024"), (end, "2024-03")), start="2024-01-01", end="2024-03-01")
        for one, other in ((START, f"{START}T00:00:00Z"), (f"{START}T10:00:00Z", START)):
            yield Case(f"{one}/{other}", kind, ((first, one), (end, other)), start=START, end=START)
        late = (("date_out_of_range", early_column(end)),)
        yield Case("2999", kind, ((first, START), (end, "2999-01-01")), start=START, end="2999-01-01", issues=late)
        for second in dates.ends[number + 1 :]:
            issue = (("date_invalid", end),)
            columns = ((first, START), (end, "garbage"), (second, END))
            yield Case("garbage", kind, columns, start=START, end=END, issues=issue)
            yield Case("9999", kind, ((first, START), (end, "9999-12-31"), (second, END)), start=START, end=END)


def early_column(end: str) -> str:
    return "bounds_end!" if end == "bounds_end" else end


CASES = list(cases())
NOT_COMPARED = {"date_imputed", "start_is_manufacture_date"}


EVENTS = [
    # events, the date, issues
    ([START, "garbage"], START, []),
    (["garbage", START], START, ["date_invalid"]),
    (["2020-02-31", "garbage", START, OTHER], START, ["date_invalid"]),
    (["1970-01-01T00:00:00Z", START], START, ["date_sentinel"]),
    (["1969-12-31T18:00:00-06:00", START], START, ["date_sentinel"]),
    (["9999-12-31", START], START, ["date_sentinel"]),
    (["garbage", "1970-01-01T00:00:00Z"], "1970-01-01", ["date_invalid", "date_sentinel"]),
    (["garbage", "also"], None, []),
    ([None, START], START, []),
]


@pytest.mark.parametrize(
    ("kind", "column"), [("Observation", "effectiveTiming"), ("DeviceUseStatement", "timingTiming")]
)
def test_the_first_usable_event_of_a_timing_counts(kind, column, tmp_path):
    made = [resource(kind, f"e{number}") | {column: {"event": events}} for number, (events, *_) in enumerate(EVENTS)]
    found = transform(tmp_path, made, MappingOptions(**OPTIONS))
    dates = TABLE[kind]
    path = f"{kind}.{column.removesuffix('Timing')}.ofType(Timing).event"
    for number, (events, day, codes) in enumerate(EVENTS):
        name = f"{kind}/e{number}"
        if day is None:
            assert (found.outcomes[name], found.paths[name]) == ("rejected:date_invalid", path)
            continue
        assert str(found.row(name, dates.table)[dates.start]) == day, events
        assert found.issues.get(name, []) == [(code, path) for code in codes], events


@pytest.mark.parametrize("end", ["garbage", "2024-02-31", "2024-03-09"])
def test_an_end_of_a_stay_that_cannot_be_used_is_an_issue(end, tmp_path):
    period = {"start": START, "end": end}
    place = {"location": {"reference": "Location/l"}, "period": period}
    stays = [
        resource("Encounter", "visit") | {"class": INPATIENT, "period": period},
        resource("Encounter", "place") | {"class": INPATIENT, "period": {"start": START}, "location": [place]},
    ]
    found = transform(tmp_path, stays)
    code = "end_before_start" if end == "2024-03-09" else "date_invalid"
    assert found.issues["Encounter/visit"] == [(code, "Encounter.period.end")]
    assert str(found.row("Encounter/visit", "visit_occurrence")["visit_end_date"]) == START
    assert [issue for issue in found.issues["Encounter/place"] if issue[0] == code]


INPATIENT = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}


@pytest.fixture(scope="module")
def transformed(tmp_path_factory):
    """All cases, each a resource whose id is the number of the case."""
    made = [{"resourceType": "Patient", "id": "p1", "birthDate": "1960-05-04"}]
    made += [resource(case.resource_type, str(number), **dict(case.columns)) for number, case in enumerate(CASES)]
    return transform(tmp_path_factory.mktemp("dates"), made, MappingOptions(**OPTIONS))


def test_the_table_names_every_date_of_every_mapping():
    named = {(kind, column) for kind, dates in TABLE.items() for column in (*dates.starts, *dates.ends)}
    found = {
        (kind, name)
        for kind, mapping in MAPPINGS.resources.items()
        for view in mapping.views
        for name, type_name in view.column_types.items()
        if type_name in {"date", "dateTime", "instant", "dosage_end", "usable_event"}
    }
    assert found - named - OTHERS == set()


@pytest.mark.parametrize("kind", TABLE)
def test_the_first_usable_date_counts(kind, transformed):
    dates = TABLE[kind]
    wrong = []
    for number, case in enumerate(CASES):
        if case.resource_type == kind and (problem := difference(case, f"{kind}/{number}", dates, transformed)):
            wrong.append((case.columns, *problem))
    assert wrong == []


def difference(case, reference, dates, transformed):
    outcome = transformed.outcomes[reference]
    expected = sorted((code, issue_path_of(case, column)) for code, column in case.issues)
    found = sorted(issue for issue in set(transformed.issues.get(reference, ())) if issue[0] not in NOT_COMPARED)
    if outcome != case.outcome or transformed.paths.get(reference) != case.path:
        return outcome, transformed.paths.get(reference)
    if outcome == "loaded":
        row = transformed.row(reference, dates.table)
        if str(row[dates.start]) != case.start:
            return dates.start, row[dates.start]
        if case.end is not None and str(row[dates.end] or "") != case.end:
            return dates.end, row[dates.end]
    elif outcome.startswith("rejected"):
        return None
    return None if found == expected else ("issues", found)


def issue_path_of(case, column):
    if column.endswith("!"):
        return f"{case.resource_type}.{paths_of(case.resource_type)[column[:-1]]}"
    return issue_path(case.resource_type, column)


# --- births, deaths, places, reactions, zones ---------------------------------------------------------------------------


def patient(name, **elements):
    return {"resourceType": "Patient", "id": name, **elements}


def encounter(name, period, *places, code="IMP"):
    locations = [
        {"location": {"reference": f"Location/{number}"}, "period": place} for number, place in enumerate(places)
    ]
    return {
        "resourceType": "Encounter",
        "id": name,
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": code},
        "subject": PATIENT,
        "period": period,
        "location": locations,
    }


def allergy(name, onset):
    reaction = [{"onset": onset, "manifestation": [{"text": "x"}]}]
    return resource("AllergyIntolerance", name, recorded_date=START) | {"reaction": reaction}


def aged(name, value, code="a", person="p1"):
    made = resource("Condition", name, recorded_date=START)
    return made | {"subject": {"reference": f"Patient/{person}"}, "onsetAge": {"value": value, "code": code}}


NIGHT = {"start": "2024-03-10T09:00:00Z"}
MIXED = [
    patient("p1", birthDate="1960-05-04"),
    patient("timed", birthDate="2001-01-01T00:00:00Z"),
    patient("timed-offset", birthDate="2001-01-01T23:30:00-05:00"),
    patient("unknown", birthDate="1900-01-01"),
    patient("old", birthDate="1840-05-04"),
    patient("dead-never", birthDate="1960-05-04", deceasedDateTime="9999-12-31"),
    patient("dead-at-epoch", birthDate="1960-05-04", deceasedDateTime="1970-01-01T00:00:00Z"),
    patient("dead-2099", birthDate="1960-05-04", deceasedDateTime="2099-01-01"),
    {"resourceType": "Practitioner", "id": "garbage", "birthDate": "garbage"},
    {"resourceType": "Practitioner", "id": "unknown", "birthDate": "1900-01-01"},
    {"resourceType": "Practitioner", "id": "timed", "birthDate": "1970-01-01T00:00:00Z"},
    encounter("bad-place-start", NIGHT, {"start": "2024-02-30T10:00:00Z"}),
    encounter("bad-place-end", {**NIGHT, "end": "2024-03-12T09:00:00Z"}, {"start": "2024-03-11", "end": "garbage"}),
    encounter(
        "early-place-end",
        {**NIGHT, "end": "2024-03-12T09:00:00Z"},
        {"start": "2024-03-11T10:00:00Z", "end": "2024-03-11T09:00:00Z"},
    ),
    encounter("open-place", {**NIGHT, "end": "9999-12-31"}, {"start": "2024-03-11T10:00:00.5Z", "end": "9999-12-31"}),
    encounter("over-before-its-place", {**NIGHT, "end": "2024-03-10T10:00:00Z"}, {"start": "2024-03-10T11:00:00Z"}),
    allergy("reaction-garbage", "garbage"),
    allergy("reaction-epoch", "1970-01-01T00:00:00Z"),
    allergy("reaction-day", "2024-02-01"),
    aged("by-age", 45),
    aged("by-hours", 45, "h"),
    aged("of-unknown-birth", 45, person="unknown"),
    resource("MedicationRequest", "last-day", authored_on="9999-12-31"),
    resource("Observation", "leap", effective_datetime="2016-12-31T23:59:60Z"),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return transform(tmp_path_factory.mktemp("mixed"), MIXED)


@pytest.mark.parametrize(
    ("name", "born", "issues"),
    [
        ("p1", (1960, 5, 4), []),
        ("timed", (2001, 1, 1), []),
        ("timed-offset", (2001, 1, 1), []),
        ("unknown", (1900, 1, 1), [("date_sentinel", "Patient.birthDate")]),
        ("old", (1840, 5, 4), [("date_out_of_range", "Patient.birthDate")]),
    ],
)
def test_births(name, born, issues, mixed):
    row = mixed.row(f"Patient/{name}", "person")
    assert (row["year_of_birth"], row["month_of_birth"], row["day_of_birth"]) == born
    assert mixed.issues.get(f"Patient/{name}", []) == issues


def test_a_birth_is_not_shifted_in_any_zone(tmp_path):
    found = transform(tmp_path, MIXED[:3], site_zone="America/Chicago", instance_zone="America/Chicago")
    assert found.row("Patient/timed", "person")["day_of_birth"] == 1
    assert found.facts["Patient/timed"]["birth_date"] == ["2001-01-01"]


def test_a_birth_of_a_provider_is_optional(mixed):
    path = "Practitioner.birthDate"
    assert mixed.row("Practitioner/garbage", "provider")["year_of_birth"] is None
    assert mixed.issues["Practitioner/garbage"] == [("date_invalid", path)]
    assert mixed.row("Practitioner/unknown", "provider")["year_of_birth"] is None
    assert mixed.issues["Practitioner/unknown"] == [("date_sentinel", path)]
    assert mixed.row("Practitioner/timed", "provider")["year_of_birth"] == 1970
    assert "Practitioner/timed" not in mixed.issues


def test_sentinels_are_no_deaths(mixed):
    path = "Patient.deceased.ofType(dateTime)"
    for name in ("dead-never", "dead-at-epoch"):
        assert "death" not in mixed.rows[f"Patient/{name}"]
        assert mixed.issues[f"Patient/{name}"] == [("date_sentinel", path), ("row_left_out", path)]
    assert mixed.row("Patient/dead-2099", "death")["death_date"].year == 2099
    assert mixed.issues["Patient/dead-2099"] == [("date_out_of_range", path)]


def place_path(end):
    return f"Encounter.location[0].period.{end}"


@pytest.mark.parametrize(
    ("name", "start", "end", "issues"),
    [
        ("bad-place-start", datetime(2024, 3, 10, 9), datetime(2025, 1, 31), [("date_invalid", "start")]),
        ("bad-place-end", datetime(2024, 3, 11), datetime(2024, 3, 12, 9), [("date_invalid", "end")]),
        ("early-place-end", datetime(2024, 3, 11, 10), datetime(2024, 3, 12, 9), [("end_before_start", "end")]),
        ("open-place", datetime(2024, 3, 11, 10, 0, 0, 500_000), datetime(2025, 1, 31), []),
        ("over-before-its-place", datetime(2024, 3, 10, 11), datetime(2024, 3, 10, 11), []),
    ],
)
def test_places(name, start, end, issues, mixed):
    row = mixed.row(f"Encounter/{name}", "visit_detail")
    assert (row["visit_detail_start_datetime"], row["visit_detail_end_datetime"]) == (start, end)
    found = [issue for issue in set(mixed.issues.get(f"Encounter/{name}", [])) if issue[0] != "date_imputed"]
    assert found == [(code, place_path(end)) for code, end in issues]


def test_an_end_of_9999_leaves_a_stay_open(mixed):
    facts = mixed.facts["Encounter/open-place"]
    assert facts["open_stay"] == ["2024-03-10T09:00:00Z"]
    assert facts["open_stay_detail"] == ["2024-03-11 10:00:00.500000"]
    assert mixed.row("Encounter/open-place", "visit_occurrence")["visit_end_date"] == AS_OF
    # The start that open_stay_detail.sql compares is that of the detail, whatever the place says.
    assert mixed.facts["Encounter/bad-place-start"]["open_stay_detail"] == ["2024-03-10 09:00:00.000000"]
    assert "open_stay" not in mixed.facts["Encounter/bad-place-end"]


def test_reactions(mixed):
    days = {
        name: [row["observation_date"].isoformat() for row in mixed.rows[f"AllergyIntolerance/{name}"]["observation"]]
        for name in ("reaction-garbage", "reaction-epoch", "reaction-day")
    }
    assert days == {
        "reaction-garbage": [START, START],
        "reaction-epoch": [START, START],
        "reaction-day": [START, "2024-02-01"],
    }
    path = "AllergyIntolerance.reaction[0].onset"
    assert mixed.issues["AllergyIntolerance/reaction-garbage"] == [("date_invalid", path)]
    assert mixed.issues["AllergyIntolerance/reaction-epoch"] == [("date_sentinel", path)]


def test_ages(mixed):
    path = "Condition.onset.ofType(Age)"
    days = {
        name: mixed.row(f"Condition/{name}", "condition_occurrence")["condition_start_date"].isoformat()
        for name in ("by-age", "by-hours", "of-unknown-birth")
    }
    assert days == {"by-age": "2005-05-04", "by-hours": START, "of-unknown-birth": START}
    assert mixed.issues["Condition/by-hours"] == [("date_invalid", path)]


def test_no_end_lies_beyond_the_last_year(mixed):
    row = mixed.row("MedicationRequest/last-day", "drug_exposure")
    assert row["drug_exposure_end_date"] == row["drug_exposure_start_date"]


def test_a_leap_second_stays_in_its_day(mixed):
    assert mixed.row("Observation/leap", "observation")["observation_date"].isoformat() == "2016-12-31"


def test_ends_are_compared_by_the_clock_also_in_the_hour_that_is_repeated(tmp_path):
    """01:30 of summer time is before 01:10 of winter time, and the other way round."""
    forth = {"start": "2024-11-03T06:30:00Z", "end": "2024-11-03T07:10:00Z"}
    back = {"start": "2024-11-03T07:10:00Z", "end": "2024-11-03T06:30:00Z"}
    made = [MIXED[0], encounter("forth", forth, code="AMB"), encounter("back", back, code="AMB")]
    found = transform(tmp_path, made, site_zone="America/Chicago", instance_zone="America/Chicago")
    assert "Encounter/forth" not in found.issues
    assert found.issues["Encounter/back"] == [("end_before_start", "Encounter.period.end")]


def test_implausible_dates_are_exclusions_by_option(tmp_path):
    options = MappingOptions(implausible_dates="exclude", device_alone="manufacture_date", notes="on")
    years = {"old": "1849-12-31", "late": "2027-01-01", "epoch": "1970-01-01T00:00:00Z", "sound": START}
    made = [
        MIXED[0],
        patient("old", birthDate="1849-12-31"),
        patient("dead", birthDate="1960", deceasedDateTime="1840"),
    ]
    made += [
        resource(kind, name, **{dates.starts[0]: day}) for kind, dates in TABLE.items() for name, day in years.items()
    ]
    made += [resource("Procedure", "ends", performed_start=START, performed_end="2099-01-01")]
    found = transform(tmp_path, made, options)
    excluded = dict.fromkeys(TABLE, "excluded:date_implausible") | {"Device": "excluded:device_not_use"}
    for kind in TABLE:
        outcomes = {name: found.outcomes[f"{kind}/{name}"] for name in years}
        assert outcomes == dict.fromkeys(years, excluded[kind]) | {"sound": "loaded"}, kind
    assert found.outcomes["Patient/old"] == "excluded:date_implausible"
    assert found.outcomes["Patient/dead"] == "loaded"
    assert "death" not in found.rows["Patient/dead"]
    assert ("row_left_out", "Patient.deceased.ofType(dateTime)") in found.issues["Patient/dead"]
    assert found.row("Procedure/ends", "procedure_occurrence")["procedure_end_date"] is None
