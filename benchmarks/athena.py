"""A vocabulary download of any size, shaped as Athena's are: the same files, about as many relationships and ancestors.

    python -m benchmarks.athena FOLDER --concepts 1000000 [--label "v5.0 MADE"] [--seed 1]

Everything in it is invented; of two runs with the same arguments the files are the same. Relationships are about five to
a concept, ancestors about as many (chains in a tree of which each concept has three below it).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

__all__ = ["make_download"]

#: vocabulary, share of the concepts, domain, standard in how many of a hundred, characters of a code
_VOCABULARIES = (
    ("SNOMED", 0.12, "Condition", 80, 9),
    ("RxNorm Extension", 0.24, "Drug", 90, 10),
    ("RxNorm", 0.04, "Drug", 70, 7),
    ("NDC", 0.18, "Drug", 0, 11),
    ("LOINC", 0.04, "Measurement", 85, 7),
    ("ICD10CM", 0.02, "Condition", 0, 7),
    ("ICD10PCS", 0.04, "Procedure", 95, 7),
    ("SPL", 0.12, "Drug", 0, 12),
    ("Nebraska Lexicon", 0.20, "Condition", 0, 10),
)
_WORDS = (
    *(
        "acute",
        "chronic",
        "oral",
        "tablet",
        "injection",
        "fracture of",
        "left",
        "right",
        "upper",
        "lower",
        "with",
        "mg",
    ),
    *("antigen", "antibody", "serum", "plasma", "by immunoassay", "presence", "unspecified", "initial", "encounter"),
    *("extended", "release", "solution", "structure", "disorder", "finding"),
)
_DATES = ("19700101", "20991231")
_BATCH = 250_000
_BRANCHES = 3


def make_download(folder: Path, concepts: int, *, label: str = "v5.0 MADE", seed: int = 1) -> None:
    """Write the files of a download with so many concepts. `folder` is made, and must not exist."""
    folder.mkdir(parents=True)
    _small_tables(folder, label)
    parts = list(_parts(concepts))
    standard = _standard_ids(parts, seed)
    writers = {name: (folder / f"{name}.csv").open("wb") for name in _HEADERS}
    try:
        for name, header in _HEADERS.items():
            writers[name].write(("\t".join(header) + "\n").encode())
        for number, part in enumerate(parts):
            rows = _concepts(part, np.random.default_rng((seed, number)))
            _append(writers["CONCEPT"], rows)
            _append(
                writers["CONCEPT_RELATIONSHIP"],
                _relationships(rows, standard, np.random.default_rng((seed, number, 1))),
            )
        for ancestors in _ancestors(standard):
            _append(writers["CONCEPT_ANCESTOR"], ancestors)
    finally:
        for writer in writers.values():
            writer.close()


_HEADERS = {
    "CONCEPT": (
        *("concept_id", "concept_name", "domain_id", "vocabulary_id", "concept_class_id", "standard_concept"),
        *("concept_code", "valid_start_date", "valid_end_date", "invalid_reason"),
    ),
    "CONCEPT_RELATIONSHIP": (
        *("concept_id_1", "concept_id_2", "relationship_id", "valid_start_date", "valid_end_date", "invalid_reason"),
    ),
    "CONCEPT_ANCESTOR": (
        *("ancestor_concept_id", "descendant_concept_id", "min_levels_of_separation", "max_levels_of_separation"),
    ),
}


def _small_tables(folder: Path, label: str) -> None:
    domains = sorted({domain for _, _, domain, _, _ in _VOCABULARIES} | {"Metadata"})
    kinds = ("Maps to", "Mapped from", "Is a", "Subsumes", "Has finding site", "Finding site of")
    tables = {
        "VOCABULARY": [
            ("vocabulary_id", "vocabulary_name", "vocabulary_reference", "vocabulary_version", "vocabulary_concept_id"),
            ("None", "OMOP Standardized Vocabularies", "", label, "0"),
            *((name, name, "", label, "0") for name, *_ in _VOCABULARIES),
        ],
        "DOMAIN": [("domain_id", "domain_name", "domain_concept_id"), *((name, name, "0") for name in domains)],
        "CONCEPT_CLASS": [
            ("concept_class_id", "concept_class_name", "concept_class_concept_id"),
            ("Undefined", "Undefined", "0"),
        ],
        "RELATIONSHIP": [
            (
                *("relationship_id", "relationship_name", "is_hierarchical", "defines_ancestry"),
                *("reverse_relationship_id", "relationship_concept_id"),
            ),
            *((name, name, "0", "0", kinds[number ^ 1], "0") for number, name in enumerate(kinds)),
        ],
    }
    for name, rows in tables.items():
        (folder / f"{name}.csv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


#: vocabulary's number, first id of the part, concepts in it
_Part = tuple[int, int, int]


def _parts(concepts: int) -> Iterator[_Part]:
    first = 1
    for number, (_, share, *_rest) in enumerate(_VOCABULARIES):
        left = round(concepts * share)
        while left > 0:
            count = min(left, _BATCH)
            yield number, first, count
            first += count
            left -= count


def _is_standard(part: _Part) -> pl.Series:
    number, first, count = part
    of_hundred = _VOCABULARIES[number][3]
    return pl.Series(np.arange(first, first + count) % 100 < of_hundred)


def _standard_ids(parts: list[_Part], _seed: int) -> np.ndarray:
    found = [
        np.arange(first, first + count)[_is_standard((number, first, count)).to_numpy()]
        for number, first, count in parts
    ]
    return np.concatenate(found)


def _concepts(part: _Part, random: np.random.Generator) -> pl.DataFrame:
    number, first, count = part
    vocabulary, _, domain, _, length = _VOCABULARIES[number]
    words = pl.Series(_WORDS)
    name = [words.gather(random.integers(0, len(_WORDS), count)).alias(f"word_{column}") for column in range(6)]
    ids = np.arange(first, first + count)
    return pl.DataFrame(name).select(
        pl.Series("concept_id", ids),
        pl.concat_str([column.name for column in name], separator=" ").alias("concept_name"),
        pl.lit(domain).alias("domain_id"),
        pl.lit(vocabulary).alias("vocabulary_id"),
        pl.lit("Undefined").alias("concept_class_id"),
        pl.Series("standard_concept", np.where(_is_standard(part).to_numpy(), "S", "")),
        pl.Series("concept_code", ids).cast(pl.String).str.zfill(length),
        pl.lit(_DATES[0]).alias("valid_start_date"),
        pl.lit(_DATES[1]).alias("valid_end_date"),
        pl.Series("invalid_reason", np.where(ids % 97 == 0, "D", "")),
    )


def _relationships(concepts: pl.DataFrame, standard: np.ndarray, random: np.random.Generator) -> pl.DataFrame:
    """Of each concept: what it maps to and from, its broader and narrower ones, and a third pair."""
    ids = concepts["concept_id"].to_numpy()
    is_standard = concepts["standard_concept"].to_numpy() == "S"
    target = np.where(is_standard, ids, standard[random.integers(0, len(standard), len(ids))])
    broader = np.maximum(ids // _BRANCHES, 1)
    site = standard[random.integers(0, len(standard), len(ids))]
    pairs = [(ids, target, "Maps to"), (target, ids, "Mapped from"), (ids, broader, "Is a"), (broader, ids, "Subsumes")]
    pairs.append((ids, site, "Has finding site"))
    frames = [
        pl.DataFrame({"concept_id_1": one, "concept_id_2": other}).with_columns(
            pl.lit(kind).alias("relationship_id"),
            pl.lit(_DATES[0]).alias("valid_start_date"),
            pl.lit(_DATES[1]).alias("valid_end_date"),
            pl.lit("").alias("invalid_reason"),
        )
        for one, other, kind in pairs
    ]
    return pl.concat(frames)


def _ancestors(standard: np.ndarray) -> Iterator[pl.DataFrame]:
    """Every standard concept, and those above it in the tree of their numbers."""
    for first in range(0, len(standard), _BATCH):
        below = np.arange(first, min(first + _BATCH, len(standard)))
        above, level = below.copy(), 0
        while len(below):
            yield pl.DataFrame(
                {
                    "ancestor_concept_id": standard[above],
                    "descendant_concept_id": standard[below],
                    "min_levels_of_separation": np.full(len(below), level),
                    "max_levels_of_separation": np.full(len(below), level),
                }
            )
            has_more = above > 0
            below, above, level = below[has_more], above[has_more] // _BRANCHES, level + 1


def _append(file, rows: pl.DataFrame) -> None:  # type: ignore[no-untyped-def]
    rows.write_csv(file, include_header=False, separator="\t", quote_style="never")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--concepts", type=int, default=1_000_000)
    parser.add_argument("--label", default="v5.0 MADE")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    make_download(given.folder, given.concepts, label=given.label, seed=given.seed)


if __name__ == "__main__":
    main()
