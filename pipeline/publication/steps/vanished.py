"""Resources that their groups' complete exports no longer hold: which they are, and what is done about it.

A resource has vanished when every group that ever held it has exported all of its type since, without it, and nothing
else (a crawl, a folder) has brought it since. The judgement follows from the exports alone, whatever the order in which
they are loaded. docs/vanished.md tells the rules, docs/decisions/0011-vanished-resources.md how they are kept.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field

import polars as pl

from omop_schema.cdm import polars_schema, primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from omop_schema.exports import ExportKind
from pipeline.core.errors import ConfirmationNeeded
from pipeline.core.settings import DOCUMENT_TYPE, RESULT_TYPE
from pipeline.publication.context import Publication
from pipeline.publication.known_cache import keeping_mark
from pipeline.publication.link_roles import NO_FACTS
from pipeline.publication.seen import read_held
from pipeline.publication.steps.completeness import group_of
from pipeline.publication.steps.members import GroupExport, group_exports, held_now, newest, note_members
from pipeline.staging import schemas
from pipeline.warehouse.copying import read_frame, temporary_table

__all__ = ["LEFT_GROUP", "RETURNED", "VANISHED", "forget", "judge", "map_users_again"]

#: Reasons in `resource_state` of what is excluded: it was removed at the site, it left with its patient, or a late
#: export says that it is still there, and its last line is to be loaded again.
VANISHED, LEFT_GROUP, RETURNED = "vanished", "left_group", "returned"

#: More than this part of a type is deleted only when a person says so; a few of a small type are no reason to ask.
CONFIRMED_ABOVE = 0.02
CONFIRMED_FROM = 10

_ID = {"surrogate_id": pl.Int64}
_CANDIDATE = {"surrogate_id": pl.Int64, "resource_type": pl.String, "is_loaded": pl.Boolean}
_ABSENCE = {"surrogate_id": pl.Int64, "group_id": pl.String, "last_export_id": pl.Int64}

#: Of a state: it has rows, or is excluded and others still use what it says (a Device, which is no exposure by itself).
_SAYS_SOMETHING = (
    "(state.outcome = 'loaded' OR (state.outcome = 'excluded' AND EXISTS"
    " (SELECT FROM reference_value AS fact WHERE fact.owner_surrogate_id = state.surrogate_id)))"
)


def judge(p: Publication) -> None:
    """Sets `p.vanished` (to be removed now), `p.outlived` (lines of this export that come too late), and the counts.

    Raises ConfirmationNeeded when more than 2 % of a type would be deleted and nobody has confirmed it.
    """
    group = group_of(p)
    note_members(p, group)
    exports = group_exports(p)
    if not exports:
        return
    candidates = _candidates(p, group is not None)
    if candidates.is_empty():
        return
    present = _present(p, exports, candidates.select("surrogate_id"))
    if present is None:
        return
    candidates = candidates.join(present, on="surrogate_id", how="anti")
    judged = _with_category(p, exports, _with_age(p, exports, candidates))
    if judged is None or judged.is_empty():
        return
    limits = {VANISHED: p.site.vanished_after, LEFT_GROUP: p.site.left_group_after}
    limit = pl.col("category").replace_strict(limits, default=None, return_dtype=pl.Int64)
    judged = judged.with_columns(
        pl.when(pl.col("category").is_null())
        .then(pl.lit("undecided"))
        .when(limit.is_null())
        .then(pl.lit("kept"))
        .when(pl.col("exports") < limit)
        .then(pl.lit("waiting"))
        .otherwise("category")
        .alias("fate")
    )
    removed = judged.filter(pl.col("fate").is_in([VANISHED, LEFT_GROUP]))
    p.vanished = removed.filter("is_loaded").select("surrogate_id", pl.col("fate").alias("reason"))
    p.outlived = removed.select("surrogate_id").join(p.came_back, on="surrogate_id", how="semi")
    loaded = judged.filter("is_loaded")
    for fate, resource_type, count in loaded.group_by("fate", "resource_type").len().sort(pl.all()).rows():
        p.report.vanished.setdefault(fate, {})[resource_type] = count
    _ask(p)


def _candidates(p: Publication, of_a_group: bool) -> pl.DataFrame:
    """What may have vanished: loaded resources that are absent somewhere, and what this export brings of such.

    Only exports of groups say something new of loaded ones. What was fetched by reference is exempt: it is in no
    group's export.
    """
    exempt: list[str] = []
    if p.site.hydrate:
        exempt = [name for name in p.site.hydrate_types if name not in (RESULT_TYPE, DOCUMENT_TYPE)]
    loaded = pl.DataFrame(schema=_CANDIDATE)
    if of_a_group:
        loaded = read_frame(
            p.connection,
            "SELECT surrogate_id, kind.resource_type, 'true' FROM"
            " (SELECT DISTINCT surrogate_id FROM absent_resource) AS absent"
            " JOIN resource_state AS state USING (surrogate_id)"
            " JOIN site_resource_type AS kind USING (site_resource_type_id)"
            f" WHERE kind.site = %s AND {_SAYS_SOMETHING} AND kind.resource_type <> ALL(%s) AND NOT EXISTS"
            " (SELECT FROM hydrated_reference AS asked WHERE asked.surrogate_id = state.surrogate_id"
            " AND asked.state = 'found')",
            _CANDIDATE,
            (p.export.site, exempt),
        )
    known = loaded.select("surrogate_id")
    arriving = p.came_back.join(known, on="surrogate_id", how="anti")
    if arriving.is_empty():
        return loaded
    told = p.staged.scan(schemas.OUTCOME).select("surrogate_id", "resource_type").drop_nulls()
    types = told.join(arriving.lazy(), on="surrogate_id", how="semi").unique("surrogate_id").collect()
    brought = types.filter(~pl.col("resource_type").is_in(exempt)).with_columns(pl.lit(False).alias("is_loaded"))
    return pl.concat([loaded, brought.select(list(_CANDIDATE))])


def _present(p: Publication, exports: list[GroupExport], resources: pl.DataFrame) -> pl.DataFrame | None:
    """Those that the newest export of any group holds; None where one of them is lost: then any may be there."""
    found = [pl.DataFrame(schema=_ID)]
    for export in newest(exports).values():
        members = held_now(p, export)
        if members is None:
            p.report.warnings.append(
                f"What export {export.export_id} of group {export.group} held is not known any more:"
                " nothing vanishes until that group is exported again."
            )
            return None
        found.append(resources.lazy().join(members, on="surrogate_id", how="semi").collect(engine="streaming"))
    return pl.concat(found).unique()


# --- how long it has been absent ------------------------------------------------------------------------------------


@dataclass
class _Exports:
    """Exports of a site in their order, as numbers."""

    rank: dict[int, int] = field(default_factory=dict)
    #: (group, resource type) → ranks of the exports that were complete, ascending
    complete: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    #: Exports of no group that may have brought something: crawls, hydrations, folders.
    others: list[int] = field(default_factory=list)

    def after(self, group: str, resource_type: str, rank: int) -> int:
        """How many complete exports of the type came after that rank."""
        ranks = self.complete.get((group, resource_type), [])
        return len(ranks) - bisect.bisect_right(ranks, rank)


def _ranked(p: Publication, exports: list[GroupExport]) -> _Exports:
    rows = p.connection.execute(
        "SELECT export_id, kind, group_id IS NOT NULL FROM export_job WHERE site = %s AND (published_at IS NOT NULL"
        " OR export_id = %s) AND transaction_time IS NOT NULL ORDER BY transaction_time, export_id",
        (p.export.site, p.export.export_id),
    ).fetchall()
    ranked = _Exports()
    in_groups = {export.export_id for export in exports}
    for rank, (export_id, kind, _) in enumerate(rows):
        ranked.rank[export_id] = rank
        if export_id not in in_groups and kind != ExportKind.REPLAY:
            ranked.others.append(export_id)
    for export in exports:
        for name in export.complete_types:
            ranked.complete.setdefault((export.group, name), []).append(ranked.rank[export.export_id])
    return ranked


def _with_age(p: Publication, exports: list[GroupExport], candidates: pl.DataFrame) -> pl.DataFrame:
    """Adds exports: from how many complete exports in a row each resource is absent, in the group that has the fewest.

    Those that are absent from none are left out.
    """
    ranked = _ranked(p, exports)
    temporary_table(p.connection, "candidate_absence", candidates.select("surrogate_id"))
    absences = read_frame(
        p.connection,
        "SELECT absent.surrogate_id, group_id, last_export_id FROM absent_resource AS absent"
        " JOIN pg_temp.candidate_absence USING (surrogate_id)",
        _ABSENCE,
    ).join(candidates, on="surrogate_id")
    last = pl.col("last_export_id").replace_strict(ranked.rank, default=-1, return_dtype=pl.Int64)
    absences = absences.with_columns(last.alias("last")).join(
        _sightings(p, ranked, absences), on="surrogate_id", how="left"
    )
    absences = absences.with_columns(pl.max_horizontal("last", "sighting").alias("last"))
    kinds = absences.select("group_id", "resource_type", "last").unique()
    ages = [(*kind, ranked.after(*kind)) for kind in kinds.rows()]
    schema = {"group_id": pl.String, "resource_type": pl.String, "last": pl.Int64, "exports": pl.Int64}
    absences = absences.join(
        pl.DataFrame(ages, schema=schema, orient="row"), on=["group_id", "resource_type", "last"], how="left"
    )
    absences = _with_lost(ranked, exports, absences)
    fewest = absences.group_by("surrogate_id").agg(pl.col("exports").min())
    return candidates.join(fewest, on="surrogate_id").filter(pl.col("exports") > 0)


def _sightings(p: Publication, ranked: _Exports, absences: pl.DataFrame) -> pl.DataFrame:
    """The last export of no group that brought a resource. Columns: surrogate_id, sighting (rank)."""
    since = absences["last_export_id"].replace_strict(ranked.rank, default=-1, return_dtype=pl.Int64).min()
    ids = absences.select("surrogate_id").unique()
    found = [pl.DataFrame(schema={"surrogate_id": pl.Int64, "sighting": pl.Int64})]
    for export_id in ranked.others:
        rank = ranked.rank[export_id]
        if since is None or rank <= int(since):  # type: ignore[arg-type] # the least of integers is one
            continue
        members = (
            p.came_back.lazy()
            if export_id == p.export.export_id
            else read_held(p.settings.home, p.export.site, export_id)
        )
        seen = ids if members is None else ids.lazy().join(members, on="surrogate_id", how="semi").collect()
        found.append(seen.with_columns(pl.lit(rank, dtype=pl.Int64).alias("sighting")))
    return pl.concat(found).group_by("surrogate_id").agg(pl.col("sighting").max())


def _with_lost(ranked: _Exports, exports: list[GroupExport], absences: pl.DataFrame) -> pl.DataFrame:
    """Groups of which it is not known what they held until some export: they may have held everything."""
    lost = {export.group: export for export in exports if export.earlier_is_lost}
    parts = [absences.select("surrogate_id", "exports")]
    for group, export in lost.items():
        own = absences.filter(pl.col("group_id") == group).select("surrogate_id")
        others = absences.select("surrogate_id", "resource_type").unique().join(own, on="surrogate_id", how="anti")
        if others.is_empty():
            continue
        rank = ranked.rank[export.export_id] - 1
        ages = {name: ranked.after(group, name, rank) for name in others["resource_type"].unique()}
        age = pl.col("resource_type").replace_strict(ages, default=0, return_dtype=pl.Int64)
        parts.append(others.select("surrogate_id", age.alias("exports")))
    return pl.concat(parts)


# --- removed, or gone with its patient ------------------------------------------------------------------------------


def _with_category(p: Publication, exports: list[GroupExport], judged: pl.DataFrame) -> pl.DataFrame | None:
    """Adds category: vanished where the patient is still in a group, left_group where the patient is absent as well
    and for what belongs to no patient, NULL where nothing says whether the patient is there."""
    if judged.is_empty():
        return judged
    patients = _patients(p, judged)
    present = _present(p, exports, patients.select(pl.col("patient").alias("surrogate_id")).unique())
    if present is None:
        return None
    there = patients.join(present, left_on="patient", right_on="surrogate_id", how="semi").select("surrogate_id")
    gone = judged.filter(pl.col("resource_type") == "Patient").select("surrogate_id")
    away = patients.join(gone, left_on="patient", right_on="surrogate_id", how="semi").select("surrogate_id")

    def among(frame: pl.DataFrame) -> pl.Expr:
        return pl.col("surrogate_id").is_in(frame["surrogate_id"].implode())

    return judged.with_columns(
        pl.when(pl.col("resource_type") == "Patient")
        .then(pl.lit(LEFT_GROUP))
        .when(among(there))
        .then(pl.lit(VANISHED))
        .when(among(away) | ~among(patients))
        .then(pl.lit(LEFT_GROUP))
        .alias("category")
    )


def _patients(p: Publication, judged: pl.DataFrame) -> pl.DataFrame:
    """Whose the resources are by their own words. Columns: surrogate_id, patient (surrogate id)."""
    temporary_table(p.connection, "judged", judged.select("surrogate_id"))
    own = " UNION ".join(
        f"SELECT judged.surrogate_id, person.surrogate_id AS patient FROM pg_temp.judged"
        f" JOIN {lineage_table_name(table)} AS lineage USING (surrogate_id)"
        f" JOIN {p.cdm}.{table} AS row ON row.{primary_key(table) or 'person_id'} = lineage.row_id"
        f" JOIN lineage_person AS person ON person.row_id = row.person_id"
        for table in LINEAGE_TABLES
        if table != "person" and "person_id" in polars_schema(table)
    )
    found = read_frame(
        p.connection,
        "SELECT moved.from_surrogate_id, moved.to_surrogate_id FROM reference AS moved"
        " JOIN pg_temp.judged ON judged.surrogate_id = moved.from_surrogate_id WHERE moved.role = 'person_id'"
        f" UNION ALL SELECT * FROM ({own}) AS own WHERE NOT EXISTS (SELECT FROM reference AS moved"
        " WHERE moved.from_surrogate_id = own.surrogate_id AND moved.role = 'person_id')",
        {"surrogate_id": pl.Int64, "patient": pl.Int64},
    )
    arriving = judged.filter(~pl.col("is_loaded")).select("surrogate_id")
    if arriving.is_empty():
        return found
    staged = [
        p.staged.scan(table)
        .join(arriving.lazy(), on="surrogate_id", how="semi")
        .select("surrogate_id", pl.col("person_id").cast(pl.Int64).alias("patient"))
        .collect()
        for table in p.staged.kinds()
        if table in LINEAGE_TABLES and table != "person" and "person_id" in polars_schema(table)
    ]
    return pl.concat([found, *staged]).drop_nulls().unique("surrogate_id")


# --- what is done ---------------------------------------------------------------------------------------------------


def _ask(p: Publication) -> None:
    """Stop before much is deleted that nobody has confirmed."""
    removed: Counter[str] = Counter()
    for fate in (VANISHED, LEFT_GROUP):
        removed.update(p.report.vanished.get(fate, {}))
    many = {name: count for name, count in removed.items() if count >= CONFIRMED_FROM}
    if p.confirmed or not many:
        return
    rows = p.connection.execute(
        "SELECT kind.resource_type, count(*) FROM resource_state AS state JOIN site_resource_type AS kind"
        f" USING (site_resource_type_id) WHERE kind.site = %s AND {_SAYS_SOMETHING} AND kind.resource_type = ANY(%s)"
        " GROUP BY kind.resource_type ORDER BY kind.resource_type",
        (p.export.site, sorted(many)),
    ).fetchall()
    told = [
        f"{many[name]:,} of {loaded:,} {name} ({many[name] / loaded:.1%})"
        for name, loaded in rows
        if many[name] > CONFIRMED_ABOVE * loaded
    ]
    if told:
        raise ConfirmationNeeded(
            f"Export {p.export.export_id} of site {p.export.site} no longer holds {', '.join(told)}, and the site's"
            f" settings say that they are deleted (vanished: {p.site.vanished}, left_group: {p.site.left_group})."
            " Nothing was published.",
            "Ask the site whether that is right. If so, run"
            f" `epic-omop ingest --site {p.export.site} --export {p.export.export_id} --confirm` (in Dagster: run it again"
            " with the tag epic_omop/confirm: yes); if not, set the policies to keep in sites.yaml.",
        )


def forget(p: Publication) -> None:
    """In `resource_state`: what vanished is excluded, and its line does not count as unchanged when it comes again.

    A late export may hold what had vanished before it came, and be older than the last line: that one counts again.
    """
    if not p.vanished.is_empty():
        temporary_table(p.connection, "vanished_resource", p.vanished)
        with keeping_mark(p.connection):
            p.connection.execute(
                "UPDATE resource_state AS state SET outcome = 'excluded', reason = gone.reason, raw_hash_high = 0,"
                " raw_hash_low = 0, content_hash = NULL FROM pg_temp.vanished_resource AS gone"
                " WHERE state.surrogate_id = gone.surrogate_id"
            )
        p.known.remove(p.vanished["surrogate_id"])
        p.connection.execute(
            "UPDATE dead_letter AS letter SET state = 'superseded', closed_at = %s, closed_by_export_id = %s"
            " FROM pg_temp.vanished_resource AS gone WHERE letter.surrogate_id = gone.surrogate_id"
            " AND letter.state = 'open'",
            (p.now, p.export.export_id),
        )
    returned = p.came_back.join(p.outlived, on="surrogate_id", how="anti")
    if not returned.is_empty():
        temporary_table(p.connection, "returned_resource", returned)
        with keeping_mark(p.connection):
            p.connection.execute(
                "UPDATE resource_state AS state SET reason = %s FROM pg_temp.returned_resource AS back"
                " WHERE state.surrogate_id = back.surrogate_id AND state.outcome = 'excluded' AND state.reason = ANY(%s)",
                (RETURNED, [VANISHED, LEFT_GROUP]),
            )


def map_users_again(p: Publication) -> None:
    """What this export changed was mapped with facts of resources that were not known to have vanished: such
    resources do not count as changed any more, so that they are found among the dependents."""
    gone = pl.concat([p.vanished.select("surrogate_id"), p.outlived]).unique()
    if gone.is_empty():
        return
    temporary_table(p.connection, "gone_resource", gone)
    p.connection.execute(
        "CREATE TEMP TABLE user_of_gone ON COMMIT DROP AS"
        " SELECT DISTINCT from_surrogate_id AS surrogate_id FROM reference"
        " JOIN pg_temp.gone_resource AS gone ON gone.surrogate_id = to_surrogate_id"
        " WHERE role <> ALL(%s) AND state = 'resolved'",
        (NO_FACTS,),
    )
    p.connection.execute(
        "UPDATE reference SET state = 'stale' FROM pg_temp.gone_resource AS gone"
        " WHERE gone.surrogate_id = to_surrogate_id AND role <> ALL(%s) AND state = 'resolved'",
        (NO_FACTS,),
    )
    _forget_facts_about_others(p, gone)
    p.connection.execute(
        "DELETE FROM pg_temp.changed USING pg_temp.user_of_gone AS user_ WHERE changed.surrogate_id = user_.surrogate_id"
        " AND NOT EXISTS (SELECT FROM pg_temp.gone_resource AS gone WHERE gone.surrogate_id = changed.surrogate_id)"
    )


def _forget_facts_about_others(p: Publication, gone: pl.DataFrame) -> None:
    """Facts of lines that come too late, about other resources than their own."""
    facts = p.staged.scan(schemas.REFERENCE_VALUE).join(
        gone.lazy(), left_on="owner_surrogate_id", right_on="surrogate_id", how="semi"
    )
    about = facts.filter(pl.col("surrogate_id") != pl.col("owner_surrogate_id"))
    temporary_table(
        p.connection, "fact_of_gone", about.select("surrogate_id", "name", "owner_surrogate_id").unique().collect()
    )
    p.connection.execute(
        "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
        " SELECT surrogate_id, name, owner_surrogate_id, 'stale' FROM pg_temp.fact_of_gone"
        " JOIN pg_temp.changed USING (surrogate_id)"
        " ON CONFLICT (from_surrogate_id, role, to_surrogate_id) DO UPDATE SET state = 'stale'"
    )
    p.connection.execute(
        "INSERT INTO pg_temp.user_of_gone SELECT surrogate_id FROM pg_temp.fact_of_gone UNION"
        " SELECT fact.surrogate_id FROM pg_temp.former_fact AS fact JOIN pg_temp.gone_resource AS gone"
        " ON gone.surrogate_id = fact.owner_surrogate_id WHERE fact.surrogate_id <> fact.owner_surrogate_id"
    )
