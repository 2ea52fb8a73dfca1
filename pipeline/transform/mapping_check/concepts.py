"""Concept ids of mappings, judged by a vocabulary: there, valid, Standard, and of the domain that its place asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.transform.concepts.index import ConceptIndex, unit_key
from pipeline.transform.mapping.code_tables import code_forms
from pipeline.transform.mapping.mappings import ConceptRule, MappingReading
from pipeline.transform.mapping.sources import MappingProblem, Row, line_of, node_at
from pipeline.transform.mapping.value_rules import DOMAINS

__all__ = ["KnownConcepts", "concept_problems", "demo_concepts", "indexed_concepts"]

_TYPE_CONCEPT = "Type Concept"
#: Columns of rules about numbers.
_UNIT_COLUMNS = ("unit", "from", "to")
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
    #: (vocabulary_id, concept_code) → standard concept, of those that have one
    #: None: no code is judged
    codes: Callable[[Iterable[tuple[str, str]]], Mapping[tuple[str, str], int]] | None = None


def indexed_concepts(index: ConceptIndex) -> KnownConcepts:
    """The vocabulary that is loaded, which may be the demonstration vocabulary."""
    is_demo = index.release.startswith(_DEMO_RELEASE)
    return KnownConcepts(
        f"vocabulary {index.release}", index.concepts, is_whole=not is_demo, codes=index.standard_of_codes
    )


def demo_concepts(folder: Path) -> KnownConcepts:
    """The demonstration vocabulary in `folder`, which needs no database."""
    frame = pl.read_csv(folder / "CONCEPT.csv", separator="\t", quote_char=None, infer_schema=False)
    frame = frame.select(
        pl.col("concept_id").cast(pl.Int64),
        "domain_id",
        *("vocabulary_id", "concept_code"),
        *(
            pl.when(pl.col(name) != "").then(pl.col(name)).alias(name)
            for name in ("standard_concept", "invalid_reason")
        ),
        pl.lit(None, dtype=pl.Int64).alias("target_concept_id"),
    )
    standard = frame.filter(pl.col("standard_concept") == "S").select("vocabulary_id", "concept_code", "concept_id")
    by_code = {(vocabulary, code): concept_id for vocabulary, code, concept_id in standard.iter_rows()}

    def codes(asked: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        return {key: by_code[key] for key in asked if by_code.get(key)}

    return KnownConcepts(
        "the demonstration vocabulary",
        lambda ids: frame.filter(pl.col("concept_id").is_in(ids)),
        is_whole=False,
        codes=codes,
    )


@dataclass(frozen=True)
class _Named:
    """Concept ids that stand in one place, alternatives in order; `domain`: the only one allowed."""

    concept_ids: tuple[int, ...]
    file: str
    line: int
    domain: str | None = None


def concept_problems(reading: MappingReading, known: KnownConcepts) -> Iterator[MappingProblem]:
    named = [*_named_by_views(reading), *_named_by_tables(reading), *_named_by_duplicates(reading)]
    rows = known.concepts(sorted({concept_id for one in named for concept_id in one.concept_ids}))
    found = {row["concept_id"]: row for row in rows.to_dicts()}
    for one in named:
        reasons = [_judged(concept_id, found.get(concept_id), one.domain, known) for concept_id in one.concept_ids]
        if reasons and all(reasons):  # of alternatives, one that is right is enough
            yield MappingProblem(one.file, one.line, "; ".join(reasons))
    yield from _rule_problems(reading, known)


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


def _rule_problems(reading: MappingReading, known: KnownConcepts) -> Iterator[MappingProblem]:
    """Units and concepts of rules about numbers that the vocabulary does not have, and concepts that have no numbers.

    A code that a vocabulary lacks is no problem, as in other maps: its rule is never used.
    """
    rows = [row for of_folder in reading.sources.rules.values() for row in of_folder.values()]
    if known.codes is not None:
        yield from _unit_problems(rows, reading, known, known.codes)
    ids = [int(text) for row in rows if (text := row.values.get("concept", "")).isdecimal()]
    found = {row["concept_id"]: row for row in known.concepts(sorted(set(ids))).to_dicts()}
    for row in rows:
        text = row.values.get("concept", "")
        if text.isdecimal():
            concept = found.get(int(text))
            reason = _judged(int(text), concept, None, known)
            if not reason and concept and concept["domain_id"] not in DOMAINS:
                reason = f"concept {text} is of domain {concept['domain_id']}: its table has no numbers"
            if reason:
                yield row.problem(reason)


def _unit_problems(
    rows: list[Row],
    reading: MappingReading,
    known: KnownConcepts,
    codes: Callable[[Iterable[tuple[str, str]]], Mapping[tuple[str, str], int]],
) -> Iterator[MappingProblem]:
    tables = reading.sources.tables
    aliases = {unit_key(row.values["unit"]): row.values["ucum"] for row in tables["unit_aliases.csv"].values()}
    named = [(row, column, row.values[column]) for row in rows for column in _UNIT_COLUMNS if column in row.values]
    written = {text: aliases.get(unit_key(text), text) for _, _, text in named}
    forms = code_forms(reading.sources.forms, [])
    pairs = [("UCUM", code) for code in sorted(set(written.values()))]
    known_codes = codes(chain(*forms.spellings(pairs).values()))
    found = {code for _, code in forms.mapped(pairs, known_codes)}
    if not known.is_whole:
        found |= set(aliases.values())
    for row, column, text in named:
        if written[text] not in found:
            others = "" if known.is_whole else ", nor is it in unit_aliases.csv"
            yield row.problem(f"{column}: the unit {text!r} is not a Standard one of {known.name}{others}")


def _named_by_views(reading: MappingReading) -> Iterator[_Named]:
    for resource, mapping in reading.resources.items():
        for number, view in enumerate(mapping.views):
            for key, domain in (("type_concept_id", _TYPE_CONCEPT), ("concept_id", None), ("result_concept_id", None)):
                rules: tuple[ConceptRule, ...] = getattr(view, key)
                for position, rule in enumerate(rules):
                    node = node_at(reading.sources.resources[resource], ["views", number, key, position])
                    yield _Named(rule.concept_ids, *line_of(node), domain)


def _named_by_duplicates(reading: MappingReading) -> Iterator[_Named]:
    for row in reading.sources.rules["duplicates"].values():
        for text in row.values.get("types", "").split("|"):
            if text.strip().isdecimal():
                yield _Named((int(text),), row.file, row.line, _TYPE_CONCEPT)


def _named_by_tables(reading: MappingReading) -> Iterator[_Named]:
    rows: list[Row] = [row for of in reading.sources.values.values() for row in of.values()]
    rows += reading.sources.tables["constants.csv"].values()
    for row in rows:
        ids = row.values["concept_id"].split("|")
        if all(part.isdecimal() for part in ids):
            yield _Named(tuple(int(part) for part in ids), row.file, row.line)
