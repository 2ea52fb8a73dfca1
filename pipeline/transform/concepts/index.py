"""Reading side of the concept index: what a code means, found without a database.

A `ConceptIndex` is a release's folder of Parquet files, nothing else: it pickles as a path, opens for free, and is
meant for worker processes. The files are made by `pipeline.warehouse.vocabulary`; which coding of several is chosen is
decided in `pipeline.transform.concepts.resolver`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import polars as pl

from pipeline.transform.concepts.code_sets import TEXT_VOCABULARY
from pipeline.transform.concepts.local_rows import local_texts, overlaid

__all__ = [
    "ANCESTOR_FILE",
    "ANCESTOR_SCHEMA",
    "CONCEPT_FILE",
    "CONCEPT_SCHEMA",
    "INDEX_FILE",
    "INDEX_SCHEMA",
    "STRENGTH_FILE",
    "STRENGTH_SCHEMA",
    "ConceptIndex",
    "FixedConcept",
    "unit_key",
]

INDEX_FILE = "concept_index.parquet"
CONCEPT_FILE = "concept_by_id.parquet"
ANCESTOR_FILE = "ancestor.parquet"
STRENGTH_FILE = "drug_strength.parquet"

#: Columns of the index, one row for each (source code, standard concept, value concept).
INDEX_SCHEMA: Mapping[str, pl.DataType] = {
    "vocabulary_id": pl.String(),
    "concept_code": pl.String(),
    "source_concept_id": pl.Int64(),
    "source_domain_id": pl.String(),
    "source_standard_concept": pl.String(),
    "source_invalid_reason": pl.String(),
    "pair_number": pl.Int64(),
    "target_concept_id": pl.Int64(),
    "target_domain_id": pl.String(),
    "target_vocabulary_id": pl.String(),
    "value_concept_id": pl.Int64(),
    #: in which numbers of the code are meant that come without a unit (`Maps to unit`)
    "unit_concept_id": pl.Int64(),
}

CONCEPT_SCHEMA: Mapping[str, pl.DataType] = {
    "concept_id": pl.Int64(),
    "concept_name": pl.String(),
    "domain_id": pl.String(),
    "vocabulary_id": pl.String(),
    "concept_class_id": pl.String(),
    "standard_concept": pl.String(),
    "invalid_reason": pl.String(),
    "target_concept_id": pl.Int64(),
}

ANCESTOR_SCHEMA: Mapping[str, pl.DataType] = {
    "ancestor_concept_id": pl.Int64(),
    "descendant_concept_id": pl.Int64(),
}

#: Valid rows of drug_strength: one for each drug and ingredient, in the units of their own concepts.
STRENGTH_SCHEMA: Mapping[str, pl.DataType] = {
    "drug_concept_id": pl.Int64(),
    "amount_value": pl.Float64(),
    "amount_unit_concept_id": pl.Int64(),
    "numerator_value": pl.Float64(),
    "numerator_unit_concept_id": pl.Int64(),
    "denominator_value": pl.Float64(),
    "denominator_unit_concept_id": pl.Int64(),
}

#: Levels of a hierarchy that are followed.
_MOST_STEPS_UP = 20

_SUPERSCRIPTS = str.maketrans({"²": "^2", "³": "^3", "⁶": "^6", "⁹": "^9", "×": "x"})


def unit_key(text: str) -> str:
    """What spellings of a unit have in common: no spaces, one case, one micro sign, exponents on the line.

    UCUM itself distinguishes M and m; the table of aliases holds only spellings that mean one thing in any case.
    """
    folded = unicodedata.normalize("NFKC", text.translate(_SUPERSCRIPTS)).replace("\N{GREEK SMALL LETTER MU}", "u")
    return "".join(folded.split()).casefold()


@dataclass(frozen=True)
class FixedConcept:
    """A concept id that a mapping names, and its state in the vocabulary."""

    concept_id: int
    #: What the mapping calls it.
    name: str
    status: Literal["ok", "replaced", "missing"]
    #: The id to use: its own, its standard target's, or 0.
    use_concept_id: int
    #: One sentence for the user; None when all is well.
    warning: str | None = None


@dataclass(frozen=True)
class ConceptIndex:
    """One release's Parquet files in `folder`."""

    folder: Path
    #: Label of the vocabulary release, such as "v5.0 27-FEB-25".
    release: str
    #: Identifies the content: two downloads of one release may hold different vocabularies.
    content_hash: str
    #: A site's local map, a file of `pipeline.transform.concepts.local_rows`; None where nobody has decided anything.
    local: Path | None = None
    #: Identifies what the local map says; empty without one.
    local_hash: str = ""

    def with_local(self, local: Path | None, local_hash: str) -> ConceptIndex:
        """The same release under a site's local map."""
        return replace(self, local=local, local_hash=local_hash)

    def lookup(self, codings: pl.DataFrame) -> pl.DataFrame:
        """The index rows of these codings.

        Takes columns vocabulary_id and concept_code (others are ignored); gives `INDEX_SCHEMA`'s columns with
        concept_code as asked for, sorted by vocabulary_id, concept_code and pair_number. A code that is not found
        gives no row; one without a standard concept gives one row whose target_concept_id is null. Codes are compared as
        they are; other spellings are tried by who asks (`code_forms`). Memory grows with the codings asked for, not with
        the vocabulary. What a local map says of a code stands in place of what the release says.
        """
        asked = codings.select("vocabulary_id", "concept_code").drop_nulls().unique()
        found = (
            pl.scan_parquet(self.folder / INDEX_FILE)
            .filter(
                pl.col("vocabulary_id").is_in(asked["vocabulary_id"].unique().implode()),
                pl.col("concept_code").is_in(asked["concept_code"].unique().implode()),
            )
            .join(asked.lazy(), on=["vocabulary_id", "concept_code"], how="semi")
            .select(list(INDEX_SCHEMA))
            .collect(engine="streaming")
            .sort("vocabulary_id", "concept_code", "pair_number")
        )
        return found if self.local is None else overlaid(self.local, asked, found)

    def standard_of_codes(self, codes: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """(vocabulary_id, concept_code) → the first Standard concept, of those codes that have one."""
        key = {"vocabulary_id": pl.String, "concept_code": pl.String}
        found = self.lookup(pl.DataFrame(sorted(codes), schema=key, orient="row")).drop_nulls("target_concept_id")
        first = found.unique(list(key), keep="first", maintain_order=True)
        return {(row[0], row[1]): row[2] for row in first.select(*key, "target_concept_id").iter_rows()}

    def standard_of_names(self, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """(vocabulary_id, concept name in any case) → the Standard concept that has it, of those names that have one.

        Of several the one of the highest level: OpenStreetMap's Georgia is of the "2nd level", and of the "4th level".
        """
        asked = {(vocabulary, name.casefold()): (vocabulary, name) for vocabulary, name in names}
        if not asked:
            return {}
        name = pl.col("concept_name").str.to_lowercase()
        level = pl.col("concept_class_id").str.extract(r"^(\d+)").cast(pl.Int32, strict=False)
        found = (
            pl.scan_parquet(self.folder / CONCEPT_FILE)
            .filter(
                pl.col("vocabulary_id").is_in(sorted({vocabulary for vocabulary, _ in asked})),
                name.is_in(sorted({folded for _, folded in asked})),
                pl.col("target_concept_id").is_not_null(),
            )
            .select("vocabulary_id", name.alias("name"), level.alias("level"), "concept_id", "target_concept_id")
            .collect(engine="streaming")
            .sort("level", "concept_id", nulls_last=True)
            .unique(["vocabulary_id", "name"], keep="first", maintain_order=True)
        )
        rows = found.select("vocabulary_id", "name", "target_concept_id").iter_rows()
        return {asked[row[0], row[1]]: row[2] for row in rows if (row[0], row[1]) in asked}

    def descents(self, concept_ids: pl.Series) -> pl.DataFrame:
        """Which of these concepts (ids) is truly below which other of them: columns ancestor, descendant, sorted."""
        given = concept_ids.cast(pl.Int64).unique().implode()
        return (
            pl.scan_parquet(self.folder / ANCESTOR_FILE)
            .filter(
                pl.col("descendant_concept_id").is_in(given),
                pl.col("ancestor_concept_id").is_in(given),
                pl.col("descendant_concept_id") != pl.col("ancestor_concept_id"),
            )
            .select(ancestor="ancestor_concept_id", descendant="descendant_concept_id")
            .unique()
            .collect(engine="streaming")
            .sort("ancestor", "descendant")
        )

    def source_descents(self, concept_ids: pl.Series) -> pl.DataFrame:
        """The same by each concept's own place in its vocabulary, standard or not: broader ones are looked up step by step."""
        asked = set(concept_ids.cast(pl.Int64).drop_nulls())
        broader: dict[int, set[int]] = {}
        frontier = asked
        for _ in range(_MOST_STEPS_UP):
            found = (
                pl.scan_parquet(self.folder / ANCESTOR_FILE)
                .filter(pl.col("descendant_concept_id").is_in(sorted(frontier)))
                .select("descendant_concept_id", "ancestor_concept_id")
                .collect(engine="streaming")
            )
            for below, above in found.iter_rows():
                broader.setdefault(below, set()).add(above)
            frontier = set(found["ancestor_concept_id"]) - broader.keys()
            if not frontier:
                break
        pairs = [(above, below) for below in asked for above in _all_above(below, broader) & asked if above != below]
        return pl.DataFrame(sorted(pairs), schema={"ancestor": pl.Int64, "descendant": pl.Int64}, orient="row")

    def concepts(self, concept_ids: list[int]) -> pl.DataFrame:
        """concept_id, concept_name, domain_id, vocabulary_id, concept_class_id, standard_concept, invalid_reason and
        target_concept_id (its standard concept, if any) of these ids."""
        return (
            pl.scan_parquet(self.folder / CONCEPT_FILE)
            .filter(pl.col("concept_id").is_in(concept_ids))
            .collect(engine="streaming")
            .sort("concept_id")
        )

    def ingredients(self, concept_ids: list[int]) -> pl.DataFrame:
        """The ingredients of drugs, as drug_era has them. Columns: concept_id, ingredient_concept_id, sorted."""
        above = (
            pl.scan_parquet(self.folder / ANCESTOR_FILE)
            .filter(pl.col("descendant_concept_id").is_in(concept_ids))
            .collect(engine="streaming")
        )
        own = pl.DataFrame(
            {"ancestor_concept_id": concept_ids, "descendant_concept_id": concept_ids}, schema=above.schema
        )
        above = pl.concat([above, own])
        concepts = self.concepts(above["ancestor_concept_id"].unique().to_list()).filter(
            (pl.col("concept_class_id") == "Ingredient")
            & (pl.col("standard_concept") == "S")
            & pl.col("vocabulary_id").is_in(["RxNorm", "RxNorm Extension"])
        )
        return (
            above.join(concepts, left_on="ancestor_concept_id", right_on="concept_id", how="semi")
            .select(concept_id="descendant_concept_id", ingredient_concept_id="ancestor_concept_id")
            .unique()
            .sort("concept_id", "ingredient_concept_id")
        )

    def texts(self) -> list[str]:
        """The texts without a code that have a concept, or that somebody decided about."""
        of_release = (
            pl.scan_parquet(self.folder / INDEX_FILE)
            .filter(pl.col("vocabulary_id") == TEXT_VOCABULARY)
            .select(pl.col("concept_code").unique().sort())
            .collect(engine="streaming")["concept_code"]
            .to_list()
        )
        return of_release if self.local is None else sorted({*of_release, *local_texts(self.local)})

    def strengths(self, drug_concept_ids: list[int]) -> pl.DataFrame:
        """Rows of drug_strength (`STRENGTH_SCHEMA`) of these drugs: one for each ingredient."""
        return (
            pl.scan_parquet(self.folder / STRENGTH_FILE)
            .filter(pl.col("drug_concept_id").is_in(drug_concept_ids))
            .collect(engine="streaming")
        )

    def verify_fixed(self, concept_ids: Mapping[int, str]) -> dict[int, FixedConcept]:
        """Check ids that mappings name (id → what it is used for) against this release.

        A valid Standard concept stays; another follows its `Maps to`; one that is missing or has no standard
        concept becomes 0. Id 0 means "no matching concept" and is always right.
        """
        return dict(_all_verified(self, tuple(concept_ids.items())))


def _all_above(concept_id: int, broader: Mapping[int, set[int]]) -> set[int]:
    found: set[int] = set()
    waiting = [concept_id]
    while waiting:
        new = broader.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


@lru_cache(maxsize=16)  # the exports of a process are mapped by the same mappings and release
def _all_verified(index: ConceptIndex, named: tuple[tuple[int, str], ...]) -> dict[int, FixedConcept]:
    rows = {row["concept_id"]: row for row in index.concepts([concept_id for concept_id, _ in named]).to_dicts()}
    return {concept_id: _verified(concept_id, name, rows.get(concept_id), index.release) for concept_id, name in named}


def _verified(concept_id: int, name: str, row: Mapping[str, object] | None, release: str) -> FixedConcept:
    if concept_id == 0:
        return FixedConcept(0, name, "ok", 0)
    if row is None:
        warning = f"{name}: concept {concept_id} is not in vocabulary {release}; 0 is used instead."
        return FixedConcept(concept_id, name, "missing", 0, warning)
    if row["standard_concept"] == "S" and row["invalid_reason"] is None:
        return FixedConcept(concept_id, name, "ok", concept_id)
    kind = "no longer valid" if row["invalid_reason"] is not None else "not Standard"
    target = row["target_concept_id"]
    if isinstance(target, int):
        warning = f"{name}: concept {concept_id} is {kind} in vocabulary {release}; {target} is used instead."
        return FixedConcept(concept_id, name, "replaced", target, warning)
    warning = f"{name}: concept {concept_id} is {kind} in vocabulary {release} and maps to nothing; 0 is used instead."
    return FixedConcept(concept_id, name, "missing", 0, warning)
