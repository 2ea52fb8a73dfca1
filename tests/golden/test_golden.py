"""Golden cases: FHIR in, OMOP rows out, through the real pipeline into a real PostgreSQL.

A case is a YAML document in `<Resource>/<topic>.yaml`:

- `case`: its name; `title`: the rule of the mapping specification that it shows.
- `fhir`: resources whose rows, outcomes and issues are compared; of a Bundle those of its entries. `given`: resources
  that only have to be there. Patient `p1` and Encounter `e1` (of p1) are there in every case that has no Patient or
  Encounter of its own; `patient: none` leaves out both. `then`: resources of a second export, loaded after the first.
- `rows`: table → rows. A column that is not listed must be empty: NULL, or 0 for a required concept id. Numbers of
  more digits than a float holds are texts. Exceptions:
  the row's own id is anything; person_id is Patient/p1 if not listed; a datetime that is not listed may be midnight
  of its date. A link is written as the FHIR reference of the resource that the row came from.
- `outcomes`: resource → `loaded` (if not listed), `excluded:reason` or `rejected:code`, with ` at <FHIRPath>` if wanted.
- `issues`: resource → list of issue codes (none if not listed). `pending`: references that wait for their target.
- `facts`: resource → name → value of what it left for others, where a case is about that. An id of a resource is
  written as its reference.
- `site`, `instance`: settings; `values`: a site's own value maps, lines `system,code,concept_id` (or with a header);
  `mappings`: its own parts of mappings, by resource; `rules`: its own rules about numbers, lines by folder
  (`plausibility`, `units`).
- `requirements`: statements of the guide and of Themis that the case shows (docs/conformance.md).

Cases of the same settings are loaded in one export: ids are prefixed by the case. Only the selected cases are loaded
(`pytest -k`), and under pytest-xdist the parts of `PARTS` go to different workers (tests/scheduling.py).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import yaml

from omop_schema.cdm import fields, primary_key, required_columns
from omop_schema.etl import LINEAGE_TABLES
from pipeline.core.clock import ManualClock
from pipeline.core.line_codes import IssueCode, RejectionCode
from pipeline.core.settings import MAPPINGS_FOLDER, Settings, SiteSettings
from pipeline.extract.bulk import ingest_folder
from pipeline.load.load import load as load_export
from pipeline.publication.ids import LINKS
from pipeline.publication.sql import Database
from pipeline.publication.steps.duplicates import count_duplicates
from pipeline.quality.mapping_report import MappingReport, mapping_report
from pipeline.quality.report import load_report
from pipeline.transform.mapping.duplicate_rules import DuplicateRule
from pipeline.transform.mapping.mappings import load_mappings, read_mappings
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.vocabulary import load_vocabulary
from tests.golden.parts import USUAL, divided

HERE = Path(__file__).parent

#: The date of the exports: missing ends of stays are filled with it.
NOW = datetime(2025, 1, 31, 18, 0, tzinfo=UTC)

PATIENT = {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1960-05-04"}
ENCOUNTER = {
    "resourceType": "Encounter",
    "id": "e1",
    "status": "finished",
    "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
    "subject": {"reference": "Patient/p1"},
    "period": {"start": "2024-03-10T09:00:00Z", "end": "2024-03-10T10:00:00Z"},
}

#: Columns that are written as references.
REFERENCES = {
    **LINKS,
    "visit_detail_id": "visit_detail",
    "parent_visit_detail_id": "visit_detail",
    "preceding_visit_occurrence_id": "visit_occurrence",
    "preceding_visit_detail_id": "visit_detail",
}

#: Columns for the row that a row belongs to, written as "table of reference"; the columns that name its field.
EVENTS = {
    "observation_event_id": "obs_event_field_concept_id",
    "measurement_event_id": "meas_event_field_concept_id",
    "note_event_id": "note_event_field_concept_id",
}
FIELD_CONCEPTS = {
    1147165: "observation",
    1147127: "condition_occurrence",
    1147082: "procedure_occurrence",
    1147138: "measurement",
    1147094: "drug_exposure",
    1147115: "device_exposure",
}

#: A reference up to the id, the id, a version.
_REFERENCE = re.compile(r"((?:.*/)?[A-Z][A-Za-z]+/|urn:uuid:)([^/]+)(/_history/.*)?")

_KEYS = {
    "case", "title", "patient", "given", "fhir", "then", "rows", "outcomes", "issues", "pending", "facts", "site",
    "instance", "values", "mappings", "rules", "requirements",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    resource: str
    topic: str
    document: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.resource}/{self.topic}/{self.document['case']}"

    @property
    def prefix(self) -> str:
        return self.name.replace("/", ".") + "."

    @property
    def group(self) -> str:
        """Cases of equal settings are loaded together."""
        keys = ("site", "instance", "values", "mappings", "rules")
        return orjson.dumps({key: self.document.get(key) for key in keys}, option=orjson.OPT_SORT_KEYS).decode()

    @property
    def compared(self) -> list[str]:
        """References of the resources whose outcomes, rows and issues are compared."""
        found = [name for item in self._of("fhir") + self._of("then") for name in _names(item)]
        return list(dict.fromkeys([*found, *(self.document.get("outcomes") or ())]))

    def resources(self, key: str) -> list[dict[str, Any]]:
        """The resources of the first (`fhir`) or second (`then`) export, ids and references prefixed."""
        found = list(self._of(key))
        if key == "fhir":
            found = self._of("given") + found
            types = {item["resourceType"] for item in found}
            if self.document.get("patient") != "none":
                found = [item for item in (PATIENT, ENCOUNTER) if item["resourceType"] not in types] + found
        return [self._prefixed(item) for item in found]

    def _of(self, key: str) -> list[dict[str, Any]]:
        return list(self.document.get(key) or ())

    def _prefixed(self, resource: dict[str, Any]) -> dict[str, Any]:
        moved = {name: self._moved(name, value) for name, value in resource.items()}
        if resource["resourceType"] == "Bundle":
            moved["entry"] = [self._prefixed_entry(entry) for entry in resource.get("entry") or ()]
        if isinstance(moved.get("id"), str):
            moved["id"] = self.prefix + moved["id"]
        return moved

    def _prefixed_entry(self, entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        moved = {name: self._moved(name, value) for name, value in entry.items()}
        if isinstance(entry.get("resource"), dict):
            moved["resource"] = self._prefixed(entry["resource"])
        if "fullUrl" in entry:
            moved["fullUrl"] = self._moved("reference", entry["fullUrl"])
        return moved

    def _moved(self, name: str, value: Any) -> Any:
        """References point into the case; everything else stays as it is, also what is wrong."""
        if isinstance(value, dict):
            return {key: self._moved(key, item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._moved(name, item) for item in value]
        match = _REFERENCE.fullmatch(value) if name == "reference" and isinstance(value, str) else None
        return f"{match[1]}{self.prefix}{match[2]}{match[3] or ''}" if match else value


def _names(resource: dict[str, Any], url: str = "") -> list[str]:
    """Type/id of a resource; of a Bundle that is unpacked those of its entries."""
    found = []
    if "id" in resource or url.startswith("urn:uuid:"):
        found = [f"{resource['resourceType']}/{resource.get('id') or url.removeprefix('urn:uuid:')}"]
    entries = resource.get("entry") if resource["resourceType"] == "Bundle" else None
    if not entries:
        return found
    return [
        name
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("resource"), dict)
        for name in _names(entry["resource"], entry.get("fullUrl", ""))
    ]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # LibYAML where it is: faster
    """YAML without dates and booleans like `no`: FHIR's are strings, and a case says `true` and `false`.

    `!number "0.10000000000000001"` is a JSON number with just these digits. A key that is there twice is an error: YAML
    would take the last.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = sorted({name for name in names if names.count(name) > 1})
        assert not twice, f"{twice} twice{node.start_mark}"
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Number:
    def __init__(self, text: str) -> None:
        self.text = text


_Loader.add_constructor("!number", lambda loader, node: _Number(loader.construct_scalar(node)))


def as_json(resource: dict[str, Any]) -> bytes:
    return orjson.dumps(resource, default=lambda number: orjson.Fragment(number.text))


def _cases() -> Iterator[Case]:
    for file in sorted(HERE.glob("[A-Z]*/*.yaml")):
        for document in yaml.load_all(file.read_text(encoding="utf-8"), Loader=_Loader):
            unknown = set(document) - _KEYS
            assert not unknown, f"{file}: {document.get('case')} has unknown keys {unknown}"
            assert document.get("title"), f"{file}: {document.get('case')} has no title"
            yield Case(file.parent.name, file.stem, document)


CASES = list(_cases())
PARTS = divided({case.name: case.group for case in CASES})


@dataclass
class Loaded:
    """The warehouse after all cases, read once. Ids are FHIR references with the case's prefix."""

    #: cdm table → rows (column → value) with links as references
    rows: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    issues: dict[str, list[str]] = field(default_factory=dict)
    pending: dict[str, list[str]] = field(default_factory=dict)
    #: owner → name → value
    facts: dict[str, dict[str, str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def golden_folder(installed_url: str, golden_vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cases are written, beside the mappings that they are loaded with; the vocabulary is loaded."""
    load_vocabulary(installed_url, golden_vocabulary, vocab_schema="vocab", etl_schema="etl")
    folder = tmp_path_factory.mktemp("golden")
    shutil.copytree(MAPPINGS_FOLDER, folder / "mappings")
    return folder


@dataclass
class Parts:
    """The parts of the cases, each loaded when the first test asks for it."""

    url: str
    folder: Path
    #: names of the cases that are loaded
    selected: set[str]
    _loaded: dict[str, Loaded] = field(default_factory=dict)

    def loaded(self, part: str) -> Loaded:
        if part not in self._loaded:
            groups: dict[str, list[Case]] = {}
            for case in CASES:
                if PARTS[case.name] == part and case.name in self.selected:
                    groups.setdefault(case.group, []).append(case)
            for number, cases in enumerate(groups.values()):
                _load_group(self.url, self.folder, f"{part}_{number}", cases)
            with psycopg.connect(self.url) as connection:
                connection.execute("SET search_path TO etl, cdm, vocab")
                self._loaded[part] = _read_warehouse(connection)
        return self._loaded[part]


@pytest.fixture(scope="module")
def parts(request: pytest.FixtureRequest, installed_url: str, golden_folder: Path) -> Parts:
    return Parts(installed_url, golden_folder, set(_selected(request.session.items)))


def _selected(items: Iterable[pytest.Item]) -> Iterator[str]:
    """The cases of the tests that run; all of a part where a test asks for its warehouse."""
    for item in items:
        if isinstance(item, pytest.Function) and item.path == Path(__file__):
            found = item.callspec.params if hasattr(item, "callspec") else {}
            if "case" in found:
                yield found["case"].name
            elif "warehouse" in item.fixturenames:
                yield from (name for name, part in PARTS.items() if part == found.get("part", USUAL))


def _load_group(url: str, folder: Path, site: str, cases: list[Case]) -> None:
    """One export with the cases' first resources, and one with their second."""
    document = cases[0].document
    for name, lines in (document.get("values") or {}).items():
        own = folder / "mappings" / "sites" / site / "values"
        own.mkdir(parents=True, exist_ok=True)
        header = [] if lines[0].startswith("system,") else ["system,code,concept_id"]
        (own / f"{name}.csv").write_text("\n".join([*header, *lines, ""]), encoding="utf-8")
    for name, lines in (document.get("rules") or {}).items():
        own = folder / "mappings" / "sites" / site / name
        own.mkdir(parents=True, exist_ok=True)
        (own / "own.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    for resource, part in (document.get("mappings") or {}).items():
        (folder / "mappings" / "sites" / site).mkdir(parents=True, exist_ok=True)
        (folder / "mappings" / "sites" / site / f"{resource}.yaml").write_text(yaml.safe_dump(part), encoding="utf-8")
    settings = Settings(
        home=folder / "home",
        database_url=url,
        mappings=folder / "mappings",
        workers=1,
        sites={site: SiteSettings(name=site, **(document.get("site") or {}))},
        **(document.get("instance") or {}),
    )
    clock = ManualClock(NOW)
    runtime = Runtime(settings, clock)
    for key in ("fhir", "then"):
        source = folder / f"{site}-{key}"
        source.mkdir()
        by_type: dict[str, list[bytes]] = {}
        for case in cases:
            for resource in case.resources(key):
                by_type.setdefault(resource["resourceType"], []).append(as_json(resource))
        for resource_type, lines in by_type.items():
            (source / f"{resource_type}.ndjson").write_bytes(b"\n".join(lines) + b"\n")
        if by_type:
            load_export(runtime, settings.site(site), ingest_folder(runtime, site, source))
        clock.advance(1)


def _read_warehouse(connection: psycopg.Connection) -> Loaded:
    found = Loaded()
    sources: dict[tuple[str, int], list[str]] = {}
    for table, row_id, kind, resource_id in connection.execute(
        "SELECT cdm_table, row_id, resource_type, resource_id FROM row_source"
    ):
        sources.setdefault((table, row_id), []).append(f"{kind}/{resource_id}")
    for table in LINEAGE_TABLES:
        cursor = connection.execute(f"SELECT * FROM cdm.{table}")
        columns = [column.name for column in cursor.description or ()]
        own = primary_key(table) or "person_id"
        for values in cursor:
            row = dict(zip(columns, values, strict=True))
            for source in sources[table, row[own]]:
                found.rows.setdefault(table, []).append((source, _linked(row, table, source, sources)))
    _read_outcomes(connection, found)
    return found


def _linked(row: dict[str, Any], table: str, source: str, sources: dict[tuple[str, int], list[str]]) -> dict[str, Any]:
    """The row with references instead of link ids. A location has many sources: the one of the same case is taken."""
    linked = dict(row)
    case = source.split("/")[1].rpartition(".")[0]
    for column, target in REFERENCES.items():
        if row.get(column) is not None and column != primary_key(table):
            names = sources[target, row[column]]
            linked[column] = next((name for name in names if name.split("/")[1].startswith(f"{case}.")), names[0])
    for column, field_column in EVENTS.items():
        if row.get(column) is not None:
            event_table = FIELD_CONCEPTS[row[field_column]]
            linked[column] = f"{event_table} of {sources[event_table, row[column]][0]}"
    return linked


def _read_outcomes(connection: psycopg.Connection, found: Loaded) -> None:
    names: dict[int, str] = {}
    for surrogate_id, kind, resource_id, outcome, reason in connection.execute(
        "SELECT surrogate_id, resource_type, resource_id, outcome, reason FROM resource_state"
        " JOIN site_resource_type USING (site_resource_type_id)"
    ):
        names[surrogate_id] = name = f"{kind}/{resource_id}"
        found.outcomes[name] = f"{outcome}:{reason}" if reason else outcome
    for kind, resource_id, code, path in connection.execute(
        "SELECT resource_type, resource_id, code, path FROM dead_letter_open"
    ):
        assert code in set(RejectionCode), code
        found.outcomes[f"{kind}/{resource_id}"] = f"rejected:{code}"
        found.paths[f"{kind}/{resource_id}"] = path
    for surrogate_id, code in connection.execute("SELECT surrogate_id, code FROM row_issue ORDER BY code"):
        assert code in set(IssueCode), code
        found.issues.setdefault(names[surrogate_id], []).append(code)
    for surrogate_id, role in connection.execute(
        "SELECT from_surrogate_id, role FROM reference WHERE state = 'pending' ORDER BY role"
    ):
        found.pending.setdefault(names[surrogate_id], []).append(role)
    by_text = {str(surrogate_id): name for surrogate_id, name in names.items()}
    for owner, name, value in connection.execute("SELECT owner_surrogate_id, name, value FROM reference_value"):
        found.facts.setdefault(names.get(owner, ""), {})[name] = by_text.get(value, value)


def _parameter(case: Case) -> Any:
    """The case as a parameter of the test, under its name and with the marker of what it shows."""
    requirements = case.document.get("requirements")
    marks = [pytest.mark.requirement(*requirements)] if requirements else []
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", [_parameter(case) for case in CASES])
def test_golden(case: Case, parts: Parts) -> None:
    loaded = parts.loaded(PARTS[case.name])
    document = case.document
    names = {_with_prefix(name, case): name for name in case.compared}
    expected_outcomes = dict.fromkeys(case.compared, "loaded") | (document.get("outcomes") or {})
    actual_outcomes = {}
    for full, name in names.items():
        outcome = loaded.outcomes.get(full, "no outcome")
        wants_path = " at " in expected_outcomes[name]
        actual_outcomes[name] = f"{outcome} at {loaded.paths.get(full)}" if wants_path else outcome
    assert actual_outcomes == expected_outcomes
    assert _shown(_terse_rows(case, loaded, set(names))) == _shown(_expected_rows(document))
    issues = {name: loaded.issues[full] for full, name in names.items() if full in loaded.issues}
    assert issues == (document.get("issues") or {})
    pending = {name: loaded.pending[full] for full, name in names.items() if full in loaded.pending}
    assert pending == (document.get("pending") or {})
    for name, facts in (document.get("facts") or {}).items():
        left = loaded.facts.get(_with_prefix(name, case), {})
        assert {key: left.get(key, "").replace(case.prefix, "") for key in facts} == facts


def _shown(tables: dict[str, list[dict[str, Any]]]) -> str:
    """Text whose difference pytest shows line by line, and which can be put into a case."""
    return yaml.safe_dump(tables, sort_keys=False, width=1000)


def _with_prefix(name: str, case: Case) -> str:
    kind, _, resource_id = name.partition("/")
    return f"{kind}/{case.prefix}{resource_id}"


def _terse_rows(case: Case, loaded: Loaded, compared: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The case's rows without what the cases leave out, in a form that equals the YAML's."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for table, rows in loaded.rows.items():
        found = [_terse(table, row, case) for source, row in rows if source in compared]
        if found:
            tables[table] = sorted(found, key=repr)  # LINEAGE_TABLES' order; the expected tables follow it
    return tables


def _terse(table: str, row: dict[str, Any], case: Case) -> dict[str, Any]:
    terse: dict[str, Any] = {}
    required = required_columns(table)
    for name, value in row.items():
        empty = value is None or (value == 0 and name.endswith("_concept_id") and name in required)
        midnight = isinstance(value, datetime) and value == datetime.combine(value.date(), time())
        if empty or name == primary_key(table) or (midnight and name != "birth_datetime"):
            continue
        if name in EVENTS:
            terse[name] = str(value).replace(case.prefix, "")
            continue
        if name in REFERENCES:
            link = str(value).replace(case.prefix, "")
            if (name, link) != ("person_id", "Patient/p1"):
                terse[name] = link
            continue
        terse[name] = _plain(value)
    return terse


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):  # with more digits than a float holds: as text
        return float(value) if Decimal(repr(float(value))) == value else format(value, "f")
    return value.isoformat() if isinstance(value, date) else value


def _expected_rows(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    rows = document.get("rows") or {}
    assert set(rows) <= set(LINEAGE_TABLES), f"unknown tables in {document['case']}"
    return {
        table: sorted([_in_order(table, row) for row in rows[table]], key=repr)
        for table in LINEAGE_TABLES
        if table in rows
    }


def _in_order(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row's columns in the table's order, numbers of decimal columns as such."""
    columns = {column.name: column.datatype for column in fields(table)}
    unknown = set(row) - set(columns)
    assert not unknown, f"{table} has no columns {unknown}"
    return {
        name: float(row[name]) if kind == "float" and isinstance(row[name], int) else row[name]
        for name, kind in columns.items()
        if name in row
    }


@pytest.fixture
def part() -> str:
    """The part whose cases are in `warehouse`, unless a test names another one."""
    return USUAL


@pytest.fixture
def warehouse(part: str, parts: Parts) -> Iterator[psycopg.Connection]:
    """The warehouse with all cases of a part; what a test changes is rolled back."""
    parts.loaded(part)
    with psycopg.connect(parts.url) as connection:
        connection.execute("SET search_path TO etl, cdm, vocab")
        yield connection
        connection.rollback()


def _report(connection: psycopg.Connection) -> MappingReport:
    vocabulary_of = load_mappings(MAPPINGS_FOLDER).vocabulary_of
    return mapping_report(connection, cdm_schema="cdm", vocab_schema="vocab", vocabulary_of=vocabulary_of)


@pytest.mark.parametrize("part", sorted(set(PARTS.values())))
def test_no_code_is_unmapped_that_the_vocabulary_maps(part: str, warehouse: psycopg.Connection) -> None:
    assert _report(warehouse).defects == ()


@pytest.mark.requirement("themis-events-outside-period-kept")
def test_events_outside_every_period_stay(warehouse: psycopg.Connection) -> None:
    """The case Condition/outside_periods/after-death has a period, and rows that lie in none."""
    rows = warehouse.execute(
        "SELECT condition_start_date, condition_start_date BETWEEN observation_period_start_date"
        " AND observation_period_end_date FROM condition_occurrence JOIN observation_period USING (person_id)"
        " JOIN row_source ON cdm_table = 'condition_occurrence' AND row_id = condition_occurrence_id"
        " WHERE resource_id LIKE 'Condition.outside_periods.after-death.%' ORDER BY 1"
    ).fetchall()
    assert rows == [(date(1950, 3, 10), False), (date(2024, 11, 10), False)]


@pytest.mark.requirement("themis-issue-208-unit-standardisation")
def test_what_rules_about_numbers_found_is_in_the_report_of_the_load(warehouse: psycopg.Connection) -> None:
    """By concept and unit, with what became of it; as many negative numbers as there are issues."""
    exports = [export_id for (export_id,) in warehouse.execute("SELECT export_id FROM publication").fetchall()]
    found = {
        (check.finding, check.action, check.concept, check.unit): check.count
        for check in load_report(warehouse, "cdm", "vocab", exports).value_checks
    }
    weight = "Body weight"
    expected = {
        ("value_negative", "null", weight, "kg"): 2,
        ("value_negative", "null", weight, None): 2,
        ("value_implausible", "reported", "Heart rate", "/min"): 1,
        ("value_implausible", "reported", weight, "[lb_us]"): 1,
        ("unit_converted", "reported", weight, "[lb_us]"): 2,
    }
    assert {key: found.get(key) for key in expected} == expected
    issues = dict(
        warehouse.execute("SELECT code, count(*) FROM row_issue WHERE code LIKE 'value_%' GROUP BY code").fetchall()
    )
    assert issues["value_negative"] == sum(
        count for (finding, *_), count in found.items() if finding == "value_negative"
    )
    assert "value_implausible" not in issues


@pytest.mark.requirement("themis-issue-202-duplicates")
def test_duplicates_are_counted_and_stay(warehouse: psycopg.Connection) -> None:
    """By the shipped rules: of all persons as Python counts them, of affected ones, and in the report of the load."""
    rules = load_mappings(MAPPINGS_FOLDER).duplicates
    assert {rule.table for rule in rules} == {"condition_occurrence", "procedure_occurrence"}
    expected = [found for rule in rules if (found := _duplicates(warehouse, rule))["facts"]]
    assert {item["rule"] for item in expected} >= {"problem_list_and_encounter_diagnosis", "same_condition_twice"}
    warehouse.execute("CREATE TEMP TABLE affected_person (person_id bigint PRIMARY KEY) ON COMMIT DROP")
    db = Database(warehouse, "cdm", "etl", "vocab")
    assert count_duplicates(db, rules, everybody=True) == expected
    assert count_duplicates(db, rules, everybody=False) == []
    warehouse.execute(
        "INSERT INTO affected_person SELECT row_id FROM row_source WHERE cdm_table = 'person'"
        " AND resource_id = 'Condition.duplicates.problem-list-and-encounter.p1'"
    )
    of_case = [(item["rule"], item["facts"], item["rows"]) for item in count_duplicates(db, rules, everybody=False)]
    assert of_case == [("problem_list_and_encounter_diagnosis", 1, 1), ("same_condition_twice", 1, 1)]
    exports = [export_id for (export_id,) in warehouse.execute("SELECT export_id FROM publication").fetchall()]
    assert {item.rule for item in load_report(warehouse, "cdm", "vocab", exports).duplicates} <= {
        rule.name for rule in rules
    }
    (first,) = warehouse.execute("SELECT duplicates FROM publication ORDER BY export_id LIMIT 1").fetchone() or ([],)
    assert {item["rule"] for item in first} == {item["rule"] for item in expected}


def _duplicates(connection: psycopg.Connection, rule: DuplicateRule) -> dict[str, Any]:
    stem = rule.table.partition("_")[0]
    cursor = connection.execute(
        f"SELECT DISTINCT row.*, source.resource_type, source.resource_id FROM cdm.{rule.table} AS row"
        f" JOIN row_source AS source ON cdm_table = '{rule.table}' AND row_id = row.{primary_key(rule.table)}"
    )
    names = [column.name for column in cursor.description or ()]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for values in cursor:
        row = dict(zip(names, values, strict=True))
        if row[f"{stem}_concept_id"] and (not rule.types or row[f"{stem}_type_concept_id"] in rule.types):
            groups.setdefault(tuple(row[name] for name in ("person_id", *rule.same)), []).append(row)
    sizes = []
    for rows in groups.values():
        resources = {(row["resource_type"], row["resource_id"]) for row in rows}
        if len(resources) > 1 and (not rule.types or len({row[f"{stem}_type_concept_id"] for row in rows}) > 1):
            sizes.append(len(resources))
    return {"rule": rule.name, "table": rule.table, "facts": len(sizes), "rows": sum(sizes) - len(sizes)}


def test_the_report_has_shares_and_findings(warehouse: psycopg.Connection) -> None:
    report = _report(warehouse)
    shares = {share.table: share for share in report.tables}
    assert 0 < shares["measurement"].mapped < shares["measurement"].rows
    assert {code.finding for code in report.codes} >= {"no_standard", "system_unknown", "text_only"}


def test_rows_of_a_fixed_concept_are_no_codes(warehouse: psycopg.Connection) -> None:
    """A type whose concepts the mapping fixes has no rate of mapped codes, and they are not in the mapping report."""
    rates = {
        name for (rates,) in warehouse.execute("SELECT mapping_rates FROM publication").fetchall() for name in rates
    }
    views = [
        (resource.resource, view)
        for resource in read_mappings(MAPPINGS_FOLDER).resources.values()
        for view in resource.views
    ]
    assert rates
    assert "Patient" not in rates
    assert rates <= {resource_type for resource_type, view in views if view.code}
    fixed = {(resource_type, view.name) for resource_type, view in views if view.concept_id}
    assert not fixed & {(code.resource_type, code.element) for code in _report(warehouse).codes}


@pytest.mark.parametrize(
    ("resource_type", "element", "system", "code", "finding"),
    [
        ("Condition", "code", "urn:example:golden", "UNMAPPED", "no_standard"),
        ("Condition", "code", "urn:example:golden", "RETIRED", "no_standard"),
        ("Condition", "code", "http://hl7.org/fhir/sid/icd-10-cm", "Z99.UNMAPPED", "no_standard"),
        ("Condition", "code", None, None, "text_only"),
        ("Observation", "unit", None, "wheelbarrows", "system_unknown"),
        ("Observation", "value_code", "https://example.org/answers", "TRACE", "system_unknown"),
        ("Observation", "value_code", None, None, "text_only"),
        ("Specimen", "body_site", "urn:oid:1.2.840.114350.1.13", "77", "system_unknown"),
        ("MedicationRequest", "route", "urn:oid:1.2.840.114350.1.13.0.1.7.4.698288.7025", "15", "system_unknown"),
    ],
)
def test_failures_are_counted_with_their_element(
    warehouse: psycopg.Connection, resource_type: str, element: str, system: str | None, code: str | None, finding: str
) -> None:
    found = [
        item.finding
        for item in _report(warehouse).codes
        if (item.resource_type, item.element, item.system, item.code) == (resource_type, element, system, code)
    ]
    assert found == [finding]


@pytest.mark.parametrize(
    ("system", "code", "finding"),
    [
        ("http://snomed.info/sct", "44054006", "defect"),
        ("http://hl7.org/fhir/sid/icd-10-cm", "E11.9", "defect"),
        ("urn:oid:2.16.840.1.113883.6.90", "e119", "defect"),
        ("urn:example:golden", "REPLACED-TWICE", "defect"),
        ("urn:example:local", "HGB", "defect"),
        ("http://snomed.info/sct", "golden-RETIRED", "no_standard"),
        ("http://snomed.info/sct", "404684003000", "absent"),
    ],
)
def test_a_code_that_is_held_and_stays_unmapped_is_a_defect(
    warehouse: psycopg.Connection, system: str, code: str, finding: str
) -> None:
    export_id = warehouse.execute("SELECT max(export_id) FROM publication").fetchone()
    assert export_id is not None
    warehouse.execute(
        "INSERT INTO unmapped_coding (coding_id, resource_type, element, system, code)"
        " VALUES (0, 'Condition', 'planted', %s, %s)",
        (system, code),
    )
    warehouse.execute(
        "INSERT INTO unmapped_use (surrogate_id, coding_id, export_id, count) VALUES (0, 0, %s, 7)", export_id
    )
    report = _report(warehouse)
    assert [(item.finding, item.count) for item in report.codes if item.element == "planted"] == [(finding, 7)]
    assert len(report.defects) == (finding == "defect")


def test_a_key_of_a_case_that_is_there_twice_is_an_error() -> None:
    with pytest.raises(AssertionError, match="requirements"):
        yaml.load("requirements: [f2o-001]\nrequirements: [f2o-002]", Loader=_Loader)


def test_cases_are_many_and_cover_each_resource() -> None:
    assert len(CASES) >= 110
    assert len({case.name for case in CASES}) == len(CASES)
    mapped = {file.stem for file in MAPPINGS_FOLDER.glob("*.yaml")}
    assert mapped <= {case.resource for case in CASES}
