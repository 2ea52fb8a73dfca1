"""A site's local map as workers read it: one small Parquet file, laid over what the vocabulary's release says.

Its rows are keyed by what spellings of a system and of a text have in common. Who decided what, and how the file is made
from `etl.local_map`, is in `pipeline.warehouse.local_map`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import polars as pl

from pipeline.fhir.system_name import plain_name
from pipeline.transform.concepts.code_sets import TEXT_VOCABULARY

__all__ = ["CUT_TEXT", "LOCAL_SCHEMA", "SOURCE_CODE_LENGTH", "cut_text", "overlaid", "text_key"]

#: Characters of `source_code` in source_to_concept_map.
SOURCE_CODE_LENGTH = 50

#: System of texts that came from source_to_concept_map as long as it lets them be: longer ones begin with them.
CUT_TEXT = f"{TEXT_VOCABULARY}, cut"

#: One row for each (source, standard concept, value concept), as in the index. A source whose target_concept_id is NULL
#: was reviewed and has no map. `local_source_concept_id` is NULL where the vocabulary's own counts. What `yields` comes after
#: the release: it counts where that has no Standard concept (answers of resolvers).
LOCAL_SCHEMA: Mapping[str, pl.DataType] = {
    "system_key": pl.String(),
    "code_key": pl.String(),
    "local_source_concept_id": pl.Int64(),
    "pair_number": pl.Int64(),
    "target_concept_id": pl.Int64(),
    "target_domain_id": pl.String(),
    "target_vocabulary_id": pl.String(),
    "value_concept_id": pl.Int64(),
    "unit_concept_id": pl.Int64(),
    "yields": pl.Boolean(),
}

_SOURCE = ("source_concept_id", "source_domain_id", "source_standard_concept", "source_invalid_reason")


def text_key(text: str) -> str:
    """What spellings of a text have in common: compatible characters (NFKC), one case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def cut_text(text: str) -> str:
    """A text as it fits into source_to_concept_map."""
    return " ".join(text.split())[:SOURCE_CODE_LENGTH].strip()


def overlaid(local: Path, candidates: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """`found`, with the rows of the local map in place of those of its codes.

    `candidates`: vocabulary_id, asked_code, concept_code (a way of writing it), attempt (0: the first to try).
    `found`: columns and order of the index, which the result has as well.
    """
    named = _keyed(candidates).join(_local_rows(local), on=["system_key", "code_key"], how="inner")
    if named.is_empty():
        return found
    asked = ["vocabulary_id", "concept_code"]
    has_standard = found.filter(pl.col("target_concept_id").is_not_null()).select(asked).unique()
    named = pl.concat(
        [named.filter(~pl.col("yields")), named.filter("yields").join(has_standard, on=asked, how="anti")]
    ).with_columns(pl.struct("yields", "attempt").rank("dense").over(asked).alias("rank"))
    named = named.filter(pl.col("rank") == 1)
    own = found.unique(asked, keep="first", maintain_order=True).select(*asked, *_SOURCE)
    rows = named.join(own, on=asked, how="left").with_columns(
        pl.coalesce("local_source_concept_id", "source_concept_id", pl.lit(0)).alias("source_concept_id"),
        *(pl.lit(None, dtype=kind).alias(name) for name, kind in found.schema.items() if name not in _KNOWN),
    )
    rows = rows.select(pl.col(name).cast(kind) for name, kind in found.schema.items())
    others = found.join(rows.select(asked), on=asked, how="anti")
    return pl.concat([others, rows]).sort(*asked, "pair_number")


_KNOWN = frozenset(("vocabulary_id", "concept_code", *LOCAL_SCHEMA, *_SOURCE))


@lru_cache(maxsize=8)  # a file never changes: its name is the hash of its content
def _local_rows(local: Path) -> pl.DataFrame:
    return pl.read_parquet(local)


def _keyed(candidates: pl.DataFrame) -> pl.DataFrame:
    """vocabulary_id and concept_code as asked, attempt, and the keys under which the local map may have them."""
    rows = [
        (vocabulary, asked, *key)
        for vocabulary, asked, code, attempt in candidates.select(
            "vocabulary_id", "asked_code", "concept_code", "attempt"
        ).iter_rows()
        for key in _keys(vocabulary, code, attempt)
    ]
    names = ("vocabulary_id", "concept_code", "system_key", "code_key")
    return pl.DataFrame(rows, schema={**dict.fromkeys(names, pl.String), "attempt": pl.Int64}, orient="row").unique()


def _keys(vocabulary: str, code: str, attempt: int) -> list[tuple[str, str, int]]:
    if vocabulary == TEXT_VOCABULARY:
        whole = [(TEXT_VOCABULARY, text_key(code), 0)]
        return whole if len(code) < SOURCE_CODE_LENGTH else [*whole, (CUT_TEXT, text_key(cut_text(code)), 1)]
    return [(plain_name(vocabulary), code, attempt)]
