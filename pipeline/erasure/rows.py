"""Taking everything of erased persons out of the database, in the caller's transaction.

What belongs to them is found by three ways: rows of their persons, whatever made them; resources whose landed line is
theirs, also those without rows; dead letters whose line is theirs. What others' rows say of theirs (a visit that two
patients' results name) becomes a link that waits, as if the resource had never come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import polars as pl
import psycopg

from omop_schema.cdm import CDM_TABLES, polars_schema, primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.fhir.lines import PERSON_ERASED
from pipeline.publication.removed_persons import remove_rows_of_persons
from pipeline.publication.sql import Database
from pipeline.publication.steps.medication_records import mark_stale, note_erased, note_left_links, recount_left
from pipeline.publication.tables import DERIVED_OF_PERSONS
from pipeline.publication.unlink import remove_unused_locations, unlink
from pipeline.warehouse.copying import read_frame, temporary_table
from pipeline.warehouse.export_jobs import lock_warehouse

__all__ = ["AffectedDeadLetter", "OfPersons", "dead_letters_of", "remains", "remove", "touched_tables"]

#: Columns by which rows hang on rows of theirs, and that no link of a resource fills: column → table whose row it is.
_OTHER_LINKS = {
    "parent_visit_detail_id": "visit_detail",
    "preceding_visit_occurrence_id": "visit_occurrence",
    "preceding_visit_detail_id": "visit_detail",
}

#: Tables of the CDM that this pipeline does not fill and that name no person_id: table, its column, and whose id it is.
_HANGING = (
    ("note_nlp", "note_id", "note"),
    ("episode_event", "episode_id", "episode"),
    ("cohort", "subject_id", "person"),
)

_SURROGATES = {
    "resource_state": "surrogate_id",
    "id_map": "surrogate_id",
    "reference": "from_surrogate_id",
    "reference_value": "owner_surrogate_id",
    "row_issue": "surrogate_id",
    "unmapped_use": "surrogate_id",
    "hydrated_reference": "surrogate_id",
    "absent_resource": "surrogate_id",
    "medication_record": "surrogate_id",
}


@dataclass(frozen=True)
class AffectedDeadLetter:
    """A dead letter that is theirs (`raw` is None), or of which `raw` stays."""

    id: int
    raw: bytes | None = None
    hashes: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class OfPersons:
    """What is to go from the warehouse. Frames hold integers only."""

    sites: Sequence[str]
    patients: Collection[int]
    #: surrogate_id: resources that had a line of theirs in any export
    owned: pl.DataFrame
    #: export_id, file_number, line: lines of theirs
    lines: pl.DataFrame
    #: exports whose landed lines were searched
    exports: Sequence[int]
    #: export_id, file_number, line, raw_hash_high, raw_hash_low: lines of others without what named them
    shared: pl.DataFrame
    dead_letters: Sequence[AffectedDeadLetter]
    #: (export id, position) in the lists of crawls
    crawled: Sequence[tuple[int, int]]


def remove(db: Database, found: OfPersons) -> tuple[Counter[str], list[int]]:
    """Remove rows, states, references, facts and dead letters; (deleted rows by table, surrogate ids of all that was theirs).

    Repeating it removes nothing more.
    """
    connection, cdm = db.connection, db.cdm
    lock_warehouse(connection)
    connection.execute("SET CONSTRAINTS ALL DEFERRED")
    temporary_table(connection, "erased_patient", pl.DataFrame({"surrogate_id": sorted(found.patients)}))
    connection.execute(
        "CREATE TEMP TABLE removed_person ON COMMIT DROP AS SELECT row_id, surrogate_id FROM id_map"
        " JOIN pg_temp.erased_patient USING (surrogate_id) WHERE cdm_table = 'person'"
    )
    removed = Counter[str]()
    note_left_links(db)
    _unlink(db)
    removed["visit_detail"] += _remove_left_details(connection, cdm)
    for table, column, of in _HANGING:
        removed[table] += connection.execute(
            f"DELETE FROM {cdm}.{table} WHERE {column} IN ({_ids(cdm, of)})"
        ).rowcount  # fmt: skip
    for table in DERIVED_OF_PERSONS:
        removed[table] += _count(
            connection, f"SELECT count(*) FROM {cdm}.{table} JOIN pg_temp.removed_person ON person_id = row_id"
        )
    removed += remove_rows_of_persons(db)
    removed["person"] += connection.execute(
        f"DELETE FROM {cdm}.person USING pg_temp.removed_person WHERE person_id = row_id"
    ).rowcount
    erased = _erased(connection, found)
    removed["location"] += _remove_locations(db)
    note_erased(db)
    removed += _remove_from_etl(connection, found)
    # What was counted there counts again: the next load maps it.
    mark_stale(db, recount_left(db))
    _shorten_shared(connection, found)
    for site in found.sites:
        _count_persons_again(connection, cdm, site)
        _count_left_out_again(db, site)
    db.execute("place_by_visits")
    return +removed, erased


def _ids(cdm: str, table: str) -> str:
    if table == "person":
        return "SELECT row_id FROM pg_temp.removed_person"
    return f"SELECT {primary_key(table)} FROM {cdm}.{table} JOIN pg_temp.removed_person ON {table}.person_id = row_id"


def _unlink(db: Database) -> None:
    """Rows of others that stand on a visit of theirs wait for it: it never comes."""
    connection, cdm = db.connection, db.cdm
    for table in ("visit_occurrence", "visit_detail"):
        connection.execute(
            f"CREATE TEMP TABLE erased_{table} ON COMMIT DROP AS SELECT map.surrogate_id, {table}_id AS row_id"
            f" FROM {cdm}.{table} JOIN pg_temp.removed_person ON {table}.person_id = removed_person.row_id"
            f" LEFT JOIN id_map AS map ON map.cdm_table = '{table}' AND map.row_id = {table}_id"
        )
    _take_details_out(connection, cdm)
    for table in ("visit_occurrence", "visit_detail"):
        unlink(db, table, f"erased_{table}")
    for table in LINEAGE_TABLES:
        for column, other in _OTHER_LINKS.items():
            if column in polars_schema(table) and column != primary_key(table):
                connection.execute(
                    f"UPDATE {cdm}.{table} AS row SET {column} = NULL FROM pg_temp.erased_{other} AS gone"
                    f" WHERE row.{column} = gone.row_id"
                )


def _take_details_out(connection: psycopg.Connection, cdm: str) -> None:
    """Encounters of others that are parts of a visit of theirs, such as a newborn's: they have no visit any more. Their
    line counts as new from now on, so that the next export makes a visit of it."""
    connection.execute(
        "CREATE TEMP TABLE left_detail ON COMMIT DROP AS SELECT row.visit_detail_id AS row_id"
        f" FROM {cdm}.visit_detail AS row JOIN pg_temp.erased_visit_occurrence AS gone ON row.visit_occurrence_id = gone.row_id"
        " WHERE NOT EXISTS (SELECT FROM pg_temp.removed_person AS person WHERE person.row_id = row.person_id)"
    )
    connection.execute(
        "INSERT INTO pg_temp.erased_visit_detail SELECT map.surrogate_id, left_detail.row_id FROM pg_temp.left_detail"
        " LEFT JOIN id_map AS map ON map.cdm_table = 'visit_detail' AND map.row_id = left_detail.row_id"
    )


def _remove_left_details(connection: psycopg.Connection, cdm: str) -> int:
    connection.execute(
        "UPDATE resource_state AS state SET raw_hash_high = 0, raw_hash_low = 0, content_hash = NULL"
        " FROM pg_temp.left_detail AS gone JOIN lineage_visit_detail AS lineage USING (row_id)"
        " WHERE state.surrogate_id = lineage.surrogate_id"
    )
    connection.execute(
        "DELETE FROM lineage_visit_detail AS lineage USING pg_temp.left_detail AS gone WHERE lineage.row_id = gone.row_id"
    )
    return connection.execute(
        f"DELETE FROM {cdm}.visit_detail USING pg_temp.left_detail AS gone WHERE visit_detail_id = gone.row_id"
    ).rowcount


def _erased(connection: psycopg.Connection, found: OfPersons) -> list[int]:
    """Temporary table `erased`: all resources that are theirs as the warehouse knows them now.

    A resource that an earlier export gave to them, and a later one to somebody else, is the other's.
    """
    temporary_table(connection, "owned", found.owned)
    temporary_table(connection, "their_line", found.lines)
    temporary_table(
        connection, "searched_export", pl.DataFrame({"export_id": found.exports}, schema={"export_id": pl.Int64})
    )
    connection.execute(
        "CREATE TEMP TABLE erased ON COMMIT DROP AS SELECT surrogate_id FROM pg_temp.erased_patient"
        " UNION SELECT surrogate_id FROM pg_temp.of_removed_person"
        " UNION SELECT surrogate_id FROM pg_temp.owned LEFT JOIN resource_state AS state USING (surrogate_id)"
        " WHERE state.surrogate_id IS NULL"
        " OR NOT EXISTS (SELECT FROM pg_temp.searched_export AS export WHERE export.export_id = state.export_id)"
        " OR EXISTS (SELECT FROM pg_temp.their_line AS line WHERE line.export_id = state.export_id"
        " AND line.file_number = state.file_number AND line.line = state.line)"
    )
    connection.execute("ANALYZE pg_temp.erased")
    return read_frame(connection, "SELECT surrogate_id FROM pg_temp.erased", {"surrogate_id": pl.Int64})[
        "surrogate_id"
    ].to_list()


def _remove_locations(db: Database) -> int:
    """Addresses are rows by content: those that nobody else has go."""
    connection = db.connection
    connection.execute(
        "CREATE TEMP TABLE left_location ON COMMIT DROP AS SELECT DISTINCT row_id FROM lineage_location"
        " JOIN pg_temp.erased USING (surrogate_id)"
    )
    for table in LINEAGE_TABLES:
        connection.execute(
            f"DELETE FROM {lineage_table_name(table)} AS lineage USING pg_temp.erased AS gone"
            " WHERE lineage.surrogate_id = gone.surrogate_id"
        )
    deleted = remove_unused_locations(db)
    # The id of an address is kept under the hash of its content: it goes as well.
    connection.execute(
        "DELETE FROM id_map AS map USING pg_temp.unused_location AS gone WHERE map.cdm_table = 'location'"
        " AND map.row_id = gone.row_id"
    )
    return deleted


def _remove_from_etl(connection: psycopg.Connection, found: OfPersons) -> Counter[str]:
    removed = Counter[str]()
    connection.execute(
        "UPDATE reference SET state = 'pending' FROM pg_temp.erased AS gone WHERE to_surrogate_id = gone.surrogate_id"
        " AND state <> 'pending'"
    )
    # The text beside a code is that of whichever resource brought it first.
    connection.execute(
        "UPDATE unmapped_coding AS coding SET text = NULL FROM unmapped_use AS used JOIN pg_temp.erased AS gone"
        " USING (surrogate_id) WHERE used.coding_id = coding.coding_id AND coding.code IS NOT NULL"
    )
    for table, column in _SURROGATES.items():
        removed[f"etl.{table}"] += connection.execute(
            f"DELETE FROM {table} USING pg_temp.erased AS gone WHERE {table}.{column} = gone.surrogate_id"
        ).rowcount
    connection.execute(
        "DELETE FROM unmapped_coding AS coding WHERE NOT EXISTS"
        " (SELECT FROM unmapped_use AS used WHERE used.coding_id = coding.coding_id)"
    )
    # What others say about a resource of theirs.
    removed["etl.reference_value"] += connection.execute(
        "DELETE FROM reference_value AS fact USING pg_temp.erased AS gone WHERE fact.surrogate_id = gone.surrogate_id"
    ).rowcount
    # A dead letter keeps its place, so that the accounts of its export still add up, and nothing else.
    removed["etl.dead_letter"] += connection.execute(
        "UPDATE dead_letter SET resource_id = NULL, surrogate_id = NULL, caused_by = NULL, caused_by_surrogate_id = NULL,"
        " path = NULL, reason = 'the person was erased', code = %s, raw = '', raw_is_complete = true, byte_length = 0,"
        " raw_hash_high = 0, raw_hash_low = 0, state = CASE WHEN state = 'open' THEN 'resolved' ELSE state END,"
        " closed_at = coalesce(closed_at, now()) WHERE id = ANY(%s) AND code <> %s",
        (
            PERSON_ERASED,
            [dead_letter.id for dead_letter in found.dead_letters if dead_letter.raw is None],
            PERSON_ERASED,
        ),
    ).rowcount
    exports, positions = [item[0] for item in found.crawled], [item[1] for item in found.crawled]
    for table in ("crawl_patient", "crawl_search"):
        removed[f"etl.{table}"] += connection.execute(
            f"DELETE FROM {table} USING unnest(%s::bigint[], %s::integer[]) AS gone (export_id, position)"
            f" WHERE {table}.export_id = gone.export_id AND {table}.position = gone.position",
            (exports, positions),
        ).rowcount
    return removed


def _shorten_shared(connection: psycopg.Connection, found: OfPersons) -> None:
    """Lines of others that named them are other bytes now: the next export's line is the same after its erasure."""
    temporary_table(connection, "shared_line", found.shared)
    connection.execute(
        "UPDATE resource_state AS state SET raw_hash_high = line.raw_hash_high, raw_hash_low = line.raw_hash_low,"
        " content_hash = NULL FROM pg_temp.shared_line AS line WHERE state.export_id = line.export_id"
        " AND state.file_number = line.file_number AND state.line = line.line"
    )
    for dead_letter in found.dead_letters:
        if dead_letter.raw is not None:
            connection.execute(
                "UPDATE dead_letter SET raw = %s, raw_hash_high = %s, raw_hash_low = %s WHERE id = %s",
                (dead_letter.raw, *dead_letter.hashes, dead_letter.id),
            )


def _count_persons_again(connection: psycopg.Connection, cdm: str, site: str) -> None:
    """The counts that `metadata` keeps of the site, as the derived tables made them."""
    period = f"SELECT FROM {cdm}.observation_period AS period WHERE period.person_id = person.person_id"
    for name, condition in (("persons", ""), ("persons_without_observation_period", f" AND NOT EXISTS ({period})")):
        connection.execute(
            f"UPDATE {cdm}.metadata SET value_as_number = (SELECT count(DISTINCT person.person_id)"
            f" FROM {cdm}.person AS person JOIN lineage_person AS lineage ON lineage.row_id = person.person_id"
            " JOIN resource_state USING (surrogate_id) JOIN site_resource_type AS kind USING (site_resource_type_id)"
            f" WHERE kind.site = %s{condition}) WHERE name = %s",
            (site, f"site/{site}/{name}"),
        )


def _count_left_out_again(db: Database, site: str) -> None:
    """The same of Patients who are not loaded, by the reason."""
    prefix = f"site/{site}/persons_left_out/"
    left_out = dict(db.rows("persons_left_out", {"site": site}))
    for name, _ in db.rows("facts_of_prefix", {"prefix": prefix}):
        count = left_out.get(name.removeprefix(prefix))
        if count:
            db.connection.execute(f"UPDATE {db.cdm}.metadata SET value_as_number = %s WHERE name = %s", (count, name))
        else:
            db.connection.execute(f"DELETE FROM {db.cdm}.metadata WHERE name = %s", (name,))


def dead_letters_of(
    connection: psycopg.Connection, site: str
) -> Iterator[tuple[int, int, str, int, bytes, int | None]]:
    """(id, export id, file, line, raw, surrogate id of the resource that is the cause) of all dead letters of a site."""
    with connection.cursor(name="dead_letters") as cursor:
        cursor.itersize = 100
        yield from cursor.execute(
            "SELECT id, export_id, file, line, raw, caused_by_surrogate_id FROM dead_letter WHERE site = %s ORDER BY id",
            (site,),
        )


def remains(
    connection: psycopg.Connection, cdm: str, patients: Collection[int], erased: Collection[int]
) -> Counter[str]:
    """Rows by table that are still theirs; empty when nothing is left."""
    left = Counter[str]()
    ids = sorted({*patients, *erased})
    persons = connection.execute(
        "SELECT row_id FROM id_map WHERE cdm_table = 'person' AND surrogate_id = ANY(%s)", (sorted(patients),)
    ).fetchall()
    for table, column in _SURROGATES.items():
        left[f"etl.{table}"] += _count(connection, f"SELECT count(*) FROM {table} WHERE {column} = ANY(%s)", ids)
    left["etl.dead_letter"] += _count(connection, "SELECT count(*) FROM dead_letter WHERE surrogate_id = ANY(%s)", ids)
    for table in LINEAGE_TABLES:
        lineage = lineage_table_name(table)
        left[table] += _count(connection, f"SELECT count(*) FROM {lineage} WHERE surrogate_id = ANY(%s)", ids)
    rows = [row[0] for row in persons]
    for table in [name for name in CDM_TABLES if rows and "person_id" in polars_schema(name)]:
        left[table] += _count(connection, f"SELECT count(*) FROM {cdm}.{table} WHERE person_id = ANY(%s)", rows)
    return +left


def touched_tables(removed: Counter[str], cdm: str, etl: str) -> list[str]:
    """The tables, with their schemas, in which rows were deleted: their pages still hold the old bytes."""
    names = {name if name.startswith("etl.") else f"cdm.{name}" for name in removed}
    names |= {f"etl.{lineage_table_name(name)}" for name in removed if name in LINEAGE_TABLES}
    return [f"{etl if schema == 'etl' else cdm}.{table}" for schema, table in sorted(name.split(".") for name in names)]


def _count(connection: psycopg.Connection, query: str, ids: Sequence[int] | None = None) -> int:
    row = connection.execute(query, (list(ids),) if ids is not None else None).fetchone()
    return int(row[0]) if row else 0
