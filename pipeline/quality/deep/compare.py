"""Rows as they are against rows as a fresh load makes them, table by table, in the server. Gives no value away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from pipeline.quality.deep.content import TABLES, columns_of, is_link
from pipeline.quality.deep.lines import NOT_IN_LANDING
from pipeline.quality.deep.model import DeepProgress, DeepReport, Difference, Kind
from pipeline.quality.deep.scratch import Scratch

__all__ = ["compare"]

#: Rows of each difference that are named.
_SHOWN = 5


def compare(scratch: Scratch, connection: psycopg.Connection, report: DeepReport, progress: DeepProgress) -> None:
    """Add differences, counts and what was left out to the report."""
    _leave_out(scratch, connection, report)
    for number, table in enumerate(TABLES):
        progress("comparing", number, len(TABLES))
        report.rows[table] = _count(connection, f"SELECT count(*) FROM {scratch.etl}.actual_{table}")
        report.differences += _Comparison(scratch, connection, table).differences()


def _leave_out(scratch: Scratch, connection: psycopg.Connection, report: DeepReport) -> None:
    """Tables of what is not compared: resources, and the persons whose they are, with all that is theirs."""
    deep = scratch.etl
    connection.execute(
        f"CREATE UNLOGGED TABLE {deep}.deep_left_out AS SELECT surrogate_id, left_out AS reason"
        f" FROM {deep}.deep_resource WHERE left_out IS NOT NULL"
    )
    connection.execute(f"ALTER TABLE {deep}.deep_left_out ADD PRIMARY KEY (surrogate_id); ANALYZE {deep}.deep_left_out")
    rows = " UNION ".join(
        f"SELECT row.person FROM {deep}.{side}_{table} AS row JOIN {deep}.deep_left_out USING (surrogate_id)"
        for side in ("actual", "expected")
        for table in TABLES
    )
    connection.execute(
        f"CREATE UNLOGGED TABLE {deep}.deep_person_left_out AS SELECT DISTINCT person FROM ({rows} UNION"
        f" SELECT patient FROM {deep}.deep_person JOIN {deep}.deep_left_out ON surrogate_id = patient) AS persons"
        " WHERE person IS NOT NULL AND person <> 0"
    )
    connection.execute(f"ANALYZE {deep}.deep_person_left_out")
    reasons = connection.execute(f"SELECT reason, count(*) FROM {deep}.deep_left_out GROUP BY reason").fetchall()
    report.left_out.update(dict(reasons))
    report.persons_left_out = _count(connection, f"SELECT count(*) FROM {deep}.deep_person_left_out")


@dataclass
class _Comparison:
    """One table. Rows are distinguished by resource and row key."""

    scratch: Scratch
    connection: psycopg.Connection
    table: str

    def differences(self) -> Iterator[Difference]:
        """First one pass that counts; the few rows to name are asked for where there are any."""
        columns = columns_of(self.table, self.scratch.real.settings.cdm_version)
        conditions: list[tuple[Kind, str | None, str]] = [
            ("missing", None, "actual.repeat IS NULL"),
            ("extra", None, "expected.repeat IS NULL"),
            *(("differs", column, self._differs(column)) for column in columns),
        ]
        counts = ", ".join(f"count(*) FILTER (WHERE {condition})" for _, _, condition in conditions)
        counted = self.connection.execute(
            f"SELECT coalesce(kind.resource_type, 'unknown') AS resource_type, {counts}"
            f" FROM {self._pairs()} GROUP BY 1 ORDER BY 1"
        ).fetchall()
        for resource_type, *numbers in counted:
            for (kind, column, condition), count in zip(conditions, numbers, strict=True):
                if count:
                    yield self._difference(kind, column, condition, resource_type, count)

    def _difference(self, kind: Kind, column: str | None, condition: str, resource_type: str, count: int) -> Difference:
        rows = self.connection.execute(
            f"SELECT actual.row_id, expected.surrogate_id FROM {self._pairs()} AND {condition}"
            " AND coalesce(kind.resource_type, 'unknown') = %s ORDER BY 1, 2 LIMIT %s",
            (resource_type, _SHOWN),
        ).fetchall()
        row_ids = tuple(dict.fromkeys(row_id for row_id, _ in rows if row_id is not None))
        resources = tuple(dict.fromkeys(resource for _, resource in rows)) if kind == "missing" else ()
        return Difference(kind, self.table, resource_type, column, count, row_ids, resources)

    def _differs(self, column: str) -> str:
        both = "actual.repeat IS NOT NULL AND expected.repeat IS NOT NULL"
        differs = f"{both} AND actual.{column} IS DISTINCT FROM expected.{column}"
        if not is_link(column):
            return differs
        # What it leads to could not be loaded: nothing can be reported.
        return (
            f"{differs} AND NOT EXISTS (SELECT FROM {self.scratch.etl}.deep_left_out AS unread"
            f" WHERE unread.surrogate_id = actual.{column} AND unread.reason = '{NOT_IN_LANDING}')"
        )

    def _pairs(self) -> str:
        deep, etl = self.scratch.etl, self.scratch.real.settings.etl_schema
        surrogate_id = "coalesce(actual.surrogate_id, expected.surrogate_id)"
        return (
            f"{deep}.actual_{self.table} AS actual FULL JOIN {deep}.expected_{self.table} AS expected"
            " ON actual.surrogate_id = expected.surrogate_id AND actual.row_key = expected.row_key"
            " AND actual.repeat = expected.repeat"
            f" LEFT JOIN {etl}.resource_state AS state ON state.surrogate_id = {surrogate_id}"
            f" LEFT JOIN {etl}.site_resource_type AS kind USING (site_resource_type_id)"
            f" WHERE NOT EXISTS (SELECT FROM {deep}.deep_left_out AS own WHERE own.surrogate_id = {surrogate_id})"
            f" AND NOT EXISTS (SELECT FROM {deep}.deep_person_left_out AS owner WHERE owner.person = actual.person)"
            f" AND NOT EXISTS (SELECT FROM {deep}.deep_person_left_out AS owner WHERE owner.person = expected.person)"
        )


def _count(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
