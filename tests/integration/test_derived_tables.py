"""Derived tables against hand-computed examples, a slow reference in Python, and the published era algorithm."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omop_schema.cdm import fields, primary_key
from omop_schema.etl import lineage_table_name
from pipeline.core.errors import WarehouseError
from pipeline.publication.derived import DerivedOptions, DerivedReport, refresh_derived
from pipeline.publication.sql import Database
from pipeline.publication.steps.derived_rows import make_affected_person, note_persons
from pipeline.transform.rules import INPATIENT_VISITS
from tests.integration.support import Warehouse, encounter, observation, patient

DAY_0 = date(2020, 1, 1)
AS_OF = date(2026, 1, 1)
INPATIENT, OUTPATIENT = 9201, 9202

#: Ingredients, what contains them, and a class above them.
ASPIRIN, CODEINE = 1112807, 1201620
ASPIRIN_TABLET, ASPIRIN_CODEINE, ASPIRIN_SOLUTION, ANALGESICS = 9_000_001, 9_000_002, 9_000_003, 9_000_004
MG, ML = 8576, 8587

CONDITION, DRUG = 316866, ASPIRIN_TABLET

_CONCEPTS = (
    (ASPIRIN, "aspirin", "Drug", "RxNorm", "Ingredient", "1191", "S"),
    (CODEINE, "codeine", "Drug", "RxNorm Extension", "Ingredient", "2670", "S"),
    (ASPIRIN_TABLET, "aspirin tablet", "Drug", "RxNorm", "Clinical Drug", "1", "S"),
    (ASPIRIN_CODEINE, "aspirin and codeine tablet", "Drug", "RxNorm", "Clinical Drug", "2", "S"),
    (ASPIRIN_SOLUTION, "aspirin solution", "Drug", "RxNorm", "Clinical Drug", "3", "S"),
    (ANALGESICS, "analgesics", "Drug", "ATC", "ATC 2nd", "N02", "C"),
    (MG, "milligram", "Unit", "UCUM", "Unit", "mg", "S"),
    (ML, "milliliter", "Unit", "UCUM", "Unit", "mL", "S"),
    (32882, "Standard algorithm from EHR", "Type Concept", "Type Concept", "Type Concept", "x", "S"),
)
_ANCESTORS = (
    *((concept, concept) for concept in (ASPIRIN, CODEINE, ASPIRIN_TABLET, ASPIRIN_CODEINE, ASPIRIN_SOLUTION)),
    (ASPIRIN, ASPIRIN_TABLET),
    (ASPIRIN, ASPIRIN_CODEINE),
    (CODEINE, ASPIRIN_CODEINE),
    (ASPIRIN, ASPIRIN_SOLUTION),
    (ANALGESICS, ASPIRIN_TABLET),
)
#: drug, ingredient, amount, unit, numerator, unit, denominator, unit
_STRENGTHS = (
    (ASPIRIN_TABLET, ASPIRIN, 100, MG, None, None, None, None),
    (ASPIRIN_CODEINE, ASPIRIN, 300, MG, None, None, None, None),
    (ASPIRIN_CODEINE, CODEINE, 15, MG, None, None, None, None),
    (ASPIRIN_SOLUTION, ASPIRIN, None, None, 500, MG, 10, ML),
)


def day(number: int) -> date:
    return DAY_0 + timedelta(days=number)


@pytest.fixture(scope="module")
def installed(installed_url: str) -> str:
    with psycopg.connect(installed_url) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO vocab.concept VALUES (%s, %s, %s, %s, %s, %s, %s, '1970-01-01', '2099-12-31', NULL)",
            [(number, name, *rest[:3], standard, code) for number, name, *rest, code, standard in _CONCEPTS],
        )
        cursor.executemany("INSERT INTO vocab.concept_ancestor VALUES (%s, %s, 1, 1)", _ANCESTORS)
        cursor.executemany(
            "INSERT INTO vocab.drug_strength VALUES (%s, %s, %s, %s, %s, %s, %s, %s, NULL,"
            " '1970-01-01', '2099-12-31', NULL)",
            _STRENGTHS,
        )
    return installed_url


@dataclass
class Cdm:
    """A warehouse whose rows a test writes itself, in one transaction that is never committed."""

    connection: psycopg.Connection
    ids: Iterator[int] = field(default_factory=lambda: iter(range(1, 10_000_000)))

    def insert(self, table: str, **values: Any) -> int:
        """A row; what is required and not given is 0 (concepts, numbers), the title of a note, or an error."""
        own, row_id = primary_key(table), next(self.ids)
        if own:
            values.setdefault(own, row_id)
        for item in fields(table):
            if item.required and item.name not in values:
                values[item.name] = "" if item.datatype.startswith("varchar") else 0
        columns = ", ".join(values)
        marks = ", ".join(["%s"] * len(values))
        self.connection.execute(f"INSERT INTO cdm.{table} ({columns}) VALUES ({marks})", tuple(values.values()))
        return int(values[own]) if own else int(values["person_id"])

    def person(self, site: str | None = None) -> int:
        person_id = self.insert("person", year_of_birth=1970)
        if site:
            self.source("person", person_id, site, "Patient")
        return person_id

    def source(self, table: str, row_id: int, site: str, resource_type: str) -> int:
        """Lineage of a row: as if a resource of the site had made it. Returns its surrogate id."""
        surrogate_id = next(self.ids)
        self.connection.execute(
            "INSERT INTO etl.site_resource_type (site, resource_type) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (site, resource_type),
        )
        self.connection.execute(
            "INSERT INTO etl.resource_state (surrogate_id, site_resource_type_id, resource_id, raw_hash_high,"
            " raw_hash_low, outcome, fingerprint, export_id, file_number, line, byte_offset, byte_length, as_of)"
            " SELECT %s, site_resource_type_id, %s, 0, 0, 'loaded', 0, 1, 1, 1, 0, 1, '2026-01-01'"
            " FROM etl.site_resource_type WHERE site = %s AND resource_type = %s",
            (surrogate_id, str(surrogate_id), site, resource_type),
        )
        self.connection.execute(
            f"INSERT INTO etl.{lineage_table_name(table)} (row_id, surrogate_id, row_key, export_id)"
            " VALUES (%s, %s, 0, 1)",
            (row_id, surrogate_id),
        )
        return surrogate_id

    def fact(self, name: str, owner: int, value: str) -> None:
        self.connection.execute("INSERT INTO etl.reference_value VALUES (%s, %s, %s, %s)", (owner, name, owner, value))

    def visit(self, person_id: int, first: date, last: date | None = None, concept: int = OUTPATIENT) -> int:
        return self.insert(
            "visit_occurrence",
            person_id=person_id,
            visit_concept_id=concept,
            visit_start_date=first,
            visit_end_date=last or first,
            visit_start_datetime=first,
            visit_end_datetime=last or first,
        )

    def condition(
        self, person_id: int, first: date, last: date | None = None, concept: int = CONDITION, kind: int = 32827
    ) -> int:
        return self.insert(
            "condition_occurrence",
            person_id=person_id,
            condition_concept_id=concept,
            condition_type_concept_id=kind,
            condition_start_date=first,
            condition_end_date=last,
        )

    def drug(self, person_id: int, first: date, last: date, concept: int = DRUG, **more: Any) -> int:
        return self.insert(
            "drug_exposure",
            person_id=person_id,
            drug_concept_id=concept,
            drug_exposure_start_date=first,
            drug_exposure_end_date=last,
            **more,
        )

    def observe(self, person_id: int, on_day: date, concept: int = 0) -> int:
        return self.insert("observation", person_id=person_id, observation_date=on_day, observation_concept_id=concept)

    def refresh(self, as_of: date = AS_OF, persons: Sequence[int] | None = None, **options: Any) -> DerivedReport:
        name = None
        if persons is not None:
            name = f"persons_{next(self.ids)}"
            self.connection.execute(f"CREATE TEMP TABLE {name} (person_id bigint) ON COMMIT DROP")
            self.connection.execute(f"INSERT INTO {name} SELECT unnest(%s::bigint[])", (list(persons),))
        return refresh_derived(
            self.connection,
            cdm="cdm",
            vocab="vocab",
            etl="etl",
            as_of=as_of,
            persons=name,
            options=DerivedOptions(**options),
        )

    def rows(self, table: str, columns: str, order: str = "1, 2, 3") -> list[tuple[Any, ...]]:
        return self.connection.execute(f"SELECT {columns} FROM cdm.{table} ORDER BY {order}").fetchall()

    def periods(self) -> list[tuple[Any, ...]]:
        return self.rows("observation_period", "person_id, observation_period_start_date, observation_period_end_date")

    def condition_eras(self) -> list[tuple[Any, ...]]:
        return self.rows(
            "condition_era",
            "person_id, condition_concept_id, condition_era_start_date, condition_era_end_date,"
            " condition_occurrence_count",
        )

    def drug_eras(self) -> list[tuple[Any, ...]]:
        return self.rows(
            "drug_era",
            "person_id, drug_concept_id, drug_era_start_date, drug_era_end_date, drug_exposure_count, gap_days",
        )

    def snapshot(self) -> list[tuple[Any, ...]]:
        """Every derived row with its id and place: a row that is rewritten with the same content has another place."""
        tables = ("observation_period", "condition_era", "drug_era", "dose_era", "metadata", "visit_occurrence")
        return [
            row
            for table in tables
            for row in self.connection.execute(
                f"SELECT '{table}', ctid::text, t::text FROM cdm.{table} AS t"
            ).fetchall()
        ]


@pytest.fixture
def cdm(installed: str) -> Iterator[Cdm]:
    with psycopg.connect(installed) as connection:
        yield Cdm(connection)
        connection.rollback()


# --- observation_period -----------------------------------------------------------------------------------------------

Span = tuple[int, int]


@dataclass(frozen=True)
class PeriodCase:
    """Days are counted from DAY_0; visits are spans of days, events are days."""

    visits: Sequence[Span] = ()
    events: Sequence[int] = ()
    death: int | None = None
    as_of: int = 2000
    go_live: int | None = None
    periods: Sequence[Span] = ()


PERIOD_CASES = {
    "one visit: its days and a tail of 60": PeriodCase(visits=[(10, 12)], periods=[(10, 72)]),
    "one event": PeriodCase(events=[10], periods=[(10, 70)]),
    "several events of one day": PeriodCase(events=[10, 10, 10], visits=[(10, 10)], periods=[(10, 70)]),
    "a gap of 547 days is none": PeriodCase(events=[10, 557], periods=[(10, 617)]),
    "a gap of 548 days parts": PeriodCase(events=[10, 558], periods=[(10, 70), (558, 618)]),
    "a gap is counted from the end of a visit": PeriodCase(visits=[(10, 20)], events=[567], periods=[(10, 627)]),
    "a gap is counted from the latest end, not the last start": PeriodCase(
        visits=[(10, 300), (20, 21)], events=[847], periods=[(10, 907)]
    ),
    "overlap": PeriodCase(visits=[(10, 30), (20, 40)], periods=[(10, 100)]),
    "the tail ends at the as-of date": PeriodCase(events=[10], as_of=40, periods=[(10, 40)]),
    "an event on the as-of date": PeriodCase(events=[40], as_of=40, periods=[(40, 40)]),
    "an event after the as-of date does not count": PeriodCase(events=[10, 41], as_of=40, periods=[(10, 40)]),
    "nothing but the future": PeriodCase(events=[41], as_of=40, periods=[]),
    "a visit that reaches into the future": PeriodCase(visits=[(10, 90)], as_of=40, periods=[(10, 40)]),
    "death ends the period 60 days after": PeriodCase(events=[10, 300], death=200, periods=[(10, 260)]),
    "a late death changes nothing": PeriodCase(events=[10], death=500, periods=[(10, 70)]),
    "death after the last event": PeriodCase(events=[10], death=30, periods=[(10, 70)]),
    "events long after death make no period": PeriodCase(events=[10, 900], death=20, periods=[(10, 70)]),
    "death alone": PeriodCase(death=20, periods=[]),
    "not before the go-live": PeriodCase(events=[10, 100], go_live=50, periods=[(50, 160)]),
    "ended before the go-live": PeriodCase(events=[10], go_live=50, periods=[]),
    "last event on the day of the go-live": PeriodCase(events=[10, 50], go_live=50, periods=[(50, 110)]),
    "the go-live does not part": PeriodCase(events=[10, 500], go_live=5, periods=[(10, 560)]),
}


@pytest.mark.requirement("themis-op-not-before-go-live", "themis-op-gap-548", "themis-op-end-earliest-of-three")
@pytest.mark.parametrize("case", PERIOD_CASES.values(), ids=PERIOD_CASES.keys())
def test_observation_period_examples(cdm: Cdm, case: PeriodCase) -> None:
    person = cdm.person()
    _write_period_case(cdm, person, case)
    report = cdm.refresh(day(case.as_of), go_live=None if case.go_live is None else day(case.go_live))
    assert cdm.periods() == [(person, day(first), day(last)) for first, last in case.periods]
    assert report.persons == 1
    assert report.persons_without_period == (0 if case.periods else 1)
    assert cdm.rows("observation_period", "DISTINCT period_type_concept_id", "1") == [(32882,)] * bool(case.periods)


def _write_period_case(cdm: Cdm, person: int, case: PeriodCase) -> None:
    for first, last in case.visits:
        cdm.visit(person, day(first), day(last))
    for on_day in case.events:
        cdm.observe(person, day(on_day))
    if case.death is not None:
        cdm.insert("death", person_id=person, death_date=day(case.death))


EVENT_TABLES = {
    "visit_occurrence": {"visit_start_date": day(10), "visit_end_date": day(10)},
    "condition_occurrence": {"condition_start_date": day(10), "condition_end_date": day(400)},
    "drug_exposure": {"drug_exposure_start_date": day(10), "drug_exposure_end_date": day(400)},
    "procedure_occurrence": {"procedure_date": day(10), "procedure_end_date": day(400)},
    "device_exposure": {"device_exposure_start_date": day(10), "device_exposure_end_date": day(400)},
    "measurement": {"measurement_date": day(10)},
    "observation": {"observation_date": day(10)},
    "note": {"note_date": day(10)},
    "specimen": {"specimen_date": day(10)},
}


@pytest.mark.parametrize("table", EVENT_TABLES)
def test_every_dated_event_begins_a_period_and_only_visits_last(cdm: Cdm, table: str) -> None:
    person = cdm.person()
    cdm.insert(table, person_id=person, **EVENT_TABLES[table])
    cdm.refresh()
    assert cdm.periods() == [(person, day(10), day(70))]


def test_visit_detail_counts_as_a_visit(cdm: Cdm) -> None:
    person = cdm.person()
    visit = cdm.visit(person, day(10))
    cdm.insert(
        "visit_detail",
        person_id=person,
        visit_occurrence_id=visit,
        visit_detail_start_date=day(10),
        visit_detail_end_date=day(30),
    )
    cdm.refresh()
    assert cdm.periods() == [(person, day(10), day(90))]


def test_problem_list_history_and_family_rows_are_not_observed_time(cdm: Cdm) -> None:
    person, only_history = cdm.person(), cdm.person()
    cdm.condition(person, day(-9000), kind=32840)
    cdm.observe(person, day(-8000), concept=1340204)
    cdm.observe(person, day(-7000), concept=4167217)
    cdm.condition(person, day(10))
    cdm.condition(only_history, day(20), kind=32840)
    report = cdm.refresh()
    assert cdm.periods() == [(person, day(10), day(70))]
    assert (report.persons, report.persons_without_period) == (2, 1)


def test_a_period_does_not_begin_before_the_birth(cdm: Cdm) -> None:
    """Nor does what patients report of times outside the record make one."""
    born_later, reported = cdm.person(), cdm.person()
    birth = day(10)
    cdm.connection.execute(
        "UPDATE cdm.person SET year_of_birth = %s, month_of_birth = %s, day_of_birth = %s WHERE person_id = %s",
        (birth.year, birth.month, birth.day, born_later),
    )
    cdm.visit(born_later, day(-9000))
    cdm.visit(born_later, day(0), day(12))
    cdm.condition(reported, day(20), kind=32865)
    cdm.refresh()
    assert cdm.periods() == [(born_later, day(10), day(72))]


def test_a_type_concept_that_the_vocabulary_lacks_becomes_0_with_a_warning(cdm: Cdm) -> None:
    cdm.connection.execute("DELETE FROM vocab.concept WHERE concept_id = 32882")
    cdm.visit(cdm.person(), day(10))
    report = cdm.refresh()
    assert cdm.rows("observation_period", "period_type_concept_id", "1") == [(0,)]
    assert ["32882" in warning for warning in report.warnings] == [True]


# --- condition_era ----------------------------------------------------------------------------------------------------

#: name → occurrences (first, last or None), eras (first, last, count)
CONDITION_CASES: dict[str, tuple[list[tuple[int, int | None]], list[tuple[int, int, int]]]] = {
    "one with an end": ([(10, 20)], [(10, 20, 1)]),
    "one of a single day": ([(10, 10)], [(10, 10, 1)]),
    "no end: until the next day": ([(10, None)], [(10, 11, 1)]),
    "a gap of 30 days goes on": ([(10, 20), (50, 60)], [(10, 60, 2)]),
    "a gap of 31 days parts": ([(10, 20), (51, 60)], [(10, 20, 1), (51, 60, 1)]),
    "no end, 31 days later": ([(10, None), (41, None)], [(10, 42, 2)]),
    "no end, 32 days later": ([(10, None), (42, None)], [(10, 11, 1), (42, 43, 1)]),
    "adjacent days": ([(10, 20), (21, 30)], [(10, 30, 2)]),
    "one within another": ([(10, 100), (20, 30)], [(10, 100, 2)]),
    "the gap counts from the latest end": ([(10, 100), (20, 30), (130, 131)], [(10, 131, 3)]),
    "twice on one day": ([(10, 10), (10, 10)], [(10, 10, 2)]),
    "an end before the start counts as none": ([(10, 5)], [(10, 10, 1)]),
    "a chain": ([(0, 1), (31, 32), (62, 63)], [(0, 63, 3)]),
}


@pytest.mark.parametrize(("occurrences", "eras"), CONDITION_CASES.values(), ids=CONDITION_CASES.keys())
def test_condition_era_examples(
    cdm: Cdm, occurrences: list[tuple[int, int | None]], eras: list[tuple[int, int, int]]
) -> None:
    person = cdm.person()
    for first, last in occurrences:
        cdm.condition(person, day(first), None if last is None else day(last))
    cdm.refresh()
    assert cdm.condition_eras() == [(person, CONDITION, day(a), day(b), count) for a, b, count in eras]


def test_condition_eras_are_apart_by_person_and_concept_and_leave_out_unmapped_codes(cdm: Cdm) -> None:
    one, two = cdm.person(), cdm.person()
    for person, concept in ((one, CONDITION), (one, 1), (two, CONDITION), (two, 0)):
        cdm.condition(person, day(10), day(12), concept=concept)
    cdm.refresh()
    assert [row[:2] for row in cdm.condition_eras()] == [(one, 1), (one, CONDITION), (two, CONDITION)]


# --- drug_era ---------------------------------------------------------------------------------------------------------

#: name → exposures (first, last), eras (first, last, count, gap_days by OHDSI's script, the same with stockpiling)
DRUG_CASES: dict[str, tuple[list[Span], list[tuple[int, int, int, int, int]]]] = {
    "one": ([(10, 39)], [(10, 39, 1, 0, 0)]),
    "one day": ([(10, 10)], [(10, 10, 1, 0, 0)]),
    "a gap of 30 days goes on": ([(10, 20), (50, 60)], [(10, 60, 2, 30, 30)]),
    "a gap of 31 days parts": ([(10, 20), (51, 60)], [(10, 20, 1, 0, 0), (51, 60, 1, 0, 0)]),
    "touching: no gap": ([(10, 20), (20, 30)], [(10, 30, 2, 0, 0)]),
    "the next day": ([(10, 20), (21, 30)], [(10, 30, 2, 1, 1)]),
    "an early refill: the overlap is counted once, or stockpiled": ([(0, 30), (20, 50)], [(0, 50, 2, 0, -10)]),
    "what was stockpiled covers the gap": ([(0, 30), (20, 50), (60, 90)], [(0, 90, 3, 10, 0)]),
    "twice the same": ([(0, 30), (0, 30)], [(0, 30, 2, 0, -30)]),
    "one within another, then a gap": ([(0, 50), (10, 20), (70, 80)], [(0, 80, 3, 20, 10)]),
}


@pytest.mark.parametrize(("exposures", "eras"), DRUG_CASES.values(), ids=DRUG_CASES.keys())
@pytest.mark.parametrize("stockpiling", [False, True])
def test_drug_era_examples(
    cdm: Cdm, exposures: list[Span], eras: list[tuple[int, int, int, int, int]], stockpiling: bool
) -> None:
    person = cdm.person()
    for first, last in exposures:
        cdm.drug(person, day(first), day(last))
    cdm.refresh(stockpiling=stockpiling, gap_by_script=True)
    assert cdm.drug_eras() == [
        (person, ASPIRIN, day(first), day(last), count, stockpiled if stockpiling else gap)
        for first, last, count, gap, stockpiled in eras
    ]


#: name → exposures (first, last), gap_days of their one era: the days on which there is no exposure (CDM)
GAP_CASES: dict[str, tuple[list[Span], int]] = {
    "one": ([(10, 39)], 0),
    "overlapping, then a gap": ([(1, 10), (5, 14), (25, 30)], 10),
    "touching: the next day": ([(1, 10), (11, 20)], 0),
    "touching: the same day": ([(1, 10), (10, 20)], 0),
    "one day without": ([(1, 10), (12, 20)], 1),
    "twice the same": ([(0, 30), (0, 30)], 0),
    "one within another, then a gap": ([(0, 50), (10, 20), (70, 80)], 19),
    "days by themselves": ([(1, 1), (3, 3), (10, 10)], 7),
    "the longest gap": ([(10, 20), (50, 60)], 29),
}


def test_gap_days_count_the_days_without_an_exposure(cdm: Cdm) -> None:
    persons = {name: cdm.person() for name in GAP_CASES}
    for name, (exposures, _) in GAP_CASES.items():
        for first, last in exposures:
            cdm.drug(persons[name], day(first), day(last))
    cdm.refresh()
    eras = {era[0]: (era[4], era[5]) for era in cdm.drug_eras()}
    assert {name: eras[person] for name, person in persons.items()} == {
        name: (len(exposures), gap) for name, (exposures, gap) in GAP_CASES.items()
    }


def test_drug_eras_are_of_ingredients(cdm: Cdm) -> None:
    """Different drugs of one ingredient are one era; a combination is in an era of each; classes and 0 are in none."""
    person = cdm.person()
    cdm.drug(person, day(0), day(9), concept=ASPIRIN_TABLET)
    cdm.drug(person, day(10), day(19), concept=ASPIRIN_CODEINE)
    cdm.drug(person, day(20), day(29), concept=ASPIRIN)
    cdm.drug(person, day(0), day(9), concept=0)
    cdm.drug(person, day(0), day(9), concept=ANALGESICS)
    cdm.refresh()
    assert cdm.drug_eras() == [
        (person, ASPIRIN, day(0), day(29), 3, 0),
        (person, CODEINE, day(10), day(19), 1, 0),
    ]


def test_a_negative_supply_is_left_out(cdm: Cdm) -> None:
    person = cdm.person()
    cdm.drug(person, day(0), day(9), days_supply=-3)
    cdm.refresh()
    assert cdm.drug_eras() == []


# --- dose_era ---------------------------------------------------------------------------------------------------------

_DOSE = "person_id, drug_concept_id, unit_concept_id, dose_value, dose_era_start_date, dose_era_end_date"


def _doses(cdm: Cdm) -> list[tuple[Any, ...]]:
    return [tuple(row[1:]) for row in cdm.rows("dose_era", _DOSE, "2, 5, 4")]


def test_dose_of_tablets_is_quantity_times_amount_by_days(cdm: Cdm) -> None:
    person = cdm.person()
    cdm.drug(person, day(0), day(29), quantity=60, days_supply=30)
    cdm.drug(person, day(40), day(69), quantity=60, days_supply=30)
    cdm.drug(person, day(70), day(99), quantity=30, days_supply=30)
    cdm.refresh()
    assert _doses(cdm) == [(ASPIRIN, MG, 200, day(0), day(69)), (ASPIRIN, MG, 100, day(70), day(99))]


def test_dose_era_is_parted_by_more_than_30_days(cdm: Cdm) -> None:
    person = cdm.person()
    for first in (0, 60, 121):
        cdm.drug(person, day(first), day(first + 30), quantity=30, days_supply=30)
    cdm.refresh()
    assert _doses(cdm) == [(ASPIRIN, MG, 100, day(0), day(90)), (ASPIRIN, MG, 100, day(121), day(151))]


def test_each_ingredient_has_its_dose(cdm: Cdm) -> None:
    cdm.drug(cdm.person(), day(0), day(9), concept=ASPIRIN_CODEINE, quantity=20, days_supply=10)
    cdm.refresh()
    assert _doses(cdm) == [(ASPIRIN, MG, 600, day(0), day(9)), (CODEINE, MG, 30, day(0), day(9))]


def test_dose_of_a_liquid_needs_the_quantity_in_its_unit(cdm: Cdm) -> None:
    person = cdm.person()
    for first, unit in ((0, "mL"), (100, "bottle"), (200, None)):
        cdm.drug(
            person,
            day(first),
            day(first + 9),
            concept=ASPIRIN_SOLUTION,
            quantity=100,
            days_supply=10,
            dose_unit_source_value=unit,
        )
    cdm.refresh()
    assert _doses(cdm) == [(ASPIRIN, MG, 500, day(0), day(9))]


def test_dose_is_not_guessed_without_days_or_quantity(cdm: Cdm) -> None:
    person = cdm.person()
    cdm.drug(person, day(0), day(29), quantity=30)
    cdm.drug(person, day(0), day(29), days_supply=30)
    cdm.drug(person, day(0), day(29), quantity=0, days_supply=30)
    cdm.refresh()
    assert _doses(cdm) == []


def test_an_administration_lasts_from_start_to_end(cdm: Cdm) -> None:
    person = cdm.person()
    cdm.drug(person, day(0), day(0), quantity=2, drug_type_concept_id=32818)
    cdm.drug(person, day(50), day(51), quantity=3, drug_type_concept_id=32818)
    cdm.refresh()
    assert _doses(cdm) == [(ASPIRIN, MG, 200, day(0), day(0)), (ASPIRIN, MG, 150, day(50), day(51))]


# --- preceding visits -------------------------------------------------------------------------------------------------


def test_preceding_visits_by_time_for_each_person(cdm: Cdm) -> None:
    one, two = cdm.person(), cdm.person()
    last, first, middle = (cdm.visit(one, day(number)) for number in (30, 10, 20))
    other = cdm.visit(two, day(5))
    evening = cdm.visit(one, day(10))
    cdm.connection.execute(
        "UPDATE cdm.visit_occurrence SET visit_start_datetime = visit_start_datetime + interval '20 hours'"
        " WHERE visit_occurrence_id = %s",
        (evening,),
    )
    cdm.refresh()
    assert dict(cdm.rows("visit_occurrence", "visit_occurrence_id, preceding_visit_occurrence_id", "1")) == {
        first: None,
        evening: first,
        middle: evening,
        last: middle,
        other: None,
    }


def test_preceding_visit_detail_by_time(cdm: Cdm) -> None:
    person = cdm.person()
    visit = cdm.visit(person, day(0), day(9))
    later, earlier = (
        cdm.insert(
            "visit_detail",
            person_id=person,
            visit_occurrence_id=visit,
            visit_detail_start_date=day(number),
            visit_detail_end_date=day(number),
        )
        for number in (5, 2)
    )
    cdm.refresh()
    assert dict(cdm.rows("visit_detail", "visit_detail_id, preceding_visit_detail_id", "1")) == {
        earlier: None,
        later: earlier,
    }


# --- values that depend on the as-of date -----------------------------------------------------------------------------


def _open_visit(cdm: Cdm, person: int, first: date, concept: int = INPATIENT, site: str = "one") -> int:
    visit = cdm.visit(person, first, concept=concept)
    cdm.fact("open_stay", cdm.source("visit_occurrence", visit, site, "Encounter"), first.isoformat())
    return visit


def test_an_open_stay_lasts_until_the_as_of_date_and_moves_with_it(cdm: Cdm) -> None:
    person = cdm.person("one")
    stay = _open_visit(cdm, person, day(10))
    _open_visit(cdm, person, day(11), concept=OUTPATIENT)
    cdm.visit(person, day(12), concept=INPATIENT)
    for as_of in (100, 130):
        cdm.refresh(day(as_of), persons=[], site="one")
        ends = cdm.rows("visit_occurrence", "visit_occurrence_id, visit_end_date, visit_end_datetime", "1")
        assert [row[1] for row in ends] == [day(as_of), day(11), day(12)]
        assert ends[0] == (stay, day(as_of), datetime(day(as_of).year, day(as_of).month, day(as_of).day))  # noqa: DTZ001
        assert cdm.periods() == [(person, day(10), day(as_of))]


def test_a_stay_that_begins_after_the_as_of_date_does_not_end_before_its_start(cdm: Cdm) -> None:
    person = cdm.person("one")
    _open_visit(cdm, person, day(10))
    cdm.refresh(day(5), site="one")
    assert cdm.rows("visit_occurrence", "visit_start_date, visit_end_date", "1") == [(day(10), day(10))]


def test_open_stays_of_another_site_keep_that_sites_date(cdm: Cdm) -> None:
    for site in ("one", "two"):
        _open_visit(cdm, cdm.person(site), day(10), site=site)
    cdm.refresh(day(100), site="one")
    cdm.refresh(day(200), site="two")
    cdm.refresh(day(150), site="one")
    assert cdm.rows("visit_occurrence", "visit_end_date", "visit_occurrence_id") == [(day(150),), (day(200),)]
    assert [row[2] for row in cdm.periods()] == [day(150), day(200)]


def test_open_details_of_a_stay(cdm: Cdm) -> None:
    """A closed detail of the same Encounter stays as it is; date and instant both name the open one."""
    person = cdm.person("one")
    visit = cdm.visit(person, day(0), day(50), concept=INPATIENT)
    owner = cdm.source("visit_occurrence", visit, "one", "Encounter")
    for number in (1, 5, 9):
        detail = cdm.insert(
            "visit_detail",
            person_id=person,
            visit_occurrence_id=visit,
            visit_detail_concept_id=INPATIENT,
            visit_detail_start_date=day(number),
            visit_detail_start_datetime=datetime.combine(day(number), datetime.min.time()),
            visit_detail_end_date=day(number),
        )
        cdm.connection.execute(
            "INSERT INTO etl.lineage_visit_detail (row_id, surrogate_id, row_key, export_id) VALUES (%s, %s, %s, 1)",
            (detail, owner, number),
        )
    values = {"date": day(5).isoformat(), "instant": f"{day(9).isoformat()}T01:00:00+01:00"}
    for about, value in enumerate(values.values()):
        cdm.connection.execute(
            "INSERT INTO etl.reference_value VALUES (%s, 'open_stay_detail', %s, %s)", (about, owner, value)
        )
    cdm.refresh(day(100), site="one")
    assert cdm.rows("visit_detail", "visit_detail_end_date", "visit_detail_start_date") == [
        (day(1),),
        (day(100),),
        (day(100),),
    ]


def test_open_coverage_lasts_until_the_as_of_date(cdm: Cdm) -> None:
    person = cdm.person("one")
    for is_open in (True, False):
        period = cdm.insert(
            "payer_plan_period",
            person_id=person,
            payer_plan_period_start_date=day(0),
            payer_plan_period_end_date=day(1),
        )
        owner = cdm.source("payer_plan_period", period, "one", "Coverage")
        if is_open:
            cdm.fact("open_coverage", owner, day(0).isoformat())
    cdm.refresh(day(100), site="one")
    assert cdm.rows("payer_plan_period", "payer_plan_period_end_date", "payer_plan_period_id") == [
        (day(100),),
        (day(1),),
    ]
    again = cdm.refresh(day(100), persons=[], site="one")
    assert "payer_plan_period" not in again.changes, "what ends there already is not written again"


def test_period_tails_and_events_of_the_future_move_with_the_as_of_date(cdm: Cdm) -> None:
    """Nobody is named as affected, and still the result is that of computing everybody."""
    tail, future, old = (cdm.person("one") for _ in range(3))
    cdm.observe(tail, day(100))
    cdm.observe(future, day(150))
    cdm.observe(old, day(0))
    cdm.refresh(day(120), site="one")
    assert cdm.periods() == [(tail, day(100), day(120)), (old, day(0), day(60))]
    ids = dict(cdm.rows("observation_period", "person_id, observation_period_id", "1"))
    report = cdm.refresh(day(155), persons=[], site="one")
    assert cdm.periods() == [(tail, day(100), day(155)), (future, day(150), day(155)), (old, day(0), day(60))]
    assert report.period_persons == 2
    assert ids.items() <= dict(cdm.rows("observation_period", "person_id, observation_period_id", "1")).items()


def test_an_older_export_does_not_turn_the_clock_back(cdm: Cdm) -> None:
    person = cdm.person("one")
    cdm.observe(person, day(100))
    cdm.refresh(day(120), site="one")
    report = cdm.refresh(day(110), persons=[person], site="one")
    assert report.as_of == day(120)
    assert report.changed_rows == 0


def test_a_detail_that_ended_stays_beside_an_open_one_of_the_same_start(cdm: Cdm) -> None:
    person = cdm.person("one")
    visit = cdm.visit(person, day(0), day(50), concept=INPATIENT)
    owner = cdm.source("visit_occurrence", visit, "one", "Encounter")
    places = [cdm.insert("care_site", care_site_name=name) for name in ("left", "stayed")]
    for number, place in enumerate(places):
        detail = cdm.insert(
            "visit_detail",
            person_id=person,
            visit_occurrence_id=visit,
            visit_detail_concept_id=INPATIENT,
            care_site_id=place,
            visit_detail_start_date=day(5),
            visit_detail_start_datetime=datetime.combine(day(5), datetime.min.time()),
            visit_detail_end_date=day(6),
        )
        cdm.connection.execute(
            "INSERT INTO etl.lineage_visit_detail (row_id, surrogate_id, row_key, export_id) VALUES (%s, %s, %s, 1)",
            (detail, owner, number),
        )
        cdm.connection.execute("INSERT INTO etl.id_map VALUES ('care_site', %s, %s)", (-place, place))
    cdm.connection.execute(
        "INSERT INTO etl.reference_value VALUES (%s, 'open_stay_detail', %s, %s)", (-places[1], owner, str(day(5)))
    )
    cdm.refresh(day(100), site="one")
    assert cdm.rows("visit_detail", "care_site_id, visit_detail_end_date", "1") == [
        (places[0], day(6)),
        (places[1], day(100)),
    ]


# --- what a person's other rows decide --------------------------------------------------------------------------------


def _midnight(on_day: date) -> datetime:
    return datetime.combine(on_day, datetime.min.time())


def _patient(cdm: Cdm, year: int = 1970, **facts: str) -> tuple[int, int]:
    """A person with facts of the Patient. Returns person_id and the Patient's surrogate id."""
    person = cdm.insert("person", year_of_birth=year, birth_datetime=date(year, 6, 15))
    owner = cdm.source("person", person, "one", "Patient")
    for name, value in facts.items():
        cdm.fact(name, owner, value)
    return person, owner


def _race(cdm: Cdm, person: int, owner: int, on_day: date) -> None:
    row = cdm.insert(
        "observation",
        person_id=person,
        observation_concept_id=4013886,
        observation_date=on_day,
        observation_datetime=on_day,
    )
    cdm.connection.execute(
        "INSERT INTO etl.lineage_observation (row_id, surrogate_id, row_key, export_id) VALUES (%s, %s, %s, 1)",
        (row, owner, row),
    )


def _race_dates(cdm: Cdm) -> list[tuple[Any, ...]]:
    return cdm.rows("observation", "person_id, observation_date, observation_datetime", "observation_id")


def test_races_have_the_date_of_the_latest_visit_and_keep_it(cdm: Cdm) -> None:
    person, owner = _patient(cdm, race_observation="2")
    for _ in range(2):
        _race(cdm, person, owner, AS_OF)
    cdm.observe(person, day(3))
    for number in (10, 30, 20):
        cdm.visit(person, day(number), day(100))
    report = cdm.refresh(persons=[person])
    dated = [(person, day(30), _midnight(day(30)))] * 2
    assert _race_dates(cdm) == [*dated, (person, day(3), None)]
    assert (report.changes["observation"].updated, report.changes["observation"].rows) == (2, 2)
    assert "observation" not in cdm.refresh(persons=[person]).changes
    cdm.visit(person, day(40))
    assert cdm.refresh(persons=[person]).changes["observation"].updated == 2
    assert _race_dates(cdm)[0] == (person, day(40), _midnight(day(40)))


def test_races_without_a_visit_keep_the_as_of_date_and_are_no_observed_time(cdm: Cdm) -> None:
    person, owner = _patient(cdm, race_observation="2")
    _race(cdm, person, owner, day(50))
    cdm.visit(cdm.person("one"), day(70))
    report = cdm.refresh(persons=[person])
    assert _race_dates(cdm) == [(person, day(50), _midnight(day(50)))]
    assert "observation" not in report.changes
    assert person not in [row[0] for row in cdm.periods()]


def test_race_dates_are_computed_for_affected_persons(cdm: Cdm) -> None:
    affected, other = (_patient(cdm, race_observation="2") for _ in range(2))
    cdm.refresh(site="one")
    for person, owner in (affected, other):
        _race(cdm, person, owner, day(50))
        cdm.visit(person, day(10))
    cdm.refresh(persons=[affected[0]], site="one")
    assert [row[:2] for row in _race_dates(cdm)] == [(affected[0], day(10)), (other[0], day(50))]


@pytest.mark.parametrize("table", EVENT_TABLES)
def test_a_birth_year_takes_the_day_of_its_earliest_record(cdm: Cdm, table: str) -> None:
    person, _ = _patient(cdm, DAY_0.year, birth_year_only=str(DAY_0.year))
    cdm.insert(table, person_id=person, **EVENT_TABLES[table])
    cdm.visit(person, day(20))
    cdm.observe(person, day(-5))  # of the year before
    assert cdm.refresh(persons=[person]).changes["person"].updated == 1
    assert cdm.rows("person", "birth_datetime", "1") == [(_midnight(day(10)),)]
    assert "person" not in cdm.refresh(persons=[person]).changes


def test_a_birth_year_without_a_record_in_it_is_midyear(cdm: Cdm) -> None:
    """Rows that the Patient itself made are no records, and a birth date that is known stays."""
    person, owner = _patient(cdm, DAY_0.year, birth_year_only=str(DAY_0.year), race_observation="2")
    _race(cdm, person, owner, day(3))
    known, _ = _patient(cdm, DAY_0.year)
    cdm.visit(known, day(10))
    report = cdm.refresh(persons=[person, known])
    assert "person" not in report.changes
    assert cdm.rows("person", "birth_datetime", "person_id") == [(datetime(DAY_0.year, 6, 15),)] * 2  # noqa: DTZ001
    visit = cdm.visit(person, day(40))
    cdm.refresh(persons=[person])
    assert cdm.rows("person", "birth_datetime", "person_id")[0] == (_midnight(day(40)),)
    cdm.connection.execute("DELETE FROM cdm.visit_occurrence WHERE visit_occurrence_id = %s", (visit,))
    cdm.refresh(persons=[person])
    assert cdm.rows("person", "birth_datetime", "person_id")[0] == (datetime(DAY_0.year, 6, 15),)  # noqa: DTZ001


def _discharged_dead(cdm: Cdm, person: int, on_day: date, kind: int = 32827) -> int:
    owner = cdm.source("visit_occurrence", cdm.visit(person, day(0), on_day), "one", "Encounter")
    value = f"{on_day}|{on_day}T08:00:00|{kind}"
    cdm.connection.execute(
        "INSERT INTO etl.reference_value VALUES (%s, 'discharge_death', %s, %s)", (-person, owner, value)
    )
    return owner


def _deaths(cdm: Cdm) -> list[tuple[Any, ...]]:
    return cdm.rows("death", "person_id, death_date, death_type_concept_id", "1, 2")


def _own_death(cdm: Cdm, person: int, owner: int, on_day: date) -> None:
    """A death as the Patient's line leaves it: row, lineage and fact."""
    cdm.insert("death", person_id=person, death_date=on_day, death_type_concept_id=32817)
    own = "INSERT INTO etl.lineage_death (row_id, surrogate_id, row_key, export_id) VALUES (%s, %s, 0, 1)"
    cdm.connection.execute(own, (person, owner))
    cdm.fact("patient_death", owner, f"{on_day}||32817")


def _says_no_death(cdm: Cdm, person: int, owner: int) -> None:
    """As the publication leaves it when the resource says it no longer: row, lineage and fact are gone."""
    cdm.connection.execute(
        "DELETE FROM cdm.death USING etl.lineage_death WHERE row_id = person_id AND surrogate_id = %s", (owner,)
    )
    for table in ("lineage_death WHERE surrogate_id", "reference_value WHERE owner_surrogate_id"):
        cdm.connection.execute(f"DELETE FROM etl.{table} = %s", (owner,))


def _owners(cdm: Cdm) -> list[tuple[Any, ...]]:
    return cdm.connection.execute("SELECT row_id, surrogate_id FROM etl.lineage_death").fetchall()


def test_of_several_discharges_the_latest_tells_of_the_death(cdm: Cdm) -> None:
    person, _ = _patient(cdm)
    later, earlier = _discharged_dead(cdm, person, day(20)), _discharged_dead(cdm, person, day(12))
    report = cdm.refresh(persons=[person])
    assert _deaths(cdm) == [(person, day(20), 32827)]
    assert cdm.rows("death", "death_datetime", "1") == [(_midnight(day(20)) + timedelta(hours=8),)]
    assert report.changes["death"].inserted == 1
    assert "death" not in cdm.refresh(persons=[person]).changes
    assert _owners(cdm) == [(person, later)]
    _says_no_death(cdm, person, later)
    cdm.refresh(persons=[person])
    assert _deaths(cdm) == [(person, day(12), 32827)]
    assert _owners(cdm) == [(person, earlier)]


def test_a_death_at_a_discharge_counts_before_the_patients_own(cdm: Cdm) -> None:
    person, owner = _patient(cdm)
    _own_death(cdm, person, owner, day(30))
    assert "death" not in cdm.refresh(persons=[person]).changes
    discharge = _discharged_dead(cdm, person, day(12))
    report = cdm.refresh(persons=[person])
    assert _deaths(cdm) == [(person, day(12), 32827)]
    assert (report.changes["death"].deleted, report.changes["death"].inserted) == (1, 1)
    assert _owners(cdm) == [(person, discharge)]
    assert "death" not in cdm.refresh(persons=[person]).changes
    # The Patient's line again: its row comes with it, and goes.
    cdm.insert("death", person_id=person, death_date=day(30), death_type_concept_id=32817)
    cdm.connection.execute("INSERT INTO etl.lineage_death VALUES (%s, %s, 0, 1)", (person, owner))
    cdm.refresh(persons=[person])
    assert _deaths(cdm) == [(person, day(12), 32827)]
    _says_no_death(cdm, person, discharge)
    cdm.refresh(persons=[person])
    assert _deaths(cdm) == [(person, day(30), 32817)]
    assert _owners(cdm) == [(person, owner)]


def test_a_death_of_a_patient_that_left_no_fact_stays(cdm: Cdm) -> None:
    """In a warehouse that was loaded before Patients left facts of their deaths."""
    person, owner = _patient(cdm)
    _own_death(cdm, person, owner, day(30))
    cdm.connection.execute("DELETE FROM etl.reference_value WHERE name = 'patient_death'")
    assert "death" not in cdm.refresh(persons=[person]).changes
    assert _deaths(cdm) == [(person, day(30), 32817)]


@pytest.mark.parametrize(
    ("contact", "drops", "issues", "rows"), [(60, True, 0, 1), (61, False, 1, 1), (61, True, 1, 0)]
)
def test_a_death_is_doubted_where_the_person_was_met_later(
    cdm: Cdm, contact: int, drops: bool, issues: int, rows: int
) -> None:
    person, owner = _patient(cdm)
    _own_death(cdm, person, owner, day(0))
    visit = cdm.visit(person, day(contact))
    for _ in range(2):
        cdm.refresh(persons=[person], drop_doubted_deaths=drops)
        assert cdm.connection.execute("SELECT surrogate_id, code FROM etl.row_issue").fetchall() == (
            [(owner, "activity_after_death")] * issues
        )
        assert len(_deaths(cdm)) == rows
    assert [first for _, first, _ in cdm.periods()] == ([day(contact)] if drops or contact == 60 else [])
    cdm.connection.execute("DELETE FROM cdm.visit_occurrence WHERE visit_occurrence_id = %s", (visit,))
    cdm.refresh(persons=[person], drop_doubted_deaths=drops)
    assert cdm.connection.execute("SELECT count(*) FROM etl.row_issue").fetchall() == [(0,)]
    assert _deaths(cdm) == [(person, day(0), 32817)]


def test_a_contact_that_lay_in_the_future_makes_a_death_doubted_when_it_is_past(cdm: Cdm) -> None:
    person = cdm.person("one")
    owner = cdm.connection.execute("SELECT surrogate_id FROM etl.lineage_person").fetchall()[0][0]
    _own_death(cdm, person, owner, day(0))
    cdm.visit(person, day(100))
    cdm.refresh(day(90), site="one")
    assert cdm.connection.execute("SELECT count(*) FROM etl.row_issue").fetchall() == [(0,)]
    cdm.refresh(day(101), persons=[], site="one")
    assert cdm.connection.execute("SELECT surrogate_id FROM etl.row_issue").fetchall() == [(owner,)]


def test_a_death_of_a_type_that_the_vocabulary_lacks_is_not_made(cdm: Cdm) -> None:
    person, _ = _patient(cdm)
    _discharged_dead(cdm, person, day(12), kind=0)
    cdm.refresh(persons=[person])
    assert _deaths(cdm) == []


def test_the_inpatient_visits_are_those_of_the_transform() -> None:
    assert DerivedOptions().inpatient_visits == INPATIENT_VISITS


# --- what is written --------------------------------------------------------------------------------------------------


def _something_of_everything(cdm: Cdm, person: int) -> None:
    cdm.visit(person, day(0), day(3))
    cdm.visit(person, day(200))
    for number in (0, 10, 100):
        cdm.condition(person, day(number))
        cdm.drug(person, day(number), day(number + 9), quantity=10, days_supply=10)


def test_a_second_run_rewrites_no_row(cdm: Cdm) -> None:
    for _ in range(3):
        person = cdm.person("one")
        _something_of_everything(cdm, person)
    _open_visit(cdm, person, day(300))
    first = cdm.refresh(site="one", facts={"ig_version": "2.0.0-ballot"})
    before = cdm.snapshot()
    second = cdm.refresh(site="one", facts={"ig_version": "2.0.0-ballot"})
    assert {"observation_period", "condition_era", "drug_era", "dose_era", "visit_occurrence", "metadata"} <= set(
        first.changes
    )
    assert second.changes == {}
    assert cdm.snapshot() == before


def test_ids_are_given_in_the_order_of_the_content(cdm: Cdm) -> None:
    persons = [cdm.person() for _ in range(3)]
    for person in reversed(persons):
        cdm.observe(person, day(600))
        cdm.observe(person, day(0))
    cdm.refresh()
    ids = cdm.rows("observation_period", "observation_period_id, person_id, observation_period_start_date", "2, 3")
    numbers = [row[0] for row in ids]
    assert numbers == list(range(numbers[0], numbers[0] + 6))


def test_only_affected_persons_are_computed_and_other_rows_stay(cdm: Cdm) -> None:
    one, two = cdm.person("one"), cdm.person("one")
    for person in (one, two):
        _something_of_everything(cdm, person)
    cdm.refresh(site="one")
    others = [row for row in cdm.snapshot() if row[0] != "metadata" and f",{two}," in row[2]]
    cdm.condition(one, day(500))
    cdm.condition(two, day(500))
    report = cdm.refresh(persons=[one], site="one")
    assert report.affected_persons == 1
    assert [row for row in cdm.snapshot() if row[0] != "metadata" and f",{two}," in row[2]] == others
    assert Counter(row[0] for row in cdm.condition_eras()) == {one: 3, two: 2}


def test_a_person_who_is_gone_loses_the_derived_rows(cdm: Cdm) -> None:
    person, other = cdm.person("one"), cdm.person("one")
    for someone in (person, other):
        _something_of_everything(cdm, someone)
    cdm.refresh(site="one")
    cdm.connection.execute("SET CONSTRAINTS ALL DEFERRED")
    for table in ("visit_occurrence", "condition_occurrence", "drug_exposure", "person"):
        cdm.connection.execute(f"DELETE FROM cdm.{table} WHERE person_id = %s", (person,))
    cdm.refresh(persons=[person], site="one")
    cdm.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for table in ("observation_period", "condition_era", "drug_era", "dose_era"):
        assert {row[0] for row in cdm.rows(table, "person_id", "1")} == {other}


def test_changed_rules_compute_everybody(cdm: Cdm) -> None:
    person = cdm.person("one")
    cdm.observe(person, day(0))
    cdm.observe(person, day(100))
    cdm.refresh(site="one")
    report = cdm.refresh(persons=[], site="one", go_live=day(50))
    assert report.affected_persons == 1
    assert cdm.periods() == [(person, day(50), day(160))]


def test_metadata_holds_the_facts_of_each_site(cdm: Cdm) -> None:
    cdm.visit(cdm.person("one"), day(0))
    cdm.person("two")
    facts = {"last_export": datetime(2026, 1, 1, 6, tzinfo=UTC), "ig_version": "2.0.0-ballot", "lines": 7}
    cdm.refresh(site="one", facts=facts, go_live=day(-5), instance_zone="America/Chicago")
    cdm.refresh(site="two")
    found = {
        row[0]: row[1:]
        for row in cdm.rows("metadata", "name, value_as_string, value_as_number, metadata_date, metadata_datetime")
    }
    assert found["site/one/site_name"] == ("one", None, None, None)
    assert found["site/one/last_export"] == (None, None, AS_OF, datetime(2026, 1, 1))  # noqa: DTZ001
    assert found["site/one/lines"] == (None, 7, None, None)
    assert found["site/one/go_live_date"] == (None, None, day(-5), None)
    assert found["site/one/as_of_date"] == (None, None, AS_OF, None)
    assert found["site/one/persons"][1] == found["site/two/persons"][1] == 1
    assert [found[f"site/{site}/persons_without_observation_period"][1] for site in ("one", "two")] == [0, 1]
    cdm.refresh(site="one")
    names = {row[0] for row in cdm.rows("metadata", "name", "1")}
    assert "site/one/ig_version" not in names
    assert "site/two/site_name" in names


def test_an_export_without_changes_changes_no_table(cdm: Cdm) -> None:
    """The site's facts are those of the last publication that changed something; what was skipped is made up for."""
    person = cdm.person("one")
    cdm.observe(person, day(0))
    cdm.observe(person, day(700))
    cdm.refresh(day(100), site="one")
    before = cdm.snapshot()
    assert cdm.refresh(day(200), persons=[], site="one").changes == {}
    assert cdm.snapshot() == before
    report = cdm.refresh(day(720), persons=[], site="one")
    assert set(report.changes) == {"observation_period", "metadata"}
    assert cdm.periods() == [(person, day(0), day(60)), (person, day(700), day(720))]
    assert cdm.rows("metadata", "metadata_date, name", "2")[0] == (day(720), "site/one/as_of_date")


def test_a_refused_statement_is_a_warehouse_error(cdm: Cdm) -> None:
    cdm.connection.execute("DROP TABLE cdm.condition_era")
    with pytest.raises(WarehouseError, match="condition_era"):
        cdm.refresh()


def test_affected_persons_are_found_by_lineage(cdm: Cdm) -> None:
    one, two, three = (cdm.person("one") for _ in range(3))
    changed = [
        cdm.source("visit_occurrence", cdm.visit(one, day(0)), "one", "Encounter"),
        cdm.source("death", cdm.insert("death", person_id=two, death_date=day(9)), "one", "Patient"),
    ]
    cdm.source("visit_occurrence", cdm.visit(three, day(0)), "one", "Encounter")
    cdm.connection.execute("CREATE TEMP TABLE changed (surrogate_id bigint) ON COMMIT DROP")
    cdm.connection.execute("INSERT INTO changed SELECT unnest(%s::bigint[])", (changed,))
    db = Database(cdm.connection, "cdm", "etl", "vocab")
    make_affected_person(db)
    for _ in range(2):
        note_persons(db)
    found = cdm.connection.execute("SELECT person_id FROM affected_person ORDER BY 1").fetchall()
    assert found == [(one,), (two,)]


def test_derived_rows_of_an_export_that_came_through_the_pipeline(warehouse: Warehouse) -> None:
    warehouse.load(
        {
            "Patient": [patient("p1"), patient("p2")],
            "Encounter": [encounter("e1"), encounter("e2", period={"start": "2025-03-01T15:00:00Z"})],
            "Observation": [observation("o1", effectiveDateTime="2025-02-01T15:30:00Z")],
        }
    )
    with warehouse.runtime.connect() as connection:
        report = refresh_derived(
            connection, cdm="cdm", vocab="vocab", etl="etl", as_of=AS_OF, options=DerivedOptions(site="one")
        )
        assert (report.persons, report.persons_without_period) == (2, 1)
    periods = "SELECT observation_period_start_date, observation_period_end_date FROM cdm.observation_period"
    assert warehouse.rows(periods) == [(date(2025, 1, 2), date(2025, 4, 30))]
    assert warehouse.value("SELECT count(preceding_visit_occurrence_id) FROM cdm.visit_occurrence") == 1


def test_another_version_of_publication_derives_everybody_again(warehouse: Warehouse) -> None:
    condition = {
        "id": "c1",
        "subject": {"reference": "Patient/p1"},
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "44054006"}]},
        "onsetDateTime": "2025-01-02",
        "clinicalStatus": {"coding": [{"code": "active"}]},
        "verificationStatus": {"coding": [{"code": "confirmed"}]},
    }
    files = {"Patient": [patient("p1")], "Encounter": [encounter("e1")], "Condition": [condition]}

    def derived() -> list[list[tuple[Any, ...]]]:
        return [
            warehouse.rows("SELECT * FROM cdm.observation_period"),
            warehouse.rows("SELECT person_id, condition_concept_id, condition_era_start_date FROM cdm.condition_era"),
        ]

    warehouse.load(files)
    loaded = derived()
    assert all(loaded)
    with warehouse.runtime.connect() as connection:
        connection.execute("DELETE FROM cdm.condition_era")
        connection.execute("UPDATE cdm.observation_period SET observation_period_end_date = '2025-01-03'")
    changed = derived()
    warehouse.load(files)
    assert derived() == changed  # of unchanged lines nobody is derived again
    with warehouse.runtime.connect() as connection:
        connection.execute(
            "UPDATE cdm.metadata SET value_as_string = regexp_replace(value_as_string, 'version [0-9a-f]+', 'version 2')"
            " WHERE name = 'site/one/derived_rules'"
        )
    (report,) = warehouse.load(files)
    assert +report.outcomes == {"unchanged": 3}
    assert derived() == loaded


# --- against a slow reference -----------------------------------------------------------------------------------------

RawSpan = tuple[int, int, int]
_SPANS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 150), st.integers(0, 40)), max_size=9)
_PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def joined(spans: Iterable[Span], window: int) -> list[list[Span]]:
    """Groups of spans, made by joining any two groups that are near enough until there are no such two."""
    groups = [[span] for span in spans]
    while True:
        near = next(
            (
                (a, b)
                for a in groups
                for b in groups
                if a is not b
                and min(x for x, _ in b) - max(y for _, y in a) <= window
                and min(x for x, _ in a) - max(y for _, y in b) <= window
            ),
            None,
        )
        if near is None:
            return sorted(groups, key=min)
        groups = [group for group in groups if group is not near[0] and group is not near[1]] + [near[0] + near[1]]


def bounds(group: list[Span]) -> Span:
    return min(first for first, _ in group), max(last for _, last in group)


def gap_days(group: list[Span]) -> int:
    """Days of the era on which there is no exposure."""
    first, last = bounds(group)
    return sum(1 for number in range(first, last + 1) if not any(a <= number <= b for a, b in group))


@_PROPERTY
@given(spans=_SPANS)
def test_eras_equal_those_of_a_slow_reference(cdm: Cdm, spans: list[RawSpan]) -> None:
    with cdm.connection.transaction(force_rollback=True):
        persons = [cdm.person(), cdm.person()]
        for who, first, length in spans:
            cdm.condition(persons[who], day(first), day(first + length))
            cdm.drug(persons[who], day(first), day(first + length))
        cdm.refresh()
        expected = [
            (persons[who], *bounds(group), len(group), gap_days(group))
            for who in (0, 1)
            for group in joined([(first, first + length) for mine, first, length in spans if mine == who], 30)
        ]
        assert cdm.condition_eras() == [(who, CONDITION, day(a), day(b), n) for who, a, b, n, _ in expected]
        assert cdm.drug_eras() == [(who, ASPIRIN, day(a), day(b), n, gap) for who, a, b, n, gap in expected]


_VISITS = st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 300)), max_size=6)
_MAYBE_DAY = st.none() | st.integers(0, 2600)


@_PROPERTY
@given(visits=_VISITS, death=_MAYBE_DAY, go_live=_MAYBE_DAY, as_of=st.integers(0, 2800))
def test_periods_equal_those_of_a_slow_reference(
    cdm: Cdm, visits: list[Span], death: int | None, go_live: int | None, as_of: int
) -> None:
    with cdm.connection.transaction(force_rollback=True):
        person = cdm.person()
        case = PeriodCase(visits=[(first, first + length) for first, length in visits], death=death)
        _write_period_case(cdm, person, case)
        cdm.refresh(day(as_of), go_live=None if go_live is None else day(go_live))
        past = [(first, min(last, as_of)) for first, last in case.visits if first <= as_of]
        expected = []
        for first, last in map(bounds, joined(past, 547)):
            start = first if go_live is None else max(first, go_live)
            ends = [last + 60, as_of] if death is None else [last + 60, as_of, death + 60]
            if start <= min(ends) and (go_live is None or last >= go_live):
                expected.append((person, day(start), day(min(ends))))
        found = cdm.periods()
        assert found == expected
        assert all(one[2] < two[1] for one, two in pairwise(found))


@_PROPERTY
@given(before=_SPANS, later=_SPANS, days=st.tuples(st.integers(0, 250), st.integers(0, 250)))
def test_step_by_step_equals_all_at_once(
    cdm: Cdm, before: list[RawSpan], later: list[RawSpan], days: tuple[int, int]
) -> None:
    """Load, publish, load more, publish for the persons with changes alone: as if everybody were computed at the end."""
    with cdm.connection.transaction(force_rollback=True):
        persons = [cdm.person("one"), cdm.person("one")]
        for step, (spans, as_of) in enumerate(zip((before, later), sorted(days), strict=True)):
            for who, first, length in spans:
                cdm.visit(persons[who], day(first), day(first + length))
                cdm.condition(persons[who], day(first), day(first + length))
                cdm.drug(persons[who], day(first), day(first + length))
            changed = [persons[who] for who in {who for who, _, _ in spans}]
            cdm.refresh(day(as_of), persons=None if step == 0 else changed, site="one")
        step_by_step = [row for row in cdm.snapshot() if row[0] != "metadata"]
        assert set(cdm.refresh(day(max(days)), site="one").changes) <= {"metadata"}
        assert [row for row in cdm.snapshot() if row[0] != "metadata"] == step_by_step


# --- side by side with the published algorithm ------------------------------------------------------------------------


def swept(source: str, concept: str, window: int) -> str:
    """OHDSI's way to eras: sweep starts and padded ends in order of time; where as many have ended as have started, an
    era ends; each interval belongs to the first such end that is not before its start. (No running maximum of ends.)"""
    return f"""
        SELECT item.person_id, item.{concept}, item.first_day, item.last_day, min(closing.on_day) AS end_day
        FROM {source} AS item JOIN (
            SELECT person_id, {concept}, on_day - {window} AS on_day FROM (
                SELECT *, sum(step) OVER (PARTITION BY person_id, {concept} ORDER BY on_day, step DESC
                                          ROWS UNBOUNDED PRECEDING) AS open
                FROM (SELECT person_id, {concept}, first_day AS on_day, 1 AS step FROM {source}
                      UNION ALL SELECT person_id, {concept}, last_day + {window}, -1 FROM {source}) AS edge
            ) AS sweep WHERE open = 0
        ) AS closing ON closing.person_id = item.person_id AND closing.{concept} = item.{concept}
                    AND closing.on_day >= item.first_day
        GROUP BY item.row_id, item.person_id, item.{concept}, item.first_day, item.last_day"""


def _random_rows(cdm: Cdm) -> None:
    chance = random.Random(20)
    for _ in range(25):
        person = cdm.person()
        for _ in range(chance.randrange(25)):
            first = chance.randrange(500)
            last = first + chance.choice((0, 0, 1, 5, 10, 30, 90))
            cdm.condition(
                person,
                day(first),
                chance.choice((None, day(last))),
                concept=chance.choice((0, CONDITION, 1)),
            )
            cdm.drug(
                person,
                day(first),
                day(last),
                concept=chance.choice((0, ASPIRIN_TABLET, ASPIRIN_CODEINE, ANALGESICS)),
                days_supply=chance.choice((None, 10, -1)),
            )


def test_condition_eras_side_by_side_with_the_published_algorithm(cdm: Cdm) -> None:
    _random_rows(cdm)
    cdm.refresh()
    cdm.connection.execute(
        "CREATE TEMP TABLE item AS SELECT condition_occurrence_id AS row_id, person_id, condition_concept_id,"
        " condition_start_date AS first_day, coalesce(condition_end_date, condition_start_date + 1) AS last_day"
        " FROM cdm.condition_occurrence WHERE condition_concept_id <> 0"
    )
    published = cdm.connection.execute(
        "SELECT person_id, condition_concept_id, min(first_day), end_day, count(*)"
        f" FROM ({swept('item', 'condition_concept_id', 30)}) AS era GROUP BY 1, 2, 4 ORDER BY 1, 2, 3"
    ).fetchall()
    assert len(published) > 50
    assert cdm.condition_eras() == published


@pytest.mark.parametrize("stockpiling", [False, True])
def test_drug_eras_side_by_side_with_the_published_algorithm(cdm: Cdm, stockpiling: bool) -> None:
    """Both of OHDSI's scripts: with sub-exposures (each day counts once), and with stockpiling (every supply counts)."""
    _random_rows(cdm)
    cdm.refresh(stockpiling=stockpiling, gap_by_script=True)
    cdm.connection.execute(
        "CREATE TEMP TABLE exposure AS SELECT drug_exposure_id AS row_id, person_id, ancestor_concept_id AS ingredient,"
        " drug_exposure_start_date AS first_day, drug_exposure_end_date AS last_day FROM cdm.drug_exposure"
        " JOIN vocab.concept_ancestor ON descendant_concept_id = drug_concept_id"
        " JOIN vocab.concept ON concept_id = ancestor_concept_id AND concept_class_id = 'Ingredient'"
        " WHERE drug_concept_id <> 0 AND coalesce(days_supply, 0) >= 0"
    )
    if stockpiling:
        item = "SELECT *, 1 AS exposures FROM exposure"
    else:
        item = (
            "SELECT row_number() OVER () AS row_id, person_id, ingredient, min(first_day) AS first_day,"
            f" end_day AS last_day, count(*) AS exposures FROM ({swept('exposure', 'ingredient', 0)}) AS sub"
            " GROUP BY person_id, ingredient, end_day"
        )
    cdm.connection.execute(f"CREATE TEMP TABLE item AS {item}")
    published = cdm.connection.execute(
        "SELECT person_id, ingredient, min(first_day), end_day, sum(exposures),"
        " end_day - min(first_day) - sum(last_day - first_day)"
        f" FROM ({swept('item', 'ingredient', 30)}) AS era JOIN item USING (person_id, ingredient, first_day, last_day)"
        " GROUP BY 1, 2, 4 ORDER BY 1, 2, 3"
        if not stockpiling
        else "SELECT person_id, ingredient, min(first_day), end_day, count(*),"
        " end_day - min(first_day) - sum(last_day - first_day)"
        f" FROM ({swept('item', 'ingredient', 30)}) AS era GROUP BY 1, 2, 4 ORDER BY 1, 2, 3"
    ).fetchall()
    assert len(published) > 50
    assert cdm.drug_eras() == published
