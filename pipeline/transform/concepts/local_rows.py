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

__all__ = [
    "ANSWERS",
    "CUT_TEXT",
    "LOCAL_SCHEMA",
    "SOURCE_CODE_LENGTH",
    "cut_text",
    "decided_sources",
    "local_texts",
    "overlaid",
    "text_key",
]

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

#: Before the vocabulary in a look-up: only the local map is asked.
ANSWERS = "answers of "

_SOURCE = ("source_concept_id", "source_domain_id", "source_standard_concept", "source_invalid_reason")


def text_key(text: str) -> str:
    """What spellings of a text have in common: compatible characters (NFKC), one case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def cut_text(text: str) -> str:
    """A text as it fits into source_to_concept_map."""
    return " ".join(text.split())[:SOURCE_CODE_LENGTH].strip()


def local_texts(local: Path) -> list[str]:
    """The texts without a code that the local map knows, each in a form that it is found by, sorted."""
    rows = _local_rows(local).select("system_key", "code_key").unique()
    found = set()
    for system, key in rows.iter_rows():
        if system == TEXT_VOCABULARY:
            found.add(key)
        elif system == CUT_TEXT:  # what a longer text begins with; a cut before a space was that much shorter
            found.add(f"{key} x" if len(key) < SOURCE_CODE_LENGTH else f"{key}x")
    return sorted(found)


def decided_sources(local: Path) -> set[tuple[str, str]]:
    """system_key and code_key of what people decided about."""
    return set(_local_rows(local).filter(~pl.col("yields")).select("system_key", "code_key").iter_rows())


def overlaid(local: Path, asked: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """`found`, with the rows of the local map in place of those of its codes.

    `asked`: vocabulary_id, concept_code, each once. `found`: columns and order of the index, which the result has as well.
    """
    named = _keyed(asked).join(_local_rows(local), on=["system_key", "code_key"], how="inner")
    if named.is_empty():
        return found
    code = ["vocabulary_id", "concept_code"]
    has_standard = found.filter(pl.col("target_concept_id").is_not_null()).select(code).unique()
    after = named.filter("yields", ~pl.col("vocabulary_id").str.starts_with(ANSWERS))
    named = pl.concat([named.filter(~pl.col("yields")), after.join(has_standard, on=code, how="anti")])
    if named.is_empty():
        return found
    rank = pl.struct("yields", "attempt").rank("dense").over(code)
    named = named.filter(rank == 1)
    own = found.unique(code, keep="first", maintain_order=True).select(*code, *_SOURCE)
    rows = named.join(own, on=code, how="left").with_columns(
        pl.coalesce("local_source_concept_id", "source_concept_id", pl.lit(0)).alias("source_concept_id"),
        *(pl.lit(None, dtype=kind).alias(name) for name, kind in found.schema.items() if name not in _KNOWN),
    )
    rows = rows.select(pl.col(name).cast(kind) for name, kind in found.schema.items())
    others = found.join(rows.select(code), on=code, how="anti")
    return pl.concat([others, rows]).sort(*code, "pair_number")


_KNOWN = frozenset(("vocabulary_id", "concept_code", *LOCAL_SCHEMA, *_SOURCE))


@lru_cache(maxsize=8)  # a file never changes: its name is the hash of its content
def _local_rows(local: Path) -> pl.DataFrame:
    return pl.read_parquet(local)


def _keyed(asked: pl.DataFrame) -> pl.DataFrame:
    """vocabulary_id and concept_code, and the keys under which the local map may have them, in the order of `attempt`."""
    rows = [
        (vocabulary, code, *key)
        for vocabulary, code in asked.select("vocabulary_id", "concept_code").iter_rows()
        for key in _keys(vocabulary, code)
    ]
    names = ("vocabulary_id", "concept_code", "system_key", "code_key")
    return pl.DataFrame(rows, schema={**dict.fromkeys(names, pl.String), "attempt": pl.Int64}, orient="row").unique()


def _keys(vocabulary: str, code: str) -> list[tuple[str, str, int]]:
    if vocabulary == TEXT_VOCABULARY:
        whole = [(TEXT_VOCABULARY, text_key(code), 0)]
        return whole if len(code) < SOURCE_CODE_LENGTH else [*whole, (CUT_TEXT, text_key(cut_text(code)), 1)]
    return [(plain_name(vocabulary.removeprefix(ANSWERS)), code, 0)]
