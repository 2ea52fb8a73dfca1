"""Derived tables: what follows from published rows and the as-of date alone, recomputed by set-based SQL.

Each `.sql` file beside this module is one statement with its rule. Here is only their order, their parameters, and how
a result becomes rows: what stays the same keeps its id, what differs is updated, the rest is deleted or inserted, so
that a second run changes nothing. The rules are told in docs/derived-tables.md. Nothing here knows FHIR or files.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg import sql

from omop_schema.cdm import polars_schema, primary_key, sequence_name
from omop_schema.etl import LINEAGE_COLUMNS, LINEAGE_TABLES, lineage_table_name
from pipeline.core.errors import WarehouseError
from pipeline.warehouse.server_failures import server_failure

__all__ = [
    "KEYS",
    "DerivedOptions",
    "DerivedReport",
    "Fact",
    "TableChange",
    "note_affected_persons",
    "refresh_derived",
    "rules_are_old",
]

_FOLDER = Path(__file__).resolve().parent

#: Raised by one whenever a statement gives other rows for the same input, so that every person is computed again.
_RULES_VERSION = 3

#: Type concept of derived rows: Standard algorithm from EHR.
_TYPE_CONCEPT = 32882

#: Table → the columns that tell its rows apart. The others are updated in place, under the same id.
KEYS = {
    "observation_period": ("person_id", "observation_period_start_date"),
    "condition_era": ("person_id", "condition_concept_id", "condition_era_start_date"),
    "drug_era": ("person_id", "drug_concept_id", "drug_era_start_date"),
    "dose_era": ("person_id", "drug_concept_id", "unit_concept_id", "dose_value", "dose_era_start_date"),
}

Fact = str | int | float | date | datetime


@dataclass(frozen=True)
class DerivedOptions:
    """What the rules leave open. Days are whole days; concept ids are those of the loaded vocabulary."""

    #: The site that is published; None: all sites, with one as-of and go-live date.
    site: str | None = None
    #: Periods do not begin before the site went live (setting, optional).
    go_live: date | None = None
    #: Further facts of the site for `metadata`: name → value (text of at most 250 characters, number, date, instant).
    facts: Mapping[str, Fact] = field(default_factory=dict)
    #: IANA zone of every `*_datetime` column.
    instance_zone: str = "UTC"
    #: A gap of this many days or more between events starts a new observation period.
    period_gap_days: int = 548
    #: A period goes on for this many days after the last event, and after death.
    period_tail_days: int = 60
    #: Problem list and what patients report: their onsets tell of times outside the record.
    period_excluded_condition_types: tuple[int, ...] = (32840, 32865)
    #: History of event, family history, race and ethnicity of persons with several.
    period_excluded_observations: tuple[int, ...] = (1340204, 4167217, 4013886)
    #: Eras go on over gaps of at most this many days.
    persistence_days: int = 30
    #: gap_days of drug_era as if patients kept what was left over when they were given more.
    stockpiling: bool = False
    #: Visits in which a patient stays: those that `open_stay` facts may extend.
    inpatient_visits: tuple[int, ...] = (9201, 262, 42898160, 8717)
    #: Types of exposures that last from start to end without days_supply (EHR administration record).
    administration_types: tuple[int, ...] = (32818,)


@dataclass(frozen=True)
class TableChange:
    """Rows of one table that a refresh wrote."""

    deleted: int = 0
    updated: int = 0
    inserted: int = 0

    @property
    def rows(self) -> int:
        return self.deleted + self.updated + self.inserted


@dataclass
class DerivedReport:
    """What a refresh did. `changes` names only tables with changes; updates of events are among them."""

    #: the site's as-of date by which was computed: never earlier than that of a former publication
    as_of: date
    #: persons in the site (or the instance), and those of them who have no observation period
    persons: int = 0
    persons_without_period: int = 0
    #: persons whose eras and visits, and persons whose observation periods were computed
    affected_persons: int = 0
    period_persons: int = 0
    changes: dict[str, TableChange] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def changed_rows(self) -> int:
        return sum(change.rows for change in self.changes.values())


def note_affected_persons(
    connection: psycopg.Connection,
    *,
    cdm: str,
    etl: str,
    resources: str = "changed",
    persons: str = "affected_person",
    tables: Collection[str] = LINEAGE_TABLES,
) -> None:
    """Add the persons whose rows come from the given resources to the temporary table `persons` (made when missing).

    `resources` is a temporary table with surrogate_id. To be called before their former rows are removed and again
    after the new ones are there: a row may have gone, come, or changed its person.
    """
    connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS {persons} (person_id bigint PRIMARY KEY) ON COMMIT DROP")
    for table in tables:
        if "person_id" in polars_schema(table):
            connection.execute(
                f"INSERT INTO pg_temp.{persons} SELECT DISTINCT row.person_id"
                f" FROM pg_temp.{resources} AS resource JOIN {etl}.{lineage_table_name(table)} AS lineage"
                " USING (surrogate_id)"
                f" JOIN {cdm}.{table} AS row ON row.{primary_key(table) or 'person_id'} = lineage.row_id"
                " ON CONFLICT DO NOTHING"
            )


def refresh_derived(
    connection: psycopg.Connection,
    *,
    cdm: str,
    vocab: str,
    etl: str,
    as_of: date,
    persons: str | None = None,
    options: DerivedOptions | None = None,
) -> DerivedReport:
    """Bring derived rows and as-of values in line with the published rows, in the caller's transaction.

    `as_of` is the date of the export's transactionTime in the site's zone. `persons` names a temporary table with the
    person_id of every person with changed rows, also of persons that are gone; None computes everybody. Whose
    observation period only moves with the as-of date is found here. Changed rules, a changed go-live date or a new
    vocabulary compute everybody of the site. Raises WarehouseError when the server refuses a statement.
    """
    started = time.perf_counter()
    try:
        refresh = _Refresh(connection, {"cdm": cdm, "vocab": vocab, "etl": etl}, options or DerivedOptions(), as_of)
        refresh.run(persons)
    except psycopg.Error as error:
        failure = server_failure(error)
        if failure is not None:
            raise failure from error
        reason = (error.diag.message_primary or type(error).__name__).strip()
        raise WarehouseError(
            f"The derived tables cannot be computed: {reason}",
            "Nothing was published. Check the server's log, then run the export again.",
        ) from error
    refresh.report.seconds = time.perf_counter() - started
    return refresh.report


@cache
def _statement(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text(encoding="utf-8")


class _Refresh:
    def __init__(
        self, connection: psycopg.Connection, schemas: Mapping[str, str], options: DerivedOptions, as_of: date
    ) -> None:
        self.connection = connection
        self.cdm, self.vocab, self.etl = schemas["cdm"], schemas["vocab"], schemas["etl"]
        self.names = {**schemas, "dose_exposure": _statement("dose_exposure").format(**schemas)}
        self.options = options
        # A cursor that binds on the client: CREATE TABLE AS takes no parameters from the server's side.
        self.cursor = psycopg.ClientCursor(connection)
        self.report = DerivedReport(as_of)
        self.type_concept = self._type_concept()
        self.parameters: dict[str, Any] = {
            **{name: _bindable(getattr(options, name)) for name in DerivedOptions.__dataclass_fields__},
            "as_of": as_of,
            "period_type": self.type_concept,
        }

    def run(self, persons: str | None) -> None:
        everyone = self._scope(persons)
        self._as_of_values()
        self._update("visit_occurrence", "preceding_visit_occurrence")
        self._update("visit_detail", "preceding_visit_detail")
        self._update("observation", "race_dates")
        self._update("person", "birth_dates")
        self._discharge_deaths()
        self._period_scope(everyone=everyone)
        self._derive("observation_period", "derived_period_person")
        for table in ("condition_era", "drug_era", "dose_era"):
            self._derive(table, "derived_affected")
        self._count_persons()
        # Like cdm_source, the facts of a site stand still as long as its rows do: an export without changes changes no
        # table. An as-of date that is remembered too early only computes more periods than need be.
        if self.options.site is not None and (everyone or self.report.affected_persons or self.report.changes):
            self._metadata(self.options.site)

    # --- who ----------------------------------------------------------------------------------------------------------

    def _scope(self, persons: str | None) -> bool:
        """Temporary tables derived_site, derived_named, derived_person, derived_affected. True: everybody's rows."""
        named = sql.SQL("SELECT DISTINCT person_id FROM {}").format(sql.Identifier("pg_temp", persons or ""))
        self._temporary("derived_named", named if persons else sql.SQL("SELECT NULL::bigint AS person_id WHERE false"))
        self._temporary("derived_site", self._sql("site"))
        self._temporary("derived_person", self._sql("person"))
        if self.options.site is not None:
            (self.report.as_of,) = self._row("SELECT as_of FROM pg_temp.derived_site WHERE published")
        everyone = persons is None or self._remembered("derived_rules", "value_as_string") != self._rules()
        query = "SELECT person_id FROM pg_temp.derived_named"
        if everyone:
            query += " UNION SELECT person_id FROM pg_temp.derived_person"
        self._temporary("derived_affected", sql.SQL(query))
        (self.report.affected_persons,) = self._row("SELECT count(*) FROM pg_temp.derived_affected")
        return everyone

    def _period_scope(self, *, everyone: bool) -> None:
        # Where everybody's events are read, without a join with a temporary table, the server reads them in parallel.
        self.names["of_period_persons"] = "" if everyone else " JOIN pg_temp.derived_period_person USING (person_id)"
        previous = self._remembered("as_of_date", "metadata_date")
        if everyone or previous is None or previous >= self.report.as_of:
            query = sql.SQL(
                "SELECT person_id FROM pg_temp.derived_affected UNION SELECT person_id FROM pg_temp.derived_as_of_person"
            )
        else:
            self.parameters["previous"] = previous
            query = self._sql("period_person")
        self._temporary("derived_period_person", query)
        (self.report.period_persons,) = self._row("SELECT count(*) FROM pg_temp.derived_period_person")

    def _rules(self) -> str:
        return _rules_text(self.options, self._vocabulary_release())

    def _remembered(self, name: str, column: str) -> Any:
        """A fact of the site as the last publication left it; None where there is none."""
        if self.options.site is None:
            return None
        found = self.connection.execute(
            f"SELECT {column} FROM {self.cdm}.metadata WHERE name = %s", (f"site/{self.options.site}/{name}",)
        ).fetchone()
        return found[0] if found else None

    # --- values of events ---------------------------------------------------------------------------------------------

    def _as_of_values(self) -> None:
        """Open stays and coverages: their end moves with the as-of date, whether or not a line changed."""
        self._temporary("derived_as_of_person", sql.SQL("SELECT NULL::bigint AS person_id WHERE false"))
        for table, statement in (
            ("visit_occurrence", "open_stay"),
            ("visit_detail", "open_stay_detail"),
            ("payer_plan_period", "open_coverage"),
        ):
            updated = sql.SQL("WITH updated AS ({}) INSERT INTO pg_temp.derived_as_of_person SELECT * FROM updated")
            rows = self.cursor.execute(updated.format(self._sql(statement)), self.parameters).rowcount
            self._changed(table, TableChange(updated=rows))

    def _update(self, table: str, statement: str) -> None:
        self._changed(table, TableChange(updated=self.cursor.execute(self._sql(statement), self.parameters).rowcount))

    def _discharge_deaths(self) -> None:
        """Deaths that only a discharge tells of. Their lineage is the Encounter's, so that they go when it changes."""
        self._temporary("fresh_death", self._sql("discharge_death"))
        former = (
            f" USING {self.etl}.reference_value AS fact, pg_temp.derived_affected AS affected"
            " WHERE fact.name = 'discharge_death' AND fact.owner_surrogate_id = told.surrogate_id"
            " AND affected.person_id = told.row_id AND NOT EXISTS (SELECT FROM pg_temp.fresh_death AS fresh"
            " WHERE fresh.person_id = told.row_id AND fresh.owner_surrogate_id = told.surrogate_id)"
        )
        deleted = self.connection.execute(
            f"WITH gone AS (DELETE FROM {self.etl}.lineage_death AS told{former}"
            " RETURNING told.row_id, split_part(fact.value, '|', 3)::integer AS type_concept_id)"
            f" DELETE FROM {self.cdm}.death AS row USING gone"
            " WHERE row.person_id = gone.row_id AND row.death_type_concept_id = gone.type_concept_id"
        ).rowcount
        missing = (
            f"FROM pg_temp.fresh_death AS fresh WHERE NOT EXISTS (SELECT FROM {self.etl}.lineage_death AS told"
            " WHERE told.row_id = fresh.person_id AND told.surrogate_id = fresh.owner_surrogate_id)"
        )
        columns = "person_id, death_date, death_datetime, death_type_concept_id"
        inserted = self.connection.execute(
            f"INSERT INTO {self.cdm}.death ({columns}) SELECT {columns} {missing}"
        ).rowcount
        self.connection.execute(
            f"INSERT INTO {self.etl}.lineage_death ({', '.join(LINEAGE_COLUMNS)})"
            f" SELECT person_id, owner_surrogate_id, 0, export_id {missing}"
        )
        self._changed("death", TableChange(deleted, 0, inserted))

    # --- derived rows -------------------------------------------------------------------------------------------------

    def _derive(self, table: str, scope: str) -> None:
        self._temporary(f"fresh_{table}", self._sql(table))
        in_scope = f"EXISTS (SELECT FROM pg_temp.{scope} AS scope WHERE scope.person_id = row.person_id)"
        self._changed(table, self._merge(table, KEYS[table], in_scope))

    def _merge(self, table: str, key: tuple[str, ...], in_scope: str) -> TableChange:
        """Make the rows in scope equal to those of the temporary table `fresh_<table>`; equal ones are not touched."""
        target, fresh, own = f"{self.cdm}.{table}", f"pg_temp.fresh_{table}", primary_key(table)
        columns = [
            column.name for column in self.connection.execute(f"SELECT * FROM {fresh} LIMIT 0").description or ()
        ]
        values = [name for name in columns if name not in key]
        same_key = " AND ".join(f"fresh.{name} = row.{name}" for name in key)
        deleted = self.connection.execute(
            f"DELETE FROM {target} AS row WHERE {in_scope}"
            f" AND NOT EXISTS (SELECT FROM {fresh} AS fresh WHERE {same_key})"
        ).rowcount
        updated = self.connection.execute(
            f"UPDATE {target} AS row SET {', '.join(f'{name} = fresh.{name}' for name in values)}"
            f" FROM {fresh} AS fresh WHERE {same_key} AND ({', '.join(f'row.{name}' for name in values)})"
            f" IS DISTINCT FROM ({', '.join(f'fresh.{name}' for name in values)})"
        ).rowcount
        # Sorted before the ids are drawn: the same input gives the same ids in the same order.
        inserted = self.connection.execute(
            f"INSERT INTO {target} ({own}, {', '.join(columns)})"
            f" SELECT nextval('{self.cdm}.{sequence_name(table)}'), missing.* FROM (SELECT {', '.join(columns)}"
            f" FROM {fresh} AS fresh WHERE NOT EXISTS (SELECT FROM {target} AS row WHERE {same_key})"
            f" ORDER BY {', '.join(key)}) AS missing"
        ).rowcount
        return TableChange(deleted, updated, inserted)

    def _count_persons(self) -> None:
        self.report.persons, self.report.persons_without_period = self._row(
            "SELECT count(*), count(*) FILTER (WHERE period.person_id IS NULL) FROM pg_temp.derived_person AS person"
            f" LEFT JOIN (SELECT DISTINCT person_id FROM {self.cdm}.observation_period) AS period USING (person_id)"
            " WHERE person.in_site"
        )

    # --- facts of the site --------------------------------------------------------------------------------------------

    def _metadata(self, site: str) -> None:
        """Rows `site/<site>/<fact>`: cdm_source has one row for the instance, so that each site's facts stand here."""
        facts: dict[str, Fact] = {
            "site_name": site,
            "as_of_date": self.report.as_of,
            "derived_rules": self._rules(),
            "vocabulary_release": self._vocabulary_release(),
            "persons": self.report.persons,
            "persons_without_observation_period": self.report.persons_without_period,
            **self.options.facts,
        }
        if self.options.go_live is not None:
            facts["go_live_date"] = self.options.go_live
        self._temporary(
            "fresh_metadata",
            sql.SQL(
                "SELECT metadata_concept_id, metadata_type_concept_id, name, value_as_string, value_as_number,"
                f" metadata_date, metadata_datetime FROM {self.cdm}.metadata WITH NO DATA"
            ),
        )
        zone = ZoneInfo(self.options.instance_zone)
        self.cursor.executemany(
            "INSERT INTO pg_temp.fresh_metadata VALUES (0, %s, %s, %s, %s, %s, %s)",
            [(self.type_concept, f"site/{site}/{name}", *_typed(value, zone)) for name, value in facts.items()],
        )
        in_scope = sql.SQL("starts_with(row.name, {})").format(f"site/{site}/").as_string(self.connection)
        self._changed("metadata", self._merge("metadata", ("name",), in_scope))

    def _vocabulary_release(self) -> str:
        row = self.connection.execute(f"SELECT release FROM {self.etl}.vocabulary_release WHERE is_current").fetchone()
        return str(row[0]) if row else "none"

    def _type_concept(self) -> int:
        """The type concept if the vocabulary has it as a valid Standard concept, else what it maps to, else 0."""
        row = self.connection.execute(
            f"SELECT concept.standard_concept = 'S' AND concept.invalid_reason IS NULL, min(target.concept_id)"
            f" FROM {self.vocab}.concept AS concept"
            f" LEFT JOIN {self.vocab}.concept_relationship AS link ON link.concept_id_1 = concept.concept_id"
            "  AND link.relationship_id = 'Maps to' AND link.invalid_reason IS NULL"
            f" LEFT JOIN {self.vocab}.concept AS target ON target.concept_id = link.concept_id_2"
            "  AND target.standard_concept = 'S' AND target.invalid_reason IS NULL"
            " WHERE concept.concept_id = %s GROUP BY concept.concept_id",
            (_TYPE_CONCEPT,),
        ).fetchone()
        found = 0 if row is None else _TYPE_CONCEPT if row[0] else row[1] or 0
        if found != _TYPE_CONCEPT:
            self.report.warnings.append(
                f"period_type_concept_id: concept {_TYPE_CONCEPT} is no valid Standard concept of the loaded"
                f" vocabulary; {found} is used instead."
            )
        return found

    # --- statements ---------------------------------------------------------------------------------------------------

    def _sql(self, name: str) -> sql.SQL:
        # Schema names come from settings that check them; everything else is a parameter.
        return sql.SQL(_statement(name).format(**self.names))

    def _temporary(self, name: str, query: sql.Composable) -> None:
        """CREATE TEMP TABLE AS, analysed; replaced where the same transaction made it before."""
        table = sql.Identifier("pg_temp", name)
        self.cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
        create = sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS\n").format(sql.Identifier(name))
        self.cursor.execute(create + query, self.parameters)
        self.cursor.execute(sql.SQL("ANALYZE {}").format(table))

    def _row(self, query: str) -> Any:
        row = self.connection.execute(query).fetchone()
        assert row is not None
        return row

    def _changed(self, table: str, change: TableChange) -> None:
        if change.rows:
            before = self.report.changes.get(table, TableChange())
            self.report.changes[table] = TableChange(
                before.deleted + change.deleted, before.updated + change.updated, before.inserted + change.inserted
            )


def _rules_text(options: DerivedOptions, vocabulary_release: str) -> str:
    """What every person's derived rows depend on besides their own events."""
    return (
        f"version {_RULES_VERSION}; vocabulary {vocabulary_release}; go-live {options.go_live};"
        f" gap {options.period_gap_days}; tail {options.period_tail_days};"
        f" without {_listed(options.period_excluded_condition_types)}"
        f" {_listed(options.period_excluded_observations)}; persistence {options.persistence_days};"
        f" stockpiling {options.stockpiling}; administrations {_listed(options.administration_types)}"
    )[:250]


def rules_are_old(connection: psycopg.Connection, *, cdm: str, etl: str, options: DerivedOptions) -> bool:
    """Whether the derived rows of the options' site were computed by other rules: its next publication computes all."""
    remembered = connection.execute(
        f"SELECT value_as_string FROM {cdm}.metadata WHERE name = %s", (f"site/{options.site}/derived_rules",)
    ).fetchone()
    release = connection.execute(f"SELECT release FROM {etl}.vocabulary_release WHERE is_current").fetchone()
    return remembered is not None and remembered[0] != _rules_text(options, str(release[0]) if release else "none")


def _bindable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else None if isinstance(value, Mapping) else value


def _listed(concept_ids: tuple[int, ...]) -> str:
    return ",".join(map(str, concept_ids))


def _typed(value: Fact, zone: ZoneInfo) -> tuple[str | None, float | None, date | None, datetime | None]:
    """A fact as (value_as_string, value_as_number, metadata_date, metadata_datetime)."""
    if isinstance(value, datetime):
        local = value.astimezone(zone).replace(tzinfo=None)
        return None, None, local.date(), local
    if isinstance(value, date):
        return None, None, value, None
    if isinstance(value, str):
        return value[:250], None, None, None
    return None, value, None, None
