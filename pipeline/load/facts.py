"""The facts that the other types of an export are given: those that its own lines leave, and those of the warehouse."""

from __future__ import annotations

from datetime import datetime

import polars as pl
import psycopg

from pipeline.landing.store import LandingStore
from pipeline.load.landed_lines import with_binaries_found
from pipeline.load.tasks import WorkerPlan
from pipeline.publication.steps.stand_ins import about_owners
from pipeline.staging import schemas
from pipeline.staging.facts import write_facts
from pipeline.warehouse.copying import read_frame

__all__ = ["gather_facts"]

_LINE = ["surrogate_id", "file_number", "line"]


def gather_facts(connection: psycopg.Connection, plan: WorkerPlan, export_id: int, transaction_time: datetime) -> None:
    """Write the facts of this export's lines that count, and those of the warehouse about all other resources. Commits."""
    columns = ["surrogate_id", "name", "value", "owner_surrogate_id"]
    lines = _lines_that_count(connection, plan, transaction_time).lazy()
    staged = plan.staged.scan(schemas.REFERENCE_VALUE).join(
        lines, left_on=["owner_surrogate_id", "file_number", "line"], right_on=_LINE, how="semi"
    )
    stored = read_frame(
        connection,
        "SELECT surrogate_id, name, value, owner_surrogate_id FROM reference_value",
        {"surrogate_id": pl.Int64, "name": pl.String, "value": pl.String, "owner_surrogate_id": pl.Int64},
    )
    landing = LandingStore(plan.landing.parent)
    stored = with_binaries_found(connection, landing, plan.transform.site.name, export_id, stored)
    others = stored.lazy().join(lines, left_on="owner_surrogate_id", right_on="surrogate_id", how="anti")
    write_facts(plan.facts, about_owners(pl.concat([staged.select(columns), others.select(columns)])).lazy())
    connection.commit()


def _lines_that_count(connection: psycopg.Connection, plan: WorkerPlan, transaction_time: datetime) -> pl.DataFrame:
    """Changed lines (surrogate_id, file_number, line) by the rules of publication: the last of a resource, and none that
    is older than what is known."""
    changed = plan.staged.scan(schemas.OUTCOME).filter(pl.col("outcome") != "rejected").select(_LINE)
    unchanged = plan.staged.scan(schemas.UNCHANGED).select(_LINE)
    every = pl.concat([changed, unchanged.join(changed.select("surrogate_id"), on="surrogate_id", how="semi")])
    last = every.sort("file_number", "line").unique("surrogate_id", keep="last")
    newer = read_frame(
        connection,
        # Looked for only when there is a newer export at all: no night need scan the states for it.
        "SELECT surrogate_id FROM resource_state WHERE as_of > %s"
        " AND surrogate_id IN (SELECT owner_surrogate_id FROM reference_value) AND EXISTS (SELECT FROM export_job"
        " WHERE site = %s AND published_at IS NOT NULL AND transaction_time > %s)",
        {"surrogate_id": pl.Int64},
        (transaction_time, plan.transform.site.name, transaction_time),
    )
    return changed.join(last, on=_LINE, how="semi").join(newer.lazy(), on="surrogate_id", how="anti").collect()
