"""Whose resources are loaded afresh, and which others these depend on, as tables in the scratch schema.

    deep_person     patient: surrogate ids of the Patients whose rows are compared, with those who are the same person
    deep_resource   the resources that are loaded, each with the place of its line, and whether it belongs to a person

What a resource depends on is looked for in its line (whatever it refers to), not in what the pipeline noted: that may be
what is wrong. Only what depends on a resource without being named by it (the specialty that a PractitionerRole says) is
found by facts. Everything is read in one transaction with one snapshot: a load that commits meanwhile is not seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter

import polars as pl
import psycopg

from omop_schema.cdm import polars_schema, primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.fhir.identity import SurrogateKeys, parse_reference
from pipeline.landing.references import references_in
from pipeline.load.current_lines import COUNTS, CurrentLines
from pipeline.load.old_settings import SiteFingerprints
from pipeline.publication.steps.crosswalk import read_crosswalk
from pipeline.quality.deep.model import DeepProgress, DeepReport, DeepRequest
from pipeline.quality.deep.scratch import Scratch
from pipeline.warehouse.copying import copy_frame

__all__ = ["choose"]

#: Tables whose rows belong to a person by person_id.
_OF_PERSONS = [table for table in LINEAGE_TABLES if "person_id" in polars_schema(table) and table != "person"]

#: Links to what persons share, and the table they lead to.
_SHARED_LINKS = {"provider_id": "provider", "care_site_id": "care_site"}

#: Resources, excluded ones and loaded ones, among which those of the chosen persons without a row are looked for.
_CANDIDATES = 20_000

#: Lines whose references are looked up together.
_LINES_TOGETHER = 5_000

_STATE = (
    "{etl}.resource_state AS state JOIN {etl}.site_resource_type AS kind USING (site_resource_type_id)"
    " LEFT JOIN {deep}.deep_fingerprint AS mark ON mark.site = kind.site AND mark.resource_type = kind.resource_type"
    " LEFT JOIN {deep}.deep_fingerprint AS other ON other.site = kind.site AND other.resource_type = ''"
)
_COLUMNS = (
    "state.surrogate_id, kind.site, kind.resource_type, state.export_id, state.file_number, state.byte_offset,"
    " state.byte_length, state.as_of, CASE WHEN state.fingerprint"
    " IS DISTINCT FROM coalesce(mark.fingerprint, other.fingerprint) THEN 'old settings' END AS left_out"
)


def choose(
    scratch: Scratch,
    connection: psycopg.Connection,
    request: DeepRequest,
    fingerprints: Mapping[str, SiteFingerprints],
    report: DeepReport,
    progress: DeepProgress,
) -> None:
    """Fill the tables. `connection` is inside its transaction; `fingerprints` by site."""
    chosen = _Choice(scratch, connection, request, progress)
    chosen.make_tables(fingerprints)
    if request.persons is None and request.site is None:
        chosen.take_everything()
    else:
        chosen.take_persons()
        if request.persons is None:
            chosen.take_site()
        report.rowless, report.all_rowless = chosen.take_rowless()
        chosen.take_what_is_referred_to()
    chosen.finish(report)


@dataclass
class _Choice:
    scratch: Scratch
    connection: psycopg.Connection
    request: DeepRequest
    progress: DeepProgress

    def __post_init__(self) -> None:
        settings = self.scratch.real.settings
        self.names = {"etl": settings.etl_schema, "cdm": settings.cdm_schema, "deep": self.scratch.etl}
        self.salt = settings.surrogate_salt

    def run(self, query: str, *parameters: object) -> int:
        return self.connection.execute(query.format(**self.names), parameters or None).rowcount

    def make_tables(self, fingerprints: Mapping[str, SiteFingerprints]) -> None:
        self.run(
            "CREATE TABLE {deep}.deep_fingerprint (site text, resource_type text, fingerprint bigint, is_mapped boolean)"
        )
        marks = [
            (site, name, mark, name in of_site.mapped_types)
            for site, of_site in fingerprints.items()
            for name, mark in of_site.by_type.items()
        ]
        with self.connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO {deep}.deep_fingerprint VALUES (%s, %s, %s, %s)".format(**self.names), marks
            )
        self.run("CREATE UNLOGGED TABLE {deep}.deep_person (patient bigint PRIMARY KEY)")
        self.run(
            f"CREATE UNLOGGED TABLE {{deep}}.deep_resource AS SELECT {_COLUMNS}, false AS is_own, 0 AS round,"
            f" false AS is_dated_by_export FROM {_STATE} WITH NO DATA"
        )
        self.run("ALTER TABLE {deep}.deep_resource ADD PRIMARY KEY (surrogate_id)")

    def take_everything(self) -> None:
        self.progress("choosing everything", 0, 0)
        self.run(
            "INSERT INTO {deep}.deep_person SELECT state.surrogate_id FROM {etl}.resource_state AS state"
            " JOIN {etl}.site_resource_type AS kind USING (site_resource_type_id)"
            " WHERE kind.resource_type = 'Patient' AND state.outcome = 'loaded'"
        )
        self.run(
            f"INSERT INTO {{deep}}.deep_resource SELECT {_COLUMNS}, true, 0, false FROM {_STATE}"
            f" WHERE {COUNTS} AND mark.is_mapped"
        )

    def take_site(self) -> None:
        """Everything of one site; what it refers to may be of others."""
        self._take(
            "SELECT one.surrogate_id FROM {etl}.resource_state AS one JOIN {etl}.site_resource_type AS its"
            " USING (site_resource_type_id) JOIN {deep}.deep_fingerprint AS mapped ON mapped.site = its.site"
            " AND mapped.resource_type = its.resource_type AND mapped.is_mapped WHERE its.site = %s",
            self.request.site,
            is_own=True,
        )

    # --- persons and what is theirs -----------------------------------------------------------------------------------

    def take_persons(self) -> None:
        self.progress("choosing persons", 0, 0)
        self.run(
            "INSERT INTO {deep}.deep_person SELECT state.surrogate_id FROM {etl}.resource_state AS state"
            " JOIN {etl}.site_resource_type AS kind USING (site_resource_type_id)"
            " WHERE kind.resource_type = 'Patient' AND state.outcome = 'loaded'"
            " AND (%s::text IS NULL OR kind.site = %s)"
            " ORDER BY hashint8extended(state.surrogate_id, %s), state.surrogate_id LIMIT %s",
            self.request.site,
            self.request.site,
            self.request.seed,
            self.request.persons,
        )
        self._take_the_same_persons()
        self.run(
            "CREATE UNLOGGED TABLE {deep}.deep_person_row AS SELECT DISTINCT map.row_id AS person_id"
            " FROM {deep}.deep_person JOIN {etl}.id_map AS map"
            " ON map.surrogate_id = patient AND map.cdm_table = 'person'"
        )
        self.run("ANALYZE {deep}.deep_person_row")
        self._take("SELECT patient AS surrogate_id FROM {deep}.deep_person", is_own=True)
        for table in _OF_PERSONS:
            self._take(
                f"SELECT DISTINCT lineage.surrogate_id FROM {{deep}}.deep_person_row JOIN {{cdm}}.{table} AS row"
                f" USING (person_id) JOIN {{etl}}.{lineage_table_name(table)} AS lineage"
                f" ON lineage.row_id = row.{primary_key(table) or 'person_id'}",
                is_own=True,
            )
        self._take(
            "SELECT from_surrogate_id AS surrogate_id FROM {etl}.reference"
            " JOIN {deep}.deep_person ON patient = to_surrogate_id UNION"
            " SELECT owner_surrogate_id FROM {etl}.reference_value JOIN {deep}.deep_person ON patient = surrogate_id"
            " UNION SELECT surrogate_id FROM {etl}.medication_record"
            " JOIN {deep}.deep_person ON patient = person_surrogate_id",
            is_own=True,
        )

    def _take_the_same_persons(self) -> None:
        """Patients who replace each other, by what they say, by the crosswalk, or by where their rows are."""
        crosswalk = read_crosswalk(self.scratch.real.settings.person_crosswalk, self.salt)
        self.run("CREATE TEMP TABLE deep_same (patient bigint, other bigint) ON COMMIT DROP")
        copy_frame(self.connection, "pg_temp.deep_same", crosswalk.rename({"from": "patient", "next": "other"}))
        self.run(
            "INSERT INTO pg_temp.deep_same SELECT owner_surrogate_id, value::bigint FROM {etl}.reference_value"
            " WHERE name = 'replaced_by'"
        )
        self.run("INSERT INTO pg_temp.deep_same SELECT other, patient FROM pg_temp.deep_same")
        while self.run(
            "INSERT INTO {deep}.deep_person SELECT DISTINCT same.other FROM pg_temp.deep_same AS same"
            " JOIN {deep}.deep_person USING (patient) ON CONFLICT DO NOTHING"
        ):
            pass

    def take_rowless(self) -> tuple[int, bool]:
        """Resources without a row, of which nothing but their line says whose they are: excluded ones, and loaded ones
        whose rows are lost. Returns how many were looked through, and whether these are all there are."""
        if self.request.persons is None:  # they are all there
            return 0, True
        self.run(f"CREATE TEMP TABLE deep_rowless ON COMMIT DROP AS SELECT {_COLUMNS} FROM {_STATE} WITH NO DATA")
        are_all = all([self._candidates("excluded"), self._candidates("loaded")])
        self.run("CREATE INDEX ON pg_temp.deep_rowless (surrogate_id)")
        for table in LINEAGE_TABLES:
            self.run(
                f"DELETE FROM pg_temp.deep_rowless AS resource USING {{etl}}.{lineage_table_name(table)} AS lineage,"
                f" {{cdm}}.{table} AS row WHERE lineage.surrogate_id = resource.surrogate_id"
                f" AND row.{primary_key(table) or 'person_id'} = lineage.row_id"
            )
        looked = 0
        for site, lines in self._lines("pg_temp.deep_rowless", ""):
            looked += len(lines)
            self.progress("lines without rows", looked, 0)
            self._note_references(site, lines, types=("Patient",))
            self._take(
                "SELECT DISTINCT fact.surrogate_id FROM pg_temp.deep_fact AS fact"
                " JOIN {deep}.deep_person ON patient = fact.target",
                is_own=True,
            )
        return looked, are_all

    def _candidates(self, outcome: str) -> bool:
        """Add the states from a place of the seed's on, in the order of their ids, which are hashes. Whether all are in."""
        start = random.Random(self.request.seed).getrandbits(64) - 2**63  # noqa: S311 - no secret
        found = 0
        for condition in (">=", "<"):
            found += self.run(
                f"INSERT INTO pg_temp.deep_rowless SELECT {_COLUMNS} FROM {_STATE}"
                f" WHERE state.surrogate_id {condition} %s AND state.outcome = %s AND mark.is_mapped AND {COUNTS}"
                " AND NOT EXISTS (SELECT FROM {deep}.deep_resource AS own WHERE own.surrogate_id = state.surrogate_id)"
                " ORDER BY state.surrogate_id LIMIT %s",
                start,
                outcome,
                _CANDIDATES - found,
            )
        return found < _CANDIDATES

    # --- what these depend on -----------------------------------------------------------------------------------------

    def take_what_is_referred_to(self) -> None:
        """Round after round, until nothing new is referred to."""
        for column, target in _SHARED_LINKS.items():
            self._take_link_targets(column, target)
        number = 0
        while self.connection.execute(
            "SELECT 1 FROM {deep}.deep_resource WHERE round = %s LIMIT 1".format(**self.names), (number,)
        ).fetchone():
            self._take_round(number)
            number += 1

    def _take_link_targets(self, column: str, target: str) -> None:
        """Also what no reference in a line names: it is known by an identifier."""
        rows = " UNION ".join(
            f"SELECT row.{column} FROM {{deep}}.deep_person_row JOIN {{cdm}}.{table} AS row USING (person_id)"
            for table in [*_OF_PERSONS, "person"]
            if column in polars_schema(table)
        )
        self._take(
            f"SELECT DISTINCT lineage.surrogate_id FROM ({rows}) AS linked"
            f" JOIN {{etl}}.{lineage_table_name(target)} AS lineage ON lineage.row_id = linked.{column}"
        )

    def _take_round(self, number: int) -> None:
        done = 0
        for site, lines in self._lines("{deep}.deep_resource", f"WHERE round = {number}"):
            done += len(lines)
            self.progress(f"references, round {number + 1}", done, 0)
            self._note_references(site, lines)
            self._take("SELECT DISTINCT target AS surrogate_id FROM pg_temp.deep_fact", next_round=number + 1)
        of_round = "SELECT surrogate_id FROM {deep}.deep_resource WHERE round = %s"
        self._take(
            "SELECT fact.owner_surrogate_id AS surrogate_id FROM {etl}.reference_value AS fact"
            f" WHERE fact.surrogate_id IN ({of_round}) UNION"
            f" SELECT to_surrogate_id FROM {{etl}}.reference WHERE from_surrogate_id IN ({of_round}) UNION"
            " SELECT fact.owner_surrogate_id FROM {etl}.reference_value AS fact JOIN {etl}.reference AS used"
            f" ON used.to_surrogate_id = fact.surrogate_id WHERE used.from_surrogate_id IN ({of_round}) UNION"
            " SELECT other.surrogate_id FROM {etl}.medication_record AS own JOIN {etl}.medication_record AS other"
            f" USING (linked_surrogate_id) WHERE own.surrogate_id IN ({of_round})",
            number,
            number,
            number,
            number,
            next_round=number + 1,
        )

    def _take(self, query: str, *parameters: object, is_own: bool = False, next_round: int = 0) -> None:
        """Add the resources of a query (surrogate_id) that have a line that counts."""
        self.run(
            f"INSERT INTO {{deep}}.deep_resource SELECT {_COLUMNS}, {is_own}, {next_round}, false FROM {_STATE}"
            f" JOIN ({query}) AS chosen ON chosen.surrogate_id = state.surrogate_id WHERE {COUNTS}"
            + (
                " ON CONFLICT (surrogate_id) DO UPDATE SET is_own = true WHERE NOT deep_resource.is_own"
                if is_own
                else " ON CONFLICT DO NOTHING"
            ),
            *parameters,
        )

    def _lines(self, table: str, where: str) -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
        """(site, lines with their surrogate ids) of a table, in the order of landing; unread ones are passed over."""
        query = (
            f"SELECT site, surrogate_id, export_id, file_number, byte_offset, byte_length FROM {table} {where}"
            " ORDER BY site, export_id, file_number, byte_offset"
        ).format(**self.names)
        with self.connection.cursor("deep_lines") as places:
            places.itersize = _LINES_TOGETHER
            for site, of_site in groupby(places.execute(query), key=itemgetter(0)):
                with CurrentLines(self.scratch.real.landing, site) as landed:
                    read = ((place[1], landed.read(*place[2:])) for place in of_site)
                    found = ((surrogate_id, raw) for surrogate_id, raw in read if raw is not None)
                    while lines := list(islice(found, _LINES_TOGETHER)):
                        yield site, lines

    def _note_references(
        self, site: str, lines: list[tuple[int, bytes]], *, types: tuple[str, ...] = ("[A-Z][A-Za-z]+",)
    ) -> None:
        """Temporary table `deep_fact`: surrogate_id of the line, target. Patients are named by Patients alone."""
        keys = SurrogateKeys(site, self.salt)
        facts = [
            (surrogate_id, keys.of(*parsed))
            for surrogate_id, raw in lines
            for text in references_in(raw, types)
            if (parsed := parse_reference(text)) is not None
        ]
        frame = pl.DataFrame(facts, schema={"surrogate_id": pl.Int64, "target": pl.Int64}, orient="row")
        self.run("DROP TABLE IF EXISTS pg_temp.deep_fact")
        self.run("CREATE TEMP TABLE deep_fact (surrogate_id bigint, target bigint) ON COMMIT DROP")
        copy_frame(self.connection, "pg_temp.deep_fact", frame)

    # --- the rest -----------------------------------------------------------------------------------------------------

    def finish(self, report: DeepReport) -> None:
        """Counts, and which lines keep the date of their export: races of patients without a visit have no other."""
        self.run(
            "UPDATE {deep}.deep_resource AS resource SET is_dated_by_export = true FROM {etl}.reference_value AS fact"
            " WHERE fact.name = 'race_observation' AND fact.owner_surrogate_id = resource.surrogate_id"
        )
        self.run("ANALYZE {deep}.deep_person; ANALYZE {deep}.deep_resource")
        row = self.connection.execute(
            "SELECT (SELECT count(*) FROM {deep}.deep_person), (SELECT count(*) FROM {deep}.deep_resource),"
            " (SELECT count(*) FROM {etl}.dead_letter AS letter WHERE letter.state = 'open'"
            " AND (%s::text IS NULL OR letter.site = %s))".format(**self.names),
            (self.request.site, self.request.site),
        ).fetchone()
        assert row is not None
        report.persons, report.resources, report.open_dead_letters = row
