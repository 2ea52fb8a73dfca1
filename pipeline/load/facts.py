"""The facts that the other types of an export are given: those that its own lines leave, and those of the warehouse."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import polars as pl
import psycopg

from pipeline.landing.store import LandingStore
from pipeline.load.landed_lines import with_binaries_found
from pipeline.load.tasks import WorkerPlan
from pipeline.publication.specimens import SPECIMEN_RESULT
from pipeline.publication.steps.stand_ins import about_owners
from pipeline.staging import schemas
from pipeline.staging.facts import has_facts, write_facts
from pipeline.transform.rules.places import PLACE_FACTS
from pipeline.warehouse.copying import read_frame

__all__ = ["gather_facts", "gather_first_facts"]

_LINE = ["surrogate_id", "file_number", "line"]


_COLUMNS = ["surrogate_id", "name", "value", "owner_surrogate_id"]
_STORED = {"surrogate_id": pl.Int64, "name": pl.String, "value": pl.String, "owner_surrogate_id": pl.Int64}


#: Facts that the types of the second stage (`plan.stages_of`) use: Encounter those of places, DeviceUseStatement its device.
_DEVICE_FACT, _DEVICE_USER = "device", "DeviceUseStatement"
_FIRST_FACTS = (*PLACE_FACTS, _DEVICE_FACT)


def gather_first_facts(
    connection: psycopg.Connection, plan: WorkerPlan, resource_types: Collection[str], transaction_time: datetime
) -> None:
    """Write the facts that the second stage uses, before its types (`resource_types`) are transformed. Commits.

    Those of places are few, and found by the places; those of devices are asked for only where somebody uses them.
    `gather_facts` leaves their files as they are, because processes have them mapped by then.
    """
    names = _FIRST_FACTS if _DEVICE_USER in resource_types else PLACE_FACTS
    query = (
        "SELECT fact.surrogate_id, fact.name, fact.value, fact.owner_surrogate_id FROM lineage_care_site AS place"
        " JOIN reference_value AS fact USING (surrogate_id) WHERE fact.name = ANY(%s)"
    )
    parameters: list[object] = [list(PLACE_FACTS)]
    if _DEVICE_FACT in names:
        query += " UNION ALL SELECT surrogate_id, name, value, owner_surrogate_id FROM reference_value WHERE name = %s"
        parameters.append(_DEVICE_FACT)
    stored = read_frame(connection, query, _STORED, tuple(parameters))
    lines = _lines_that_count(connection, plan, transaction_time).lazy()
    facts = _staged_and_others(plan, lines, stored.lazy())
    write_facts(plan.facts, facts.filter(pl.col("name").is_in(list(names))))
    connection.commit()


def _staged_and_others(plan: WorkerPlan, lines: pl.LazyFrame, stored: pl.LazyFrame) -> pl.LazyFrame:
    """Facts (_COLUMNS) of the lines that count, and the stored ones of all other resources."""
    staged = plan.staged.scan(schemas.REFERENCE_VALUE).join(
        lines, left_on=["owner_surrogate_id", "file_number", "line"], right_on=_LINE, how="semi"
    )
    others = stored.join(lines, left_on="owner_surrogate_id", right_on="surrogate_id", how="anti")
    return pl.concat([staged.select(_COLUMNS), others.select(_COLUMNS)])


def gather_facts(connection: psycopg.Connection, plan: WorkerPlan, export_id: int, transaction_time: datetime) -> None:
    """Write the facts of this export's lines that count, and those of the warehouse about all other resources. Commits."""
    lines = _lines_that_count(connection, plan, transaction_time).lazy()
    stored = read_frame(
        connection,
        "SELECT surrogate_id, name, value, owner_surrogate_id FROM reference_value WHERE name <> %s",
        _STORED,
        (SPECIMEN_RESULT,),  # one for nearly every result of a laboratory, and for publication alone
    )
    landing = LandingStore(plan.landing.parent)
    stored = with_binaries_found(connection, landing, plan.transform.site.name, export_id, stored)
    facts = about_owners(_staged_and_others(plan, lines, stored.lazy())).lazy()
    written = [name for name in _FIRST_FACTS if has_facts(plan.facts, name)]
    write_facts(plan.facts, facts.filter(~pl.col("name").is_in(written)))
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
