"""Resources that their groups' complete exports have no longer: which they are, and what is done about it.

A resource has vanished when every group that ever had it has exported all of its type since, without it, and nothing
else (a crawl, a folder) has brought it since. The judgement follows from the exports, whatever the order in which
they are loaded. docs/vanished.md says the rules, docs/decisions/0011-vanished-resources.md how they are kept.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field, replace

import polars as pl

from omop_schema.exports import ExportKind
from pipeline.core.errors import ConfirmationNeeded
from pipeline.core.settings import PERSONAL_TYPES
from pipeline.publication.known_cache import KnownCache, keeping_mark
from pipeline.publication.link_roles import NO_FACTS
from pipeline.publication.members import read_members
from pipeline.publication.sql import Database
from pipeline.publication.steps.completeness import group_of
from pipeline.publication.steps.group_members import (
    GroupExport,
    current_members,
    group_exports,
    newest,
    note_members,
)
from pipeline.publication.tables import OF_PERSONS, patients_by_rows
from pipeline.publication.values import Absences, Incoming
from pipeline.staging import schemas

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


def judge(db: Database, incoming: Incoming) -> Absences:
    """What is to be removed now, the lines of this export that come too late, and the counts.

    Raises ConfirmationNeeded when more than 2 % of a type would be deleted and nobody has confirmed it.
    """
    group = group_of(db, incoming.export.export_id)
    came_back = note_members(db, incoming, group)
    nothing = Absences(came_back=came_back)
    exports = group_exports(db, incoming.export.site)
    if not exports:
        return nothing
    candidates = _candidates(db, incoming, came_back, of_a_group=group is not None)
    if candidates.is_empty():
        return nothing
    judged = _judged(db, incoming, exports, candidates, came_back)
    if isinstance(judged, str):
        return replace(nothing, warnings=[judged])
    if judged.is_empty():
        return nothing
    removed = judged.filter(pl.col("disposition").is_in([VANISHED, LEFT_GROUP]))
    outlived = removed.select("surrogate_id").join(came_back, on="surrogate_id", how="semi")
    counts: dict[str, dict[str, int]] = {}
    counted = judged.filter("is_loaded").group_by("disposition", "resource_type").len().sort(pl.all())
    for disposition, resource_type, count in counted.rows():
        counts.setdefault(disposition, {})[resource_type] = count
    _ask(db, incoming, counts)
    return replace(
        nothing,
        vanished=removed.filter("is_loaded").select("surrogate_id", pl.col("disposition").alias("reason")),
        outlived=outlived.clear() if incoming.over_newer else outlived,
        counts=counts,
    )


def _judged(
    db: Database, incoming: Incoming, exports: list[GroupExport], candidates: pl.DataFrame, came_back: pl.DataFrame
) -> pl.DataFrame | str:
    """The candidates that are absent, with their disposition; or why that is not known."""
    present = _present(incoming, exports, candidates.select("surrogate_id"))
    if isinstance(present, str):
        return present
    candidates = candidates.join(present, on="surrogate_id", how="anti")
    aged = _with_age(db, incoming, exports, candidates, came_back)
    judged = _with_category(db, incoming, exports, aged)
    if isinstance(judged, str) or judged.is_empty():
        return judged
    limits = {VANISHED: incoming.site.vanished_after, LEFT_GROUP: incoming.site.left_group_after}
    limit = pl.col("category").replace_strict(limits, default=None, return_dtype=pl.Int64)
    return judged.with_columns(
        pl.when(pl.col("category").is_null())
        .then(pl.lit("undecided"))
        .when(limit.is_null())
        .then(pl.lit("kept"))
        .when(pl.col("exports") < limit)
        .then(pl.lit("waiting"))
        .otherwise("category")
        .alias("disposition")
    )


def _candidates(db: Database, incoming: Incoming, came_back: pl.DataFrame, *, of_a_group: bool) -> pl.DataFrame:
    """What may have vanished: loaded resources that are absent somewhere, and what this export brings of such.

    Only exports of groups say something new of loaded ones. What was fetched by reference is exempt: it is in no
    group's export.
    """
    site = incoming.site
    exempt: list[str] = []
    if site.hydrate:
        exempt = [name for name in site.hydrate_types if name not in PERSONAL_TYPES]
    present = pl.DataFrame(schema=_CANDIDATE)
    if of_a_group:
        present = db.frame("absent_states", _CANDIDATE, {"site": incoming.export.site, "exempt": exempt})
    arriving = came_back.join(present.select("surrogate_id"), on="surrogate_id", how="anti")
    if arriving.is_empty():
        return present
    lines = incoming.staged.scan(schemas.OUTCOME).select("surrogate_id", "resource_type").drop_nulls()
    types = lines.join(arriving.lazy(), on="surrogate_id", how="semi").unique("surrogate_id").collect()
    brought = types.filter(~pl.col("resource_type").is_in(exempt)).with_columns(pl.lit(False).alias("is_loaded"))
    return pl.concat([present, brought.select(list(_CANDIDATE))])


def _present(incoming: Incoming, exports: list[GroupExport], resources: pl.DataFrame) -> pl.DataFrame | str:
    """Those that the newest export of any group has; a warning where the members of one are lost: any may be there."""
    found = [pl.DataFrame(schema=_ID)]
    for export in newest(exports).values():
        members = current_members(incoming, export)
        if members is None:
            return (
                f"The members of export {export.export_id} of group {export.group} are not known any more:"
                " nothing vanishes until that group is exported again."
            )
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


def _ranked(db: Database, incoming: Incoming, exports: list[GroupExport]) -> _Exports:
    own = {"site": incoming.export.site, "export_id": incoming.export.export_id}
    ranked = _Exports()
    in_groups = {export.export_id for export in exports}
    for rank, (export_id, kind) in enumerate(db.rows("site_exports", own)):
        ranked.rank[export_id] = rank
        if export_id not in in_groups and kind != ExportKind.REPLAY:
            ranked.others.append(export_id)
    for export in exports:
        for name in export.complete_types:
            ranked.complete.setdefault((export.group, name), []).append(ranked.rank[export.export_id])
    return ranked


def _with_age(
    db: Database, incoming: Incoming, exports: list[GroupExport], candidates: pl.DataFrame, came_back: pl.DataFrame
) -> pl.DataFrame:
    """Adds exports: from how many complete exports in a row each resource is absent, in the group that has the fewest.

    Those that are absent from none are left out.
    """
    ranked = _ranked(db, incoming, exports)
    db.put("absence_candidate", candidates.select("surrogate_id"))
    absences = db.frame("absences", _ABSENCE).join(candidates, on="surrogate_id")
    last = pl.col("last_export_id").replace_strict(ranked.rank, default=-1, return_dtype=pl.Int64)
    absences = absences.with_columns(last.alias("last")).join(
        _sightings(incoming, ranked, absences, came_back), on="surrogate_id", how="left"
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


def _sightings(incoming: Incoming, ranked: _Exports, absences: pl.DataFrame, came_back: pl.DataFrame) -> pl.DataFrame:
    """The last export of no group that brought a resource. Columns: surrogate_id, sighting (rank)."""
    since = absences["last_export_id"].replace_strict(ranked.rank, default=-1, return_dtype=pl.Int64).min()
    ids = absences.select("surrogate_id").unique()
    found = [pl.DataFrame(schema={"surrogate_id": pl.Int64, "sighting": pl.Int64})]
    for export_id in ranked.others:
        rank = ranked.rank[export_id]
        if since is None or rank <= int(since):  # type: ignore[arg-type] # the least of integers is one
            continue
        members = (
            came_back.lazy()
            if export_id == incoming.export.export_id
            else read_members(incoming.settings.home, incoming.export.site, export_id)
        )
        brought = ids if members is None else ids.lazy().join(members, on="surrogate_id", how="semi").collect()
        found.append(brought.with_columns(pl.lit(rank, dtype=pl.Int64).alias("sighting")))
    return pl.concat(found).group_by("surrogate_id").agg(pl.col("sighting").max())


def _with_lost(ranked: _Exports, exports: list[GroupExport], absences: pl.DataFrame) -> pl.DataFrame:
    """Groups whose members are not known until some export: any resource may have been one."""
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


def _with_category(
    db: Database, incoming: Incoming, exports: list[GroupExport], judged: pl.DataFrame
) -> pl.DataFrame | str:
    """Adds category: vanished where the patient is still in a group, left_group where the patient is absent as well
    and for what belongs to no patient, NULL where nothing says whether the patient is there. Or the
    warning of `_present`."""
    if judged.is_empty():
        return judged
    patients = _patients(db, incoming, judged)
    present = _present(incoming, exports, patients.select(pl.col("patient").alias("surrogate_id")).unique())
    if isinstance(present, str):
        return present
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


def _patients(db: Database, incoming: Incoming, judged: pl.DataFrame) -> pl.DataFrame:
    """Whose the resources are by their own words. Columns: surrogate_id, patient (surrogate id)."""
    db.put("judged", judged.select("surrogate_id"))
    schema = {"surrogate_id": pl.Int64, "patient": pl.Int64}
    found = db.frame("patients_of_judged", schema, patients_by_rows=patients_by_rows(db.cdm))
    arriving = judged.filter(~pl.col("is_loaded")).select("surrogate_id")
    if arriving.is_empty():
        return found
    staged = [
        incoming.staged.scan(table)
        .join(arriving.lazy(), on="surrogate_id", how="semi")
        .select("surrogate_id", pl.col("person_id").cast(pl.Int64).alias("patient"))
        .collect()
        for table in incoming.staged.kinds()
        if table in OF_PERSONS
    ]
    return pl.concat([found, *staged]).drop_nulls().unique("surrogate_id")


# --- what is done ---------------------------------------------------------------------------------------------------


def _ask(db: Database, incoming: Incoming, counts: dict[str, dict[str, int]]) -> None:
    """Stop before much is deleted that nobody has confirmed."""
    removed: Counter[str] = Counter()
    for reason in (VANISHED, LEFT_GROUP):
        removed.update(counts.get(reason, {}))
    many = {name: count for name, count in removed.items() if count >= CONFIRMED_FROM}
    if incoming.confirmed or not many:
        return
    export, site = incoming.export, incoming.site
    shares = [
        f"{many[name]:,} of {present:,} {name} ({many[name] / present:.1%})"
        for name, present in db.rows("resources_by_type", {"site": export.site, "types": sorted(many)})
        if many[name] > CONFIRMED_ABOVE * present
    ]
    if shares:
        raise ConfirmationNeeded(
            f"Export {export.export_id} of site {export.site} no longer holds {', '.join(shares)}, and the site's"
            f" settings say that they are deleted (vanished: {site.vanished}, left_group: {site.left_group})."
            " Nothing was published.",
            "Ask the site whether that is right. If so, run"
            f" `epic-omop ingest --site {export.site} --export {export.export_id} --confirm` (in Dagster: run it again"
            " with the tag epic_omop/confirm: yes); if not, set the policies to keep in sites.yaml.",
        )


def forget(db: Database, incoming: Incoming, absences: Absences, known: KnownCache) -> None:
    """In `resource_state`: what vanished is excluded, and its line does not count as unchanged when it comes again.

    A late export may have what had vanished before, and be older than the last line: that one counts again.
    """
    if not absences.vanished.is_empty():
        db.put("vanished_resource", absences.vanished)
        with keeping_mark(db.connection):
            db.execute("forget_vanished")
        known.remove(absences.vanished["surrogate_id"])
        db.execute("close_dead_letters_of_vanished", {"now": incoming.now, "export_id": incoming.export.export_id})
    returned = absences.came_back.join(absences.outlived, on="surrogate_id", how="anti")
    if not returned.is_empty():
        db.put("returned_resource", returned)
        with keeping_mark(db.connection):
            db.execute("note_returned", {"returned": RETURNED, "vanished": [VANISHED, LEFT_GROUP]})


def map_users_again(db: Database, incoming: Incoming, absences: Absences) -> None:
    """What this export changed was mapped with facts of resources that were not known to have vanished: such
    resources do not count as changed any more, so that they are found among the dependents."""
    gone = pl.concat([absences.vanished.select("surrogate_id"), absences.outlived]).unique()
    if gone.is_empty():
        return
    db.put("gone_resource", gone)
    db.execute("users_of_gone", {"no_facts": NO_FACTS})
    # Facts of lines that come too late, about other resources than their own.
    facts = incoming.staged.scan(schemas.REFERENCE_VALUE).join(
        gone.lazy(), left_on="owner_surrogate_id", right_on="surrogate_id", how="semi"
    )
    about = facts.filter(pl.col("surrogate_id") != pl.col("owner_surrogate_id"))
    db.put("fact_of_gone", about.select("surrogate_id", "name", "owner_surrogate_id").unique().collect())
    db.execute("facts_of_gone")
    db.execute("users_of_gone_unchanged")
