"""Result of exports, as numbers: asked of the warehouse, shown by the commands and by Dagster alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from omop_schema.etl import LINEAGE_TABLES
from pipeline.extract.notes import ExportNotes, export_notes
from pipeline.quality.coverage import CoverageShare, coverage_shares
from pipeline.quality.overlaps import overlapping_exposures
from pipeline.staging.outcomes import LineOutcome

__all__ = [
    "Duplicates",
    "LoadReport",
    "UnmappedCode",
    "ValueCheck",
    "load_report",
    "table_counts",
    "unmapped_by_site",
    "vanished_counts",
    "vanished_sentences",
]

OUTCOMES = tuple(outcome.value for outcome in LineOutcome)

#: Tables with rows of patients, in the order in which people read them.
SHOWN_TABLES = (*LINEAGE_TABLES, "observation_period", "condition_era", "drug_era", "dose_era")


@dataclass(frozen=True)
class UnmappedCode:
    """A code without a concept that no rule leaves without one. `code` is None for texts without a code: of those only
    the number is reported, unless the site's allow-list names the type."""

    resource_type: str
    element: str
    system: str | None
    code: str | None
    display: str | None
    count: int


@dataclass(frozen=True)
class ValueCheck:
    """Numbers of a concept in a unit that a rule about numbers found, and what was done with them: `reported`, `keep` (they
    stay), `null`, `exclude` or `converted`. `concept` is None for codes without one, `unit` for numbers without one."""

    finding: str
    action: str
    concept: str | None
    unit: str | None
    count: int


@dataclass(frozen=True)
class Duplicates:
    """Facts of a table that rows of two or more resources say, by a rule, and the rows beyond the first of each. Of the
    persons whose rows the load changed."""

    rule: str
    table: str
    facts: int
    rows: int


@dataclass(frozen=True)
class LoadReport:
    """Counts over some exports. `lines` is by resource type of the landed files."""

    export_ids: tuple[int, ...]
    #: resource type → lines, loaded, unchanged, superseded, excluded, rejected
    outcomes: dict[str, Counter[str]]
    #: (resource type, reason) → lines
    exclusions: dict[tuple[str, str], int]
    #: CDM table → (rows now, inserted, deleted)
    tables: dict[str, tuple[int, int, int]]
    #: resource type → (rows with a standard concept, coded rows)
    mapping_rates: dict[str, tuple[int, int]]
    unmapped: tuple[UnmappedCode, ...]
    open_dead_letters: int
    notes: ExportNotes = field(default_factory=ExportNotes)
    #: unchanged lines with other bytes than the loaded ones, and the same content
    unchanged_by_content: int = 0
    #: disposition of resources that are absent from their groups' exports (docs/vanished.md) → resource type → count
    vanished: dict[str, Counter[str]] = field(default_factory=dict)
    #: the most frequent first
    value_checks: tuple[ValueCheck, ...] = ()
    #: of the last of the exports that has any: the same persons are counted by each
    duplicates: tuple[Duplicates, ...] = ()
    #: resource type → exposures that overlap a more definite one, of the persons whose exposures these exports made
    overlaps: dict[str, int] = field(default_factory=dict)

    #: codes and those with a concept, by table, element and system; the most frequent first
    coverage: tuple[CoverageShare, ...] = ()

    @property
    def total(self) -> Counter[str]:
        return sum(self.outcomes.values(), Counter())


def table_counts(connection: psycopg.Connection, cdm_schema: str) -> dict[str, int]:
    """Rows of every CDM table that resources fill, and of those that follow from them by person."""
    return {table: _count(connection, f"SELECT count(*) FROM {cdm_schema}.{table}") for table in SHOWN_TABLES}


def load_report(
    connection: psycopg.Connection,
    cdm_schema: str,
    vocab_schema: str,
    export_ids: Sequence[int],
    *,
    most_unmapped: int = 15,
) -> LoadReport:
    """Everything that a person asks after a run. `connection` has the etl schema on its search_path."""
    ids = list(export_ids)
    inserted, deleted, rates = _publications(connection, ids)
    tables = {
        table: (rows, inserted[table], deleted[table])
        for table, rows in table_counts(connection, cdm_schema).items()
        if rows or inserted[table] or deleted[table]
    }
    return LoadReport(
        tuple(ids),
        _outcomes(connection, ids),
        _exclusions(connection, ids),
        tables,
        rates,
        _unmapped(connection, ids, most_unmapped),
        _count(connection, "SELECT count(*) FROM dead_letter_open"),
        export_notes(connection, ids),
        _unchanged_by_content(connection, ids),
        vanished_counts(connection, ids),
        overlaps=overlapping_exposures(connection, cdm_schema, vocab_schema, ids) if inserted["drug_exposure"] else {},
        value_checks=_value_checks(connection, ids),
        duplicates=_duplicates(connection, ids),
        coverage=coverage_shares(connection, ids),
    )


def vanished_counts(connection: psycopg.Connection, export_ids: Sequence[int]) -> dict[str, Counter[str]]:
    """Removed ones of all these exports; of what is kept, waits or cannot be decided, what the last one says."""
    rows = connection.execute(
        "SELECT vanished FROM publication JOIN export_job USING (export_id) WHERE export_id = ANY(%s)"
        " AND vanished <> '{}' ORDER BY transaction_time, export_id",
        (list(export_ids),),
    ).fetchall()
    found: dict[str, Counter[str]] = {}
    for (by_disposition,) in rows:
        for disposition, counts in by_disposition.items():
            if disposition in ("vanished", "left_group"):
                found.setdefault(disposition, Counter()).update(counts)
            else:
                found[disposition] = Counter(counts)
    return found


def vanished_sentences(counts: dict[str, Counter[str]]) -> list[str]:
    """A sentence for each disposition, for people."""
    sentences = {
        "vanished": "Removed, because their groups' complete exports no longer hold them",
        "left_group": "Removed, because they left their group with their patient",
        "kept": "No longer in their groups' exports, and kept by the site's policy",
        "waiting": "No longer in their groups' exports, and deleted when more exports lack them",
        "undecided": "No longer in their groups' exports, whose patients may be there or not; kept",
    }
    return [
        f"{sentences[disposition]}: {', '.join(f'{count:,} {name}' for name, count in sorted(counts[disposition].items()))}."
        for disposition in sentences
        if counts.get(disposition)
    ]


def _count(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _outcomes(connection: psycopg.Connection, ids: list[int]) -> dict[str, Counter[str]]:
    columns = ("lines", *OUTCOMES)
    sums = ", ".join(f"sum({name})::bigint" for name in columns)
    rows = connection.execute(
        f"SELECT resource_type, {sums} FROM file_account WHERE export_id = ANY(%s) GROUP BY resource_type ORDER BY 1",
        (ids,),
    ).fetchall()
    return {row[0]: Counter(dict(zip(columns, row[1:], strict=True))) for row in rows}


def _unchanged_by_content(connection: psycopg.Connection, ids: list[int]) -> int:
    row = connection.execute(
        "SELECT coalesce(sum(unchanged_by_content), 0)::bigint FROM export_file WHERE export_id = ANY(%s)", (ids,)
    ).fetchone()
    return int(row[0]) if row else 0


def _exclusions(connection: psycopg.Connection, ids: list[int]) -> dict[tuple[str, str], int]:
    rows = connection.execute(
        "SELECT resource_type, reason, sum(count)::bigint FROM exclusion WHERE export_id = ANY(%s)"
        " GROUP BY resource_type, reason ORDER BY 3 DESC, 1, 2",
        (ids,),
    ).fetchall()
    return {(resource_type, reason): count for resource_type, reason, count in rows}


def _publications(
    connection: psycopg.Connection, ids: list[int]
) -> tuple[Counter[str], Counter[str], dict[str, tuple[int, int]]]:
    inserted: Counter[str] = Counter()
    deleted: Counter[str] = Counter()
    mapped: Counter[str] = Counter()
    coded: Counter[str] = Counter()
    rows = connection.execute(
        "SELECT rows_inserted, rows_deleted, mapping_rates FROM publication WHERE export_id = ANY(%s)", (ids,)
    ).fetchall()
    for made, gone, rates in rows:
        inserted.update(made)
        deleted.update(gone)
        for resource_type, (with_concept, total) in rates.items():
            mapped[resource_type] += with_concept
            coded[resource_type] += total
    return inserted, deleted, {name: (mapped[name], coded[name]) for name in sorted(coded)}


def _value_checks(connection: psycopg.Connection, ids: list[int]) -> tuple[ValueCheck, ...]:
    rows = connection.execute(
        "SELECT item ->> 'finding', item ->> 'action', item ->> 'concept', item ->> 'unit',"
        " sum((item ->> 'count')::bigint)::bigint FROM publication, jsonb_array_elements(value_checks) AS item"
        " WHERE export_id = ANY(%s) GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4",
        (ids,),
    ).fetchall()
    return tuple(ValueCheck(*row) for row in rows)


def _duplicates(connection: psycopg.Connection, ids: list[int]) -> tuple[Duplicates, ...]:
    row = connection.execute(
        "SELECT duplicates FROM publication WHERE export_id = ANY(%s) AND duplicates <> '[]'"
        " ORDER BY published_at DESC, export_id DESC LIMIT 1",
        (ids,),
    ).fetchone()
    return tuple(Duplicates(**item) for item in row[0]) if row else ()


def _unmapped(connection: psycopg.Connection, ids: list[int], most: int) -> tuple[UnmappedCode, ...]:
    return _heaviest(connection, "export_id = ANY(%(exports)s)", {"exports": ids, "most": most})


def unmapped_by_site(connection: psycopg.Connection, *, most: int = 3) -> dict[str, tuple[UnmappedCode, ...]]:
    """The most frequent unmapped codes of all that each site's resources are now; one look at all of them."""
    found: dict[str, list[UnmappedCode]] = {}
    for row in connection.execute(
        "SELECT site, resource_type, element, system, code, display, count FROM ("
        "  SELECT *, row_number() OVER (PARTITION BY site ORDER BY place > 3, count DESC, resource_type, element, system, code)"
        "  AS site_place FROM ("
        "   SELECT site, resource_type, element, system, code, max(display) AS display, sum(count)::bigint AS count,"
        "   row_number() OVER (PARTITION BY site, resource_type, element ORDER BY sum(count) DESC, system, code) AS place"
        "   FROM unmapped_code GROUP BY site, resource_type, element, system, code"
        "  ) AS counted"
        ") AS placed WHERE site_place <= %(most)s ORDER BY site, count DESC, site_place",
        {"most": most},
    ):
        found.setdefault(row[0], []).append(UnmappedCode(*row[1:]))
    return {site: tuple(codes) for site, codes in found.items()}


def _heaviest(connection: psycopg.Connection, condition: str, values: dict[str, Any]) -> tuple[UnmappedCode, ...]:
    """The most frequent codes, of each element at first no more than three: many of one shall not hide the others."""
    rows = connection.execute(
        "SELECT resource_type, element, system, code, display, count FROM ("
        "  SELECT resource_type, element, system, code, max(display) AS display, sum(count)::bigint AS count,"
        "  row_number() OVER (PARTITION BY resource_type, element ORDER BY sum(count) DESC, system, code) AS place"
        f"  FROM unmapped_code WHERE {condition} GROUP BY resource_type, element, system, code"
        ") AS counted ORDER BY place > 3, count DESC, resource_type, element, system, code LIMIT %(most)s",
        values,
    ).fetchall()
    found = [UnmappedCode(*row) for row in rows]
    return tuple(sorted(found, key=lambda code: -code.count))
