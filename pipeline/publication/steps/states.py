"""`etl.resource_state`: what is known of each resource after this publication."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC

import polars as pl

from pipeline.core.errors import PermanentError
from pipeline.publication.context import Publication
from pipeline.publication.known_cache import keeping_mark
from pipeline.staging import schemas
from pipeline.warehouse.copying import EncodedRows, ahead, encoded

__all__ = ["state"]


def state(p: Publication) -> None:
    """What is known of each changed resource from now on. Rejected lines leave the former state as it is."""
    kinds = _site_resource_types(p)
    target = f"{p.etl}.resource_state"
    if not p.is_first:
        p.connection.execute("CREATE TEMP TABLE new_state (LIKE resource_state INCLUDING DEFAULTS) ON COMMIT DROP")
        target = "pg_temp.new_state"
    with keeping_mark(p.connection):
        for rows in ahead(_encoded_rows(p, kinds, p.types(target))):
            p.copy(target, rows)
        if not p.is_first:
            _merge_state(p)


def _encoded_rows(p: Publication, kinds: pl.DataFrame, types: dict[str, str]) -> Iterator[EncodedRows]:
    for part in p.staged.frames(schemas.OUTCOME):
        decided = part.filter((pl.col("outcome") != "rejected") & pl.col("surrogate_id").is_not_null())
        rows = _state_rows(p, p.loaded(decided), kinds)
        p.known.add(rows)
        yield encoded(rows, types)


def _state_rows(p: Publication, lines: pl.DataFrame, kinds: pl.DataFrame) -> pl.DataFrame:
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
        pl.lit(p.export.export_id).alias("export_id"),
        "file_number",
        "line",
        "byte_offset",
        "byte_length",
        pl.lit(p.export.transaction_time.astimezone(UTC)).cast(pl.Datetime("us", "UTC")).alias("as_of"),
    )
    # Neighbours in the primary key's index; the first load of all has none meanwhile.
    return rows if p.is_first else rows.sort("surrogate_id")


def _merge_state(p: Publication) -> None:
    collision = p.connection.execute(
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
        for row in p.connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'resource_state'::regclass AND attnum > 0"
            " AND NOT attisdropped ORDER BY attnum"
        ).fetchall()
    ]
    others = [name for name in columns if name != "surrogate_id"]
    p.connection.execute(
        f"INSERT INTO resource_state ({', '.join(columns)}) SELECT {', '.join(columns)} FROM pg_temp.new_state"
        f" ON CONFLICT (surrogate_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in others)}"
    )


def _site_resource_types(p: Publication) -> pl.DataFrame:
    """Columns resource_type, site_resource_type_id, fingerprint of every type in the export."""
    types = p.staged.scan(schemas.OUTCOME).select("resource_type").unique().collect()["resource_type"].to_list()
    new = 0
    for name in sorted(types):
        new += p.connection.execute(
            "INSERT INTO site_resource_type (site, resource_type) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (p.export.site, name),
        ).rowcount
    if new:
        # Too few rows for autovacuum ever to count them. Uncounted, they are taken to be few of many sites, and joins
        # begin with all states of each type instead of the few facts that are asked about.
        p.connection.execute(f"ANALYZE {p.etl}.site_resource_type")
    rows = p.connection.execute(
        "SELECT resource_type, site_resource_type_id FROM site_resource_type WHERE site = %s", (p.export.site,)
    ).fetchall()
    return pl.DataFrame(
        [(name, number, p.fingerprints.get(name, p.fingerprints[""])) for name, number in rows],
        schema={"resource_type": pl.String, "site_resource_type_id": pl.Int64, "fingerprint": pl.Int64},
        orient="row",
    )
