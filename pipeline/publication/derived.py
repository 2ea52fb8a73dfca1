"""Derived tables: what follows from published rows and the as-of date, recomputed by set-based SQL.

Each rule is a script in `sql/` (`derived_…`, `fresh_…`). Here is only their order, their parameters, and how
a result becomes rows: what stays the same keeps its id, what differs is updated, the rest is deleted or inserted, so
that a second run changes nothing. The rules are in docs/derived-tables.md. Nothing here knows FHIR or files.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import psycopg
from psycopg import sql

from omop_schema.etl import LINEAGE_COLUMNS
from pipeline.core.errors import WarehouseError
from pipeline.publication.contact_days import contact_days, contacts_after
from pipeline.publication.specimens import link_specimens
from pipeline.publication.sql import Database, fragment
from pipeline.publication.tables import merge_names
from pipeline.warehouse.copying import copy_frame
from pipeline.warehouse.server_failures import server_failure

__all__ = [
    "KEYS",
    "DerivedOptions",
    "DerivedReport",
    "Fact",
    "TableChange",
    "refresh_derived",
    "rules_are_old",
]

#: Type concept of derived rows: Standard algorithm from EHR.
_TYPE_CONCEPT = 32882

#: Table → the key of its rows. The others are updated in place, under the same id.
KEYS = {
    "observation_period": ("person_id", "observation_period_start_date"),
    "condition_era": ("person_id", "condition_concept_id", "condition_era_start_date"),
    "drug_era": ("person_id", "drug_concept_id", "drug_era_start_date"),
    "dose_era": ("person_id", "drug_concept_id", "unit_concept_id", "dose_value", "dose_era_start_date"),
}

Fact = str | int | float | date | datetime

#: In `metadata`, before the reason why persons were left out.
_LEFT_OUT = "persons_left_out/"


@dataclass(frozen=True)
class DerivedOptions:
    """What the rules leave open. Days are whole days; concept ids are those of the loaded vocabulary."""

    #: The site that is published; None: all sites, with one as-of and go-live date.
    site: str | None = None
    #: Periods do not begin before the site went live (setting, optional).
    go_live: date | None = None
    #: Further facts of the site for `metadata`: name → value (text of at most 250 characters, number, date, instant).
    facts: Mapping[str, Fact] = field(default_factory=dict)
    #: The version of the code (`pipeline.publication.version`): another one than that of the last publication computes all.
    version: str = ""
    #: IANA zone of every `*_datetime` column.
    instance_zone: str = "UTC"
    #: A gap of this many days or more between events starts a new observation period.
    period_gap_days: int = 548
    #: A period lasts for this many days after the last event, and after death.
    period_tail_days: int = 60
    #: A period may begin so many months before the birth: of children whose record holds what was split off the mother's.
    period_months_before_birth: int = 0
    #: A death is doubted where a person was met more than this many days later.
    doubted_after_days: int = 60
    #: Doubted deaths have no row.
    drop_doubted_deaths: bool = False
    #: CDM table → from when on its rows make periods: where a module of the record was in use later than others.
    table_go_live: Mapping[str, date] = field(default_factory=dict)
    #: Problem list, and what patients report: their onsets are at times outside the record.
    period_excluded_condition_types: tuple[int, ...] = (32840, 32865)
    #: History of event, family history, race.
    period_excluded_observations: tuple[int, ...] = (1340204, 4167217, 4013886)
    #: Specimens have a column for their visit (CDM 5.5).
    specimen_visits: bool = False
    #: Eras continue over gaps of at most this many days.
    persistence_days: int = 30
    #: gap_days of drug_era by OHDSI's script, which leaves out the last day of each exposure, instead of by the CDM.
    gap_by_script: bool = False
    #: gap_days of drug_era by that script as if patients kept what was left over when they were given more.
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


def refresh_derived(
    connection: psycopg.Connection,
    *,
    cdm: str,
    vocab: str,
    etl: str,
    as_of: date,
    persons: str | None = None,
    merged: pl.DataFrame | None = None,
    has_changes: bool = True,
    options: DerivedOptions | None = None,
) -> DerivedReport:
    """Bring derived rows and as-of values in line with the published rows, in the caller's transaction.

    `as_of` is the date of the export's transactionTime in the site's zone. `persons` names a temporary table with the
    person_id of every person with changed rows, also of persons that are gone; None computes everybody. `merged` (patient,
    last: Int64, surrogate ids) says which Patients others stand for. `has_changes`: a line came that is new. Whose
    observation period only moves with the as-of date is found here. Changed rules, a changed go-live date or a new
    vocabulary compute everybody of the site. Raises WarehouseError when the server refuses a statement.
    """
    started = time.perf_counter()
    try:
        db = Database(connection, cdm, etl, vocab, client_binding=True)
        refresh = _Refresh(db, options or DerivedOptions(), as_of)
        refresh.run(persons, merged, has_changes=has_changes)
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


class _Refresh:
    def __init__(self, db: Database, options: DerivedOptions, as_of: date) -> None:
        self.db = db
        self.options = options
        self.report = DerivedReport(as_of)
        self.type_concept = self._type_concept()
        self.values: dict[str, Any] = {
            **{name: _bindable(getattr(options, name)) for name in DerivedOptions.__dataclass_fields__},
            "as_of": as_of,
            "period_type": self.type_concept,
        }

    def run(self, persons: str | None, merged: pl.DataFrame | None, *, has_changes: bool) -> None:
        everyone = self._scope(persons)
        self.db.execute("derived_merge")
        if merged is not None:
            copy_frame(self.db.connection, "pg_temp.derived_merge", merged)
        self._as_of_values()
        self._update("visit_occurrence", "preceding_visit_occurrence")
        self._update("visit_detail", "preceding_visit_detail")
        self._update("observation", "race_dates")
        self._update("person", "birth_dates")
        if self.options.specimen_visits:
            self._changed("specimen", TableChange(updated=link_specimens(self.db)))
        if has_changes:
            self._update("care_site", "place_by_visits")
        self._events(self._period_scope(everyone=everyone))
        self._deaths()
        self._derive("observation_period", "derived_period_person")
        for table in ("condition_era", "drug_era", "dose_era"):
            self._derive(table, "derived_affected")
        ((self.report.persons, self.report.persons_without_period),) = self.db.rows("count_derived_persons")
        # Like cdm_source, the facts of a site stand still as long as its rows do: an export without changes changes no
        # table. An as-of date that is remembered too early only computes more periods than need be.
        moved = everyone or self.report.affected_persons or self.report.changes
        if self.options.site is not None and (moved or has_changes):
            left_out = dict(self.db.rows("persons_left_out", {"site": self.options.site}))
            if moved or left_out != self._known_left_out():
                self._metadata(self.options.site, left_out)

    # --- who ----------------------------------------------------------------------------------------------------------

    def _scope(self, persons: str | None) -> bool:
        """Temporary tables derived_site, derived_named, derived_person, derived_affected. True: everybody's rows."""
        if persons:
            self.db.execute("derived_named", persons=persons)
        else:
            self.db.execute("derived_nobody")
        self.db.execute("derived_site", self.values)
        self.db.execute("derived_person", self.values)
        if self.options.site is not None:
            self.report.as_of = self.db.value("derived_as_of_date")
        rules, _ = self._remembered("derived_rules")
        everyone = persons is None or rules != self._rules()
        self.db.execute("derived_affected", {"everyone": everyone})
        self.report.affected_persons = self.db.value("count_affected", persons="derived_affected")
        return everyone

    def _period_scope(self, *, everyone: bool) -> dict[str, str]:
        """Temporary table derived_period_person. Returns how events are limited to these persons."""
        _, previous = self._remembered("as_of_date")
        if everyone or previous is None or previous >= self.report.as_of:
            self.db.execute("derived_all_periods")
        else:
            later = contacts_after(**self._schemas())
            self.db.execute("derived_period_person", {"previous": previous}, contacts_after=later)
        self.report.period_persons = self.db.value("count_affected", persons="derived_period_person")
        # Where everybody's events are read, without a join with a temporary table, the server reads them in parallel.
        if everyone:
            return {"period_persons": "", "of_period_persons": ""}
        joined = " JOIN pg_temp.derived_period_person USING (person_id)"
        return {"period_persons": "derived_period_person", "of_period_persons": joined}

    def _rules(self) -> str:
        return _rules_text(self.options, _release_key(self.db.rows("current_vocabulary")))

    def _remembered(self, name: str) -> tuple[str | None, date | None]:
        """A fact of the site as the last publication left it, as text and as date; None where there is none."""
        if self.options.site is None:
            return None, None
        found = self.db.rows("derived_fact", {"name": f"site/{self.options.site}/{name}"})
        return found[0] if found else (None, None)

    # --- values of events ---------------------------------------------------------------------------------------------

    def _as_of_values(self) -> None:
        """Open stays and coverages: their end moves with the as-of date, whether or not a line changed."""
        self.db.execute("derived_as_of_person")
        self._update("visit_occurrence", "open_stay")
        self._update("visit_detail", "open_stay_detail")
        self._update("payer_plan_period", "open_coverage")

    def _update(self, table: str, script: str) -> None:
        self._changed(table, TableChange(updated=self.db.execute(script, self.values)))

    def _events(self, scope: Mapping[str, str]) -> None:
        """Temporary table derived_event: the days on which the persons in scope were met."""
        days = contact_days(self.options.table_go_live, scope["of_period_persons"], **self._schemas())
        self.db.execute("derived_event", self.values, contact_days=days, **scope)

    def _schemas(self) -> dict[str, str]:
        return {"cdm": self.db.cdm, "etl": self.db.etl}

    def _deaths(self) -> None:
        """Of several deaths one; its lineage is that of the resource that says it, so that it goes when that changes."""
        for script in ("death_candidate", "chosen_death", "fresh_death", "wrong_death"):
            self.db.execute(script, self.values)
        deleted = self.db.execute("remove_wrong_deaths")
        inserted = self.db.execute("insert_fresh_deaths")
        self.db.execute("insert_death_lineage", lineage_columns=", ".join(LINEAGE_COLUMNS))
        self.db.execute("doubted_deaths")
        self._changed("death", TableChange(deleted, 0, inserted))

    # --- derived rows -------------------------------------------------------------------------------------------------

    def _derive(self, table: str, scope: str, **names: str) -> None:
        self.db.execute(f"fresh_{table}", self.values, **names)
        self._merge(table, KEYS[table], fragment("is_in_scope", scope=scope), scope=scope)

    def _merge(self, table: str, key: tuple[str, ...], in_scope: str, scope: str = "") -> None:
        """Make the rows in scope equal to those of the temporary table `fresh_<table>`; equal ones are not touched."""
        columns = [name for (name,) in self.db.rows("columns_of_fresh", {"table": f"fresh_{table}"})]
        names = merge_names(table, columns, key)
        deleted = self.db.execute("merge_removed", in_scope=in_scope, scope=scope, **names)
        updated = self.db.execute("merge_updated", **names)
        inserted = self.db.execute("merge_inserted", **names)
        self._changed(table, TableChange(deleted, updated, inserted))

    # --- facts of the site --------------------------------------------------------------------------------------------

    def _known_left_out(self) -> dict[str, int]:
        """Persons who were left out, by reason, as metadata has it."""
        prefix = f"site/{self.options.site}/{_LEFT_OUT}"
        return {
            name.removeprefix(prefix): int(number)
            for name, number in self.db.rows("facts_of_prefix", {"prefix": prefix})
        }

    def _metadata(self, site: str, left_out: Mapping[str, int]) -> None:
        """Rows `site/<site>/<fact>`: cdm_source has one row for the instance, so that each site's facts stand here."""
        facts: dict[str, Fact] = {
            "site_name": site,
            "datetime_time_zone": self.options.instance_zone,
            "as_of_date": self.report.as_of,
            "derived_rules": self._rules(),
            "vocabulary_release": self._vocabulary_release(),
            "persons": self.report.persons,
            "persons_without_observation_period": self.report.persons_without_period,
            **{f"{_LEFT_OUT}{reason}": number for reason, number in left_out.items()},
            **self.options.facts,
        }
        # What a person of several sites is computed by is remembered of each, where it is not the default.
        usual = DerivedOptions()
        for name in ("period_gap_days", "period_tail_days", "period_months_before_birth", "drop_doubted_deaths"):
            if getattr(self.options, name) != getattr(usual, name):
                facts[name] = int(getattr(self.options, name))
        if self.options.go_live is not None:
            facts["go_live_date"] = self.options.go_live
        self.db.execute("fresh_metadata")
        zone = ZoneInfo(self.options.instance_zone)
        for name, value in facts.items():
            own = {"type_concept": self.type_concept, "name": f"site/{site}/{name}", **_typed(value, zone)}
            self.db.execute("insert_fresh_metadata", own)
        prefix = sql.Literal(f"site/{site}/").as_string(self.db.connection)
        self._merge("metadata", ("name",), fragment("is_fact_of_site", prefix=prefix))

    def _vocabulary_release(self) -> str:
        rows = self.db.rows("current_vocabulary")
        return str(rows[0][0]) if rows else "none"

    def _type_concept(self) -> int:
        """The type concept if the vocabulary has it as a valid Standard concept, else what it maps to, else 0."""
        rows = self.db.rows("type_concept", {"concept": _TYPE_CONCEPT})
        found = 0 if not rows else _TYPE_CONCEPT if rows[0][0] else rows[0][1] or 0
        if found != _TYPE_CONCEPT:
            self.report.warnings.append(
                f"period_type_concept_id: concept {_TYPE_CONCEPT} is not a valid Standard concept of the loaded"
                f" vocabulary; {found} is used instead."
            )
        return found

    def _changed(self, table: str, change: TableChange) -> None:
        if change.rows:
            before = self.report.changes.get(table, TableChange())
            self.report.changes[table] = TableChange(
                before.deleted + change.deleted, before.updated + change.updated, before.inserted + change.inserted
            )


def _release_key(rows: Sequence[tuple[Any, ...]]) -> str:
    """Label and hash: two downloads of one label are two vocabularies. `rows`: of fragment current_vocabulary."""
    return f"{rows[0][0][:60]} {rows[0][1][:16]}" if rows else "none"


def _rules_text(options: DerivedOptions, vocabulary: str) -> str:
    """What every person's derived rows depend on besides their own events; of what is seldom set a hash, so that the text
    fits into its column."""
    others = (
        options.period_excluded_condition_types,
        options.period_excluded_observations,
        options.persistence_days,
        options.gap_by_script,
        options.stockpiling,
        options.administration_types,
        options.period_months_before_birth,
        options.doubted_after_days,
        options.drop_doubted_deaths,
        sorted(options.table_go_live.items()),
    )
    return (
        f"version {options.version}; vocabulary {vocabulary}; go-live {options.go_live};"
        f" gap {options.period_gap_days}; tail {options.period_tail_days};"
        f" others {hashlib.sha256(repr(others).encode()).hexdigest()[:16]}"
    )[:250]


def rules_are_old(connection: psycopg.Connection, *, cdm: str, etl: str, options: DerivedOptions) -> bool:
    """Whether the derived rows of the options' site were computed by other rules: its next publication computes all."""
    name = f"site/{options.site}/derived_rules"
    remembered = connection.execute(fragment("derived_fact", cdm=cdm), {"name": name}).fetchone()
    release = connection.execute(fragment("current_vocabulary", etl=etl)).fetchone()
    return remembered is not None and remembered[0] != _rules_text(options, _release_key([release] if release else []))


def _bindable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else None if isinstance(value, Mapping) else value


def _typed(value: Fact, zone: ZoneInfo) -> dict[str, Any]:
    """A fact as the values of its row: text, number, date, datetime."""
    typed: dict[str, Any] = dict.fromkeys(("text", "number", "date", "datetime"))
    if isinstance(value, datetime):
        local = value.astimezone(zone).replace(tzinfo=None)
        return {**typed, "date": local.date(), "datetime": local}
    if isinstance(value, date):
        return {**typed, "date": value}
    if isinstance(value, str):
        return {**typed, "text": value[:250]}
    return {**typed, "number": value}
