"""Of which types did a group's export hold everything? Only then does it say something that a resource is missing.

Complete is a type of which the export

- asked for everything: a Group export without `_since`, or a folder that the user calls a complete export of a group;
- was asked for the type, and brought a file of it (or the site says that no file means none: `empty_when_missing`);
- has as many lines in every file of the type as the manifest announced, and lacks none of them (`etl.export_gap`);
- has no line in a file of the type that names no resource: it may be any one of them (but for lines of erased persons,
  of whom the warehouse holds nothing);

and of which no type is complete when a file of the site's messages is lacking, or when the site reports an error of any
weight but an informational one: its messages name no types, and the resource that it could not give is not there.
Warnings are no errors, nor are messages of which the site's settings say that they are always there
(`tolerated_messages`).
"""

from __future__ import annotations

import polars as pl

from omop_schema.exports import ExportKind, sql_values
from pipeline.fhir.lines import PERSON_ERASED
from pipeline.publication.context import Publication
from pipeline.staging import schemas

__all__ = ["complete_types", "group_of"]


def group_of(p: Publication) -> str | None:
    """The group whose export this is; None for replays, hydrations, crawls, and folders of no group."""
    row = p.connection.execute(
        "SELECT group_id FROM export_job WHERE export_id = %s"
        f" AND kind IN {sql_values((ExportKind.BULK, ExportKind.FOLDER))}",
        (p.export.export_id,),
    ).fetchone()
    return row[0] if row else None


def complete_types(p: Publication) -> frozenset[str]:
    """The types of which the export held all that its group has."""
    row = p.connection.execute(
        "SELECT resource_types, since IS NULL AND NOT EXISTS (SELECT FROM export_outcome AS told"
        " WHERE told.export_id = job.export_id AND told.weight <> 'informational'"
        " AND (told.weight = 'fatal' OR told.severity NOT IN ('information', 'success', 'warning'))"
        # What may concern whole types is tolerated by the site's own code alone: a FHIR type says too little.
        " AND (told.severity = 'fatal' OR (told.site_code <> ALL(%(tolerated)s)"
        " AND (told.weight = 'fatal' OR told.code <> ALL(%(tolerated)s)))))"
        " FROM export_job AS job WHERE export_id = %(export)s",
        {"tolerated": list(p.site.tolerated_messages), "export": p.export.export_id},
    ).fetchone()
    if row is None or not row[1]:
        return frozenset()
    gaps = p.connection.execute(
        "SELECT category, resource_type FROM export_gap WHERE export_id = %s", (p.export.export_id,)
    ).fetchall()
    if any(category == "outcomes" for category, _ in gaps):
        return frozenset()
    lacking = {resource_type for _, resource_type in gaps}
    asked = frozenset(row[0])
    files = p.export.files
    cut = {file.resource_type for file in files if file.expected_count not in (None, file.lines)}
    came = {file.resource_type for file in files} | set(p.site.empty_when_missing)
    return (asked & came) - cut - lacking - _with_nameless_lines(p)


def _with_nameless_lines(p: Publication) -> set[str]:
    """Types of which a line may be of any resource: by the file in which it is, and by what it says itself."""
    unnamed = pl.col("surrogate_id").is_null() & pl.col("reason").ne_missing(PERSON_ERASED)
    nameless = p.staged.scan(schemas.OUTCOME).filter(unnamed)
    lines = nameless.select("file_number", "resource_type").unique().collect()
    types = {file.number: file.resource_type for file in p.export.files}
    found = {types[number] for number in lines["file_number"] if number in types}
    return found | {name for name in lines["resource_type"] if name is not None}
