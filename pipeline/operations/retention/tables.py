"""Items that are rows of `etl`: closed dead letters, which are counted as they go, and what is noted of nights."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import sql

from pipeline.core.retention_settings import age_of
from pipeline.operations.retention.items import ItemReport, ItemWork, RetentionItem
from pipeline.quality.dead_letter_history import closed_letters

__all__ = ["ACCESS_LOG", "ACCOUNTS", "HISTORY", "TABLE_ITEMS"]

#: Rows of one transaction: short locks, and little to do again after a crash.
_AT_A_TIME = 20_000


@dataclass(frozen=True)
class HistoryTable:
    """A table whose rows are history after their `time`. `needed`: SQL, true for a row that stays whatever its age."""

    table: str
    time: str
    needed: str = "false"
    why: str = ""


#: In this order: a delivery goes before its message. What a later revision makes is looked at when it is there.
HISTORY = (
    HistoryTable(
        "coverage",
        "published_at",
        "(site, published_at) IN (SELECT site, max(published_at) FROM coverage GROUP BY site)",
        "the site's last night",
    ),
    HistoryTable("request_count", "hour"),
    HistoryTable("disk_sample", "sampled_at"),
    HistoryTable("run_failure", "resolved_at"),
    HistoryTable(
        "check_result",
        "checked_at",
        "(check_name, coalesce(cdm_table, ''), coalesce(site, ''), checked_at) IN (SELECT check_name,"
        " coalesce(cdm_table, ''), coalesce(site, ''), max(checked_at) FROM check_result GROUP BY 1, 2, 3)",
        "the last result of a check",
    ),
    HistoryTable(
        "alert_delivery",
        "(SELECT created_at FROM alert_message AS message WHERE message.message_id = row.message_id)",
        "state = 'pending'",
        "not delivered yet",
    ),
    HistoryTable(
        "alert_message",
        "created_at",
        "message_id IN (SELECT message_id FROM alert_delivery WHERE state = 'pending')",
        "not delivered yet",
    ),
    HistoryTable("alert", "resolved_at"),
)

#: Tables that prove something, and are never touched here: what (lines of accounts), and why.
ACCOUNTS = ("export_job", "export_file", "export_outcome", "export_gap", "exclusion_count", "publication")
ACCESS_LOG = "access_log"
_LAW = (
    "never shortened here: each entry is chained to the one before, and HIPAA asks for six years of such documentation"
    " (45 CFR 164.316(b)(2)(i)), others for more; see docs/retention.md"
)


def _dead_letters(work: ItemWork, report: ItemReport) -> None:
    """Count closed letters in `etl.dead_letter_history` and remove them, in one transaction for each batch."""
    age = age_of(work.settings.dead_letters)
    with work.runtime.connect() as connection:
        open_, closed = _counts(connection, "SELECT count(*) FILTER (WHERE state = 'open'), count(*) FROM dead_letter")
        closed -= open_
        report.keep(open_, "open: a replay needs their lines")
        if age is None:
            report.keep(closed, "newer than the setting")
            return
        before = work.now - age
        # `verify` asks of each export with rejected lines for a letter that is not older: the newest one stays.
        old = (
            "SELECT id FROM dead_letter WHERE state <> 'open' AND closed_at < %(before)s"
            " AND export_id < (SELECT max(export_id) FROM dead_letter)"
        )
        (count,) = _counts(connection, f"SELECT count(*) FROM ({old}) AS old", {"before": before})
        report.keep(closed - count, "newer than the setting")
        if work.is_dry:
            report.remove(count)
            return
        while ids := [
            row[0] for row in connection.execute(f"{old} ORDER BY id LIMIT {_AT_A_TIME}", {"before": before})
        ]:
            connection.execute(
                "INSERT INTO dead_letter_history (site, resource_type, code, closed_on, ending, days_open, letters)"
                f" {closed_letters('AND id = ANY(%(ids)s)')}"
                " ON CONFLICT ON CONSTRAINT dead_letter_history_pkey"
                " DO UPDATE SET letters = dead_letter_history.letters + excluded.letters",
                {"ids": ids},
            )
            gone = connection.execute("DELETE FROM dead_letter WHERE id = ANY(%s) AND state <> 'open'", (ids,)).rowcount
            connection.commit()
            report.remove(gone)


def _history(work: ItemWork, report: ItemReport) -> None:
    age = age_of(work.settings.history)
    with work.runtime.connect() as connection:
        for table in HISTORY:
            (there,) = connection.execute("SELECT to_regclass(%s)", (table.table,)).fetchone() or (None,)
            if there is None:
                continue
            before = None if age is None else work.now - age
            _of_table(connection, table, before, work, report)
        for table_name in ACCOUNTS:
            (count,) = _counts(connection, f"SELECT count(*) FROM {table_name}")
            report.keep(count, f"{table_name}: the account of every line, which `verify` adds up")


def _of_table(
    connection: psycopg.Connection, table: HistoryTable, before: datetime | None, work: ItemWork, report: ItemReport
) -> None:
    values = {"before": before}
    old = f"{table.time} < %(before)s::timestamptz"
    (count, needed, all_rows) = _counts(
        connection,
        f"SELECT count(*) FILTER (WHERE {old} AND NOT ({table.needed})),"
        f" count(*) FILTER (WHERE {old} AND ({table.needed})), count(*) FROM {table.table} AS row",
        values,
    )
    report.keep(needed, f"{table.table}: {table.why}")
    report.keep(all_rows - count - needed, f"{table.table}: newer than the setting, or not over")
    if work.is_dry:
        report.remove(count)
        return
    batch = sql.SQL(
        f"DELETE FROM {table.table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table.table} AS row"
        f" WHERE {old} AND NOT ({table.needed}) LIMIT {_AT_A_TIME}))"
    )
    while count:
        gone = connection.execute(batch, values).rowcount
        connection.commit()
        if not gone:
            break
        report.remove(gone)


def _access_log(work: ItemWork, report: ItemReport) -> None:
    """Nothing: what is there is said."""
    with work.runtime.connect() as connection:
        (count, oldest) = connection.execute(f"SELECT count(*), min(at) FROM {ACCESS_LOG}").fetchone() or (0, None)
    since = f", since {oldest:%Y-%m-%d}" if oldest else ""
    report.keep(count, f"{_LAW}{since}")


def _counts(
    connection: psycopg.Connection, query: str, values: dict[str, datetime | None] | None = None
) -> tuple[int, ...]:
    row = connection.execute(query.encode(), values).fetchone()
    assert row is not None
    return tuple(int(value) for value in row)


TABLE_ITEMS = (
    RetentionItem("dead_letters", "closed dead letters", _dead_letters),
    RetentionItem("history", "rows", _history),
    RetentionItem("access_log", "entries", _access_log, setting="forever"),
)
