"""Publication: the staged parts of one export → PostgreSQL, in one transaction. Readers see before or after.

Changed resources replace exactly the rows that they made before, found by lineage. The steps are the methods of
`_Publication.run`, in order; the accounting is checked before the commit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from typing import Any, NamedTuple

import polars as pl
import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, Index

from omop_schema import cdm as cdm_schema
from omop_schema.cdm import polars_schema, primary_key
from omop_schema.etl import LINEAGE_TABLES, build_metadata, lineage_table_name
from pipeline.errors import AccountingError, PermanentError
from pipeline.landing.store import LandedExport
from pipeline.runtime import Runtime
from pipeline.warehouse import dead_letters, staging
from pipeline.warehouse.copying import copy_frame, read_frame, temporary_table
from pipeline.warehouse.ids import ENTITY_TABLES, LINKS, EntityIds, reserve
from pipeline.warehouse.removed_persons import remove_rows_of_persons
from pipeline.warehouse.schema import transaction
from pipeline.warehouse.seen import read_seen, write_seen
from pipeline.warehouse.staging import StagedExport

__all__ = ["FileLines", "LandedLine", "PublicationReport", "publish_export"]

CDM_VERSION = "v5.4"
IG_VERSION = "2.0.0-ballot"

#: Rows below which dropping and rebuilding the indices of an empty warehouse does not pay.
_BULK_ROWS = 50_000

#: Roles of `etl.reference` by which a resource used what another says, not only its id.
FACT_ROLES = ("medication",)

#: What the dead letter of a line says whose person is not loaded.
_ORPHAN = {"stage": "publish", "code": "person_unknown", "reason": "the person is not loaded", "path": None}

_LINE = ["surrogate_id", "file_number", "line"]


@dataclass(frozen=True)
class FileLines:
    """What transform counted of one landed file."""

    file_number: int
    lines: int
    unchanged: int


class LandedLine(NamedTuple):
    """Where a line lies in landing."""

    export_id: int
    file_number: int
    byte_offset: int
    byte_length: int


@dataclass
class PublicationReport:
    """What came of an export. Counts are of lines by outcome, and of rows by CDM table."""

    export_id: int
    site: str
    vocabulary_release: str
    outcomes: Counter[str] = field(default_factory=Counter)
    rows_inserted: Counter[str] = field(default_factory=Counter)
    rows_deleted: Counter[str] = field(default_factory=Counter)
    #: resource type → (rows with a standard concept, rows with a code)
    mapping_rates: dict[str, tuple[int, int]] = field(default_factory=dict)
    transform_seconds: float = 0.0
    publish_seconds: float = 0.0
    #: lines of unchanged resources that depend on what changed
    dependents: list[LandedLine] = field(default_factory=list)

    @property
    def lines(self) -> int:
        return sum(self.outcomes.values())

    @property
    def changed_rows(self) -> int:
        return sum(self.rows_inserted.values()) + sum(self.rows_deleted.values())


def publish_export(
    runtime: Runtime,
    export: LandedExport,
    staged: StagedExport,
    *,
    files: Sequence[FileLines],
    fingerprints: Mapping[str, int],
    vocabulary_release: str,
    transform_seconds: float,
) -> PublicationReport:
    """Publish a staged export. The caller holds the site's lock.

    Raises AccountingError (and changes nothing) when the lines do not add up, WarehouseError when the server fails.
    """
    started = time.perf_counter()
    report = PublicationReport(export.export_id, export.site, vocabulary_release, transform_seconds=transform_seconds)
    with transaction(runtime.url) as connection:
        _Publication(runtime, connection, export, staged, report, fingerprints).run(files)
        report.publish_seconds = time.perf_counter() - started
        _record(runtime, _driver(connection), export, report, fingerprints)
    return report


def _driver(connection: Connection) -> psycopg.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


class _Publication:
    def __init__(
        self,
        runtime: Runtime,
        connection: Connection,
        export: LandedExport,
        staged: StagedExport,
        report: PublicationReport,
        fingerprints: Mapping[str, int],
    ) -> None:
        settings = runtime.settings
        self.runtime = runtime
        self.sqlalchemy = connection
        self.connection = _driver(connection)
        self.schemas = (settings.cdm_schema, settings.vocab_schema)
        self.cdm = settings.cdm_schema
        self.etl = settings.etl_schema
        self.export = export
        self.staged = staged
        self.report = report
        self.fingerprints = fingerprints
        self.now = runtime.clock.now()
        self.ids = EntityIds(self.connection, self.cdm)
        self.pending: list[pl.DataFrame] = []
        self.old_rows: dict[str, pl.DataFrame] = {}
        self.connection.execute(
            f"SET LOCAL search_path TO {settings.etl_schema}, {settings.cdm_schema}, {settings.vocab_schema}"
        )

    def run(self, files: Sequence[FileLines]) -> None:
        # One publication at a time in a warehouse: two sites' first loads would each wait for the other's tables.
        self.connection.execute("SELECT pg_advisory_xact_lock(hashtext('epic-omop publication'))")
        self._decide()
        bulk = self._is_bulk_load()
        if bulk:
            cdm_schema.drop_constraints(self.sqlalchemy, *self.schemas)
            cdm_schema.drop_indices(self.sqlalchemy, *self.schemas)
            # Surrogate ids are hashes: to put each in its place in a B-tree costs half of a load. resource_state keeps
            # its key: other sites' transforms read that table, and a change of it would wait for them.
            for index in _lineage_indices(self.etl):
                index.drop(self.sqlalchemy, checkfirst=True)
        self._remove_former_rows()
        for table in ENTITY_TABLES:
            self._entities(table)
        for table in self.staged.kinds():
            if table in LINEAGE_TABLES and table not in ENTITY_TABLES:
                self._events(table)
        self._remove_unused_locations()
        self._relink()
        self._references()
        self._state()
        if bulk:
            for index in _lineage_indices(self.etl):
                index.create(self.sqlalchemy, checkfirst=True)
            cdm_schema.create_indices(self.sqlalchemy, *self.schemas)
            cdm_schema.create_constraints(self.sqlalchemy, *self.schemas)
        self._dead_letters()
        self._forget_accounts()
        self._issues()
        self._account(files)
        self._find_dependents()
        home = self.runtime.settings.home
        write_seen(home, self.export.site, self.export.export_id, self.staged, self.orphans)

    # --- which lines count ------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Sets `not_loaded`: lines whose rows are not taken, with their final outcome; and the table `changed`."""
        lines = self.staged.scan(staging.OUTCOME).filter(pl.col("outcome") != "rejected").select(_LINE).collect()
        lines = lines.drop_nulls("surrogate_id")
        superseded = pl.concat([self._repeated(lines), self._older_than_known(lines)]).unique()
        orphans = self._without_person(lines.join(superseded, on=_LINE, how="anti")).join(
            superseded, on=_LINE, how="anti"
        )
        self.superseded, self.orphans = superseded, orphans
        self.not_loaded = pl.concat([superseded, orphans.select(_LINE)])
        changed = lines.join(self.not_loaded, on=_LINE, how="anti").select("surrogate_id").unique()
        # Resources of which no line is loaded; of a repeated one, a line is.
        self.dropped = self.not_loaded.select("surrogate_id").unique().join(changed, on="surrogate_id", how="anti")
        temporary_table(self.connection, "changed", changed)

    def _repeated(self, lines: pl.DataFrame) -> pl.DataFrame:
        """A resource that repeats in an export is one resource: its last line in the order of files wins."""
        unchanged = self.staged.scan(staging.UNCHANGED).select(_LINE)
        unchanged = unchanged.join(lines.lazy().select("surrogate_id"), on="surrogate_id", how="semi")
        every = pl.concat([lines, unchanged.collect()])
        if every["surrogate_id"].n_unique() == every.height:
            return lines.clear()
        last = every.sort("file_number", "line").unique("surrogate_id", keep="last")
        return lines.join(last, on=_LINE, how="anti")

    def _older_than_known(self, lines: pl.DataFrame) -> pl.DataFrame:
        """An older export never overwrites a newer one: lines of resources that a newer export held as well."""
        newer = self.connection.execute(
            "SELECT export_id FROM export_job WHERE site = %s AND published_at IS NOT NULL AND transaction_time > %s",
            (self.export.site, self.export.transaction_time),
        ).fetchall()
        if not newer:
            return lines.clear()
        seen = read_seen(self.runtime.settings.home, self.export.site, [row[0] for row in newer])
        temporary_table(self.connection, "incoming_lines", lines.select("surrogate_id").unique())
        known = read_frame(
            self.connection,
            "SELECT surrogate_id FROM pg_temp.incoming_lines JOIN resource_state AS state USING (surrogate_id)"
            " WHERE state.as_of > %s",
            {"surrogate_id": pl.Int64},
            (self.export.transaction_time,),
        )
        return lines.lazy().join(pl.concat([known.lazy(), seen]), on="surrogate_id", how="semi").collect()

    def _without_person(self, counted: pl.DataFrame) -> pl.DataFrame:
        """Lines with a row whose person is neither loaded nor in this export. Columns: _LINE, person.

        A person whose Patient is among the counted lines and makes no row any more is not loaded.
        """
        rows = [
            self.staged.scan(table).select(*_LINE, pl.col("person_id").alias("person"))
            for table in self.staged.kinds()
            if table in LINEAGE_TABLES and table != "person" and "person_id" in polars_schema(table)
        ]
        schema = {"surrogate_id": pl.Int64, "file_number": pl.Int32, "line": pl.Int64, "person": pl.Int64}
        if not rows:
            return pl.DataFrame(schema=schema)
        arriving = self.staged.scan("person").select(pl.col("surrogate_id").alias("person")).collect()
        persons = pl.concat([frame.select("person") for frame in rows]).unique().collect()
        unknown = persons.join(arriving, on="person", how="anti")
        temporary_table(self.connection, "wanted_person_ids", unknown)
        known = read_frame(
            self.connection,
            "SELECT surrogate_id FROM pg_temp.wanted_person_ids JOIN id_map ON surrogate_id = person"
            f" JOIN {self.cdm}.person AS row ON row.person_id = row_id WHERE cdm_table = 'person'",
            {"person": pl.Int64},
        )
        known = known.join(counted, left_on="person", right_on="surrogate_id", how="anti")
        unknown = unknown.join(known, on="person", how="anti")
        if unknown.is_empty():
            return pl.DataFrame(schema=schema)
        return (
            pl.concat([frame.join(unknown.lazy(), on="person", how="semi") for frame in rows]).unique(_LINE).collect()
        )

    def _is_bulk_load(self) -> bool:
        """Indices are dropped only when the warehouse is empty and the load large enough for it to pay."""
        row = self.connection.execute(f"SELECT EXISTS (SELECT FROM {self.cdm}.person)").fetchone()
        if row and row[0]:
            return False
        rows = self.staged.scan(staging.OUTCOME).select(pl.len()).collect().item()
        return int(rows) >= _BULK_ROWS

    # --- rows -------------------------------------------------------------------------------------------------------

    def _remove_former_rows(self) -> None:
        """Delete what earlier versions of the changed resources made; remember event ids by meaning for reuse."""
        self.connection.execute(
            "CREATE TEMP TABLE former ON COMMIT DROP AS"
            " SELECT surrogate_id FROM pg_temp.changed JOIN resource_state USING (surrogate_id)"
        )
        row = self.connection.execute("SELECT count(*) FROM pg_temp.former").fetchone()
        if not row or not row[0]:
            return
        self.connection.execute("ANALYZE pg_temp.former")
        for table in LINEAGE_TABLES:
            if table not in ENTITY_TABLES:
                self._remove_events(table)
        for table in reversed(ENTITY_TABLES):
            self._remove_entities(table)

    def _remove_events(self, table: str) -> None:
        lineage, own = lineage_table_name(table), primary_key(table) or "person_id"
        self.old_rows[table] = read_frame(
            self.connection,
            f"SELECT surrogate_id, row_key, row_id FROM {lineage} JOIN pg_temp.former USING (surrogate_id)",
            {"surrogate_id": pl.Int64, "row_key": pl.Int64, "row_id": pl.Int64},
        )
        if self.old_rows[table].is_empty():
            return
        deleted = self.connection.execute(
            f"DELETE FROM {self.cdm}.{table} AS row USING {lineage} AS lineage, pg_temp.former AS former"
            f" WHERE lineage.surrogate_id = former.surrogate_id AND row.{own} = lineage.row_id"
        )
        self.report.rows_deleted[table] += deleted.rowcount
        self.connection.execute(
            f"DELETE FROM {lineage} AS lineage USING pg_temp.former AS former"
            " WHERE lineage.surrogate_id = former.surrogate_id"
        )

    def _remove_entities(self, table: str) -> None:
        """Rows whose resource no longer makes one (entered in error, cancelled); links to them become pending."""
        lineage, own = lineage_table_name(table), primary_key(table)
        if table == "location":  # rows by content, shared: see _remove_unused_locations
            self.connection.execute(
                f"CREATE TEMP TABLE left_locations ON COMMIT DROP AS SELECT row_id FROM {lineage}"
                " JOIN pg_temp.former USING (surrogate_id)"
            )
            self.connection.execute(
                f"DELETE FROM {lineage} AS lineage USING pg_temp.former AS former"
                " WHERE lineage.surrogate_id = former.surrogate_id"
            )
            return
        remade = self._taken(table).select("surrogate_id").unique()
        temporary_table(self.connection, f"remade_{table}", remade)
        self.connection.execute(
            f"CREATE TEMP TABLE removed_{table} ON COMMIT DROP AS"
            f" SELECT lineage.surrogate_id, lineage.row_id FROM {lineage} AS lineage"
            " JOIN pg_temp.former USING (surrogate_id)"
            f" WHERE NOT EXISTS (SELECT FROM pg_temp.remade_{table} AS remade"
            " WHERE remade.surrogate_id = lineage.surrogate_id)"
        )
        row = self.connection.execute(f"SELECT count(*) FROM pg_temp.removed_{table}").fetchone()
        if row and row[0]:
            if table == "person":
                self.report.rows_deleted += remove_rows_of_persons(self.connection, self.cdm)
            self._unlink(table)
            deleted = self.connection.execute(
                f"DELETE FROM {self.cdm}.{table} USING pg_temp.removed_{table} AS removed WHERE {own} = removed.row_id"
            )
            self.report.rows_deleted[table] += deleted.rowcount
        self.connection.execute(
            f"DELETE FROM {lineage} AS lineage USING pg_temp.former AS former"
            " WHERE lineage.surrogate_id = former.surrogate_id"
        )

    def _unlink(self, table: str) -> None:
        for column, other in _links_to(table):
            own = primary_key(other) or "person_id"
            self.connection.execute(
                f"INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
                f" SELECT DISTINCT lineage.surrogate_id, '{column}', removed.surrogate_id, 'pending'"
                f" FROM {self.cdm}.{other} AS row JOIN pg_temp.removed_{table} AS removed ON row.{column} = removed.row_id"
                f" JOIN {lineage_table_name(other)} AS lineage ON lineage.row_id = row.{own}"
                " ON CONFLICT DO NOTHING"
            )
            self.connection.execute(
                f"UPDATE {self.cdm}.{other} AS row SET {column} = NULL"
                f" FROM pg_temp.removed_{table} AS removed WHERE row.{column} = removed.row_id"
            )

    def _taken(self, table: str) -> pl.DataFrame:
        """All staged rows of an entity table whose lines are loaded, in the order of the input."""
        parts = self.staged.parts(table)
        if not parts:
            return pl.DataFrame(schema=dict.fromkeys(("surrogate_id", "row_key"), pl.Int64))
        return pl.concat([self._loaded(pl.read_parquet(part)) for part in parts])

    def _loaded(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.not_loaded.is_empty():
            return frame
        return frame.join(self.not_loaded, on=_LINE, how="anti", maintain_order="left")

    def _entities(self, table: str) -> None:
        rows = self._taken(table)
        own_id = primary_key(table)
        assert own_id is not None, "entity tables have ids"
        key = "row_key" if table == "location" else "surrogate_id"
        mine, new = self.ids.assign(table, rows[key], self._referred_to(table))
        if rows.is_empty():
            return
        links = [column for column in rows.columns if column in LINKS and column != own_id]
        self._note_pending(rows, links, table)
        rows = self.ids.linked(rows, links)
        rows = rows.join(mine.rename({"surrogate_id": key, "row_id": "own_row_id"}), on=key, maintain_order="left")
        distinct = rows.unique("own_row_id", keep="first", maintain_order=True)
        distinct = distinct.with_columns(pl.col("own_row_id").alias(own_id))
        columns = list(polars_schema(table))
        is_new = pl.col(key).is_in(new.implode())
        self.report.rows_inserted[table] += copy_frame(
            self.connection, f"{self.cdm}.{table}", distinct.filter(is_new).select(columns)
        )
        self._update(table, own_id, distinct.filter(~is_new).select(columns))
        self._lineage(table, rows.select("surrogate_id", "row_key", pl.col("own_row_id").alias("row_id")))

    def _update(self, table: str, own_id: str, rows: pl.DataFrame) -> None:
        """Rows that stay under their id: only those that differ are written."""
        if rows.is_empty():
            return
        temporary = f"updated_{table}"
        self.connection.execute(
            f"CREATE TEMP TABLE {temporary} ON COMMIT DROP AS SELECT * FROM {self.cdm}.{table} WITH NO DATA"
        )
        copy_frame(self.connection, f"pg_temp.{temporary}", rows)
        columns = [name for name in rows.columns if name != own_id]
        listed = ", ".join(columns)
        updated = self.connection.execute(
            f"UPDATE {self.cdm}.{table} AS row SET ({listed}) = ROW({', '.join(f'new.{name}' for name in columns)})"
            f" FROM pg_temp.{temporary} AS new WHERE row.{own_id} = new.{own_id}"
            f" AND ROW({', '.join(f'row.{name}' for name in columns)})"
            f" IS DISTINCT FROM ROW({', '.join(f'new.{name}' for name in columns)})"
        )
        self.report.rows_deleted[table] += updated.rowcount
        self.report.rows_inserted[table] += updated.rowcount

    def _referred_to(self, table: str) -> list[pl.Series]:
        """Distinct surrogate ids by which staged rows refer to an entity table."""
        return [
            self.staged.scan(other)
            .select(pl.col(column).alias("surrogate_id"))
            .drop_nulls()
            .unique()
            .collect()["surrogate_id"]
            for other in self.staged.kinds()
            if other in LINEAGE_TABLES and other != table
            for column, target in LINKS.items()
            if target == table and column in polars_schema(other)
        ]

    def _events(self, table: str) -> None:
        own_id = primary_key(table)
        links = [column for column in polars_schema(table) if column in LINKS]
        old = self.old_rows.get(table)
        for part in self.staged.frames(table):
            rows = self._loaded(part)
            if rows.is_empty():
                continue
            self._note_pending(rows, [column for column in links if column != "person_id"], table)
            rows = self._with_row_ids(self.ids.linked(rows, links), table, old)
            if own_id:
                rows = rows.with_columns(pl.col("row_id").alias(own_id))
            self.report.rows_inserted[table] += copy_frame(
                self.connection, f"{self.cdm}.{table}", rows.select(list(polars_schema(table)))
            )
            self._lineage(table, rows.select("surrogate_id", "row_key", "row_id"))

    def _with_row_ids(self, rows: pl.DataFrame, table: str, old: pl.DataFrame | None) -> pl.DataFrame:
        """Adds row_id: the former id of a row of the same meaning, else a new one."""
        if primary_key(table) is None:
            return rows.with_columns(pl.col("person_id").alias("row_id"))
        if old is None or old.is_empty():
            first = reserve(self.connection, self.cdm, table, rows.height)
            return rows.with_columns(pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias("row_id"))
        rows = rows.join(old, on=["surrogate_id", "row_key"], how="left", maintain_order="left")
        new = rows["row_id"].null_count()
        if not new:
            return rows
        first = reserve(self.connection, self.cdm, table, new)
        missing = pl.col("row_id").is_null()
        return rows.with_columns(
            pl.when(missing).then(first + missing.cum_sum().cast(pl.Int64) - 1).otherwise("row_id").alias("row_id")
        )

    def _lineage(self, table: str, rows: pl.DataFrame) -> None:
        frame = rows.with_columns(pl.lit(self.export.export_id, dtype=pl.Int64).alias("export_id"))
        copy_frame(self.connection, lineage_table_name(table), frame)

    def _note_pending(self, rows: pl.DataFrame, links: list[str], table: str) -> None:
        """References to rows that do not exist yet: linked when they arrive."""
        for column in links:
            if LINKS[column] in {"person", "location"} or LINKS[column] == table:
                continue
            missing = rows.select("surrogate_id", pl.col(column).alias("to_surrogate_id")).drop_nulls()
            known = self.ids.existing[LINKS[column]].rename({"surrogate_id": "to_surrogate_id"})
            missing = missing.join(known, on="to_surrogate_id", how="anti")
            if not missing.is_empty():
                self.pending.append(
                    missing.select(
                        pl.col("surrogate_id").alias("from_surrogate_id"),
                        pl.lit(column).alias("role"),
                        "to_surrogate_id",
                        pl.lit("pending").alias("state"),
                    )
                )

    def _remove_unused_locations(self) -> None:
        row = self.connection.execute("SELECT to_regclass('pg_temp.left_locations') IS NOT NULL").fetchone()
        if not row or not row[0]:
            return
        deleted = self.connection.execute(
            f"DELETE FROM {self.cdm}.location AS row USING (SELECT DISTINCT row_id FROM pg_temp.left_locations) AS gone"
            f" WHERE row.location_id = gone.row_id"
            f" AND NOT EXISTS (SELECT FROM lineage_location AS l WHERE l.row_id = row.location_id)"
            f" AND NOT EXISTS (SELECT FROM {self.cdm}.person AS p WHERE p.location_id = row.location_id)"
            f" AND NOT EXISTS (SELECT FROM {self.cdm}.care_site AS c WHERE c.location_id = row.location_id)"
        )
        self.report.rows_deleted["location"] += deleted.rowcount

    # --- links, facts, state ----------------------------------------------------------------------------------------

    def _relink(self) -> None:
        """Fill links that waited for a row that is there now."""
        waiting = self.connection.execute(
            "SELECT DISTINCT role FROM reference WHERE state = 'pending' AND to_surrogate_id IN"
            " (SELECT surrogate_id FROM pg_temp.changed)"
        ).fetchall()
        for (role,) in waiting:
            if role not in LINKS:
                continue
            target = LINKS[role]
            for table in LINEAGE_TABLES:
                if role in polars_schema(table) and table != target:
                    own = primary_key(table) or "person_id"
                    self.connection.execute(
                        f"UPDATE {self.cdm}.{table} AS row SET {role} = map.row_id"
                        f" FROM reference JOIN {lineage_table_name(table)} AS lineage"
                        " ON lineage.surrogate_id = reference.from_surrogate_id"
                        " JOIN id_map AS map ON map.surrogate_id = reference.to_surrogate_id"
                        f" JOIN {self.cdm}.{target} AS target ON target.{primary_key(target)} = map.row_id"
                        f" WHERE reference.state = 'pending' AND reference.role = %s AND map.cdm_table = %s"
                        f" AND row.{own} = lineage.row_id",
                        (role, target),
                    )
            self.connection.execute(
                "DELETE FROM reference USING id_map AS map WHERE reference.state = 'pending' AND role = %s"
                " AND map.surrogate_id = to_surrogate_id AND map.cdm_table = %s"
                f" AND EXISTS (SELECT FROM {self.cdm}.{target} AS row WHERE row.{primary_key(target)} = map.row_id)",
                (role, target),
            )

    def _references(self) -> None:
        self.connection.execute(
            "DELETE FROM reference USING pg_temp.former AS former WHERE from_surrogate_id = former.surrogate_id"
        )
        self.connection.execute(
            "DELETE FROM reference_value USING pg_temp.former AS former WHERE owner_surrogate_id = former.surrogate_id"
        )
        references = [*self.staged.frames(staging.REFERENCE), *self.pending]
        if references:
            every = pl.concat(references).unique()
            every = every.join(self.dropped, left_on="from_surrogate_id", right_on="surrogate_id", how="anti")
            temporary_table(self.connection, "new_reference", every)
            self.connection.execute(
                "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
                " SELECT from_surrogate_id, role, to_surrogate_id, min(state) FROM pg_temp.new_reference"
                " GROUP BY from_surrogate_id, role, to_surrogate_id ON CONFLICT DO NOTHING"
            )
        for part in self.staged.frames(staging.REFERENCE_VALUE):
            facts = part
            if not self.not_loaded.is_empty():
                lines = self.not_loaded.rename({"surrogate_id": "owner_surrogate_id"})
                facts = part.join(lines, on=["owner_surrogate_id", "file_number", "line"], how="anti")
            facts = facts.drop("file_number", "line").unique(
                ["surrogate_id", "name", "owner_surrogate_id"], keep="last", maintain_order=True
            )
            copy_frame(self.connection, "reference_value", facts)

    def _state(self) -> None:
        """What is known of each changed resource from now on. Rejected lines leave the former state as it is."""
        kinds = self._site_resource_types()
        empty = self.connection.execute("SELECT NOT EXISTS (SELECT FROM resource_state)").fetchone()
        target = "resource_state"
        if not empty or not empty[0]:
            self.connection.execute(
                "CREATE TEMP TABLE new_state (LIKE resource_state INCLUDING DEFAULTS) ON COMMIT DROP"
            )
            target = "pg_temp.new_state"
        for part in self.staged.frames(staging.OUTCOME):
            decided = part.filter((pl.col("outcome") != "rejected") & pl.col("surrogate_id").is_not_null())
            copy_frame(self.connection, target, self._state_rows(self._loaded(decided), kinds))
        if target != "resource_state":
            self._merge_state()

    def _state_rows(self, lines: pl.DataFrame, kinds: pl.DataFrame) -> pl.DataFrame:
        return (
            lines.join(kinds, on="resource_type", how="left", maintain_order="left")
            .select(
                "surrogate_id",
                "site_resource_type_id",
                "resource_id",
                "raw_hash_high",
                "raw_hash_low",
                "outcome",
                "reason",
                "fingerprint",
                pl.lit(self.export.export_id).alias("export_id"),
                "file_number",
                "line",
                "byte_offset",
                "byte_length",
                pl.lit(self.export.transaction_time.isoformat()).alias("as_of"),
            )
            .sort("surrogate_id")
        )  # neighbours in the primary key's index

    def _merge_state(self) -> None:
        collision = self.connection.execute(
            "SELECT count(*) FROM pg_temp.new_state AS new JOIN resource_state AS old USING (surrogate_id)"
            " WHERE (old.site_resource_type_id, old.resource_id) <> (new.site_resource_type_id, new.resource_id)"
        ).fetchone()
        if collision and collision[0]:
            raise PermanentError(
                f"{collision[0]} resources have a surrogate id that belongs to another resource.",
                "Set EPIC_OMOP_SURROGATE_SALT to a new value and load the site into an empty warehouse.",
            )
        columns = [
            row[0]
            for row in self.connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'resource_state'::regclass AND attnum > 0"
                " AND NOT attisdropped ORDER BY attnum"
            ).fetchall()
        ]
        others = [name for name in columns if name != "surrogate_id"]
        self.connection.execute(
            f"INSERT INTO resource_state ({', '.join(columns)}) SELECT {', '.join(columns)} FROM pg_temp.new_state"
            f" ON CONFLICT (surrogate_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in others)}"
        )

    def _site_resource_types(self) -> pl.DataFrame:
        """Columns resource_type, site_resource_type_id, fingerprint of every type in the export."""
        types = self.staged.scan(staging.OUTCOME).select("resource_type").unique().collect()["resource_type"].to_list()
        for name in sorted(types):
            self.connection.execute(
                "INSERT INTO site_resource_type (site, resource_type) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (self.export.site, name),
            )
        rows = self.connection.execute(
            "SELECT resource_type, site_resource_type_id FROM site_resource_type WHERE site = %s", (self.export.site,)
        ).fetchall()
        return pl.DataFrame(
            [(name, number, self.fingerprints.get(name, self.fingerprints[""])) for name, number in rows],
            schema={"resource_type": pl.String, "site_resource_type_id": pl.Int64, "fingerprint": pl.Int64},
            orient="row",
        )

    # --- failures, accounts -----------------------------------------------------------------------------------------

    def _dead_letters(self) -> None:
        rejections = self.staged.scan(staging.REJECTION).collect()
        letters = pl.concat([rejections, self._orphan_rejections()])
        dead_letters.record(self.connection, self.export, letters, self.orphans, self.now)
        dead_letters.close(self.connection, self.export, self.staged, self.not_loaded, self.now)

    def _orphan_rejections(self) -> pl.DataFrame:
        lines = self.staged.scan(staging.OUTCOME).collect() if not self.orphans.is_empty() else None
        if lines is None:
            return pl.DataFrame(schema=staging.REJECTION_SCHEMA)
        return lines.join(self.orphans, on=_LINE, how="semi").select(
            pl.lit(_ORPHAN[name], dtype=pl.String).alias(name) if name in _ORPHAN else pl.col(name)
            for name in staging.REJECTION_SCHEMA
        )

    def _issues(self) -> None:
        self.connection.execute(
            "DELETE FROM row_issue USING pg_temp.former AS former WHERE row_issue.surrogate_id = former.surrogate_id"
        )
        export_id = pl.lit(self.export.export_id, dtype=pl.Int64).alias("export_id")
        for part in self.staged.frames(staging.ISSUE):
            frame = part.join(self.dropped, on="surrogate_id", how="anti").unique().with_columns(export_id)
            copy_frame(self.connection, "row_issue", frame)
        codes = self.staged.scan(staging.MAPPING).collect()
        if codes.is_empty():
            return
        unmapped = codes.filter(~pl.col("mapped")).group_by("resource_type", "element", "system", "code")
        copy_frame(self.connection, "unmapped_code", unmapped.agg(pl.col("count").sum()).with_columns(export_id))
        rates = codes.group_by("resource_type").agg(
            pl.col("count").filter("mapped").sum().alias("mapped"), pl.col("count").sum().alias("total")
        )
        self.report.mapping_rates = {
            name: (mapped, total) for name, mapped, total in rates.sort("resource_type").iter_rows()
        }

    def _forget_accounts(self) -> None:
        """An export that is published again (a backfill) is counted again, not twice."""
        for table in ("exclusion_count", "unmapped_code"):  # issues belong to resources, not to the export: `_issues`
            self.connection.execute(f"DELETE FROM {table} WHERE export_id = %s", (self.export.export_id,))

    def _account(self, files: Sequence[FileLines]) -> None:
        """lines = loaded + unchanged + superseded + excluded + rejected, for every file, or nothing is published."""
        outcomes = self.staged.scan(staging.OUTCOME).select(*_LINE, "resource_type", "outcome", "reason").collect()
        final = outcomes.join(
            self.superseded.with_columns(pl.lit("superseded").alias("final")), on=_LINE, how="left", nulls_equal=True
        ).join(self.orphans.select(_LINE).with_columns(pl.lit("rejected").alias("orphaned")), on=_LINE, how="left")
        final = final.with_columns(pl.coalesce("final", "orphaned", "outcome").alias("outcome"))
        counts: dict[int, Counter[str]] = {}
        for number, outcome, count in final.group_by("file_number", "outcome").len().iter_rows():
            counts.setdefault(number, Counter())[outcome] = count
        for file in files:
            count = counts.get(file.file_number, Counter())
            count["unchanged"] = file.unchanged
            if sum(count.values()) != file.lines:
                raise AccountingError(
                    f"File {file.file_number} of export {self.export.export_id} has {file.lines} lines"
                    f" but {sum(count.values())} outcomes ({dict(count)}).",
                    "Nothing was published. This is a defect of epic-omop: please report it with these numbers.",
                )
            self.report.outcomes.update(count)
            updated = self.connection.execute(
                "UPDATE export_file SET loaded = %s, unchanged = %s, superseded = %s, excluded = %s, rejected = %s"
                " WHERE export_id = %s AND file_number = %s AND lines = %s",
                (
                    *(count[name] for name in ("loaded", "unchanged", "superseded", "excluded", "rejected")),
                    self.export.export_id,
                    file.file_number,
                    file.lines,
                ),
            )
            if updated.rowcount != 1:
                raise AccountingError(
                    f"File {file.file_number} of export {self.export.export_id} was landed with another number of"
                    f" lines than the {file.lines} that were transformed.",
                    "Nothing was published. Run `epic-omop verify` and land the export again.",
                )
        excluded = (
            final.filter(pl.col("outcome") == "excluded")
            .group_by("file_number", "resource_type", "reason")
            .agg(pl.len().alias("count"))
            .with_columns(pl.lit(self.export.export_id).alias("export_id"))
        )
        copy_frame(self.connection, "exclusion_count", excluded)

    def _find_dependents(self) -> None:
        """Resources that used a fact of a changed resource and did not come in this export: to be transformed again.

        Their references are pending until that is done: a process that ends before leaves them to the next run. One
        that waits for a resource that has not come stays pending, and out of this.
        """
        self.connection.execute(
            "UPDATE reference SET state = 'pending' FROM pg_temp.changed AS target"
            " WHERE target.surrogate_id = reference.to_surrogate_id AND reference.role = ANY(%s)"
            " AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = reference.from_surrogate_id)",
            (list(FACT_ROLES),),
        )
        rows = self.connection.execute(
            "SELECT DISTINCT state.export_id, state.file_number, state.byte_offset, state.byte_length"
            " FROM reference JOIN resource_state AS state ON state.surrogate_id = reference.from_surrogate_id"
            " JOIN site_resource_type AS kind USING (site_resource_type_id)"
            " WHERE reference.state = 'pending' AND reference.role = ANY(%s) AND state.outcome = 'loaded'"
            " AND kind.site = %s AND (EXISTS (SELECT FROM pg_temp.changed WHERE surrogate_id = reference.to_surrogate_id)"
            " OR EXISTS (SELECT FROM reference_value AS fact WHERE fact.surrogate_id = reference.to_surrogate_id))"
            " AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = reference.from_surrogate_id)",
            (list(FACT_ROLES), self.export.site),
        ).fetchall()
        self.report.dependents = [LandedLine(*row) for row in rows]


def _lineage_indices(etl: str) -> list[Index]:
    tables = build_metadata(etl).tables
    return [index for name in LINEAGE_TABLES for index in tables[f"{etl}.{lineage_table_name(name)}"].indexes]


def _links_to(table: str) -> list[tuple[str, str]]:
    """(column, table) of every link to an entity table, NULL allowed."""
    return [
        (column, other)
        for column, target in LINKS.items()
        if target == table
        for other in LINEAGE_TABLES
        if other != table and column in polars_schema(other) and column not in cdm_schema.required_columns(other)
    ]


def _record(
    runtime: Runtime,
    connection: psycopg.Connection,
    export: LandedExport,
    report: PublicationReport,
    fingerprints: Mapping[str, int],
) -> None:
    """Run metadata (f2o-040, 102), the job's state, and cdm_source where rows changed."""
    now = runtime.clock.now()
    combined = format(sum(fingerprints.values()) & (2**64 - 1), "016x")
    connection.execute(
        "INSERT INTO publication (export_id, published_at, vocabulary_release, fingerprint, cdm_version, ig_version,"
        " software_version, rows_inserted, rows_deleted, mapping_rates, transform_seconds, publish_seconds)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (export_id) DO UPDATE SET"
        " (published_at, vocabulary_release, fingerprint, software_version, rows_inserted, rows_deleted, mapping_rates,"
        " transform_seconds, publish_seconds) = ROW(excluded.published_at, excluded.vocabulary_release,"
        " excluded.fingerprint, excluded.software_version, excluded.rows_inserted, excluded.rows_deleted,"
        " excluded.mapping_rates, excluded.transform_seconds, excluded.publish_seconds)",
        (
            export.export_id,
            now,
            report.vocabulary_release,
            combined,
            CDM_VERSION,
            IG_VERSION,
            version("epic-omop"),
            Jsonb(dict(report.rows_inserted)),
            Jsonb(dict(report.rows_deleted)),
            Jsonb(report.mapping_rates),
            report.transform_seconds,
            report.publish_seconds,
        ),
    )
    updated = connection.execute(
        "UPDATE export_job SET state = 'published', published_at = %s WHERE export_id = %s", (now, export.export_id)
    )
    if updated.rowcount != 1:
        raise AccountingError(f"Export {export.export_id} has no row in export_job.", "Nothing was published.")
    if report.changed_rows:
        _cdm_source(connection, runtime.settings.cdm_schema, export.transaction_time.date(), now.date(), report)


def _cdm_source(
    connection: psycopg.Connection, schema: str, release: date, today: date, report: PublicationReport
) -> None:
    """One row for the instance; only a publication that changed rows changes it."""
    values: dict[str, Any] = {
        "cdm_source_name": "epic-omop",
        "cdm_source_abbreviation": "epic-omop",
        "cdm_holder": "epic-omop",
        "source_description": "Epic FHIR R4 bulk exports",
        "cdm_etl_reference": f"epic-omop {version('epic-omop')}, HL7 FHIR to OMOP {IG_VERSION}",
        "source_release_date": release,
        "cdm_release_date": today,
        "cdm_version": CDM_VERSION,
        "cdm_version_concept_id": 756265,
        "vocabulary_version": report.vocabulary_release[:20],
    }
    connection.execute(f"DELETE FROM {schema}.cdm_source")
    connection.execute(
        f"INSERT INTO {schema}.cdm_source ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})",
        tuple(values.values()),
    )
