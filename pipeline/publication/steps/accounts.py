"""Dead letters, issues, and the accounts: every line has exactly one outcome, or nothing is published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from pipeline.core.errors import AccountingError
from pipeline.core.line_codes import RejectionCode
from pipeline.publication import dead_letters as dead_letters_table
from pipeline.publication.accounting import wrong_accounts
from pipeline.publication.sql import Database
from pipeline.publication.values import LINE, Decisions, Incoming
from pipeline.staging import schemas
from pipeline.staging.outcomes import LineOutcome
from pipeline.staging.parts import StagedExport
from pipeline.staging.schemas import FileLines
from pipeline.warehouse.copying import copy_frame

__all__ = [
    "Accounts",
    "final_outcomes",
    "mapping_rates",
    "save_accounts",
    "save_coverage",
    "save_dead_letters",
    "save_issues",
    "value_checks",
]

#: The reason in the dead letter of a line that publication rejects, by code.
_REASONS = {
    RejectionCode.PERSON_UNKNOWN: "the person is not loaded",
    RejectionCode.REPLACED_BY_CYCLE: "the patients replace each other in a circle",
    RejectionCode.PART_OF_CYCLE: "the encounters are parts of each other in a circle",
}

_COUNTED = {
    "file_number": pl.Int32,
    "resource_type": pl.String,
    "outcome": pl.String,
    "reason": pl.String,
    "count": pl.UInt32,
}


@dataclass(frozen=True)
class Accounts:
    """Lines of an export by outcome."""

    outcomes: Counter[str]
    #: of the unchanged ones: other bytes, the same content
    unchanged_by_content: int


def save_dead_letters(db: Database, incoming: Incoming, decisions: Decisions) -> None:
    """Rejected lines become dead letters; letters of resources that were accepted are closed."""
    rejections = incoming.staged.scan(schemas.REJECTION).collect()
    dead_letters_table.record(db, incoming.export, pl.concat([rejections, _rejections(decisions)]), incoming.now)
    dead_letters_table.close(db, incoming.export, incoming.staged, decisions.not_loaded, incoming.now)


def _rejections(decisions: Decisions) -> pl.DataFrame:
    """The lines that publication itself rejects. Columns: REJECTION_SCHEMA."""
    if decisions.rejected.is_empty():
        return pl.DataFrame(schema=schemas.REJECTION_SCHEMA)
    lines = decisions.staged.scan(schemas.OUTCOME).drop("reason").collect()
    rejected = decisions.rejected.select(*LINE, "code", pl.col("person").alias("cause"))
    lines = lines.join(rejected, on=LINE, how="inner").with_columns(
        pl.lit("publish").alias("stage"),
        pl.lit(None, dtype=pl.String).alias("path"),
        pl.col("code").replace_strict(_REASONS, return_dtype=pl.String).alias("reason"),
    )
    return lines.select(list(schemas.REJECTION_SCHEMA))


def save_issues(db: Database, export_id: int, decisions: Decisions, now: datetime) -> None:
    """What was decided below the line, and unmapped codes, by resource: those of its former version go."""
    db.execute("remove_issues")
    export = pl.lit(export_id, dtype=pl.Int64).alias("export_id")
    rowless = pl.concat([decisions.dropped, decisions.excluded.select("surrogate_id")])
    for part in decisions.staged.frames(schemas.ISSUE):
        frame = part.join(rowless, on="surrogate_id", how="anti").unique().with_columns(export)
        copy_frame(db.connection, "row_issue", frame)
    db.execute("remove_unmapped")
    coding = ("coding_id", "resource_type", "element", "system", "code", "display", "text", "tried")
    found = decisions.staged.scan(schemas.UNMAPPED).select(coding).sort(coding, nulls_last=True)
    met = found.unique("coding_id", keep="first", maintain_order=True).sort("coding_id").collect()
    if met.is_empty():
        return
    db.put("met_coding", met)
    db.execute("save_unmapped_codings", {"now": now})
    columns = ["surrogate_id", "file_number", "line", "coding_id", "count"]
    for part in decisions.staged.frames(schemas.UNMAPPED, columns):
        uses = part.join(decisions.not_loaded, on=LINE, how="anti").join(rowless, on="surrogate_id", how="anti")
        counted = uses.group_by("surrogate_id", "coding_id", maintain_order=True).agg(pl.col("count").sum())
        copy_frame(db.connection, "unmapped_use", counted.with_columns(export))


def mapping_rates(staged: StagedExport) -> dict[str, tuple[int, int]]:
    """Resource type → (rows with a standard concept, rows with a code)."""
    rates = (
        staged.scan(schemas.MAPPING).filter("is_event").group_by("resource_type").agg(pl.col("mapped", "total").sum())
    )
    rates = rates.sort("resource_type").select("resource_type", "mapped", "total")
    return {name: (mapped, total) for name, mapped, total in rates.collect().iter_rows()}


def save_coverage(db: Database, incoming: Incoming, vocabulary_hash: str | None, now: datetime) -> None:
    """`etl.coverage`: codes and those of them with a concept, in the rows that this export made, by table, element, system."""
    export = incoming.export
    db.execute("forget_coverage", {"export_id": export.export_id})
    key = ["resource_type", "table", "element", "system"]
    counted = incoming.staged.scan(schemas.MAPPING).group_by(key).agg(pl.col("total", "mapped").sum())
    rows = counted.collect(engine="streaming").sort(key, nulls_last=True)
    copy_frame(
        db.connection,
        "coverage",
        rows.select(
            pl.lit(export.export_id).alias("export_id"),
            pl.lit(export.site).alias("site"),
            pl.lit(now).alias("published_at"),
            pl.lit(vocabulary_hash, dtype=pl.String).alias("vocabulary_hash"),
            pl.col("table").alias("cdm_table"),
            "resource_type",
            "element",
            pl.col("system").fill_null(""),
            pl.col("total").alias("rows"),
            "mapped",
        ),
    )


def value_checks(db: Database, decisions: Decisions) -> list[dict[str, Any]]:
    """What rules about numbers found in the lines that count: finding, action, concept (id and name), unit, count.

    No patient is in it. The most frequent first.
    """
    if not decisions.staged.parts(schemas.VALUE_CHECK):
        return []
    keys = ["finding", "action", "concept_id", "unit_concept_id"]
    counted = (
        decisions.staged.scan(schemas.VALUE_CHECK)
        .join(decisions.not_loaded.lazy(), on=LINE, how="anti")
        .join(decisions.dropped.lazy(), on="surrogate_id", how="anti")
        .group_by(keys)
        .agg(pl.col("count").sum())
        .collect(engine="streaming")
        .sort(["count", *keys], descending=[True, *[False] * 4])
    )
    ids = pl.concat([counted["concept_id"], counted["unit_concept_id"]]).drop_nulls().unique().sort().to_list()
    names = {concept_id: (name, code) for concept_id, name, code in db.rows("names_of_concepts", {"ids": ids})}
    return [
        {
            "finding": finding,
            "action": action,
            "concept_id": concept,
            "concept": names.get(concept, (None, None))[0],
            "unit": names.get(unit, (None, None))[1],
            "count": count,
        }
        for finding, action, concept, unit, count in counted.iter_rows()
    ]


def save_accounts(db: Database, export_id: int, files: Sequence[FileLines], final: pl.DataFrame) -> Accounts:
    """Write the account of every file; `pipeline.publication.accounting` says the rule.

    `final`: see `final_outcomes`. Raises AccountingError when lines and outcomes of a file do not add up: nothing is
    published.
    """
    counts: dict[int, Counter[str]] = {
        file.file_number: Counter({LineOutcome.UNCHANGED: file.unchanged}) for file in files
    }
    for number, outcome, count in final.group_by("file_number", "outcome").agg(pl.col("count").sum()).iter_rows():
        if number not in counts:
            raise AccountingError(
                f"Export {export_id} has outcomes of file {number}, which was not transformed.", _DEFECT
            )
        counts[number][outcome] = count
    # An export that is published again (a backfill) is counted again, not twice.
    db.execute("forget_exclusions", {"export_id": export_id})
    _write(db, export_id, files, counts)
    for wrong in wrong_accounts(db.connection, export_id=export_id):
        raise AccountingError(
            f"File {wrong.file} of export {export_id} has {wrong.lines} lines but {wrong.outcomes} outcomes.", _DEFECT
        )
    excluded = (
        final.filter(pl.col("outcome") == LineOutcome.EXCLUDED)
        .group_by("file_number", "resource_type", "reason")
        .agg(pl.col("count").sum())
        .with_columns(pl.lit(export_id).alias("export_id"))
    )
    copy_frame(db.connection, "exclusion_count", excluded)
    outcomes = Counter[str]()
    for count in counts.values():
        outcomes.update(count)
    return Accounts(outcomes, sum(file.unchanged_by_content for file in files))


_DEFECT = "Nothing was published. This is a defect of epic-omop: please report it with these numbers."


def _write(db: Database, export_id: int, files: Sequence[FileLines], counts: dict[int, Counter[str]]) -> None:
    """One statement for all files, of which a large export has thousands."""
    if not files:
        return
    columns = {
        "file_number": [file.file_number for file in files],
        "lines": [file.lines for file in files],
        "by_content": [file.unchanged_by_content for file in files],
        **{name.value: [counts[file.file_number][name] for file in files] for name in LineOutcome},
    }
    written = {number for (number,) in db.rows("save_accounts", {"export_id": export_id, **columns})}
    for file in files:
        if file.file_number not in written:
            raise AccountingError(
                f"File {file.file_number} of export {export_id} was landed with another number of"
                f" lines than the {file.lines} that were transformed.",
                "Nothing was published. Run `epic-omop verify` and land the export again.",
            )


def final_outcomes(decisions: Decisions) -> pl.DataFrame:
    """How many lines of each file and resource type have which outcome, and for which reason; part by part.

    Asks nothing of the server. Columns: file_number, resource_type, outcome, reason, count.
    """
    superseded = decisions.superseded.with_columns(pl.lit(LineOutcome.SUPERSEDED.value).alias("final"))
    rejected = decisions.rejected.select(*LINE, pl.lit(LineOutcome.REJECTED.value).alias("rejected"))
    excluded = pl.lit(LineOutcome.EXCLUDED.value).alias("excluded")
    by_publication = decisions.excluded.select(*LINE, excluded, pl.col("reason").alias("own_reason"))
    counted = []
    for part in decisions.staged.frames(schemas.OUTCOME, [*LINE, "resource_type", "outcome", "reason"]):
        final = part.join(superseded, on=LINE, how="left", nulls_equal=True).join(rejected, on=LINE, how="left")
        final = final.join(by_publication, on=LINE, how="left").with_columns(
            pl.coalesce("final", "rejected", "excluded", "outcome").alias("outcome"),
            pl.coalesce("own_reason", "reason").alias("reason"),
        )
        counted.append(final.group_by("file_number", "resource_type", "outcome", "reason").agg(pl.len().alias("count")))
    return pl.concat(counted) if counted else pl.DataFrame(schema=_COUNTED)
