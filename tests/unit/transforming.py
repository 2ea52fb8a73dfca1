"""The whole transform stage on a few resources, without a database: resources in, outcomes, rows, issues and facts out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import MAPPINGS_FOLDER, SiteSettings
from pipeline.landing.chunks import plan_chunks
from pipeline.load.fingerprints import site_mapping
from pipeline.load.tasks import ChunkPiece, ChunkTask, WorkerPlan
from pipeline.load.worker import LineWorker
from pipeline.staging import schemas
from pipeline.staging.facts import write_facts
from pipeline.staging.parts import StagedExport
from pipeline.transform.concepts import index as concept_index
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.mapping.mappings import load_mappings
from pipeline.transform.plan import TransformPlan

AS_OF = date(2025, 1, 31)
PATIENT = {"reference": "Patient/p1"}


@dataclass
class Transformed:
    """What the transform stage left, by `Type/id`."""

    outcomes: dict[str, str] = field(default_factory=dict)
    #: path of a rejection
    paths: dict[str, str | None] = field(default_factory=dict)
    #: reference → table → rows
    rows: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    #: reference → (code, path), in order
    issues: dict[str, list[tuple[str, str | None]]] = field(default_factory=dict)
    #: reference of the owner → name → values
    facts: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def row(self, reference: str, table: str) -> dict[str, Any]:
        (row,) = self.rows[reference][table]
        return row


def transform(
    folder: Path,
    resources: Iterable[dict[str, Any]],
    options: MappingOptions | None = None,
    *,
    site_zone: str = "UTC",
    instance_zone: str = "UTC",
    lines: Mapping[str, Iterable[bytes]] | None = None,
    index: Mapping[str, pl.DataFrame] | None = None,
) -> Transformed:
    """Resources of any types, in the order of their mappings; concepts are those that the mappings name.

    `lines`: by type, what stands in the file as it is. `index`: files of the concept index that are not empty.
    """
    by_type: dict[str, list[bytes]] = {}
    for resource in resources:
        by_type.setdefault(resource["resourceType"], []).append(orjson.dumps(resource))
    for kind, raws in (lines or {}).items():
        by_type.setdefault(kind, []).extend(raws)
    mappings = load_mappings(MAPPINGS_FOLDER, None, options)
    for name, value in vars(concept_index).items():
        if name.endswith("_FILE"):
            schema = getattr(concept_index, f"{name.removesuffix('_FILE')}_SCHEMA")
            (index or {}).get(value, pl.DataFrame(schema=dict(schema))).write_parquet(folder / value)
    transform_plan = TransformPlan(
        site=site_mapping(SiteSettings(name="site", time_zone=site_zone)),
        instance_zone=instance_zone,
        surrogate_salt="",
        identifier_secret=b"",
        as_of=AS_OF,
        mappings=mappings,
        index=ConceptIndex(folder, "test release", "hash"),
        fixed={number: number for number in mappings.fixed_concepts},
    )
    plan = WorkerPlan(transform_plan, None, folder / "facts", StagedExport(folder / "staged"), folder)
    orders = {kind: mappings.resources[kind].order for kind in by_type}
    number = 0
    for order in sorted(set(orders.values())):
        worker = LineWorker(plan)
        for kind in sorted(kind for kind in by_type if orders[kind] == order):
            number += 1
            file = folder / f"{kind}.ndjson"
            file.write_bytes(b"\n".join(by_type[kind]) + b"\n")
            (chunk,) = plan_chunks(file)
            worker.compare(ChunkTask((ChunkPiece(file, number, chunk),), kind))
        facts = plan.staged.scan(schemas.REFERENCE_VALUE).select("surrogate_id", "name", "value")
        write_facts(plan.facts, facts)
    return _read(plan.staged)


def _read(staged: StagedExport) -> Transformed:
    found = Transformed()
    names: dict[int, str] = {}
    for row in staged.scan(schemas.OUTCOME).collect().iter_rows(named=True):
        name = f"{row['resource_type']}/{row['resource_id']}"
        names[row["surrogate_id"]] = name
        found.outcomes[name] = row["outcome"]
        if row["outcome"] == "excluded":
            found.outcomes[name] += f":{row['reason']}"
    for row in staged.scan(schemas.REJECTION).collect().iter_rows(named=True):
        name = f"{row['resource_type']}/{row['resource_id']}"
        found.outcomes[name], found.paths[name] = f"rejected:{row['code']}", row["path"]
    for row in staged.scan(schemas.ISSUE).collect().iter_rows(named=True):
        found.issues.setdefault(names[row["surrogate_id"]], []).append((row["code"], row["path"]))
    for row in staged.scan(schemas.REFERENCE_VALUE).collect().iter_rows(named=True):
        of_owner = found.facts.setdefault(names[row["owner_surrogate_id"]], {})
        of_owner.setdefault(row["name"], []).append(row["value"])
    for table in staged.kinds():
        if table not in schemas.SCHEMAS and not table.startswith("exact_"):
            for row in staged.scan(table).collect().iter_rows(named=True):
                found.rows.setdefault(names[row["surrogate_id"]], {}).setdefault(table, []).append(row)
    for issues in found.issues.values():
        issues.sort(key=str)
    return found
