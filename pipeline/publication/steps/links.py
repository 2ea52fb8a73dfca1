"""Links from row to row that wait for their target: noted, filled when it comes, and waiting again when it goes.

`pipeline.publication.link_roles` says which places a link fills, `targets` which row its target is.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from omop_schema.cdm import polars_schema, primary_key
from omop_schema.etl import lineage_table_name
from pipeline.publication.context import Publication
from pipeline.publication.ids import LINKS
from pipeline.publication.link_roles import LINK_ROLES, NO_FACTS, LinkRole, Place, link_role, role_names, roles_to
from pipeline.publication.steps.targets import target_rows

__all__ = ["fill", "note_pending", "unlink"]

#: Tables whose rows are on a visit and, where that is of a sub-encounter, on its detail.
_ON_DETAILS = frozenset(
    place.table
    for role in roles_to("visit_occurrence")
    for place in role.places
    if "visit_detail_id" in polars_schema(place.table)
)


def note_pending(p: Publication, rows: pl.DataFrame, links: Iterable[str], table: str) -> None:
    """References of staged rows to rows that do not exist yet, under the role of the table's column; and, as `resolved`,
    those that lead to a row by what stands for its resource (`stand_ins`): they may lead elsewhere one day.

    `rows`: surrogate_id and `links`, all of one place, links still as surrogate ids. All rows of a resource are in one
    frame: they are of one line.
    """
    for column in links:
        role = link_role(table, column)
        if role is None:
            continue
        missing = rows.select("surrogate_id", pl.col(column).alias("to_surrogate_id")).drop_nulls()
        known = p.ids.existing[LINKS[column]].rename({"surrogate_id": "to_surrogate_id"})
        through = p.stand_ins.get(role.target, known.clear()).select(
            to_surrogate_id=pl.first(), state=pl.lit("resolved")
        )
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
        p.pending.append(
            missing.select(
                pl.col("surrogate_id").alias("from_surrogate_id"),
                name.alias("role"),
                "to_surrogate_id",
                "state",
            ).unique(maintain_order=True)
        )


def _with_different(rows: pl.DataFrame, column: str) -> pl.Series:
    """The resources (surrogate ids) whose rows have different values in a column, none among them."""
    if not rows["surrogate_id"].is_duplicated().any():
        return pl.Series(dtype=pl.Int64)
    value = pl.col(column)
    differ = (value.min() != value.max()) | (value.null_count() > 0) & (value.count() > 0)
    return rows.group_by("surrogate_id").agg(differ.alias("differ")).filter("differ")["surrogate_id"]


def fill(p: Publication) -> None:
    """Fill links that waited for what this publication has made. What changed resources wait for must be in place.

    Of a resource that is to be mapped again because of the same target (a condition whose encounter says when it was)
    nothing is filled: its rows may not want the link any more.
    """
    if p.is_first:
        return
    for target in sorted({role.target for role in LINK_ROLES.values()}):
        waiting = f"arrived_{target}"
        p.connection.execute(
            f"CREATE TEMP TABLE {waiting} ON COMMIT DROP AS"
            " SELECT waiting.surrogate_id, target.row_id, target.detail_id"
            " FROM (SELECT DISTINCT to_surrogate_id AS surrogate_id FROM reference WHERE state = 'pending'"
            "  AND role = ANY(%s) AND to_surrogate_id IN (SELECT surrogate_id FROM pg_temp.changed)) AS waiting"
            f" JOIN {target_rows(p, target)} AS target USING (surrogate_id)",
            (role_names(target),),
        )
        p.connection.execute(f"ANALYZE pg_temp.{waiting}")
        names = p.connection.execute(
            f"SELECT DISTINCT role FROM reference JOIN pg_temp.{waiting} AS target"
            " ON target.surrogate_id = to_surrogate_id WHERE state = 'pending' AND role = ANY(%s)",
            (role_names(target),),
        ).fetchall()
        for role in roles_to(target):
            if (role.name,) in names:
                _fill_role(p, role)
            if (role.by_row,) in names:
                p.connection.execute(
                    f"UPDATE reference SET state = 'stale' FROM pg_temp.{waiting} AS target"
                    " WHERE target.surrogate_id = to_surrogate_id AND state = 'pending' AND role = %s",
                    (role.by_row,),
                )


#: Of a pending link: its resource also waits for what its target says, and that is there.
_IS_MAPPED_AGAIN = (
    "EXISTS (SELECT FROM reference AS used JOIN reference_value AS fact"
    " ON fact.surrogate_id = used.to_surrogate_id AND fact.name = used.role"
    " WHERE used.from_surrogate_id = reference.from_surrogate_id AND used.to_surrogate_id = reference.to_surrogate_id"
    " AND used.state = 'pending' AND used.role <> ALL(%(no_facts)s))"
)


def _fill_role(p: Publication, role: LinkRole) -> None:
    """Fill the places of one role, where nothing is yet."""
    arrived = f"pg_temp.arrived_{role.target}"
    values = {"role": role.name, "no_facts": NO_FACTS}
    for place in role.places:
        own = primary_key(place.table) or "person_id"
        detail = ", visit_detail_id = target.detail_id" if _is_on_detail(place) else ""
        p.connection.execute(
            f"UPDATE {p.cdm}.{place.table} AS row SET {place.column} = target.row_id{detail}"
            f" FROM reference JOIN {arrived} AS target ON target.surrogate_id = reference.to_surrogate_id"
            f" JOIN {lineage_table_name(place.table)} AS lineage"
            " ON lineage.surrogate_id = reference.from_surrogate_id"
            " WHERE reference.state = 'pending' AND reference.role = %(role)s"
            f" AND row.{own} = lineage.row_id AND row.{place.column} IS NULL{place.rows.value}"
            f" AND NOT {_IS_MAPPED_AGAIN}",
            values,
        )
    p.connection.execute(
        f"DELETE FROM reference USING {arrived} AS target WHERE target.surrogate_id = to_surrogate_id"
        f" AND reference.state = 'pending' AND role = %(role)s AND NOT {_IS_MAPPED_AGAIN}",
        values,
    )


def unlink(p: Publication, target: str, removed: str) -> None:
    """Take links to rows that go out of the rows of others: they wait for them to come back.

    `target`: an entity table, or visit_detail for sub-encounters, whose rows `removed` (a temporary table: surrogate_id,
    row_id) lists. Rows on a sub-encounter keep to that when its visit goes: see `visits`.
    """
    roles = roles_to("visit_occurrence" if target == "visit_detail" else target)
    links = [(role, place, _Unlinked(place, target)) for role in roles for place in role.places]
    for role, place, unlinked in links:  # all of them, before any row is changed
        _wait_for_removed(p, role, place, unlinked, removed)
    for _, place, unlinked in links:
        detail = ", visit_detail_id = NULL" if _is_on_detail(place) else ""
        p.connection.execute(
            f"UPDATE {p.cdm}.{place.table} AS row SET {place.column} = NULL{detail} FROM pg_temp.{removed} AS removed"
            f" WHERE row.{unlinked.column} = removed.row_id{unlinked.direct}"
        )


class _Unlinked:
    """Of a place whose links go: the column that holds the id of the row that goes, and which rows are meant."""

    def __init__(self, place: Place, target: str) -> None:
        self.column = "visit_detail_id" if target == "visit_detail" else place.column
        self.direct = " AND row.visit_detail_id IS NULL" if _is_on_detail(place) and target != "visit_detail" else ""


def _wait_for_removed(p: Publication, role: LinkRole, place: Place, unlinked: _Unlinked, removed: str) -> None:
    own, lineage = primary_key(place.table) or "person_id", lineage_table_name(place.table)
    column, others = unlinked.column, place.rows.value.replace("lineage.", "beside.")
    p.connection.execute(
        "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
        " SELECT DISTINCT lineage.surrogate_id, CASE WHEN EXISTS"
        f" (SELECT FROM {lineage} AS beside JOIN {p.cdm}.{place.table} AS other ON other.{own} = beside.row_id"
        f"  WHERE beside.surrogate_id = lineage.surrogate_id AND other.{column} IS DISTINCT FROM row.{column}{others})"
        " THEN %s ELSE %s END, removed.surrogate_id, 'pending'"
        f" FROM {p.cdm}.{place.table} AS row JOIN pg_temp.{removed} AS removed ON row.{column} = removed.row_id"
        f" JOIN {lineage} AS lineage ON lineage.row_id = row.{own}{unlinked.direct}{place.rows.value}"
        # a link through a stand-in follows that: see `stand_ins`
        " WHERE NOT EXISTS (SELECT FROM reference AS through WHERE through.from_surrogate_id = lineage.surrogate_id"
        "  AND through.state = 'resolved' AND through.role IN (%s, %s))"
        " ON CONFLICT DO NOTHING",
        (role.by_row, role.name, role.by_row, role.name),
    )


def _is_on_detail(place: Place) -> bool:
    return place.column == "visit_occurrence_id" and place.table in _ON_DETAILS
