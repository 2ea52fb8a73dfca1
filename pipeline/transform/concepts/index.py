"""Reading side of the concept index: what a code means, found without a database.

A `ConceptIndex` is a release's folder of Parquet files, nothing else: it pickles as a path, opens for free, and is
meant for worker processes. The files are made by `pipeline.warehouse.vocabulary`; which coding of several is chosen is
decided in `pipeline.transform.concepts.resolver`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import polars as pl

from pipeline.transform.concepts.code_sets import TEXT_VOCABULARY

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
    "normalise_code",
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

_UNDOTTED_ICD10 = re.compile(r"[A-Z][0-9][0-9A-Z][0-9A-Z]{1,4}")
_BARE_UNIT = re.compile(r"(?<![A-Za-z\[])U(?![A-Za-z\]])")
_UCUM_IN_OMOP: Mapping[str, str] = {
    "[pH]": "pH",
    "{score}": "[score]",
    "m[IU]/L": "10*-3.[iU]/L",
    "u[IU]/mL": "10*-6.[iU]/mL",
    "mL/min/{1.73_m2}": "mL/min/(173.10*-2.m2)",
}
_HYPHENATED_NDC = re.compile(r"(\d{4,5})-(\d{3,4})-(\d{1,2})")


def normalise_code(vocabulary_id: str, code: str) -> str:
    """The form in which OMOP's vocabulary writes a code that came in another customary form.

    ICD-10(-CM): upper case, with the dot after the third character. NDC: 11 digits without hyphens, each part
    of a hyphenated code filled with zeros to 5-4-2; ten digits without hyphens stay, because nothing says which
    part is short. UCUM, which is case-sensitive: the notation of OMOP where it differs from what FHIR servers send
    (`U/L` is `[U]/L` there). Everything else is left as it is.
    """
    if vocabulary_id in {"ICD10CM", "ICD10"}:
        upper = code.strip().upper()
        return f"{upper[:3]}.{upper[3:]}" if _UNDOTTED_ICD10.fullmatch(upper) else upper
    if vocabulary_id == "NDC":
        match = _HYPHENATED_NDC.fullmatch(code.strip())
        return f"{match[1]:0>5}{match[2]:0>4}{match[3]:0>2}" if match else code.strip()
    if vocabulary_id == "UCUM":
        return _UCUM_IN_OMOP.get(code) or _BARE_UNIT.sub("[U]", code.replace("[IU]", "[iU]"))
    return code


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
    #: of the site's local map; "": there is none
    local_hash: str = ""

    def lookup(self, codings: pl.DataFrame) -> pl.DataFrame:
        """The index rows of these codings.

        Takes columns vocabulary_id and concept_code (others are ignored); gives `INDEX_SCHEMA`'s columns with
        concept_code as asked for, sorted by vocabulary_id, concept_code and pair_number. A code that is not found
        gives no row; one without a standard concept gives one row whose target_concept_id is null. A code is tried
        as it is, then as `normalise_code` writes it. Memory grows with the codings asked for, not with the
        vocabulary.
        """
        candidates = _candidates(codings)
        vocabularies = candidates["vocabulary_id"].unique()
        codes = candidates["concept_code"].unique()
        found = (
            pl.scan_parquet(self.folder / INDEX_FILE)
            .filter(
                pl.col("vocabulary_id").is_in(vocabularies.implode()),
                pl.col("concept_code").is_in(codes.implode()),
            )
            .join(candidates.lazy(), on=["vocabulary_id", "concept_code"], how="inner")
            .collect(engine="streaming")
        )
        best = pl.col("attempt") == pl.col("attempt").min().over("vocabulary_id", "asked_code")
        return (
            found.filter(best)
            .with_columns(concept_code=pl.col("asked_code"))
            .select(list(INDEX_SCHEMA))
            .sort("vocabulary_id", "concept_code", "pair_number")
        )

    def standard_of_codes(self, codes: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """(vocabulary_id, concept_code) → the first Standard concept, of those codes that have one."""
        key = {"vocabulary_id": pl.String, "concept_code": pl.String}
        found = self.lookup(pl.DataFrame(sorted(codes), schema=key, orient="row")).drop_nulls("target_concept_id")
        first = found.unique(list(key), keep="first", maintain_order=True)
        return {(row[0], row[1]): row[2] for row in first.select(*key, "target_concept_id").iter_rows()}

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
        """The same of concepts that are not standard, whose broader ones are looked up step by step."""
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
        """The texts without a code that have a concept, sorted."""
        return (
            pl.scan_parquet(self.folder / INDEX_FILE)
            .filter(pl.col("vocabulary_id") == TEXT_VOCABULARY)
            .select(pl.col("concept_code").unique().sort())
            .collect(engine="streaming")["concept_code"]
            .to_list()
        )

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


def _candidates(codings: pl.DataFrame) -> pl.DataFrame:
    """vocabulary_id, concept_code (to look for), asked_code, attempt (0: as it came, 1: normalised)."""
    asked = codings.select("vocabulary_id", "concept_code").drop_nulls().unique()
    exact = asked.with_columns(asked_code=pl.col("concept_code"), attempt=pl.lit(0))
    rewritten = [
        (vocabulary, rewritten, code, 1)
        for vocabulary, code in asked.iter_rows()
        if (rewritten := normalise_code(vocabulary, code)) != code
    ]
    return pl.concat([exact, pl.DataFrame(rewritten, schema=exact.schema, orient="row")])


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
