"""`etl.resource_state`: what is known of each resource after this publication."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC

import polars as pl

from pipeline.core.errors import PermanentError
from pipeline.publication.known_cache import KnownCache, keeping_mark
from pipeline.publication.sql import Database
from pipeline.publication.tables import columns_set
from pipeline.publication.values import LINE, Decisions, Incoming
from pipeline.staging import schemas
from pipeline.staging.outcomes import LineOutcome
from pipeline.warehouse.copying import EncodedRows, ahead, encoded

__all__ = ["save_states"]


def save_states(db: Database, incoming: Incoming, decisions: Decisions, known: KnownCache) -> None:
    """What is known of each changed resource from now on. Rejected lines leave the former state as it is.

    Raises PermanentError when two resources have the same surrogate id.
    """
    kinds = _site_resource_types(db, incoming)
    target = f"{db.etl}.resource_state"
    if not incoming.is_first:
        db.execute("new_state")
        target = "pg_temp.new_state"
    with keeping_mark(db.connection):
        for rows in ahead(_encoded_rows(incoming, decisions, known, kinds, db.types(target))):
            db.copy(target, rows)
        if not incoming.is_first:
            _merge_states(db)


def _encoded_rows(
    incoming: Incoming, decisions: Decisions, known: KnownCache, kinds: pl.DataFrame, types: Mapping[str, str]
) -> Iterator[EncodedRows]:
    for part in decisions.staged.frames(schemas.OUTCOME):
        accepted = part.filter((pl.col("outcome") != LineOutcome.REJECTED) & pl.col("surrogate_id").is_not_null())
        rows = _state_rows(incoming, _with_excluded(decisions.loaded(accepted), decisions), kinds)
        known.add(rows)
        yield encoded(rows, types)


def _with_excluded(lines: pl.DataFrame, decisions: Decisions) -> pl.DataFrame:
    """Lines whose exposure is counted elsewhere, and parts of a home, are excluded."""
    excluded = decisions.excluded.rename({"reason": "own_reason"})
    if excluded.is_empty():
        return lines
    lines = lines.join(excluded, on=LINE, how="left", maintain_order="left")
    is_excluded = pl.col("own_reason").is_not_null()
    return lines.with_columns(
        pl.when(is_excluded).then(pl.lit(LineOutcome.EXCLUDED.value)).otherwise("outcome").alias("outcome"),
        pl.coalesce("own_reason", "reason").alias("reason"),
    )


def _state_rows(incoming: Incoming, lines: pl.DataFrame, kinds: pl.DataFrame) -> pl.DataFrame:
    export = incoming.export
    rows = lines.join(kinds, on="resource_type", how="left", maintain_order="left").select(
        "surrogate_id",
        "site_resource_type_id",
        "resource_id",
        "raw_hash_high",
        "raw_hash_low",
        "content_hash",
        "outcome",
        "reason",
        "fingerprint",
        pl.lit(export.export_id).alias("export_id"),
        "file_number",
        "line",
        "byte_offset",
        "byte_length",
        pl.lit(export.transaction_time.astimezone(UTC)).cast(pl.Datetime("us", "UTC")).alias("as_of"),
    )
    # Neighbours in the primary key's index; the first load of all has none meanwhile.
    return rows if incoming.is_first else rows.sort("surrogate_id")


def _merge_states(db: Database) -> None:
    collisions = db.value("colliding_states")
    if collisions:
        raise PermanentError(
            f"{collisions} resources have a surrogate id that belongs to another resource.",
            "Set EPIC_OMOP_SURROGATE_SALT to a new value and load the site into an empty warehouse.",
        )
    columns = [name for (name,) in db.rows("columns_of_table", {"table": "resource_state"})]
    others = [name for name in columns if name != "surrogate_id"]
    db.execute("save_states", columns=", ".join(columns), set_columns=columns_set(others))


def _site_resource_types(db: Database, incoming: Incoming) -> pl.DataFrame:
    """Columns resource_type, site_resource_type_id, fingerprint of every type in the export."""
    site, fingerprints = incoming.export.site, incoming.fingerprints
    outcomes = incoming.staged.scan(schemas.OUTCOME)
    types = outcomes.select("resource_type").unique().collect()["resource_type"].to_list()
    added = [db.execute("add_resource_type", {"site": site, "resource_type": name}) for name in sorted(types)]
    if any(added):
        db.execute("count_resource_types")
    return pl.DataFrame(
        [
            (name, number, fingerprints.get(name, fingerprints[""]))
            for name, number in db.rows("resource_types", {"site": site})
        ],
        schema={"resource_type": pl.String, "site_resource_type_id": pl.Int64, "fingerprint": pl.Int64},
        orient="row",
    )
