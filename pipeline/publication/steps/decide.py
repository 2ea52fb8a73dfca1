"""Which lines of an export count: the last of a resource, none older than what is known, none without its person, of the
records of one exposure the most definite ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from omop_schema.cdm import polars_schema
from omop_schema.etl import LINEAGE_TABLES
from omop_schema.exports import ExportKind
from pipeline.core.errors import ConfigurationError
from pipeline.core.line_codes import RejectionCode
from pipeline.publication.chains import in_cycles, resolved_chains
from pipeline.publication.members import read_accepted
from pipeline.publication.sql import Database
from pipeline.publication.steps.crosswalk import read_crosswalk
from pipeline.publication.steps.homes import find_homes
from pipeline.publication.steps.medication_records import count_once
from pipeline.publication.values import LINE, LINE_SCHEMA, Absences, Counted, Decisions, Homes, Incoming, loaded
from pipeline.staging import schemas
from pipeline.staging.outcomes import LineOutcome

__all__ = ["decide"]

#: Of a rejected line.
_REJECTED: dict[str, type[pl.DataType]] = {**LINE_SCHEMA, "code": pl.String, "person": pl.Int64}


@dataclass
class _Lines:
    """The export's lines that changed (LINE), with what was decided so far."""

    every: pl.DataFrame
    not_loaded: pl.DataFrame
    rejected: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_REJECTED))

    def loaded(self, frame: pl.DataFrame | None = None) -> pl.DataFrame:
        return loaded(self.every if frame is None else frame, self.not_loaded)

    def reject(self, lines: pl.DataFrame) -> None:
        """Reject lines (LINE, code, person) that are not out already."""
        rejected = lines.join(self.not_loaded, on=LINE, how="anti").select(*LINE, "code", "person")
        self.rejected = pl.concat([self.rejected, rejected])
        self.not_loaded = pl.concat([self.not_loaded, rejected.select(LINE)])


def decide(db: Database, incoming: Incoming, absences: Absences) -> Decisions:
    """What is decided of lines, persons and sub-encounters. Makes the temporary table `changed`: the resources that change.

    Raises ConfigurationError for a person crosswalk that makes a circle.
    """
    accepted = incoming.staged.scan(schemas.OUTCOME).filter(pl.col("outcome") != LineOutcome.REJECTED)
    arriving = accepted.select(LINE).collect().drop_nulls("surrogate_id")
    outlived = arriving.join(absences.outlived, on="surrogate_id", how="semi")
    older = _older_than_known(db, incoming, arriving)
    superseded = pl.concat([_repeated(incoming, arriving), older, outlived]).unique()
    lines = _Lines(pl.concat([arriving, _silent_lines(absences.vanished)]), superseded)
    merged = _merged(db, incoming, lines)
    without = _without_person(db, incoming, lines, merged)
    lines.reject(without.with_columns(pl.lit(RejectionCode.PERSON_UNKNOWN).alias("code")))
    links = _links(db, incoming, "part_of", RejectionCode.PART_OF_CYCLE, lines)
    children = resolved_chains(links, _known(db, incoming, links, "visit_occurrence", lines))
    changed = lines.loaded().select("surrogate_id")
    if changed["surrogate_id"].n_unique() < changed.height:  # which is seldom, and asked in a fraction of the time
        changed = changed.unique()
    # Resources of which no line is loaded; of a repeated one, a line is.
    dropped = lines.not_loaded.select("surrogate_id").unique().join(changed, on="surrogate_id", how="anti")
    dropped = pl.concat([dropped, absences.outlived]).unique()
    db.put("changed", changed)
    has_changes = not changed.is_empty()
    counted = count_once(db, incoming, lines.loaded()) if has_changes else Counted()
    homes = Homes()
    if has_changes:
        vanished = not absences.vanished.is_empty()
        homes = find_homes(db, incoming.staged, lines.loaded(), something_vanished=vanished)
    return Decisions(
        incoming.staged,
        superseded,
        lines.rejected,
        lines.not_loaded,
        dropped,
        merged,
        children,
        has_changes,
        counted,
        homes,
    )


def _silent_lines(resources: pl.DataFrame) -> pl.DataFrame:
    """What vanished is like a resource whose line says nothing any more; no line of a file has these numbers."""
    file_number, line = pl.lit(0, dtype=pl.Int32).alias("file_number"), pl.lit(0, dtype=pl.Int64).alias("line")
    return resources.select("surrogate_id", file_number, line)


def _merged(db: Database, incoming: Incoming, lines: _Lines) -> pl.DataFrame:
    """Persons whose events follow another one, by their own words or by the crosswalk. Columns: CHAIN_SCHEMA."""
    links = _links(db, incoming, "replaced_by", RejectionCode.REPLACED_BY_CYCLE, lines)
    crosswalk = read_crosswalk(incoming.settings.person_crosswalk, incoming.settings.surrogate_salt)
    links = pl.concat([links, crosswalk]).unique("from", keep="first", maintain_order=True)
    if not in_cycles(links).is_empty():
        raise ConfigurationError(
            "The person crosswalk and what patients say of themselves make a circle.",
            "Take one of the lines out of the crosswalk; nothing was published.",
        )
    return resolved_chains(links, _known(db, incoming, links, "person", lines))


def _links(db: Database, incoming: Incoming, fact: str, cycle_code: RejectionCode, lines: _Lines) -> pl.DataFrame:
    """Links from resource to resource that facts of one name say, free of cycles. Columns: from, next.

    A line that would close a cycle is rejected; what its resource has now stays.
    """
    stored = db.frame("resource_links", {"from": pl.Int64, "next": pl.Int64}, {"fact": fact})
    staged = incoming.staged.scan(schemas.REFERENCE_VALUE).filter(pl.col("name") == fact)
    arriving = lines.loaded(
        staged.select("surrogate_id", "file_number", "line", pl.col("value").cast(pl.Int64).alias("next")).collect()
    ).unique(LINE)
    if stored.is_empty() and arriving.is_empty():
        return stored
    links = _with_stored(arriving, stored, lines)
    cycles = in_cycles(links)
    if cycles.is_empty():
        return links
    closing = arriving.filter(pl.col("surrogate_id").is_in(cycles.implode()))
    nobody = pl.lit(None, dtype=pl.Int64).alias("person")
    lines.reject(closing.with_columns(pl.lit(cycle_code).alias("code"), nobody))
    return _with_stored(lines.loaded(arriving), stored, lines)


def _with_stored(arriving: pl.DataFrame, stored: pl.DataFrame, lines: _Lines) -> pl.DataFrame:
    """What this export says, and for all resources that it does not change what is stored."""
    counted = lines.loaded().select(pl.col("surrogate_id").alias("from"))
    new = arriving.select(pl.col("surrogate_id").alias("from"), "next")
    return pl.concat([new, stored.join(counted, on="from", how="anti")])


def _known(db: Database, incoming: Incoming, links: pl.DataFrame, table: str, lines: _Lines) -> pl.Series:
    """Those of the links' targets that are loaded, or have a row of an entity table in this export."""
    if links.is_empty():
        return links["next"]
    db.put("link_target", links.select(pl.col("next").unique()))
    stored = db.frame("loaded_link_targets", {"surrogate_id": pl.Int64})
    stored = stored.join(lines.loaded(), on="surrogate_id", how="anti")
    arriving = lines.loaded(incoming.staged.scan(table).select(LINE).collect()).select("surrogate_id")
    return pl.concat([stored, arriving])["surrogate_id"]


def _repeated(incoming: Incoming, lines: pl.DataFrame) -> pl.DataFrame:
    """A resource that repeats in an export is one resource: its last line in the order of files wins."""
    unchanged = incoming.staged.scan(schemas.UNCHANGED).select(LINE)
    unchanged = unchanged.join(lines.lazy().select("surrogate_id"), on="surrogate_id", how="semi")
    every = pl.concat([lines, unchanged.collect()])
    if every["surrogate_id"].n_unique() == every.height:
        return lines.clear()
    last = every.sort("file_number", "line").unique("surrogate_id", keep="last")
    return lines.join(last, on=LINE, how="anti")


def _older_than_known(db: Database, incoming: Incoming, lines: pl.DataFrame) -> pl.DataFrame:
    """An older export never overwrites a newer one: lines of resources that a newer export had as well.

    The line that made what is known is not older than what is known, also when newer exports had it unchanged: it may
    be mapped again, in a replay (what it depends on has changed) or because its export is published again.
    """
    export = incoming.export
    if incoming.over_newer:
        return lines.clear()
    newer = db.rows("newer_exports", {"site": export.site, "transaction_time": export.transaction_time})
    if not newer:
        return lines.clear()
    accepted = read_accepted(incoming.settings.home, export.site, [row[0] for row in newer])
    db.put("arriving_line", lines.select("surrogate_id").unique())
    own = {
        "transaction_time": export.transaction_time,
        "is_replay": export.kind == ExportKind.REPLAY,
        "export_id": export.export_id,
    }
    known = db.frame("known_as_newer", {"surrogate_id": pl.Int64}, own)
    current = db.frame("known_as_current", {"surrogate_id": pl.Int64}, own)
    confirmed = accepted.join(current.lazy(), on="surrogate_id", how="anti")
    return lines.lazy().join(pl.concat([known.lazy(), confirmed]), on="surrogate_id", how="semi").collect()


def _without_person(db: Database, incoming: Incoming, lines: _Lines, merged: pl.DataFrame) -> pl.DataFrame:
    """Lines with a row whose person is neither loaded nor in this export. Columns: LINE, person.

    A person whose Patient is among the counted lines and makes no row any more is not loaded.
    """
    staged, counted = incoming.staged, lines.loaded()
    rows = [
        staged.scan(table).select(*LINE, pl.col("person_id").alias("person"))
        for table in staged.kinds()
        if table in LINEAGE_TABLES and table != "person" and "person_id" in polars_schema(table)
    ]
    schema: dict[str, type[pl.DataType]] = {**LINE_SCHEMA, "person": pl.Int64}
    if not rows:
        return pl.DataFrame(schema=schema)
    arriving = lines.loaded(staged.scan("person").select(LINE).collect()).select(pl.col("surrogate_id").alias("person"))
    arriving = pl.concat([arriving, merged.select(pl.col("from").alias("person"))])
    persons = pl.concat([frame.select("person") for frame in rows]).unique().collect()
    unknown = persons.join(arriving, on="person", how="anti")
    db.put("named_person", unknown)
    known = db.frame("persons_with_row", {"person": pl.Int64})
    known = known.join(counted, left_on="person", right_on="surrogate_id", how="anti")
    unknown = unknown.join(known, on="person", how="anti")
    if unknown.is_empty():
        return pl.DataFrame(schema=schema)
    return pl.concat([frame.join(unknown.lazy(), on="person", how="semi") for frame in rows]).unique(LINE).collect()
