"""`verify --deep`: it is silent where incremental loads are right, and finds whatever is not as a fresh load makes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import psycopg
import pytest

from omop_schema.cdm import polars_schema, primary_key
from omop_schema.contact import CONTACT_DATE
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from omop_schema.versions import DEFAULT_CDM_VERSION
from pipeline.core.clock import SystemClock
from pipeline.core.errors import SiteBusy
from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings
from pipeline.orchestration.deep_check import deep_parts
from pipeline.publication.derived import KEYS
from pipeline.quality.deep.content import RELATIONS, TABLES, columns_of, is_link
from pipeline.quality.deep.model import DeepReport, DeepRequest
from pipeline.quality.deep.run import verify_deep
from pipeline.quality.deep.scratch import scratch_warehouse
from pipeline.sandbox.generator import generate
from pipeline.warehouse.runtime import Runtime
from tests.integration.support import START, Warehouse, encounter, observation, patient, reference
from tests.integration.test_sequences import files, world

EVERYTHING = DeepRequest(persons=None)
EVERYBODY = DeepRequest(persons=1000, seed=3)

#: Never filled by what the demonstration vocabulary can map.
_EMPTY = {"dose_era"}


def told(report: DeepReport) -> list[str]:
    return [difference.summary() for difference in report.differences]


def with_sites(warehouse: Warehouse, *sites: SiteSettings) -> Warehouse:
    settings = warehouse.runtime.settings.model_copy(update={"sites": {site.name: site for site in sites}})
    return replace(warehouse, runtime=Runtime(settings, warehouse.runtime.clock))


# --- a warehouse after some nights ------------------------------------------------------------------------------------


def sandbox_night(day: int) -> dict[str, list[bytes]]:
    files: dict[str, list[bytes]] = defaultdict(list)
    for resource_type, line in generate(8, 3, START.date(), day):
        files[resource_type].append(line.rstrip(b"\n"))
    files.pop("OperationOutcome", None)
    return files


def first_night() -> dict[str, list[dict[str, Any]]]:
    """What the sandbox has not: a death, a merge, sub-encounters, a device, a note, what waits for what comes later."""
    inpatient = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}
    races = [
        {"url": "ombCategory", "valueCoding": {"system": "urn:oid:2.16.840.1.113883.6.238", "code": code}}
        for code in ("2106-3", "2054-5")
    ]
    race = {"url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race", "extension": races}
    by_identifier = {"reference": "Location?identifier=urn:example:rooms|7"}
    return {
        "Patient": [
            patient("p1", deceasedDateTime="2025-06-01", address=[{"state": "WI", "postalCode": "53703"}]),
            patient("p2", generalPractitioner=[reference("Practitioner", "d1")]),
            patient("p3", link=[{"type": "replaced-by", "other": reference("Patient", "p1")}]),
            patient("p4", extension=[race]),  # without a visit: its date is that of this export
            patient("p5", birthDate="1980"),
        ],
        "Encounter": [
            encounter("e1", partOf=reference("Encounter", "e9"), participant=[_attending("d1")]),
            encounter("e2", "p2", **{"class": inpatient, "period": {"start": "2025-02-01T10:00:00Z"}}),
            encounter("e3", "p3"),
            encounter("e4", "p3", location=[{"location": by_identifier}]),  # at the same time as the other
        ],
        "Observation": [
            observation("o1", encounter=reference("Encounter", "e9"), performer=[reference("Practitioner", "d1")]),
            observation("o2", "p2", encounter=reference("Encounter", "e2")),
            observation("o3", "p3", encounter=reference("Encounter", "e3")),
            observation("o4", "p9"),  # a dead letter
            {**observation("o5", "p2"), "status": "preliminary"},
        ],
        "Device": [{"id": "v1", "type": {"coding": [{"system": "http://snomed.info/sct", "code": "360129009"}]}}],
        "DeviceUseStatement": [
            {
                "id": "u1",
                "status": "active",
                "subject": reference("Patient", "p2"),
                "device": reference("Device", "v1"),
                "timingDateTime": "2025-02-03",
            }
        ],
        "DocumentReference": [
            {
                "id": "t1",
                "status": "current",
                "type": {"coding": [{"system": "http://loinc.org", "code": "11506-3"}]},
                "subject": reference("Patient", "p1"),
                "date": "2025-01-03T10:00:00Z",
                "content": [{"attachment": {"contentType": "text/plain", "data": "Tm90aGluZw=="}}],
                "context": {"encounter": [reference("Encounter", "e1")]},
            }
        ],
    }


def second_night() -> dict[str, list[dict[str, Any]]]:
    """A visit that was waited for, a correction, an end, and what is not there any more."""
    night = first_night()
    night["Practitioner"] = [{"id": "d1", "identifier": [{"system": "http://example.org", "value": "7"}]}]
    night["Encounter"].append(encounter("e9"))
    night["Observation"][1] = observation("o2", "p1", encounter=reference("Encounter", "e1"))
    night["Patient"][1] = patient("p2", gender="male", generalPractitioner=[reference("Practitioner", "d1")])
    del night["DocumentReference"]
    return night


def _attending(practitioner: str) -> dict[str, Any]:
    coding = {"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "ATND"}
    return {"type": [{"coding": [coding]}], "individual": reference("Practitioner", practitioner)}


@pytest.fixture
def nights(warehouse: Warehouse) -> Warehouse:
    """Two sites after some nights."""
    site = SiteSettings(name="hand", time_zone="America/Chicago", mapping=MappingOptions(notes="on"))
    found = with_sites(warehouse, SiteSettings(name="one"), site)
    for day in (0, 1):
        found.load(sandbox_night(day))
    for night in (first_night(), second_night(), {"Patient": [patient("p7")]}):
        found.load(night, "hand")
    return found


#: Histories in which later exports correct, remove, bring late and bring back; each is a site of its own.
HISTORIES = (
    (world("p1 o1:other o1"), (0,)),  # two versions in one export
    (world("p1 o1", "p1 o1:other", "p1 o1"), (1, 0, 2)),
    (world("o1 c1 m1", "med", "e1", "p1"), (0, 1, 2, 3)),
    (world("p1 d1 e1", "e1:other"), (0, 1)),
    (world("p1 e1 f1 g1 q1 r1", "p1 e1:wrong", "e1:other"), (0, 1, 2)),
    (world("p1 q1", "p1 f1", "p1 e1"), (0, 1, 2)),
    (world("p3:other o3 p1", "p3", "p3:other o3:other"), (0, 1, 2)),
    (world("p3 o3 p1", "p3:other"), (1, 0)),
)


def test_it_is_silent_after_histories(warehouse: Warehouse) -> None:
    for number, (exports, order) in enumerate(HISTORIES):
        site = f"history{number}"
        landed = [warehouse.land(files(export), site) for export in exports]
        for place in order:
            warehouse.ingest(landed[place], site)
    assert told(verify_deep(warehouse.runtime, EVERYTHING)) == []


# --- differences that are put in --------------------------------------------------------------------------------------


class Injected(NamedTuple):
    """A change of one row. `what`: the column, `missing`, or `extra`."""

    table: str
    what: str
    row_id: int


def inject(connection: psycopg.Connection) -> list[Injected]:
    """Change each column, delete a row and add a row, in each table that has rows."""
    connection.execute("SET LOCAL session_replication_role = replica")  # links may lead anywhere
    return [injected for table in TABLES if table not in _EMPTY for injected in _inject(connection, table)]


def _inject(connection: psycopg.Connection, table: str) -> Iterator[Injected]:
    own = "fact_id_1" if table == RELATIONS else primary_key(table) or "person_id"
    ids = [row[0] for row in connection.execute(f"SELECT {own} FROM cdm.{table} ORDER BY 1").fetchall()]
    assert ids, f"{table} has no rows to try it with"
    keys = {*KEYS.get(table, ()), *({"person_id"} if table == "death" else ())}
    columns = (
        [name for name in columns_of(table, DEFAULT_CDM_VERSION) if name not in keys] if table != RELATIONS else []
    )
    for number, column in enumerate(columns):
        row_id = ids[number % max(1, len(ids) - 1)]
        place, by = f"cdm.{table}", own
        if column == CONTACT_DATE:
            place, by = f"etl.{lineage_table_name(table)}", "row_id"
        changed = connection.execute(
            f"UPDATE {place} SET {column} = {_another(table, column)} WHERE {by} = %s", (row_id,)
        ).rowcount
        assert changed, (table, column)
        yield Injected(table, column, row_id)
    if len(ids) > 1:  # else it was needed for the columns
        condition = f"ctid = (SELECT ctid FROM cdm.{table} WHERE {own} = %s LIMIT 1)"
        connection.execute(f"DELETE FROM cdm.{table} WHERE {condition}", (ids[-1],))
        yield Injected(table, "missing", ids[-1])
    if table not in ("death", RELATIONS):
        others = ", ".join(name for name in columns_of(table, DEFAULT_CDM_VERSION) if name not in (own, CONTACT_DATE))
        connection.execute(
            f"INSERT INTO cdm.{table} ({own}, {others}) SELECT 900000, {others} FROM cdm.{table} WHERE {own} = %s",
            (ids[0],),
        )
        yield Injected(table, "extra", 900000)


def _another(table: str, column: str) -> str:
    """SQL of another value of the same type."""
    if column == "person_id":
        return f"(SELECT min(person_id) FROM cdm.person WHERE person_id <> {table}.person_id)"
    if column.endswith("_event_id"):  # the demonstration vocabulary does not say in which table the row is
        return f"CASE WHEN {column} IS NULL THEN 1 END"
    if is_link(column):
        return f"CASE WHEN {column} IS NULL THEN 1 ELSE {column} + 500000 END"
    kind = "Date" if column == CONTACT_DATE else str(polars_schema(table)[column])
    if kind.startswith("String"):
        return f"CASE WHEN {column} = 'x' THEN 'y' ELSE 'x' END"
    if kind.startswith("Date"):
        return f"coalesce({column}, '2020-01-01') + interval '3 days'"
    return f"coalesce({column}, 0) + 1"


def found(report: DeepReport, injected: Injected) -> bool:
    return any(
        difference.table == injected.table
        and injected.what in (difference.column, difference.kind)
        and (difference.kind == "missing" or difference.count > 5 or injected.row_id in difference.row_ids)
        for difference in report.differences
    )


def in_sample(injected: list[Injected]) -> list[Injected]:
    """What belongs to nobody and has no source is nobody's."""
    of_nobody = {"person", *(table for table in LINEAGE_TABLES if "person_id" not in polars_schema(table))}
    return [item for item in injected if not (item.table in of_nobody and item.what == "extra")]


def test_it_is_silent_after_nights_and_finds_what_is_put_in(nights: Warehouse) -> None:
    filled = {table for table in TABLES if nights.value(f"SELECT count(*) FROM cdm.{table}")}
    assert set(TABLES) - filled == _EMPTY
    for request in (EVERYTHING, EVERYBODY):
        report = verify_deep(nights.runtime, request)
        assert told(report) == []
        assert (report.left_out.total(), report.persons) == (0, 14)
    with nights.runtime.connect() as connection:
        injected = inject(connection)
    every = verify_deep(nights.runtime, EVERYTHING)
    assert [item for item in injected if not found(every, item)] == []
    sample = verify_deep(nights.runtime, EVERYBODY)
    missed = [item for item in in_sample(injected) if not found(sample, item)]
    assert not missed, (missed, told(sample))
    assert "Tm90aGluZw" not in repr(sample) + repr(every)
    assert "53703" not in repr(sample) + repr(every)


def test_a_pending_reference_that_overwrites_the_corrected_one_is_found(warehouse: Warehouse) -> None:
    """Night 1 refers to a visit that is not there, night 2 brings it and refers to another one: wherever the row hangs
    on the former, the oracle says so, and where it does not, it is silent."""
    visits, referring = [encounter("e1"), encounter("e2")], reference("Encounter", "e1")
    warehouse.load({"Patient": [patient()], "Encounter": visits[1:], "Observation": [observation(encounter=referring)]})
    corrected = observation(encounter=reference("Encounter", "e2"))
    warehouse.load({"Patient": [patient()], "Encounter": visits, "Observation": [corrected]})
    linked = warehouse.value(
        "SELECT resource_id FROM row_source JOIN cdm.measurement ON visit_occurrence_id = row_id"
        " WHERE cdm_table = 'visit_occurrence'"
    )
    found_here = told(verify_deep(warehouse.runtime, DeepRequest(persons=5)))
    if linked == "e2":
        assert found_here == []
        with warehouse.runtime.connect() as connection:
            connection.execute(
                "UPDATE cdm.measurement SET visit_occurrence_id = (SELECT row_id FROM row_source"
                " WHERE cdm_table = 'visit_occurrence' AND resource_id = 'e1')"
            )
        found_here = told(verify_deep(warehouse.runtime, DeepRequest(persons=5)))
    assert ["1 row of measurement from Observation: visit_occurrence_id differs" in text for text in found_here] == [
        True
    ]


def test_what_cannot_be_compared_is_left_out_and_told(warehouse: Warehouse) -> None:
    """Under other settings than those of today, or with a line that is in landing no more."""
    gone = warehouse.load({"Patient": [patient("p1")], "Observation": [observation("o1", "p1")]})[0].export_id
    warehouse.load({"Patient": [patient("p2")], "Observation": [observation("o2", "p2")]})
    shutil.rmtree(warehouse.runtime.landing.folder("one", gone))
    report = verify_deep(warehouse.runtime, EVERYTHING)
    assert (told(report), report.left_out, report.persons_left_out) == ([], {"not in landing": 2}, 1)
    site = SiteSettings(name="one", mapping=MappingOptions(observation_type="general"))
    report = verify_deep(with_sites(warehouse, site).runtime, DeepRequest(persons=5))
    assert (told(report), report.persons_left_out) == ([], 2)
    assert report.left_out == {"not in landing": 2, "old settings": 1}


def test_what_a_killed_run_left_is_removed_and_two_do_not_run_at_once(warehouse: Warehouse) -> None:
    warehouse.load({"Patient": [patient()]})
    killed = subprocess.Popen(
        [sys.executable, "-c", _KILLED, warehouse.runtime.url, str(warehouse.runtime.settings.home)],
        stdout=subprocess.PIPE,
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"made\n"
    with pytest.raises(SiteBusy), scratch_warehouse(warehouse.runtime):
        pass
    killed.kill()
    killed.wait()
    left = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%\\_deep\\_%'"
    assert warehouse.value(left) == 2
    wait_until(lambda: warehouse.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0)
    assert verify_deep(warehouse.runtime, EVERYTHING).ok
    assert warehouse.value(left) == 0
    assert not (warehouse.runtime.settings.home / "deep").exists()


_KILLED = """
import sys, time
from pathlib import Path
from pipeline.quality.deep.scratch import scratch_warehouse
from pipeline.warehouse.runtime import Runtime
from pipeline.core.settings import Settings
with scratch_warehouse(Runtime(Settings(home=Path(sys.argv[2]), database_url=sys.argv[1]))):
    print("made", flush=True)
    time.sleep(600)
"""


def wait_until(holds: Callable[[], bool]) -> None:
    """The server sees the end of a process a moment later."""
    for _ in range(600):
        if holds():
            return
        SystemClock().sleep(0.1)
    raise AssertionError("it never came so far")


def test_the_nightly_check_shows_counts_alone(warehouse: Warehouse) -> None:
    site = SiteSettings(name="one")
    found = with_sites(warehouse, site)
    found.load({"Patient": [patient()], "Observation": [observation()]})
    (check,) = deep_parts(found.runtime.settings, [site]).checks
    passed = check(runtime=found.runtime)
    assert (passed.passed, passed.metadata["persons"].value) == (True, 1)
    with found.runtime.connect() as connection:
        connection.execute("UPDATE cdm.measurement SET value_as_number = 4711")
    failed = check(runtime=found.runtime)
    assert (failed.passed, failed.metadata["differences"].value) == (False, 1)
    assert "value_as_number" in repr(failed.metadata)
    assert "4711" not in repr(failed)
