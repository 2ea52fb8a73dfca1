"""Concept ids of mappings, judged by a vocabulary: there, valid, Standard, and of the domain that its place asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.mapping.mappings import ConceptRule, MappingReading
from pipeline.transform.mapping.sources import MappingProblem, Row, line_of, node_at

__all__ = ["KnownConcepts", "concept_problems", "demo_concepts", "indexed_concepts"]

_TYPE_CONCEPT = "Type Concept"
#: How the release of the demonstration vocabulary begins (demo_vocabulary/VOCABULARY.csv).
_DEMO_RELEASE = "epic-omop demo"


@dataclass(frozen=True)
class KnownConcepts:
    """A vocabulary to judge concept ids by."""

    #: What it is called in messages.
    name: str
    #: ids → concept_id, domain_id, standard_concept, invalid_reason, target_concept_id
    concepts: Callable[[list[int]], pl.DataFrame]
    #: Whether an id that is missing there is wrong: not so in the demonstration vocabulary, which is a small part.
    is_whole: bool


def indexed_concepts(index: ConceptIndex) -> KnownConcepts:
    """The vocabulary that is loaded, which may be the demonstration vocabulary."""
    is_demo = index.release.startswith(_DEMO_RELEASE)
    return KnownConcepts(f"vocabulary {index.release}", index.concepts, is_whole=not is_demo)


def demo_concepts(folder: Path) -> KnownConcepts:
    """The demonstration vocabulary in `folder`, which needs no database."""
    frame = pl.read_csv(folder / "CONCEPT.csv", separator="\t", quote_char=None, infer_schema=False)
    frame = frame.select(
        pl.col("concept_id").cast(pl.Int64),
        "domain_id",
        *(
            pl.when(pl.col(name) != "").then(pl.col(name)).alias(name)
            for name in ("standard_concept", "invalid_reason")
        ),
        pl.lit(None, dtype=pl.Int64).alias("target_concept_id"),
    )
    return KnownConcepts(
        "the demonstration vocabulary", lambda ids: frame.filter(pl.col("concept_id").is_in(ids)), is_whole=False
    )


@dataclass(frozen=True)
class _Named:
    """Concept ids that stand in one place, alternatives in order; `domain`: the only one allowed."""

    concept_ids: tuple[int, ...]
    file: str
    line: int
    domain: str | None = None


def concept_problems(reading: MappingReading, known: KnownConcepts) -> Iterator[MappingProblem]:
    named = [*_named_by_views(reading), *_named_by_tables(reading)]
    rows = known.concepts(sorted({concept_id for one in named for concept_id in one.concept_ids}))
    found = {row["concept_id"]: row for row in rows.to_dicts()}
    for one in named:
        reasons = [_judged(concept_id, found.get(concept_id), one.domain, known) for concept_id in one.concept_ids]
        if reasons and all(reasons):  # of alternatives, one that is right is enough
            yield MappingProblem(one.file, one.line, "; ".join(reasons))


def _judged(concept_id: int, row: Mapping[str, Any] | None, domain: str | None, known: KnownConcepts) -> str:
    """What is wrong with a concept id; nothing where it is right, or cannot be known."""
    if concept_id == 0:
        return ""
    if row is None:
        return f"concept {concept_id} is not in {known.name}" if known.is_whole else ""
    if row["standard_concept"] != "S" or row["invalid_reason"] is not None:
        target = row["target_concept_id"]
        instead = f"; its standard concept is {target}" if target else ""
        kind = "no longer valid" if row["invalid_reason"] is not None else "not Standard"
        return f"concept {concept_id} is {kind} in {known.name}{instead}"
    if domain and row["domain_id"] != domain:
        return f"concept {concept_id} is of domain {row['domain_id']}, not {domain}"
    return ""


def _named_by_views(reading: MappingReading) -> Iterator[_Named]:
    for resource, mapping in reading.resources.items():
        for number, view in enumerate(mapping.views):
            for key, domain in (("type_concept_id", _TYPE_CONCEPT), ("concept_id", None), ("result_concept_id", None)):
                rules: tuple[ConceptRule, ...] = getattr(view, key)
                for position, rule in enumerate(rules):
                    node = node_at(reading.sources.resources[resource], ["views", number, key, position])
                    yield _Named(rule.concept_ids, *line_of(node), domain)


def _named_by_tables(reading: MappingReading) -> Iterator[_Named]:
    rows: list[Row] = [row for of in reading.sources.values.values() for row in of.values()]
    rows += reading.sources.tables["constants.csv"].values()
    for row in rows:
        ids = row.values["concept_id"].split("|")
        if all(part.isdecimal() for part in ids):
            yield _Named(tuple(int(part) for part in ids), row.file, row.line)
