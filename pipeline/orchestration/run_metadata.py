"""What is shown in Dagster: counts, rates, durations. Never an id, a name, a date or a text of a resource.

A day may hold several exports, each with a run of its own; a partition shows the sums of its day up to its last run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import dagster as dg
import psycopg

from pipeline.extract.notes import export_notes
from pipeline.publication.publish import PublicationReport
from pipeline.quality.report import OUTCOMES, LoadReport
from pipeline.warehouse.export_jobs import ExportJob

__all__ = ["Metadata", "landing_metadata", "load_metadata", "table_events", "table_value"]

_Cell = str | int | float | bool | None
Metadata = dict[str, dg.MetadataValue]

#: Numbers under plain names are plotted over the partitions by the UI; the tables are for reading one run.
_ROWS = "dagster/partition_row_count"


def table_value(columns: Sequence[str], rows: Sequence[Sequence[_Cell]]) -> dg.TableMetadataValue:
    """A table whose column types follow from its first row; an empty one has its head only.

    Members of enumerations, such as states of exports, go in as their values: Dagster stores no others than its own.
    """
    rows = [[cell.value if isinstance(cell, Enum) else cell for cell in row] for row in rows]
    kinds: dict[type, str] = {int: "int", float: "float", bool: "bool"}
    columns, rows = _plain(columns), [_plain(row) for row in rows]
    first = rows[0] if rows else [""] * len(columns)
    schema = dg.TableSchema(
        [dg.TableColumn(name, kinds.get(type(cell), "string")) for name, cell in zip(columns, first, strict=True)]
    )
    return dg.MetadataValue.table([dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows], schema)


def _plain(cells: Sequence[_Cell]) -> list[Any]:
    """Dagster's event log takes no enumerations of others: their values."""
    return [cell.value if isinstance(cell, Enum) else cell for cell in cells]


def landing_metadata(connection: psycopg.Connection, jobs: Sequence[ExportJob]) -> Metadata:
    """Of the landed exports of a day: files, lines and bytes, by resource type and by export."""
    ids = [job.export_id for job in jobs]
    by_type = _files_by(connection, "resource_type", ids)
    by_export = {row[0]: row[1:] for row in _files_by(connection, "export_id", ids)}
    every: list[tuple[_Cell, ...]] = [
        (
            job.export_id,
            job.group_id or "–",
            job.kind,
            _shown(job.transaction_time),
            *by_export.get(job.export_id, (0, 0, 0)),
        )
        for job in jobs
    ]
    columns = ("export", "group", "kind", "transaction time (UTC)", "files", "lines", "bytes")
    metadata: Metadata = {
        _ROWS: dg.MetadataValue.int(sum(lines for _, _, lines, _ in by_type)),
        "files": dg.MetadataValue.int(sum(files for _, files, _, _ in by_type)),
        "bytes": dg.MetadataValue.int(sum(size for _, _, _, size in by_type)),
        "by resource type": table_value(("resource type", "files", "lines", "bytes"), by_type),
        "exports": table_value(columns, every),
    }
    notes = export_notes(connection, ids)
    if notes.missing_types:
        metadata["asked for, no file came"] = dg.MetadataValue.text(", ".join(notes.missing_types))
    if notes.gaps:
        rows = [(kind, reason, count) for (reason, kind), count in sorted(notes.gaps.items())]
        metadata["files that are not as announced"] = table_value(("resource type", "why", "files"), rows)
    if notes.choices:
        metadata["done otherwise than the site says"] = dg.MetadataValue.text(" ".join(notes.choices))
    if notes.messages:
        messages: list[tuple[_Cell, ...]] = [
            (kind.weight, kind.severity, kind.code, kind.site_code or "–", count)
            for kind, count in sorted(notes.messages.items())
        ]
        head = ("weight", "severity", "code", "Epic's code", "count")
        metadata["messages of the site"] = table_value(head, messages)
        metadata |= {f"messages {weight}": dg.MetadataValue.int(count) for weight, count in notes.by_weight.items()}
    return metadata


def _files_by(
    connection: psycopg.Connection, column: str, export_ids: Sequence[int]
) -> list[tuple[Any, int, int, int]]:
    """(value of the column, files, lines, bytes)"""
    return connection.execute(
        f"SELECT {column}, count(*), sum(lines)::bigint, sum(bytes)::bigint FROM export_file"
        f" WHERE export_id = ANY(%s) GROUP BY {column} ORDER BY {column}",
        [list(export_ids)],
    ).fetchall()


#: Elements and systems that are shown of a day.
_MOST_SYSTEMS = 50


def load_metadata(connection: psycopg.Connection, report: LoadReport) -> Metadata:
    """Of the published exports of a day: outcomes of lines, rows by table, mapping rates, unmapped codes, durations."""
    total = report.total
    inserted = sum(made for _, made, _ in report.tables.values())
    deleted = sum(gone for _, _, gone in report.tables.values())
    mapped, coded = (sum(pair[part] for pair in report.mapping_rates.values()) for part in (0, 1))
    metadata: Metadata = {
        _ROWS: dg.MetadataValue.int(inserted),
        "lines": dg.MetadataValue.int(total["lines"]),
        **{f"lines {name}": dg.MetadataValue.int(total[name]) for name in OUTCOMES},
        "rows inserted": dg.MetadataValue.int(inserted),
        "rows deleted": dg.MetadataValue.int(deleted),
        "open dead letters, all sites": dg.MetadataValue.int(report.open_dead_letters),
        **_publications(connection, report.export_ids, total["lines"]),
        **_tables(report),
    }
    if coded:  # a night on which nothing changed has no rate, rather than one of 0 %
        metadata["mapped %"] = dg.MetadataValue.float(_percent(mapped, coded))
    return metadata


def _tables(report: LoadReport) -> Metadata:
    outcomes: list[tuple[_Cell, ...]] = [
        (name, counts["lines"], *(counts[key] for key in OUTCOMES)) for name, counts in report.outcomes.items()
    ]
    excluded = [(kind, reason, count) for (kind, reason), count in report.exclusions.items()]
    rows = [(name, made, gone, now) for name, (now, made, gone) in report.tables.items()]
    rates = [(name, _percent(*pair), *pair) for name, pair in report.mapping_rates.items()]
    codes = [
        (
            f"{code.resource_type}.{code.element}",
            code.system or "–",
            code.code or "(text only)",
            code.count,
        )
        for code in report.unmapped
    ]
    return {
        "codes with a concept": table_value(
            ("table", "element", "system", "codes", "with a concept", "%"),
            [
                (
                    item.cdm_table,
                    f"{item.resource_type}.{item.element}",
                    item.system or "–",
                    item.rows,
                    item.mapped,
                    _percent(item.mapped, item.rows),
                )
                for item in report.coverage[:_MOST_SYSTEMS]
            ],
        ),
        "outcome of every line": table_value(("resource type", "lines", *OUTCOMES), outcomes),
        "why lines were excluded": table_value(("resource type", "reason", "lines"), excluded),
        "rows by table": table_value(("table", "inserted", "deleted", "rows now"), rows),
        "numbers that rules about numbers found": table_value(
            ("concept", "unit", "found", "done", "numbers"),
            [
                (check.concept or "–", check.unit or "–", check.finding, check.action, check.count)
                for check in report.value_checks
            ],
        ),
        "facts that two resources bring": table_value(
            ("rule", "table", "facts", "rows too many"),
            [(found.rule, found.table, found.facts, found.rows) for found in report.duplicates],
        ),
        "mapping rates": table_value(("resource type", "mapped %", "mapped", "coded"), rates),
        "resources that are no longer in their groups' exports": table_value(
            ("disposition", "resource type", "resources"),
            [
                (disposition, kind, count)
                for disposition, counts in report.vanished.items()
                for kind, count in counts.items()
            ],
        ),
        "exposures that overlap a more definite record": table_value(
            ("resource type", "exposures"), list(report.overlaps.items())
        ),
        "most frequent unmapped codes": table_value(("element", "system", "code", "count"), codes),
    }


def _publications(connection: psycopg.Connection, export_ids: Sequence[int], lines: int) -> Metadata:
    row = connection.execute(
        "SELECT string_agg(DISTINCT concat_ws(' ', vocabulary_release, left(vocabulary_hash, 12)), ', '),"
        " coalesce(sum(transform_seconds), 0),"
        " coalesce(sum(publish_seconds), 0) FROM publication WHERE export_id = ANY(%s)",
        [list(export_ids)],
    ).fetchone()
    assert row is not None
    release, transform, publish = row
    seconds = float(transform + publish)
    return {
        "vocabulary release": dg.MetadataValue.text(release or "–"),
        "transform seconds": dg.MetadataValue.float(round(float(transform), 3)),
        "publish seconds": dg.MetadataValue.float(round(float(publish), 3)),
        "lines a second": dg.MetadataValue.float(round(lines / seconds, 1) if seconds else 0.0),
        "exports": dg.MetadataValue.text(", ".join(str(number) for number in export_ids)),
    }


def table_events(
    report: LoadReport, published: Sequence[PublicationReport], schema: str
) -> list[dg.AssetMaterialization]:
    """One event for each CDM table that a run's publications changed, with its rows now."""
    inserted: Counter[str] = sum((one.rows_inserted for one in published), Counter())
    deleted: Counter[str] = sum((one.rows_deleted for one in published), Counter())
    return [
        dg.AssetMaterialization(
            [schema, name],
            metadata={"dagster/row_count": now, "rows inserted": inserted[name], "rows deleted": deleted[name]},
        )
        for name, (now, _, _) in report.tables.items()
        if inserted[name] or deleted[name]
    ]


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def _shown(instant: datetime | None) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if instant else "–"
