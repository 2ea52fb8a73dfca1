"""Dead letters, issues, and the accounts: every line has exactly one outcome, or nothing is published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import polars as pl

from pipeline.core.errors import AccountingError
from pipeline.publication import dead_letters as letters_table
from pipeline.publication.context import LINE, Publication
from pipeline.staging import schemas
from pipeline.staging.schemas import FileLines
from pipeline.warehouse.copying import copy_frame, temporary_table

__all__ = ["account", "dead_letters", "final_outcomes", "forget_accounts", "issues"]

#: What the dead letter of a line says that publication refuses: code → reason.
_REASONS = {
    "person_unknown": "the person is not loaded",
    "replaced_by_cycle": "the patients replace each other in a circle",
    "part_of_cycle": "the encounters are parts of each other in a circle",
}

#: Of a line; each is a column of `export_file`.
_OUTCOMES = ("loaded", "unchanged", "superseded", "excluded", "rejected")

_COUNTED = {
    "file_number": pl.Int32,
    "resource_type": pl.String,
    "outcome": pl.String,
    "reason": pl.String,
    "count": pl.UInt32,
}


def dead_letters(p: Publication) -> None:
    """Rejected lines become dead letters; letters of resources that came through are closed."""
    rejections = p.staged.scan(schemas.REJECTION).collect()
    letters_table.record(p.connection, p.export, pl.concat([rejections, _refusals(p)]), p.now)
    letters_table.close(p.connection, p.export, p.staged, p.not_loaded, p.now)


def _refusals(p: Publication) -> pl.DataFrame:
    """The lines that publication itself rejects. Columns: REJECTION_SCHEMA."""
    if p.refused.is_empty():
        return pl.DataFrame(schema=schemas.REJECTION_SCHEMA)
    lines = p.staged.scan(schemas.OUTCOME).drop("reason").collect()
    refused = p.refused.select(*LINE, "code", pl.col("person").alias("cause"))
    lines = lines.join(refused, on=LINE, how="inner").with_columns(
        pl.lit("publish").alias("stage"),
        pl.lit(None, dtype=pl.String).alias("path"),
        pl.col("code").replace_strict(_REASONS, return_dtype=pl.String).alias("reason"),
    )
    return lines.select(list(schemas.REJECTION_SCHEMA))


def issues(p: Publication) -> None:
    """What was decided below the line, unmapped codes, and the share of mapped ones."""
    p.connection.execute(
        "DELETE FROM row_issue USING pg_temp.former AS former WHERE row_issue.surrogate_id = former.surrogate_id"
    )
    export_id = pl.lit(p.export.export_id, dtype=pl.Int64).alias("export_id")
    for part in p.staged.frames(schemas.ISSUE):
        frame = part.join(p.dropped, on="surrogate_id", how="anti").unique().with_columns(export_id)
        copy_frame(p.connection, "row_issue", frame)
    _unmapped_codes(p)
    rates = p.staged.scan(schemas.MAPPING).group_by("resource_type").agg(pl.col("mapped", "total").sum())
    rates = rates.sort("resource_type").select("resource_type", "mapped", "total")
    p.report.mapping_rates = {name: (mapped, total) for name, mapped, total in rates.collect().iter_rows()}


def _unmapped_codes(p: Publication) -> None:
    """Codes without a concept, by resource: those of its former version go."""
    p.connection.execute(
        "DELETE FROM unmapped_use USING pg_temp.former AS former WHERE unmapped_use.surrogate_id = former.surrogate_id"
    )
    coding = ("coding_id", "resource_type", "element", "system", "code", "display")
    met = p.staged.scan(schemas.UNMAPPED).select(coding).unique("coding_id").sort("coding_id").collect()
    if met.is_empty():
        return
    temporary_table(p.connection, "met_coding", met)
    p.connection.execute(
        f"INSERT INTO unmapped_coding ({', '.join(coding)}) SELECT {', '.join(coding)} FROM pg_temp.met_coding"
        " ON CONFLICT DO NOTHING"
    )
    for part in p.staged.frames(schemas.UNMAPPED, ["surrogate_id", "file_number", "line", "coding_id", "count"]):
        uses = part.join(p.not_loaded, on=LINE, how="anti").join(p.dropped, on="surrogate_id", how="anti")
        counted = uses.group_by("surrogate_id", "coding_id", maintain_order=True).agg(pl.col("count").sum())
        export_id = pl.lit(p.export.export_id, dtype=pl.Int64).alias("export_id")
        copy_frame(p.connection, "unmapped_use", counted.with_columns(export_id))


def forget_accounts(p: Publication) -> None:
    """An export that is published again (a backfill) is counted again, not twice: what belongs to it, not to resources."""
    p.connection.execute("DELETE FROM exclusion_count WHERE export_id = %s", (p.export.export_id,))


def account(p: Publication, files: Sequence[FileLines], final: pl.DataFrame) -> None:
    """lines = loaded + unchanged + superseded + excluded + rejected, for every file, or nothing is published.

    `final`: see `final_outcomes`.
    """
    counts: dict[int, Counter[str]] = {}
    for number, outcome, count in final.group_by("file_number", "outcome").agg(pl.col("count").sum()).iter_rows():
        counts.setdefault(number, Counter())[outcome] = count
    found: list[tuple[int, ...]] = []
    for file in files:
        count = counts.get(file.file_number, Counter())
        count["unchanged"] = file.unchanged
        if sum(count.values()) != file.lines:
            raise AccountingError(
                f"File {file.file_number} of export {p.export.export_id} has {file.lines} lines"
                f" but {sum(count.values())} outcomes ({dict(count)}).",
                "Nothing was published. This is a defect of epic-omop: please report it with these numbers.",
            )
        p.report.outcomes.update(count)
        p.report.unchanged_by_content += file.unchanged_by_content
        found.append((file.file_number, file.lines, file.unchanged_by_content, *(count[name] for name in _OUTCOMES)))
    _save_accounts(p, found)
    excluded = (
        final.filter(pl.col("outcome") == "excluded")
        .group_by("file_number", "resource_type", "reason")
        .agg(pl.col("count").sum())
        .with_columns(pl.lit(p.export.export_id).alias("export_id"))
    )
    copy_frame(p.connection, "exclusion_count", excluded)


def _save_accounts(p: Publication, found: Sequence[tuple[int, ...]]) -> None:
    """One statement for all files, of which a large export has thousands. Rows: number, lines, by content, _OUTCOMES."""
    if not found:
        return
    updated = p.connection.execute(
        "UPDATE export_file AS file SET unchanged_by_content = own.by_content,"
        f" {', '.join(f'{name} = own.{name}' for name in _OUTCOMES)}"
        f" FROM unnest({', '.join(['%s::bigint[]'] * (3 + len(_OUTCOMES)))})"
        f" AS own (file_number, lines, by_content, {', '.join(_OUTCOMES)})"
        " WHERE file.export_id = %s AND file.file_number = own.file_number AND file.lines = own.lines"
        " RETURNING file.file_number",
        (*map(list, zip(*found, strict=True)), p.export.export_id),
    )
    written = {number for (number,) in updated.fetchall()}
    for number, lines, *_ in found:
        if number not in written:
            raise AccountingError(
                f"File {number} of export {p.export.export_id} was landed with another number of"
                f" lines than the {lines} that were transformed.",
                "Nothing was published. Run `epic-omop verify` and land the export again.",
            )


def final_outcomes(p: Publication) -> pl.DataFrame:
    """How many lines of each file and resource type have which outcome, and for which reason; part by part.

    Asks nothing of the server. Columns: file_number, resource_type, outcome, reason, count.
    """
    superseded = p.superseded.with_columns(pl.lit("superseded").alias("final"))
    refused = p.refused.select(*LINE, pl.lit("rejected").alias("refused"))
    counted = []
    for part in p.staged.frames(schemas.OUTCOME, [*LINE, "resource_type", "outcome", "reason"]):
        final = part.join(superseded, on=LINE, how="left", nulls_equal=True).join(refused, on=LINE, how="left")
        final = final.with_columns(pl.coalesce("final", "refused", "outcome").alias("outcome"))
        counted.append(final.group_by("file_number", "resource_type", "outcome", "reason").agg(pl.len().alias("count")))
    return pl.concat(counted) if counted else pl.DataFrame(schema=_COUNTED)
