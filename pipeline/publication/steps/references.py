"""What resources wait for and use, and facts that others use: replaced for the changed resources."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import polars as pl

from pipeline.publication.double_counting import ORDER_FACT
from pipeline.publication.sql import Database
from pipeline.publication.values import Decisions
from pipeline.staging import schemas
from pipeline.warehouse.copying import encoded

__all__ = ["replace_facts", "replace_references"]


def replace_facts(db: Database, decisions: Decisions, unused: Collection[str] = ()) -> None:
    """Replace the facts that the changed resources leave; `former_fact` keeps those that they left before.

    Facts of the names in `unused` are not kept: nothing asks for them in this version of the CDM. Nor is the order that a
    record names, which is in `etl.medication_record`: there are many, and nobody else asks.
    """
    db.execute("former_facts")
    lines = decisions.not_loaded.rename({"surrogate_id": "owner_surrogate_id"})
    for part in decisions.staged.frames(schemas.REFERENCE_VALUE):
        found = part.filter(~pl.col("name").is_in([ORDER_FACT, *unused]))
        if not lines.is_empty():
            found = found.join(lines, on=["owner_surrogate_id", "file_number", "line"], how="anti")
        found = found.drop("file_number", "line").unique(
            ["surrogate_id", "name", "owner_surrogate_id"], keep="last", maintain_order=True
        )
        db.copy(f"{db.etl}.reference_value", encoded(found))


def replace_references(db: Database, decisions: Decisions, written: Iterable[pl.DataFrame]) -> None:
    """Replace what the changed resources wait for and depend on: staged references, and those that steps found.

    `written`: columns from_surrogate_id, role, to_surrogate_id, state.
    """
    db.execute("remove_references")
    found = [*decisions.staged.frames(schemas.REFERENCE), *written]
    if not found:
        return
    every = pl.concat(found).unique()
    dropped = decisions.dropped
    every = every.join(dropped, left_on="from_surrogate_id", right_on="surrogate_id", how="anti")
    db.put("new_reference", every)
    keys = decisions.staged.scan(schemas.IDENTIFIER_KEY).unique("surrogate_id").collect()
    db.put("identifier_key", keys)
    db.execute("save_references")
