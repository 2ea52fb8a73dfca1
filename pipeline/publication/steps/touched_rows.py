"""What analysts must never see, asked before the commit, of the rows that this publication touched: rows without a source,
sources without their row, rows that are there twice. `pipeline.quality.checks` asks the same of the whole warehouse."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import psycopg

from omop_schema.cdm import primary_key
from omop_schema.etl import LINEAGE_TABLES
from pipeline.core.errors import CheckFailed
from pipeline.publication.sql import Database, fragment
from pipeline.publication.tables import table_names

__all__ = ["check_touched_rows", "last_ids", "save_failure"]

_ADVICE = (
    "Nothing was published, and the export stays landed. `epic-omop verify` says whether the warehouse was sound before: rows"
    " that another program wrote into the cdm schema have no source, and go before the next try. Where it is sound, this is"
    " a fault of epic-omop: please report it with the version."
)


def last_ids(db: Database) -> dict[str, int]:
    """Table → its highest id, of tables whose rows have ids, before anything is written."""
    return {table: int(db.value("last_ids", **table_names(table))) for table in LINEAGE_TABLES if primary_key(table)}


def check_touched_rows(db: Database, before: Mapping[str, int]) -> None:
    """Raises CheckFailed. Costs what the changed resources and the new rows cost, however large the warehouse is."""
    for table in LINEAGE_TABLES:
        names = table_names(table)
        ((without_row, twice),) = db.rows("touched_sources", **names)
        without_source = db.value("new_without_source", {"last": before[table]}, **names) if table in before else 0
        found = {
            "sources_have_rows": (without_row, "sources without their row"),
            "rows_are_there_once": (twice, "rows twice"),
            "rows_have_sources": (without_source, "rows without a source"),
        }
        for check, (problems, words) in found.items():
            if problems:
                raise CheckFailed(
                    f"The publication would have left {problems:,} {words} in {table}.",
                    _ADVICE,
                    check=check,
                    table=table,
                    problems=problems,
                )


def save_failure(connection: psycopg.Connection, error: CheckFailed, now: datetime) -> None:
    """Keep it in `etl.check_result`; the next run of the checks says whether it still holds."""
    values = {"check": error.check, "table": error.table, "now": now, "problems": error.problems}
    connection.execute(fragment("failed_check"), values)
