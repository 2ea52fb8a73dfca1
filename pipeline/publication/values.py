"""What the steps of a publication take and leave. Plain values: no step changes what another one left.

| step | takes | leaves |
|---|---|---|
| `vanished.judge` | Incoming | Absences |
| `decide.decide` | Incoming, Absences | Decisions, with Counted; temporary table `changed` |
| `medication_records.save_records` | Decisions | rows of `etl.medication_record` |
| `former_rows.remove_former_rows` | Decisions | FormerRows; temporary tables `former`, `removed_<table>` |
| `references.replace_facts` | Decisions | temporary table `former_fact` |
| `entities.write_entities` | Incoming, Decisions, StandIns | Entities |
| `visits.place_children` | Incoming, Decisions, Entities | Entities with details |
| `events.write_events` | Incoming, Decisions, Entities, FormerRows, BulkLoad | Written, a table |
| `references.replace_references` | Decisions, the frames of Written | rows of `etl.reference` |
| `states.save_states`, `vanished.forget` | Incoming, Decisions, Absences | rows of `etl.resource_state` |
| `accounts.…` | Incoming, Decisions | Accounts |
| `dependents.find_dependents` | Incoming, Decisions, StandIns | lines that are mapped again |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from pipeline.core.settings import Settings, SiteSettings
from pipeline.landing.store import LandedExport
from pipeline.publication.chains import CHAIN_SCHEMA
from pipeline.publication.double_counting import COUNTED_ELSEWHERE
from pipeline.publication.ids import EntityIds
from pipeline.staging.parts import StagedExport

__all__ = [
    "DETAIL_SCHEMA",
    "ID_SCHEMA",
    "LINE",
    "LINE_SCHEMA",
    "PERSONS_HOME",
    "Absences",
    "Counted",
    "Decisions",
    "Entities",
    "FormerRows",
    "Homes",
    "Incoming",
    "RowCounts",
    "Written",
]

#: The key of an export's line.
LINE = ["surrogate_id", "file_number", "line"]
#: Not as a frame: no query may run while modules are imported, or processes that are forked later hang.
LINE_SCHEMA: dict[str, type[pl.DataType]] = {"surrogate_id": pl.Int64, "file_number": pl.Int32, "line": pl.Int64}
ID_SCHEMA: dict[str, type[pl.DataType]] = {"surrogate_id": pl.Int64}

#: Why a person's home, and what is a part of it, has no row: the reason in mappings/Location.yaml.
PERSONS_HOME = "persons_home"

#: Sub-encounters in visit_detail that staged rows refer to.
DETAIL_SCHEMA = dict.fromkeys(("surrogate_id", "detail_row_id", "visit_row_id"), pl.Int64)


@dataclass
class RowCounts:
    """Rows of CDM tables that a step wrote."""

    inserted: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    updated: Counter[str] = field(default_factory=Counter)

    def add(self, other: RowCounts) -> None:
        self.inserted.update(other.inserted)
        self.deleted.update(other.deleted)
        self.updated.update(other.updated)


@dataclass(frozen=True)
class Incoming:
    """The export that is published, and what settings and caller say of it."""

    export: LandedExport
    staged: StagedExport
    settings: Settings
    site: SiteSettings
    #: resource type → fingerprint, and "" for all others
    fingerprints: Mapping[str, int]
    now: datetime
    #: whether nothing was ever loaded: no resource has a former version, and nothing waits for one
    is_first: bool
    #: whether a person has confirmed that vanished resources are deleted, however many
    confirmed: bool = False
    #: whether a person has decided that this export's lines count although newer exports have come
    over_newer: bool = False

    @property
    def deletions(self) -> list[int]:
        """Numbers of the files whose entries say that a resource is deleted."""
        return [file.number for file in self.export.deleted]


@dataclass(frozen=True)
class Absences:
    """What the exports of the site's groups say of resources that are absent from some."""

    #: resources whose rows go: surrogate_id, reason
    vanished: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={"surrogate_id": pl.Int64, "reason": pl.String})
    )
    #: of this export's resources, those that a newer export has no longer, and all that a group had been without
    outlived: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=ID_SCHEMA))
    came_back: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=ID_SCHEMA))
    #: disposition → resource type → loaded resources
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def _no_counts() -> pl.DataFrame:
    return pl.DataFrame(schema={**ID_SCHEMA, "cdm_table": pl.String, "counts": pl.Boolean})


@dataclass(frozen=True)
class Counted:
    """Of several records of one exposure, which count (`pipeline.publication.steps.medication_records`)."""

    #: lines (LINE, cdm_table) whose rows in a table are not made: a more definite record has one in their place
    rows: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={**LINE_SCHEMA, "cdm_table": pl.String}))
    #: those of the lines (LINE) that have no row at all, and are excluded
    lines: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LINE_SCHEMA))
    #: rows for `etl.medication_record`
    records: pl.DataFrame = field(default_factory=_no_counts)
    #: known records that count otherwise than before, and did not come: surrogate_id, cdm_table, counts
    recounted: pl.DataFrame = field(default_factory=_no_counts)


@dataclass(frozen=True)
class Homes:
    """Places that are parts of a person's home (`pipeline.publication.steps.homes`)."""

    #: lines (LINE) of the export that are excluded
    lines: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LINE_SCHEMA))
    #: known places (surrogate_id) that are parts of one now or no more, and did not come
    moved: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=ID_SCHEMA))


@dataclass(frozen=True)
class Decisions:
    """Which lines of the export count, and where its persons and encounters belong."""

    staged: StagedExport
    #: lines (LINE) that are older than what is known, or repeated
    superseded: pl.DataFrame
    #: lines that publication rejects: LINE, code, person (surrogate id of the one that is missing, or NULL)
    rejected: pl.DataFrame
    #: superseded and rejected lines (LINE)
    not_loaded: pl.DataFrame
    #: resources (surrogate_id) of which no line is loaded; of a repeated one, a line is
    dropped: pl.DataFrame
    #: persons whose events follow another one, and sub-encounters of visits: from, next, last (surrogate ids)
    merged: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CHAIN_SCHEMA))
    children: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CHAIN_SCHEMA))
    #: whether anything changes: the temporary table `changed` has rows
    has_changes: bool = False
    counted: Counted = field(default_factory=Counted)
    homes: Homes = field(default_factory=Homes)

    @property
    def excluded(self) -> pl.DataFrame:
        """Lines that publication excludes, although they are loaded otherwise: LINE, reason."""
        reasons = ((self.counted.lines, COUNTED_ELSEWHERE), (self.homes.lines, PERSONS_HOME))
        return pl.concat([lines.with_columns(pl.lit(reason).alias("reason")) for lines, reason in reasons])

    def loaded(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Those of a frame's rows (with LINE) whose lines are loaded, also if their exposure is counted elsewhere."""
        return loaded(frame, self.not_loaded)

    def of_table(self, frame: pl.DataFrame, table: str) -> pl.DataFrame:
        """Those of a table's staged rows that it is to have."""
        return loaded(self.loaded(frame), self.counted.rows.filter(pl.col("cdm_table") == table))

    def rows(self, table: str) -> pl.DataFrame:
        """All staged rows of an entity table whose lines are loaded, in the order of the input.

        Merged persons have no row of their own, and sub-encounters of visits none in visit_occurrence.
        """
        parts = self.staged.parts(table)
        if not parts:
            return pl.DataFrame(schema=dict.fromkeys(("surrogate_id", "row_key"), pl.Int64))
        rows = pl.concat([self.loaded(pl.read_parquet(part)) for part in parts])
        if table in _OF_PLACES:
            rows = loaded(rows, self.homes.lines)
        elsewhere = {"person": self.merged, "visit_occurrence": self.children}.get(table)
        if elsewhere is None or elsewhere.is_empty():
            return rows
        return rows.join(elsewhere, left_on="surrogate_id", right_on="from", how="anti", maintain_order="left")


#: Entity tables with the rows of places.
_OF_PLACES = ("care_site", "location")


def loaded(frame: pl.DataFrame, not_loaded: pl.DataFrame) -> pl.DataFrame:
    """A frame's rows (with LINE) but those of the lines that are not loaded."""
    return frame if not_loaded.is_empty() else frame.join(not_loaded, on=LINE, how="anti", maintain_order="left")


@dataclass(frozen=True)
class FormerRows:
    """What former versions of the changed resources had."""

    counts: RowCounts = field(default_factory=RowCounts)
    #: table → surrogate_id, row_key, row_id of removed rows, whose ids are used again
    ids: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    #: entity tables with a temporary table `removed_<table>`
    removed_from: frozenset[str] = frozenset()
    #: whether there is the temporary table `left_location`
    left_locations: bool = False


@dataclass(frozen=True)
class Written:
    """Rows that a step wrote, and rows for `etl.reference` that it found: links that wait, or follow something."""

    counts: RowCounts = field(default_factory=RowCounts)
    references: list[pl.DataFrame] = field(default_factory=list)


@dataclass(frozen=True)
class Entities:
    """The rows that other rows refer to: to which of them the export's links lead."""

    ids: EntityIds
    #: entity table → surrogate ids of rows that were not there before
    new_rows: Mapping[str, pl.Series]
    #: entity table → surrogate_id, row_id: rows that references lead to by what stands for their resource
    stand_ins: Mapping[str, pl.DataFrame]
    #: DETAIL_SCHEMA
    details: pl.DataFrame
    written: Written
