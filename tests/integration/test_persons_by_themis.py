"""Themis' conventions of persons, deaths, periods and care sites, from FHIR to the derived rows.

One warehouse holds a person for each case. The demonstration vocabulary has no concept of races or histories: what makes no
period must not do so for the sake of a concept.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings
from pipeline.publication.steps import bulk
from pipeline.warehouse.runtime import Runtime
from tests.databases import Prepared, empty
from tests.integration.conftest import warehouse_of
from tests.integration.support import Warehouse, encounter, observation, patient, reference
from tests.warehouse_content import Content, differences, warehouse_content

US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core"
SNOMED = "http://snomed.info/sct"
#: Without a concept: the row stays in the table of its resource.
CODE = {"coding": [{"system": "urn:example:codes", "code": "1"}]}

Resource = dict[str, Any]
Days = tuple[str, str]


def visit(start: str, end: str | None = None, number: int = 1, **more: Any) -> Resource:
    period = {"start": start, "end": end or start}
    return {"resourceType": "Encounter", **encounter(f"e{number}", "p", period=period, **more)}


def condition(**more: Any) -> Resource:
    return {
        "resourceType": "Condition",
        "id": "c1",
        "subject": reference("Patient", "p"),
        "category": [{"coding": [{"code": "encounter-diagnosis"}]}],
        "code": CODE,
        **more,
    }


def result(**more: Any) -> Resource:
    return {"resourceType": "Observation", **observation("o1", "p"), "effectiveDateTime": None, **more}


def of_patient(kind: str, element: str = "subject", **more: Any) -> Resource:
    return {"resourceType": kind, "id": f"{kind}-1".lower(), element: reference("Patient", "p"), **more}


def us_core(name: str, *codes: str) -> Resource:
    oid = "urn:oid:2.16.840.1.113883.6.238"
    categories = [{"url": "ombCategory", "valueCoding": {"system": oid, "code": code}} for code in codes]
    return {"url": f"{US_CORE}-{name}", "extension": categories}


IDENTITY = {
    "url": f"{US_CORE}-genderIdentity",
    "valueCodeableConcept": {"coding": [{"system": SNOMED, "code": "446151000124109"}]},
}
TWO_RACES = [us_core("race", "2106-3", "2028-9"), us_core("ethnicity", "2135-2", "2186-5"), IDENTITY]


@dataclass(frozen=True)
class Case:
    """A person (born on 1980-05-04 unless it says otherwise), what is known of them, and their periods."""

    resources: tuple[Resource, ...] = ()
    periods: tuple[Days, ...] = ()
    person: Mapping[str, Any] = field(default_factory=dict)
    #: contact_date of the rows of events whose lineage has one
    contacts: tuple[str, ...] = ()


#: A visit on 2024-02-01 makes this period, and so does what was recorded then.
FEBRUARY = ("2024-02-01", "2024-04-01")
CASES = {
    "one event": Case((visit("2024-02-01"),), (FEBRUARY,)),
    "an onset long before it was recorded": Case(
        (condition(onsetDateTime="1995-01-01", recordedDate="2024-02-01"),), (FEBRUARY,), contacts=("2024-02-01",)
    ),
    "an onset before the birth": Case(
        (
            condition(onsetDateTime="1970-01-01", recordedDate="2024-03-01", encounter=reference("Encounter", "e1")),
            visit("2024-02-01"),
        ),
        (FEBRUARY,),
        contacts=("2024-02-01",),
    ),
    "an onset before the birth of which nothing else is known": Case((condition(onsetDateTime="1970-01-01"),)),
    "an onset without more": Case((condition(onsetDateTime="1995-01-01"),), (("1995-01-01", "1995-03-02"),)),
    "an allergy of childhood": Case(
        (
            of_patient(
                "AllergyIntolerance", "patient", code=CODE, onsetDateTime="1989-05-01", recordedDate="2024-02-01"
            ),
        ),
        (FEBRUARY,),
        contacts=("2024-02-01",),
    ),
    "an operation of which a visit tells": Case(
        (
            of_patient(
                "Procedure",
                status="completed",
                code=CODE,
                performedDateTime="1985-07-01",
                encounter=reference("Encounter", "e1"),
            ),
            visit("2024-02-01"),
        ),
        (FEBRUARY,),
    ),
    "a vaccine of childhood": Case(
        (
            of_patient(
                "Immunization",
                "patient",
                status="completed",
                vaccineCode=CODE,
                occurrenceDateTime="1990-01-01",
                recorded="2024-02-01",
            ),
        ),
        (FEBRUARY,),
        contacts=("2024-02-01",),
    ),
    "a drug of which a patient tells": Case(
        (
            of_patient(
                "MedicationStatement",
                status="completed",
                medicationCodeableConcept=CODE,
                effectiveDateTime="1998-01-01",
                dateAsserted="2024-02-01",
            ),
        ),
        (FEBRUARY,),
        contacts=("2024-02-01",),
    ),
    "a result from elsewhere": Case(
        (result(effectiveDateTime="2001-01-01", issued="2024-02-01T10:00:00Z"),), (FEBRUARY,), contacts=("2024-02-01",)
    ),
    "a result that took some days": Case(
        (result(effectiveDateTime="2024-02-01", issued="2024-02-05T10:00:00Z"),), (FEBRUARY,), contacts=("2024-02-05",)
    ),
    "a result after the visit that ordered it": Case(
        (
            visit("2024-02-01"),
            result(
                effectiveDateTime="2024-02-11", issued="2024-02-12T10:00:00Z", encounter=reference("Encounter", "e1")
            ),
        ),
        (("2024-02-01", "2024-04-11"),),
        contacts=("2024-02-12",),
    ),
    "an order that was written before its bounds": Case(
        (
            of_patient(
                "MedicationRequest",
                status="active",
                intent="order",
                medicationCodeableConcept=CODE,
                authoredOn="2024-02-01",
                dosageInstruction=[{"timing": {"repeat": {"boundsPeriod": {"start": "2010-01-01"}}}}],
            ),
        ),
        (FEBRUARY,),
        contacts=("2024-02-01",),
    ),
    "a visit that spans the birth": Case((visit("1980-05-01", "1980-05-10"),), (("1980-05-04", "1980-07-09"),)),
    "a visit before the birth": Case((visit("1979-12-01"),)),
    "races and gender identity alone": Case(person={"extension": TWO_RACES}),
    "races beside a visit": Case((visit("2024-02-01"),), (FEBRUARY,), {"extension": TWO_RACES}),
    "a date that stands for unknown": Case(
        (result(effectiveDateTime="1970-01-01T00:00:00Z"),), person={"birthDate": "1950-01-01"}
    ),
    "a device since it was made": Case(
        (
            of_patient("DeviceUseStatement", status="active", device=reference("Device", "d1")),
            {"resourceType": "Device", "id": "d1", "type": CODE, "manufactureDate": "2015-01-01"},
        )
    ),
    "a death alone": Case(person={"deceasedDateTime": "2024-02-01"}),
    "a death after the last event": Case((visit("2024-02-01"),), (FEBRUARY,), {"deceasedDateTime": "2024-12-01"}),
    "a death before the last event": Case(
        (visit("2024-02-01"), visit("2024-03-20", number=2)),
        (("2024-02-01", "2024-04-03"),),
        {"deceasedDateTime": "2024-02-03"},
    ),
    "548 days without an event": Case(
        (visit("2022-08-02"), visit("2024-02-01", number=2)), (("2022-08-02", "2022-10-01"), FEBRUARY)
    ),
    "547 days without an event": Case(
        (visit("2022-08-03"), visit("2024-02-01", number=2)), (("2022-08-03", "2024-04-01"),)
    ),
    "an event before the export": Case((visit("2026-02-20"),), (("2026-02-20", "2026-03-02"),)),
}

#: The same under settings of a site: its gaps, tails, months before birth and go-lives.
LOCAL = {
    "what was split off the mother's record": Case((visit("1979-09-01"),), (("1979-09-01", "1979-10-01"),)),
    "more than nine months before the birth": Case((visit("1979-08-01"),)),
    "a gap of its own": Case(
        (visit("2024-02-01"), visit("2024-05-11", number=2)),
        (("2024-02-01", "2024-03-02"), ("2024-05-11", "2024-06-10")),
    ),
    "less than that": Case((visit("2024-02-01"), visit("2024-05-10", number=2)), (("2024-02-01", "2024-06-09"),)),
    "orders before they were made here": Case(
        (
            of_patient(
                "MedicationRequest",
                status="active",
                intent="order",
                medicationCodeableConcept=CODE,
                authoredOn="2019-02-01",
            ),
        )
    ),
    "orders since": Case(
        (
            of_patient(
                "MedicationRequest",
                status="active",
                intent="order",
                medicationCodeableConcept=CODE,
                authoredOn="2020-01-01",
            ),
        ),
        (("2020-01-01", "2020-01-31"),),
    ),
}
LOCAL_SETTINGS = SiteSettings(
    name="local",
    observation_period_gap_days=100,
    observation_period_tail_days=30,
    observation_period_months_before_birth=9,
    go_live_dates={"drug_exposure": date(2020, 1, 1)},
)
USUAL_SETTINGS = SiteSettings(name="one", mapping=MappingOptions(device_start="manufacture_date"))
RANDOM_SETTINGS = SiteSettings(
    name="random",
    doubted_deaths="drop",
    mapping=MappingOptions(death_from_discharge="death", unknown_birth_day="imputed", persons_without_gender="exclude"),
)


def of_case(name: str, case: Case) -> Iterator[tuple[str, Resource]]:
    """Type and resource, ids and references within the case."""

    def moved(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {
                name: moved(item, name) for name, item in value.items() if item is not None and name != "resourceType"
            }
        if isinstance(value, list):
            return [moved(item, key) for item in value]
        return f"{value.replace('/', f'/{prefix}')}" if key == "reference" else value

    prefix = name.replace(" ", "-").replace("'", "") + "."
    own = {"birthDate": "1980-05-04", "gender": "female", **case.person, "id": "p"}
    for resource in ({"resourceType": "Patient", **own}, *case.resources):
        yield resource["resourceType"], {**moved(resource), "id": prefix + resource["id"]}


def files_of(cases: Mapping[str, Case]) -> dict[str, list[Resource]]:
    files: dict[str, list[Resource]] = {}
    for name, case in cases.items():
        for kind, resource in of_case(name, case):
            files.setdefault(kind, []).append(resource)
    return files


@contextmanager
def at_sites(prepared: Prepared, folder: Path) -> Iterator[Warehouse]:
    with warehouse_of(prepared, folder) as found:
        sites = {site.name: site for site in (USUAL_SETTINGS, LOCAL_SETTINGS, RANDOM_SETTINGS)}
        settings = found.runtime.settings.model_copy(update={"sites": sites})
        yield replace(found, runtime=Runtime(settings, found.runtime.clock))


@pytest.fixture(scope="module")
def place(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """A warehouse with the persons of both tables."""
    with at_sites(demo_warehouse, tmp_path_factory.mktemp("persons")) as found:
        found.load(files_of(CASES))
        found.load(files_of(LOCAL), "local")
        yield found


_PERIODS = (
    "SELECT observation_period_start_date::text, observation_period_end_date::text FROM cdm.observation_period"
    " JOIN row_source ON cdm_table = 'person' AND row_id = person_id WHERE resource_id = %s ORDER BY 1"
)


@pytest.mark.requirement(
    "themis-op-history-no-period",
    "themis-op-not-before-birth",
    "themis-op-single-event",
    "themis-op-death-is-no-event",
    "themis-op-death-isolated",
    "themis-op-end-death-60",
    "themis-op-end-last-event-60",
    "themis-op-end-data-pull",
    "themis-op-end-earliest-of-three",
    "themis-op-gap-548",
    "themis-race-observation-no-default-date",
)
@pytest.mark.parametrize("name", CASES)
def test_periods_follow_contacts(place: Warehouse, name: str) -> None:
    patient_id = f"{name.replace(' ', '-')}.p"
    assert place.rows(_PERIODS, patient_id) == list(CASES[name].periods)
    contacts = "SELECT contact_date::text FROM row_source WHERE resource_id LIKE %s AND contact_date IS NOT NULL"
    assert place.rows(contacts, f"{patient_id[:-1]}%") == [(day,) for day in CASES[name].contacts]


@pytest.mark.requirement("themis-op-prenatal-child", "themis-op-gap-local", "themis-op-migration")
@pytest.mark.parametrize("name", LOCAL)
def test_periods_follow_a_sites_settings(place: Warehouse, name: str) -> None:
    assert place.rows(_PERIODS, f"{name.replace(' ', '-').replace(chr(39), '')}.p") == list(LOCAL[name].periods)


@pytest.mark.requirement("themis-events-outside-period-kept", "themis-person-has-observation-period")
def test_events_outside_all_periods_stay_and_persons_without_one_are_counted(place: Warehouse) -> None:
    """A period for everybody would be made up (Themis' page for EHR asks for an event): they are kept and counted."""
    events = [(kind, one["id"]) for name, case in CASES.items() for kind, one in of_case(name, case)]
    made = set(place.rows("SELECT resource_type, resource_id FROM row_source WHERE site = 'one'"))
    assert {event for event in events if event[0] not in ("Patient", "Device")} <= made
    without = sum(not case.periods for case in CASES.values())
    counted = (
        "SELECT value_as_number::integer FROM cdm.metadata WHERE name = 'site/one/persons_without_observation_period'"
    )
    assert place.value(counted) == without > 3


def test_another_night_without_changes_changes_nothing_but_periods_that_last(place: Warehouse) -> None:
    before = place.checksums()
    (report,) = place.load(files_of(CASES))
    after = place.checksums()
    assert report.rows_updated["observation_period"] == 1, "that which ended on the as-of date"
    assert {table for table in before if before[table] != after[table]} <= {
        "observation_period",
        "metadata",
        "cdm_source",
    }


def _counts(place: Warehouse, site: str) -> dict[str, int]:
    prefix = f"site/{site}/persons_left_out/"
    query = "SELECT name, value_as_number::integer FROM cdm.metadata WHERE starts_with(name, %s)"
    return {name.removeprefix(prefix): number for name, number in place.rows(query, prefix)}


@pytest.mark.requirement("themis-persons-removal-documented")
def test_metadata_says_why_and_how_many_persons_were_left_out(place: Warehouse) -> None:
    known = patient("q1")
    undated = {"resourceType": "Patient", "id": "q2", "gender": "male"}
    persons = [known, patient("q3", gender=None), patient("q4", gender="unknown"), undated]
    place.load({"Patient": persons}, "random")
    assert _counts(place, "random") == {"gender_missing": 2, "date_missing": 1}
    # Nobody's rows change: who is left out does.
    place.load(
        {
            "Patient": [
                known,
                patient("q3", gender=None),
                patient("q4", gender="unknown"),
                patient("q5", gender="unknown"),
                undated,
            ]
        },
        "random",
    )
    assert _counts(place, "random") == {"gender_missing": 3, "date_missing": 1}
    place.load({"Patient": [known, patient("q3"), patient("q4", gender="male"), patient("q5"), undated]}, "random")
    assert _counts(place, "random") == {"date_missing": 1}


# --- nights ---

_INPATIENT = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}
_DIED = {
    "dischargeDisposition": {
        "coding": [{"system": "http://terminology.hl7.org/CodeSystem/discharge-disposition", "code": "exp"}]
    }
}
_ER = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-RoleCode", "code": "ER"}]}


def _resource(kind: str, number: int, pick: random.Random) -> Resource:
    """One of the versions of a resource."""
    person = f"p{number % 3}"
    day = (date(2024, 1, 1) + timedelta(days=pick.choice((0, 40, 90)))).isoformat()
    if kind == "Patient":
        more: Resource = {"birthDate": pick.choice(("1980-05-04", "2024", "1980-05"))}
        if pick.random() < 0.6:
            more["deceasedDateTime"] = pick.choice(("2024-01-05", "2024-02-20"))
        if pick.random() < 0.4:
            more["extension"] = TWO_RACES
        if number == 2 and pick.random() < 0.6:
            more["link"] = [{"type": "replaced-by", "other": reference("Patient", "p1")}]
        return patient(f"p{number}", gender=pick.choice(("female", "female", "unknown")), **more)
    if kind == "Encounter":
        more = {"class": _INPATIENT} if pick.random() < 0.5 else {}
        if pick.random() < 0.3:
            more["hospitalization"] = _DIED
        place = {"location": [{"location": reference("Location", f"l{pick.choice((0, 1))}")}]}
        return encounter(f"e{number}", person, period={"start": day, "end": day}, **more, **place)
    if kind == "Condition":
        known = {"recordedDate": day} if pick.random() < 0.7 else {}
        made = condition(onsetDateTime=pick.choice(("1990-01-01", "1970-01-01", day)), **known)
        return {
            **made,
            "id": f"c{number}",
            "subject": reference("Patient", person),
            "encounter": reference("Encounter", f"e{number}"),
        }
    if kind == "Observation":
        own = observation(
            f"o{number}", person, encounter=reference("Encounter", f"e{number}"), issued=f"{day}T10:00:00Z"
        )
        return {**own, "effectiveDateTime": pick.choice(("1990-01-01", "2024-02-01"))}
    types = {"type": [_ER]} if pick.random() < 0.3 else {}
    return {"resourceType": "Location", "id": f"l{number}", "name": pick.choice(("A", "B")), **types}


_KINDS = {"Patient": 3, "Encounter": 5, "Condition": 4, "Observation": 4, "Location": 2}


def _nights(seed: int) -> list[dict[str, list[Resource]]]:
    """Three exports, each of most resources, in any version."""
    pick = random.Random(seed)
    return [
        {
            kind: [_resource(kind, number, pick) for number in range(count) if pick.random() < 0.8]
            for kind, count in _KINDS.items()
        }
        for _ in range(3)
    ]


def _last(nights: list[dict[str, list[Resource]]]) -> dict[str, list[Resource]]:
    found: dict[tuple[str, str], Resource] = {}
    for night in nights:
        found |= {(kind, resource["id"]): resource for kind, resources in night.items() for resource in resources}
    return {kind: [one for (own, _), one in sorted(found.items()) if own == kind] for kind in _KINDS}


def _content(place: Warehouse) -> Content:
    with place.runtime.connect() as connection:
        content = warehouse_content(connection)
        contacts = connection.execute(
            "SELECT cdm_table, resource_id, contact_date, count(*) FROM row_source GROUP BY 1, 2, 3"
        ).fetchall()
        left_out = connection.execute(
            "SELECT name, value_as_number FROM cdm.metadata WHERE name LIKE '%/persons%'"
        ).fetchall()
    for name in ("dead_letter", "reference", "resource_state"):  # how what waits is remembered hangs on its history
        content.pop(name, None)
    for name, rows in (("contact", contacts), ("left_out", left_out)):
        content[name] = Counter(rows)
    return content


@pytest.mark.requirement(
    "themis-death-one-per-person", "themis-death-choose-among-several", "themis-care-site-place-majority"
)
@pytest.mark.parametrize("seed", range(5))
def test_any_nights_end_as_a_fresh_load_of_the_last_state(
    place: Warehouse, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    nights = _nights(seed)
    with place.runtime.connect() as connection:
        empty(connection)
    for night in nights:
        place.load(night, "random")
    assert place.rows("SELECT person_id FROM cdm.death GROUP BY 1 HAVING count(*) > 1") == []
    reached = _content(place)
    with place.runtime.connect() as connection:
        empty(connection)
    if seed % 2:
        monkeypatch.setattr(bulk, "_BULK_ROWS", 1)
    place.load(_last(nights), "random")
    assert differences(reached, _content(place)) == []
    assert _majorities(place) == place.rows(
        "SELECT care_site_id, place_of_service_concept_id FROM cdm.care_site ORDER BY 1"
    )


def _majorities(place: Warehouse) -> list[tuple[Any, ...]]:
    """Place of service of each care site, counted here: of most visits, of equally many the smaller concept; or its type's."""
    found = []
    for site, typed, own in place.rows(
        "SELECT care_site_id, place_of_service_source_value, place_of_service_concept_id FROM cdm.care_site ORDER BY 1"
    ):
        query = "SELECT visit_concept_id FROM cdm.visit_occurrence WHERE care_site_id = %s"
        visits = [row[0] for row in place.rows(query, site)]
        most = min(set(visits), key=lambda concept: (-visits.count(concept), concept), default=None)
        found.append((site, own if typed else most))
    return found
