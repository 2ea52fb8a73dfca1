"""The vocabulary of the golden cases: a few concepts in `vocabulary/*.csv`, written out as an Athena download.

Real codes have their true OMOP ids; invented ones (`urn:example:golden`, or "invented" in the name) have ids of
2,000,000,000 and more. A Standard concept maps to itself without a line of its own.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from omop_schema import cdm

_SOURCE = Path(__file__).parent / "vocabulary"
_VALID = {"valid_start_date": "19700101", "valid_end_date": "20991231"}
_RELATIONSHIPS = ("Maps to", "Maps to value", "Concept replaced by", "Is a", "Subsumes")


@pytest.fixture(scope="session")
def golden_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the golden vocabulary as Athena delivers one."""
    folder = tmp_path_factory.mktemp("golden_vocabulary")
    concepts, relationships = _read("concepts"), _read("relationships")
    own = [
        {"concept_id_1": row["concept_id"], "relationship_id": "Maps to", "concept_id_2": row["concept_id"]}
        for row in concepts
        if row["standard_concept"] == "S" and not row["invalid_reason"]
    ]
    _write(folder, "drug_strength", _read("drug_strength"))
    versions = {"None": "v5.0 GOLDEN"}
    classes = {row["concept_id"]: row["concept_class_id"] for row in _read("classes")}
    _write(
        folder,
        "concept",
        [{**row, "concept_class_id": classes.get(row["concept_id"], "Undefined")} for row in concepts],
    )
    _write(folder, "concept_relationship", [*own, *relationships])
    _write(folder, "concept_ancestor", [{**row, **_levels(row)} for row in _read("ancestors")])
    _write(folder, "source_to_concept_map", _read("source_to_concept_map"))
    _write(
        folder,
        "vocabulary",
        [_named("vocabulary", name, versions.get(name)) for name in _distinct(concepts, "vocabulary_id")],
    )
    _write(folder, "domain", [_named("domain", name) for name in _distinct(concepts, "domain_id")])
    _write(
        folder, "concept_class", [_named("concept_class", name) for name in sorted({"Undefined", *classes.values()})]
    )
    _write(folder, "relationship", [_named("relationship", name) for name in _RELATIONSHIPS])
    return folder


def _read(name: str) -> list[dict[str, str]]:
    with (_SOURCE / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _distinct(rows: list[dict[str, str]], column: str) -> list[str]:
    return sorted({row[column] for row in rows})


def _levels(row: dict[str, str]) -> dict[str, str]:
    return {"min_levels_of_separation": "1", "max_levels_of_separation": "1"}


def _named(table: str, name: str, version: str | None = None) -> dict[str, str]:
    """A row of one of the small tables: its id, its name, and what else is required."""
    row = {f"{table}_id": name, f"{table}_name": name, f"{table}_concept_id": "0", "is_hierarchical": "0"}
    return {**row, "defines_ancestry": "0", "reverse_relationship_id": name, "vocabulary_version": version or ""}


def _write(folder: Path, table: str, rows: list[dict[str, str]]) -> None:
    columns = [field.name for field in cdm.fields(table)]
    lines = ["\t".join({**_VALID, **row}.get(name, "") for name in columns) for row in rows]
    (folder / f"{table.upper()}.csv").write_text("\n".join(["\t".join(columns), *lines, ""]), encoding="utf-8")
