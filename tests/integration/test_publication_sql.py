"""The heads of publication's SQL files say which temporary tables a script reads and makes: as the server has it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest

from omop_schema.versions import NEWEST_CDM_VERSION
from pipeline.core.errors import ConfirmationNeeded
from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings
from pipeline.erasure.run import erasing
from pipeline.landing.store import LandedExport
from pipeline.publication.report import PublicationReport
from pipeline.publication.sql import SQL_FOLDER, Database, Script, read_script
from pipeline.publication.steps import bulk
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import schema_names, upgrade_schemas
from tests.integration import linked_world, medication_world, stand_in_world
from tests.integration.support import Warehouse, observation, patient, reference
from tests.integration.worlds import night

#: Each a group's complete export: (world, its module) → resources in versions. The second night brings, changes and takes
#: away something of every kind.
NIGHTS = (
    {
        ("a", linked_world): "p1 p3 d1 d2 r1 g1 g2:B l1 l2 e1 f1 o1 o3 c1 m1 a1 a2 x1 x2 v1 u1 q1",
        ("b", linked_world): "p1 e1 f1 o1 o3 c1 m1 q1 u1",
        ("c", linked_world): "p1 p3 d1 r1 g1 l1:B l2 f1:B o1 o3",
        ("s", stand_in_world): "p1 d1 r1 r2 g1 l1 e1 f1 o1 c1 m1:K q1:R i1",
        ("m", medication_world): "p1 p2 e1 m1 m2 d1:C d2:N a1 a3:B",
    },
    {
        ("a", linked_world): "p1:B p3:N d1 r1:B g1:B g2 l1:B l2 e1 f1:N o1:X o3 c1:B m1:B x1 x2:B v1:B u1:X q1:N",
        ("b", linked_world): "p1 p3 d1 d2 r1 g1 g2 l1 l2 e1 f1 o1 c1 m1 x1 x2 v1 u1 q1",
        ("c", linked_world): "d1 e1",
        ("s", stand_in_world): "p1 d1:B d2 r1:B r2:K g1:B g2 l1 l2 e1 f1 o1 c1 m1:K q1:R i1:B",
        ("m", medication_world): "p1 p2:B e1 m1 m2 d1:C d2:N a1:X a3",
    },
    {
        ("a", linked_world): "p3 d1 e1 f1",
        ("b", linked_world): "p1 p3:N d2 g1 l1 e1:X f1 o1 o3 c1 m1 x1 v1 u1 q1",
        ("c", linked_world): "p1 p3 d1 r1 g1 l1 l2 f1:B o1 o3",
        ("s", stand_in_world): "p1 d2 r1 r2 g2 l2 e1 f1 o1 c1 m1:K q1:R i1",
        ("m", medication_world): "p1 e1 m1 m2 d1 d2:N a1",
    },
)

#: Makes rows that belong to another one of its resource.
ALLERGY = {
    "id": "a-allergy",
    "patient": reference("Patient", "a-p1"),
    "code": {"coding": [{"system": "http://snomed.info/sct", "code": "91936005"}]},
    "recordedDate": "2025-01-03",
    "reaction": [{"manifestation": [{"coding": [{"system": "http://snomed.info/sct", "code": "247472004"}]}]}],
}

#: Parts of other scripts, and conditions.
FRAGMENTS = {
    *("accounting_rule", "count_accounts", "detail_targets", "entity_targets", "is_mapped_again", "is_site_relation"),
    *("dose_exposure", "is_fact_of_site", "is_in_scope", "contact_days", "contact_visits", "contacts_after"),
    "patients_in_table",
    *("state_says_something", "wrong_accounts", "field_concept", "is_of_own_resource", "own_rows_of_panel"),
    "visits_of_results",
    "failed_check",
}

#: Only where notes go, which are made by option: tests/integration/test_landed_lines.py runs it.
OF_NOTES = {"remove_nlp_of_notes"}
#: Only where a person has repaired lines: tests/integration/test_repair.py runs it.
OF_REPAIRS = {"forget_repairs"}

_TABLE_NAME = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE|USING|ANALYZE|TRUNCATE)\s+(\w+)\b(?!\.)")


def _temporary(connection: psycopg.Connection) -> dict[str, int]:
    """Temporary tables of the session: name → oid."""
    query = "SELECT relname, oid::bigint FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'"
    return dict(connection.execute(query).fetchall())


def lies(
    script: Script, names: Mapping[str, str], before: Mapping[str, int], after: Mapping[str, int], sql: str
) -> str:
    """What of a script's head is not so; empty when all is. `sql`: what was executed."""
    reads = {name.format_map(names) for name in script.reads} - {""}
    makes = {name.format_map(names) for name in script.makes}
    made = {name for name, oid in after.items() if before.get(name) != oid}
    used = set(re.findall(r"pg_temp\.(\w+)", sql)) - makes
    bare = {name for name in _TABLE_NAME.findall(sql) if name in before or name in after}
    found = {
        "makes": (makes, made),
        "reads": (reads, used),
        "reads what is not there": (reads - before.keys(), set()),
        "removes": (before.keys() - after.keys(), set()),
        "names without pg_temp": (bare, set()),
    }
    return "; ".join(f"{script.name} {what}: {a} and {b}" for what, (a, b) in found.items() if a != b)


#: A device that would be an exposure by itself, and what counts it.
DEVICE = {
    "resourceType": "Device",
    "id": "a-counted",
    "patient": reference("Patient", "a-p1"),
    "manufactureDate": "2023-01-05",
    "type": {"coding": [{"system": "http://snomed.info/sct", "code": "14106009"}]},
}
DEVICE_USE = {
    "resourceType": "DeviceUseStatement",
    "id": "a-counted",
    "status": "active",
    "subject": reference("Patient", "a-p1"),
    "device": reference("Device", "a-counted"),
    "timingDateTime": "2024-01-02",
}


@dataclass
class Recorder:
    """Everything that the server is asked in a publication, and where heads lie."""

    executed: list[str] = field(default_factory=list)
    scripts: set[str] = field(default_factory=set)
    found: list[str] = field(default_factory=list)
    #: temporary tables that should be there by the heads, and those that Python put
    expected: set[str] = field(default_factory=set)
    database: Database | None = None

    def script(self, real: Any) -> Any:
        def recorded(db: Database, name: str, *arguments: Any, **names: str) -> Any:
            if self.database is None or self.database.connection is not db.connection:
                self.database, self.expected = db, set()
            before, mark = _temporary(db.connection), len(self.executed)
            result = real(db, name, *arguments, **names)
            sql = "\n".join(self.executed[mark:])
            after = _temporary(db.connection)
            self.scripts.add(name)
            script = read_script(name)
            self.expected |= {made.format_map(names) for made in script.makes}
            if lie := lies(script, names, before, after, sql):
                self.found.append(lie)
            return result

        return recorded

    def put(self, real: Any) -> Any:
        def recorded(db: Database, table: str, frame: Any) -> None:
            real(db, table, frame)
            self.expected.add(table)

        return recorded

    def query(self, real: Any) -> Any:
        def recorded(cursor: Any, query: Any, *arguments: Any, **named: Any) -> Any:
            self.executed.append(query if isinstance(query, str) else str(query))
            return real(cursor, query, *arguments, **named)

        return recorded

    def step(self, real: Any) -> Any:
        @contextmanager
        def recorded(report: PublicationReport, name: str) -> Iterator[None]:
            with real(report, name):
                yield
            db = self.database
            if db is None or db.connection.closed:
                return
            there = _temporary(db.connection).keys()
            if there and there != self.expected:
                self.found.append(f"after step {name}: {there ^ self.expected}")

        return recorded


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    for name in ("execute", "rows", "frame"):
        monkeypatch.setattr(Database, name, recorder.script(getattr(Database, name)))
    monkeypatch.setattr(Database, "put", recorder.put(Database.put))
    monkeypatch.setattr(PublicationReport, "step", recorder.step(PublicationReport.step))
    for name in ("execute", "copy"):
        monkeypatch.setattr(psycopg.Cursor, name, recorder.query(getattr(psycopg.Cursor, name)))
    return recorder


def _files(texts: Mapping[tuple[str, Any], str]) -> dict[str, list[Any]]:
    files: dict[str, list[Any]] = {}
    for (world, module), text in texts.items():
        for kind, lines in module.files_of({world: night(text)}).items():
            files.setdefault(kind, []).extend(lines)
    return files


def _land(place: Warehouse, files: dict[str, list[Any]]) -> LandedExport:
    return place.land(files, group="g", complete=True)


def test_heads_say_which_temporary_tables_scripts_read_and_make(
    warehouse: Warehouse, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = {kind for world in (linked_world, stand_in_world, medication_world) for kind in world.TYPES.values()}
    site = SiteSettings(
        name="one",
        vanished="delete",
        left_group="delete",
        empty_when_missing=tuple(sorted(types)),
        mapping=MappingOptions(
            panel_row="always", double_counting="overlap", duplicates="apply", device_alone="manufacture_date"
        ),
    )
    # The newest version of the CDM: what only it has a column for is filled as well.
    update = {"sites": {"one": site}, "cdm_version": NEWEST_CDM_VERSION}
    settings = warehouse.runtime.settings.model_copy(update=update)
    upgrade_schemas(warehouse.runtime.url, **schema_names(settings))
    place = replace(warehouse, runtime=Runtime(settings, warehouse.runtime.clock))
    monkeypatch.setattr(bulk, "_BULK_ROWS", 1)
    place.load({"Patient": [patient("z1")]}, "two")
    first, second, third = (_files(texts) for texts in NIGHTS)
    first["Observation"] += [observation(f"a-many{number}", "a-p1") for number in range(12)]
    first["Observation"] += [
        observation("a-negative", "a-p1", valueQuantity={"value": -1})
    ]  # a rule about numbers finds it
    first["AllergyIntolerance"] = [ALLERGY]
    first["Device"] += [DEVICE]
    first["DeviceUseStatement"] += [DEVICE_USE]
    place.ingest(_land(place, first))
    late = _land(place, second)
    export = _land(place, third)
    with pytest.raises(ConfirmationNeeded):
        place.ingest(export)
    place.ingest(export, confirmed=True)
    for files in (second, first):
        place.ingest(_land(place, files), confirmed=True)
    place.ingest(late, confirmed=True)  # older than what is known
    with erasing(place.runtime, "one", ["m-p2"]) as work:
        work.run()
    assert recorder.found == []
    every = {file.stem for file in SQL_FOLDER.glob("*.sql")} - FRAGMENTS - OF_NOTES - OF_REPAIRS
    assert ", ".join(sorted(every - recorder.scripts)) == ""


def test_a_head_that_lies_is_found() -> None:
    script = Script("s", ("changed",), ("former",), ())
    sql = "CREATE TEMP TABLE former AS SELECT * FROM pg_temp.changed"
    assert lies(script, {}, {"changed": 1}, {"changed": 1, "former": 2}, sql) == ""
    assert "makes" in lies(script, {}, {"changed": 1}, {"changed": 1}, sql)
    assert "reads" in lies(replace(script, reads=()), {}, {"changed": 1}, {"changed": 1, "former": 2}, sql)
    assert "reads" in lies(
        replace(script, reads=("changed", "other")),
        {},
        {"changed": 1, "other": 3},
        {"changed": 1, "former": 2, "other": 3},
        sql,
    )
    assert "removes" in lies(script, {}, {"changed": 1, "other": 3}, {"changed": 1, "former": 2}, sql)
    bare = "CREATE TEMP TABLE former AS SELECT * FROM changed"
    assert "without" in lies(script, {}, {"changed": 1}, {"changed": 1, "former": 2}, bare)
