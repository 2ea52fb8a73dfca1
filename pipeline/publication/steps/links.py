"""Links from row to row that wait for their target: noted, and filled when it comes.

`pipeline.publication.link_roles` says which places a link fills, `tables.target_rows` which row its target is. When the
target goes, links wait again: `pipeline.publication.unlink`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import polars as pl

from pipeline.publication.ids import LINKS, EntityIds
from pipeline.publication.link_roles import LINK_ROLES, NO_FACTS, LinkRole, link_role, role_names, roles_to
from pipeline.publication.sql import Database
from pipeline.publication.tables import place_names, target_rows

__all__ = ["fill", "waiting_links"]


def waiting_links(
    rows: pl.DataFrame, links: Iterable[str], table: str, ids: EntityIds, stand_ins: Mapping[str, pl.DataFrame]
) -> list[pl.DataFrame]:
    """Rows for `etl.reference`: references of staged rows to rows that do not exist yet, under the role of the table's
    column; and, as `resolved`, those that lead to a row by what stands for its resource (`stand_ins`): they may lead
    elsewhere one day.

    `rows`: surrogate_id and `links`, all of one place, links still as surrogate ids. All rows of a resource are in one
    frame: they are of one line.
    """
    found = []
    for column in links:
        role = link_role(table, column)
        if role is None:
            continue
        missing = rows.select("surrogate_id", pl.col(column).alias("to_surrogate_id")).drop_nulls()
        known = ids.existing[LINKS[column]].rename({"surrogate_id": "to_surrogate_id"})
        through = stand_ins.get(role.target, known.clear()).select(to_surrogate_id=pl.first(), state=pl.lit("resolved"))
        missing = pl.concat(
            [
                missing.join(known, on="to_surrogate_id", how="anti").with_columns(pl.lit("pending").alias("state")),
                missing.join(through, on="to_surrogate_id", how="inner"),
            ]
        )
        if missing.is_empty():
            continue
        differ = _with_different(rows, column)
        name = (
            pl.when(pl.col("surrogate_id").is_in(differ.implode()))
            .then(pl.lit(role.by_row))
            .otherwise(pl.lit(role.name))
        )
        found.append(
            missing.select(
                pl.col("surrogate_id").alias("from_surrogate_id"),
                name.alias("role"),
                "to_surrogate_id",
                "state",
            ).unique(maintain_order=True)
        )
    return found


def _with_different(rows: pl.DataFrame, column: str) -> pl.Series:
    """The resources (surrogate ids) whose rows have different values in a column, none among them."""
    if not rows["surrogate_id"].is_duplicated().any():
        return pl.Series(dtype=pl.Int64)
    value = pl.col(column)
    differ = (value.min() != value.max()) | (value.null_count() > 0) & (value.count() > 0)
    return rows.group_by("surrogate_id").agg(differ.alias("differ")).filter("differ")["surrogate_id"]


def fill(db: Database) -> None:
    """Fill links that waited for what this publication has made. What changed resources wait for must be in place.

    Of a resource that is to be mapped again because of the same target (a condition whose encounter says when it was)
    nothing is filled: its rows may not be linked so any more.
    """
    for target in sorted({role.target for role in LINK_ROLES.values()}):
        roles = {"roles": role_names(target)}
        db.execute("arrived_targets", roles, target=target, target_rows=target_rows(target, db.cdm))
        names = {name for (name,) in db.rows("arrived_roles", roles, target=target)}
        for role in roles_to(target):
            if role.name in names:
                _fill_role(db, role)
            if role.by_row in names:
                db.execute("arrived_by_row", {"role": role.by_row}, target=target)


def _fill_role(db: Database, role: LinkRole) -> None:
    """Fill the places of one role, where nothing is yet."""
    own = {"role": role.name, "no_facts": NO_FACTS}
    for place in role.places:
        db.execute("fill_links", own, target=role.target, **place_names(place))
    db.execute("forget_filled", own, target=role.target)
