"""What the guide asks of a whole OMOP instance, by SQL over one that holds everything that the golden cases have.

All golden cases are loaded once more, with identifying values in every place where FHIR can hold them, and with the
patients of the simulated Epic beside them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from omop_schema.cdm import CDM_TABLES, fields, primary_key
from omop_schema.etl import LINEAGE_TABLES
from omop_schema.versions import DEFAULT_CDM_VERSION
from pipeline.core.clock import ManualClock
from pipeline.core.settings import MAPPINGS_FOLDER, Settings, SiteSettings
from pipeline.extract.bulk import ingest_folder
from pipeline.load.load import load_alone
from pipeline.sandbox.generator import generate
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.routing import DOMAIN_TABLES
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.vocabulary import load_vocabulary
from tests.golden.planting import SHOWN, Planter, may_be_seen, strings_of
from tests.golden.test_golden import CASES, ENCOUNTER, NOW, PATIENT, Case, as_json

_PATIENTS = 6


@dataclass
class Instance:
    connection: psycopg.Connection
    planter: Planter
    #: ids of the resources that were loaded, and identifying texts of the simulated Epic's patients
    resource_ids: set[str]
    simulated: set[str]
    settings: Settings

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def instance(
    installed_url: str, golden_vocabulary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    load_vocabulary(installed_url, golden_vocabulary, vocab_schema="vocab", etl_schema="etl")
    folder = tmp_path_factory.mktemp("requirements")
    settings = Settings(
        home=folder / "home",
        database_url=installed_url,
        workers=1,
        sites={name: SiteSettings(name=name) for name in ("planted", "simulated", "bare")},
    )
    runtime = Runtime(settings, ManualClock(NOW))
    planter = Planter()
    cases = [_planted(case, planter) for case in CASES if not case.document.get("values")]
    ids = set()
    for key in ("fhir", "then"):
        lines: dict[str, list[bytes]] = {}
        for case in cases:
            for resource in case.resources(key):
                lines.setdefault(resource["resourceType"], []).append(as_json(resource))
                ids.add(str(resource.get("id")))
        _load(runtime, "planted", folder / key, lines)
    simulated: dict[str, list[bytes]] = {}
    for kind, line in generate(_PATIENTS, 11, date(2024, 6, 1)):
        simulated.setdefault(kind, []).append(line)
    _load(runtime, "simulated", folder / "simulated", simulated)
    mapped = sorted(file.stem for file in MAPPINGS_FOLDER.glob("*.yaml"))
    _load(runtime, "bare", folder / "bare", {kind: [_bare(kind)] for kind in mapped})
    with psycopg.connect(installed_url) as connection:
        connection.execute("SET search_path TO etl, cdm, vocab")
        yield Instance(connection, planter, ids, set(_identifying(simulated)), settings)


def _planted(case: Case, planter: Planter) -> Case:
    """The case with planted values; the patient and the encounter that it has by default are written out for that."""
    document = dict(case.document)
    types = {item["resourceType"] for key in ("given", "fhir") for item in document.get(key) or ()}
    added = [item for item in (PATIENT, ENCOUNTER) if item["resourceType"] not in types]
    if document.get("patient") == "none":
        added = []
    document["given"] = [*added, *(document.get("given") or ())]
    document["patient"] = "none"
    for key in ("given", "fhir", "then"):
        document[key] = [planter.plant(item) for item in document.get(key) or ()]
    return replace(case, document=document)


def _load(runtime: Runtime, site: str, source: Path, lines: dict[str, list[bytes]]) -> None:
    source.mkdir()
    for kind, content in lines.items():
        (source / f"{kind}.ndjson").write_bytes(b"\n".join(content) + b"\n")
    load_alone(runtime, runtime.settings.site(site), ingest_folder(runtime, site, source))
    assert isinstance(runtime.clock, ManualClock)
    runtime.clock.advance(1)


def _bare(kind: str) -> bytes:
    """A resource without anything that a profile does not require of every resource."""
    return orjson.dumps({"resourceType": kind, "id": "bare"})


def _identifying(lines: dict[str, list[bytes]]) -> Iterator[str]:
    """Names, contacts, streets, identifiers of the simulated patients."""
    for line in lines["Patient"]:
        patient = orjson.loads(line)
        for name in patient["name"]:
            yield from [name["family"], " ".join(name["given"])]
        for address in patient["address"]:
            yield from [*address["line"], address["city"], address["postalCode"]]
        yield from [item["value"] for key in ("telecom", "identifier") for item in patient.get(key, ())]


def cdm_rows(instance: Instance) -> Iterator[tuple[str, dict[str, Any]]]:
    for table in CDM_TABLES:
        for (row,) in instance.rows(f"SELECT to_jsonb(t) FROM cdm.{table} AS t"):
            yield table, row


# --- privacy -------------------------------------------------------------------------------------------------------


def test_the_planted_resources_are_loaded(instance: Instance) -> None:
    """Without this the search would prove nothing."""
    outcomes = Counter(dict(instance.rows("SELECT outcome, count(*) FROM resource_state GROUP BY outcome")))
    assert outcomes["loaded"] > 0.7 * outcomes.total()
    filled = {table for table, _ in cdm_rows(instance)}
    assert {"person", "location", "condition_occurrence", "measurement", "observation", "drug_exposure"} <= filled
    assert len(instance.planter.planted) > 5_000
    assert len(instance.simulated) > 6 * _PATIENTS


@pytest.mark.requirement("f2o-020", "f2o-022")
def test_no_identifying_value_is_in_any_column_of_the_cdm(instance: Instance) -> None:
    found = Counter(
        f"{table}.{column}: {place}"
        for table, row in cdm_rows(instance)
        for column, value in row.items()
        if value is not None
        for place in instance.planter.found(str(value))
    )
    shown = {name for name in found if may_be_seen(*name.split(": "))}
    assert sorted(found.keys() - shown) == []
    unused = [
        f"{column}: {path}"
        for column, path in SHOWN
        if not any(fnmatchcase(name, f"{column}: {path}") for name in shown)
    ]
    assert "\n".join(unused) == ""  # what the list allows is seen: else the search proves less than it says


def test_every_string_of_a_mapped_type_is_planted(instance: Instance) -> None:
    """By the definitions of R4, down to the parts that a mapping may read."""
    planted = {place.removeprefix("Home.") for place in instance.planter.planted.values()}
    missing = [
        f"{kind}.{name}"
        for kind in sorted(file.stem for file in MAPPINGS_FOLDER.glob("*.yaml"))
        for name in strings_of(kind)
        if f"{kind}.{name}" not in planted
    ]
    assert missing == []


@pytest.mark.requirement("f2o-022")
def test_nothing_of_the_simulated_patients_is_in_the_cdm(instance: Instance) -> None:
    found = {
        f"{table}.{column}"
        for table, row in cdm_rows(instance)
        if table not in {"care_site", "location"}  # sites are in the same streets and cities
        for column, value in row.items()
        if isinstance(value, str) and any(text in value for text in instance.simulated)
    }
    assert found == set()


@pytest.mark.requirement("f2o-021", "f2o-024")
def test_ids_of_resources_are_in_the_etl_schema_alone(instance: Instance) -> None:
    found = {
        f"{table}.{column}"
        for table, row in cdm_rows(instance)
        for column, value in row.items()
        if isinstance(value, str) and value in instance.resource_ids
    }
    assert found == set()
    assert instance.rows("SELECT count(*) FROM resource_state WHERE resource_id = ANY (ARRAY['planted-patient'])") == [
        (0,)
    ]


@pytest.mark.requirement("f2o-024")
def test_who_reads_the_cdm_does_not_thereby_read_the_map_of_ids(instance: Instance) -> None:
    connection = instance.connection
    connection.execute("CREATE ROLE requirement_analyst")
    try:
        connection.execute("GRANT USAGE ON SCHEMA cdm, vocab TO requirement_analyst")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA cdm, vocab TO requirement_analyst")
        connection.execute("SET LOCAL ROLE requirement_analyst")
        assert connection.execute("SELECT count(*) > 0 FROM cdm.person").fetchone() == (True,)
        for name in ("resource_state", "row_source", "dead_letter", "reference_value"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(f"SELECT * FROM etl.{name}")
    finally:
        connection.rollback()
    connection.execute("SET search_path TO etl, cdm, vocab")


# --- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("f2o-001", "f2o-090")
def test_the_tables_are_those_of_the_cdm(instance: Instance) -> None:
    """Every table and column of CDM 5.4, required where it says so, and no others."""
    columns = instance.rows(
        "SELECT table_name, column_name, is_nullable = 'NO' FROM information_schema.columns"
        " WHERE table_schema = 'cdm' ORDER BY table_name, ordinal_position"
    )
    expected = [
        (table, field.name, field.required)
        for table in sorted(CDM_TABLES)
        for field in fields(table, DEFAULT_CDM_VERSION)
    ]
    assert columns == expected


@pytest.mark.requirement("f2o-070")
def test_every_required_date_is_there(instance: Instance) -> None:
    for table in LINEAGE_TABLES:
        dates = [field.name for field in fields(table) if field.required and field.datatype in {"date", "datetime"}]
        for name in dates:
            assert instance.rows(f"SELECT count(*) FROM cdm.{table} WHERE {name} IS NULL") == [(0,)], f"{table}.{name}"
    assert instance.rows("SELECT count(*) > 100 FROM cdm.measurement") == [(True,)]


def _concept_columns(*, types: bool) -> Iterator[tuple[str, str]]:
    for table in CDM_TABLES:
        if table == "cdm_source":  # its concept is that of the CDM's version, which no source has
            continue
        for field in fields(table):
            is_concept = field.name.endswith("_concept_id") and not field.name.endswith("_source_concept_id")
            if is_concept and field.name.endswith("_type_concept_id") == types:
                yield table, field.name


@pytest.mark.requirement("f2o-030", "f2o-031", "f2o-032")
def test_concept_columns_hold_standard_concepts_or_0(instance: Instance) -> None:
    wrong = [
        f"{table}.{name}: {concept_id}"
        for table, name in _concept_columns(types=False)
        for (concept_id,) in instance.rows(
            f"SELECT DISTINCT {name} FROM cdm.{table} LEFT JOIN vocab.concept ON concept_id = {name}"
            f" WHERE {name} <> 0 AND (standard_concept IS DISTINCT FROM 'S' OR invalid_reason IS NOT NULL)"
        )
    ]
    assert wrong == []
    assert instance.rows("SELECT count(*) FILTER (WHERE measurement_concept_id <> 0) > 50 FROM cdm.measurement") == [
        (True,)
    ]


@pytest.mark.requirement("f2o-050")
def test_type_concepts_are_standard_and_of_their_domain(instance: Instance) -> None:
    """Among the tables of this load; what publication derives has its type from the same list."""
    wrong = [
        f"{table}.{name}: {concept_id}"
        for table, name in _concept_columns(types=True)
        for (concept_id,) in instance.rows(
            f"SELECT DISTINCT {name} FROM cdm.{table} LEFT JOIN vocab.concept ON concept_id = {name}"
            f" WHERE standard_concept IS DISTINCT FROM 'S' OR domain_id IS DISTINCT FROM 'Type Concept'"
        )
    ]
    assert wrong == []


@pytest.mark.requirement("f2o-037", "themis-measurement-domain-only")
def test_rows_are_in_the_table_of_their_concepts_domain(instance: Instance) -> None:
    """A domain without a table of its own is in observation, and nowhere else."""
    wrong, seen = [], set()
    for table in sorted(set(DOMAIN_TABLES.values())):
        [concept] = [name for one, name in _concept_columns(types=False) if one == table and name == _concept_of(table)]
        for domain, count in instance.rows(
            f"SELECT domain_id, count(*) FROM cdm.{table} AS row LEFT JOIN vocab.concept ON concept_id = {concept}"
            f" WHERE {concept} <> 0{_KEPT_APART if table == 'observation' else ''} GROUP BY domain_id"
        ):
            seen.add(domain)
            if DOMAIN_TABLES.get(domain, "observation") != table:
                wrong.append(f"{count} rows of {domain} in {table}")
    assert wrong == []
    assert set(DOMAIN_TABLES) <= seen
    assert seen - set(DOMAIN_TABLES), "no case has a domain without a table"


#: Columns of any domain: what an observation or a measurement is about decides what its value is; what follows from
#: the choice of the table is tested above.
_OF_ANY_DOMAIN = ("value_as_concept_id", "qualifier_concept_id", "modifier_concept_id", "event_field_concept_id")


@pytest.mark.requirement("f2o-037", "themis-care-site-place-domain")
def test_concepts_are_of_the_domain_that_the_cdm_asks_of_their_column(instance: Instance) -> None:
    """By the CDM's field list: of every column that names one, such as visits, places, genders, units, routes."""
    asked = [
        (table, field.name, field.concept_domain)
        for table in CDM_TABLES
        for field in fields(table)
        if field.concept_domain and field.name.endswith("_concept_id") and not field.name.endswith(_OF_ANY_DOMAIN)
    ]
    asked += [("care_site", "place_of_service_concept_id", "Visit")]  # by the CDM's text: no domain in the list
    assert len(asked) > 30
    wrong, filled = [], set()
    for table, name, domain in asked:
        if name.endswith("_source_concept_id") or (table in DOMAIN_TABLES.values() and name == _concept_of(table)):
            continue  # what the table follows from: the test before
        for found, count in instance.rows(
            f"SELECT domain_id, count(*) FROM cdm.{table} LEFT JOIN vocab.concept ON concept_id = {name}"
            f" WHERE {name} <> 0 GROUP BY domain_id"
        ):
            filled.add(name)
            if found not in domain.split("/"):
                wrong.append(f"{count} rows of {table} have a {name} of domain {found}, not {domain}")
    assert wrong == []
    assert {"place_of_service_concept_id", "gender_concept_id", "unit_concept_id", "visit_concept_id"} <= filled


#: Conditions that the patient has not, and reactions of an allergy: observations by decision 6 (docs/decisions).
_KEPT_APART = (
    " AND NOT EXISTS (SELECT FROM row_source AS source WHERE cdm_table = 'observation' AND row_id = observation_id"
    " AND (resource_type = 'Condition' AND row.qualifier_concept_id IS NOT NULL"
    " OR resource_type = 'AllergyIntolerance' AND row.observation_event_id IS NOT NULL))"
)


def _concept_of(table: str) -> str:
    return f"{table.removesuffix('_occurrence').removesuffix('_exposure')}_concept_id"


# --- lineage, reports, runs ----------------------------------------------------------------------------------------


@pytest.mark.requirement("f2o-023", "f2o-100")
def test_every_row_leads_back_to_its_resource(instance: Instance) -> None:
    for table in LINEAGE_TABLES:
        own = primary_key(table) or "person_id"
        assert instance.rows(
            f"SELECT count(*) FROM cdm.{table} AS row WHERE NOT EXISTS (SELECT FROM etl.row_source AS source"
            f" WHERE source.cdm_table = '{table}' AND source.row_id = row.{own} AND source.resource_id IS NOT NULL)"
        ) == [(0,)], table


@pytest.mark.requirement("f2o-062")
def test_what_is_filtered_out_is_counted_by_type_and_reason(instance: Instance) -> None:
    counted = dict(instance.rows("SELECT export_id, sum(count)::bigint FROM exclusion GROUP BY export_id"))
    lines = dict(
        instance.rows("SELECT export_id, sum(excluded)::bigint FROM file_account GROUP BY 1 HAVING sum(excluded) > 0")
    )
    assert counted == lines
    assert instance.rows("SELECT count(DISTINCT (resource_type, reason)) > 15 FROM exclusion") == [(True,)]


@pytest.mark.requirement("f2o-063")
def test_a_code_that_has_no_concept_is_counted(instance: Instance) -> None:
    """In every table and of every element that has a source value beside its concept, unless a value map says 0."""
    known = {entry.code for entries in load_mappings(MAPPINGS_FOLDER).value_maps.values() for entry in entries}
    silent, without = set(), set()
    for table in CDM_TABLES:
        names = {field.name for field in fields(table)}
        # A code that is the value of its row has its concept there: a substance, of an allergy of no known kind.
        is_no_value = " AND value_as_concept_id IS NULL" if "value_as_concept_id" in names else ""
        for name in sorted(name for name in names if name.endswith("_source_value")):
            concept = name.replace("_source_value", "_concept_id")
            if concept not in names or name in _NOT_CODES:
                continue
            for code, is_counted in instance.rows(
                f"SELECT DISTINCT {name}, EXISTS (SELECT FROM unmapped_code WHERE left(code, 50) = {name})"
                f" FROM cdm.{table} WHERE coalesce({concept}, 0) = 0 AND {name} IS NOT NULL{is_no_value}"
            ):
                without.add(name)
                if not is_counted and not set(code.split("|")) <= known:  # several ethnicities are 0, each is known
                    silent.add(f"{table}.{name}: {code}")
    assert "\n".join(sorted(silent)) == ""
    assert {"condition_source_value", "measurement_source_value", "unit_source_value", "visit_source_value"} <= without
    assert instance.rows("SELECT count(*) > 3 FROM unmapped_code") == [(True,)]


#: Source values that need not be codes: FHIR's country of an address is a text, a payer may be a name, a plan a text.
_NOT_CODES = frozenset({"country_source_value", "payer_source_value", "plan_source_value"})


@pytest.mark.requirement("f2o-040", "f2o-102")
def test_each_run_says_by_what_it_was_made(instance: Instance) -> None:
    runs = instance.rows(
        "SELECT vocabulary_release, cdm_version, ig_version, software_version, published_at IS NOT NULL FROM publication"
    )
    assert len(runs) >= 4
    assert {run[0] for run in runs} == {"v5.0 GOLDEN"}
    assert all("5.4" in run[1] and run[2] and run[3] and run[4] for run in runs)


@pytest.mark.requirement("f2o-011", "f2o-012")
def test_a_resource_without_any_optional_element_has_its_outcome(instance: Instance) -> None:
    """Nothing that a source may leave out is taken for granted: no run ends, and no rule fails."""
    outcomes = dict(
        instance.rows(
            "SELECT resource_type, outcome || coalesce(':' || reason, '') FROM resource_state"
            " JOIN site_resource_type USING (site_resource_type_id) WHERE site = 'bare'"
            " UNION SELECT resource_type, 'rejected:' || code FROM dead_letter_open WHERE site = 'bare'"
        )
    )
    assert set(outcomes) == {file.stem for file in MAPPINGS_FOLDER.glob("*.yaml")}
    allowed = re.compile("loaded|excluded:.*|rejected:(required_missing|date_missing|person_unknown)")
    assert {kind: outcome for kind, outcome in outcomes.items() if not allowed.fullmatch(outcome)} == {}
