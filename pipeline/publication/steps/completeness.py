"""Of which types does a group's export have everything? Only then does it say something that a resource is missing.

Complete is a type of which the export

- asked for everything: a Group export without `_since`, or a folder that the user calls a complete export of a group;
- was asked for the type, and brought a file of it (or the site says that no file means none: `empty_when_missing`);
- has as many lines in every file of the type as the manifest announced, and lacks none of them (`etl.export_gap`);
- has no line in a file of the type that names no resource: it may be any one of them (but for lines of erased persons,
  of whom the warehouse has nothing);

and of which no type is complete when a file of the site's messages is lacking, or when the site reports an error of any
weight but an informational one: its messages name no types, and the resource that it could not give is not there.
Warnings are no errors, nor are messages of which the site's settings say that they are always there
(`tolerated_messages`).
"""

from __future__ import annotations

import polars as pl

from omop_schema.exports import ExportKind
from pipeline.fhir.lines import PERSON_ERASED
from pipeline.publication.sql import Database
from pipeline.publication.values import Incoming
from pipeline.staging import schemas

__all__ = ["complete_types", "group_of"]


def group_of(db: Database, export_id: int) -> str | None:
    """The group whose export it is; None for replays, hydrations, crawls, and folders of no group."""
    rows = db.rows("export_group", {"export_id": export_id, "kinds": [ExportKind.BULK, ExportKind.FOLDER]})
    return rows[0][0] if rows else None


def complete_types(db: Database, incoming: Incoming) -> frozenset[str]:
    """The types of which the export has all that its group has."""
    export, site = incoming.export, incoming.site
    own = {"tolerated": list(site.tolerated_messages), "export_id": export.export_id}
    rows = db.rows("requested_types", own)
    if not rows or not rows[0][1]:
        return frozenset()
    gaps = db.rows("export_gaps", {"export_id": export.export_id})
    if any(category == "outcomes" for category, _ in gaps):
        return frozenset()
    lacking = {resource_type for _, resource_type in gaps}
    asked = frozenset(rows[0][0])
    cut = {file.resource_type for file in export.files if file.expected_count not in (None, file.lines)}
    brought = {file.resource_type for file in export.files} | set(site.empty_when_missing)
    return (asked & brought) - cut - lacking - _with_nameless_lines(incoming)


def _with_nameless_lines(incoming: Incoming) -> set[str]:
    """Types of which a line may be of any resource: by the file in which it is, and by what it says itself."""
    unnamed = pl.col("surrogate_id").is_null() & pl.col("reason").ne_missing(PERSON_ERASED)
    nameless = incoming.staged.scan(schemas.OUTCOME).filter(unnamed)
    lines = nameless.select("file_number", "resource_type").unique().collect()
    types = {file.number: file.resource_type for file in incoming.export.files}
    found = {types[number] for number in lines["file_number"] if number in types}
    return found | {name for name in lines["resource_type"] if name is not None}
