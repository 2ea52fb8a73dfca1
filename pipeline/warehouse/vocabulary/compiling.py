"""The vocabulary tables → the Parquet files of a concept index.

What the files hold is written down in `index_files.compile_index`. Tables come by `exporting`; here polars joins and sorts
them, vocabularies and ranges of ids at a time, so that memory grows with the largest part and not with the download.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psycopg
from psycopg import sql

from pipeline.core.files import put_in_place
from pipeline.transform.concepts.index import (
    ANCESTOR_FILE,
    ANCESTOR_SCHEMA,
    CONCEPT_FILE,
    CONCEPT_SCHEMA,
    INDEX_FILE,
    INDEX_SCHEMA,
    STRENGTH_FILE,
    STRENGTH_SCHEMA,
)
from pipeline.warehouse.connection import connect
from pipeline.warehouse.vocabulary.exporting import copy_rows, id_columns

__all__ = ["INDEX_FORMAT", "write_index"]

#: Counted up when the layout of the index changes, so that old files are not read by new code.
INDEX_FORMAT = 4

#: Rows a row group: small enough that the statistics of sorted codes let a lookup skip most of the file.
_ROW_GROUP = 100_000

#: Concepts, and pairs of ids, that are worked on together: bounds the memory.
_MOST_CONCEPTS = 200_000
_MOST_PAIRS = 1_000_000

_MAPS_TO, _REPLACED_BY, _VALUE, _UNIT, _IS_A, _SUBSUMES = range(1, 7)
_RELATIONSHIPS = {
    "Maps to": _MAPS_TO,
    "Concept replaced by": _REPLACED_BY,
    "Maps to value": _VALUE,
    "Maps to unit": _UNIT,
    "Is a": _IS_A,
    "Subsumes": _SUBSUMES,
}
#: A vocabulary's rows of concept, as they come.
_EXPORTED = {
    "concept_id": pl.Int32(),
    "concept_name": pl.String(),
    "domain_id": pl.String(),
    "vocabulary_id": pl.String(),
    "concept_class_id": pl.String(),
    "standard_concept": pl.String(),
    "concept_code": pl.String(),
    "valid_end_date": pl.String(),
    "invalid_reason": pl.String(),
}
_VALUE_DOMAINS = ("Measurement", "Observation")
_VALID_STRENGTHS = "WHERE invalid_reason IS NULL ORDER BY drug_concept_id, ingredient_concept_id"
_CODE = ["vocabulary_id", "concept_code"]


def write_index(url: str, vocab_schema: str, folder: Path) -> None:
    """Write INDEX_FILE, CONCEPT_FILE, ANCESTOR_FILE and STRENGTH_FILE of the tables in a schema into `folder`."""
    own = folder / "tables"
    own.mkdir()
    with connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        tables = _Tables.exported(connection, vocab_schema, own)
        strengths = f"SELECT {', '.join(STRENGTH_SCHEMA)} FROM {{}}.drug_strength {_VALID_STRENGTHS}"
        query = strengths.format(sql.Identifier(vocab_schema).as_string(connection))
        _sink(copy_rows(connection, query, STRENGTH_SCHEMA, own / "drug_strength.csv"), folder / STRENGTH_FILE)
        _write_ancestors(connection, vocab_schema, tables, folder / ANCESTOR_FILE)
    maps = _Maps.of(tables)
    _in_parts(folder / INDEX_FILE, (_index_rows(part, maps, tables) for part in tables.by_vocabulary()), INDEX_SCHEMA)
    _in_parts(folder / CONCEPT_FILE, (_concept_rows(part, maps) for part in tables.by_id()), CONCEPT_SCHEMA)
    shutil.rmtree(own)


@dataclass(frozen=True)
class _Tables:
    """What was exported."""

    #: columns of _EXPORTED
    concepts: pl.LazyFrame
    #: of every concept: concept_id, domain_id and vocabulary_id (categorical), is_target (valid and Standard), is_standard
    known: pl.DataFrame
    #: concept_id_1, kind, concept_id_2: valid relationships of _RELATIONSHIPS
    relationships: pl.DataFrame

    @classmethod
    def exported(cls, connection: psycopg.Connection, vocab_schema: str, folder: Path) -> _Tables:
        schema = sql.Identifier(vocab_schema).as_string(connection)
        rows = copy_rows(
            connection, f"SELECT {', '.join(_EXPORTED)} FROM {schema}.concept", _EXPORTED, folder / "concept.csv"
        )
        rows.sink_parquet(folder / "concept.parquet", row_group_size=_ROW_GROUP)
        (folder / "concept.csv").unlink()
        concepts = pl.scan_parquet(folder / "concept.parquet")
        is_standard = (pl.col("standard_concept") == "S").fill_null(False)
        known = concepts.select(
            "concept_id",
            pl.col("domain_id", "vocabulary_id").cast(pl.Categorical),
            (is_standard & pl.col("invalid_reason").is_null()).alias("is_target"),
            is_standard.alias("is_standard"),
        ).collect(engine="streaming")
        kinds = " ".join(f"WHEN '{name}' THEN {kind}" for name, kind in _RELATIONSHIPS.items())
        named = ", ".join(f"'{name}'" for name in _RELATIONSHIPS)
        columns = {
            "concept_id_1": "concept_id_1",
            "kind": f"CASE relationship_id {kinds} END",
            "concept_id_2": "concept_id_2",
        }
        found = id_columns(
            connection,
            sql.Identifier(vocab_schema, "concept_relationship"),
            columns,
            f"relationship_id IN ({named}) AND invalid_reason IS NULL",
        )
        small = [part.with_columns(pl.col("kind").cast(pl.Int8)) for part in found]
        types = {"concept_id_1": pl.Int32, "kind": pl.Int8, "concept_id_2": pl.Int32}
        return cls(concepts, known, pl.concat([pl.DataFrame(schema=types), *small]))

    def of_kind(self, kind: int) -> pl.DataFrame:
        return self.relationships.filter(pl.col("kind") == kind).drop("kind")

    def targets_of(self, kind: int, name: str) -> pl.DataFrame:
        """via_id and `name`: relationships of a kind that lead to a valid Standard concept, each once."""
        targets = self.known.lazy().filter("is_target").select("concept_id").collect()
        found = self.of_kind(kind).join(targets, left_on="concept_id_2", right_on="concept_id", how="semi")
        return _distinct(found.select(pl.col("concept_id_1").alias("via_id"), pl.col("concept_id_2").alias(name)))

    def by_vocabulary(self) -> Iterator[pl.DataFrame]:
        """The concepts, without names, whole vocabularies at a time, in the order of their ids."""
        counts = self.known["vocabulary_id"].cast(pl.String).value_counts().sort("vocabulary_id")
        for vocabularies in _parted(counts.rows(), _MOST_CONCEPTS):
            is_of_part = pl.col("vocabulary_id").is_in(vocabularies)
            yield self.concepts.filter(is_of_part).drop("concept_name", "concept_class_id").collect(engine="streaming")

    def by_id(self) -> Iterator[pl.DataFrame]:
        """The concepts, a range of ids at a time."""
        for lowest, highest in _ranges(self.known["concept_id"], _MOST_CONCEPTS):
            is_of_part = pl.col("concept_id").is_between(lowest, highest)
            yield self.concepts.filter(is_of_part).collect(engine="streaming")


@dataclass(frozen=True)
class _Maps:
    """Where concepts lead: the rules of `index_files.compile_index`."""

    #: via_id, target_id
    direct: pl.DataFrame
    #: source_id, via_id: each concept with a target is itself via_id, or is replaced by it
    mapped: pl.DataFrame
    #: via_id, target_id, value_id
    values: pl.DataFrame
    #: source_id, unit_id
    units: pl.DataFrame

    @classmethod
    def of(cls, tables: _Tables) -> _Maps:
        direct = tables.targets_of(_MAPS_TO, "target_id")
        standard = tables.known.filter("is_target").select(
            pl.col("concept_id").alias("via_id"), pl.col("concept_id").alias("target_id")
        )
        direct = pl.concat([direct, standard.join(direct, on="via_id", how="anti")])
        units = tables.targets_of(_UNIT, "unit_id").rename({"via_id": "source_id"})
        units = units.filter(pl.len().over("source_id") == 1)
        return cls(direct, _mapped(direct, tables.of_kind(_REPLACED_BY)), _values(direct, tables), units)


def _mapped(direct: pl.DataFrame, replaced: pl.DataFrame) -> pl.DataFrame:
    """source_id, via_id: every concept that has targets, and every other one with what replaced it, in several steps if
    need be, up to the first that has some."""
    following = replaced.rename({"concept_id_1": "via_id", "concept_id_2": "next_id"}).unique()
    following = following.join(direct, on="via_id", how="anti")
    steps = following.select(pl.col("via_id").alias("source_id"), pl.col("next_id").alias("via_id")).unique()
    chain = steps
    while not steps.is_empty():
        steps = steps.join(following, on="via_id").select("source_id", pl.col("next_id").alias("via_id")).unique()
        steps = steps.join(chain, on=["source_id", "via_id"], how="anti")
        chain = pl.concat([chain, steps])
    own = direct.select(pl.col("via_id").unique()).select(pl.col("via_id").alias("source_id"), "via_id")
    return _distinct(pl.concat([chain.join(direct, on="via_id", how="semi"), own]))


def _values(direct: pl.DataFrame, tables: _Tables) -> pl.DataFrame:
    """via_id, target_id, value_id: which target carries which value."""
    values = tables.targets_of(_VALUE, "value_id").sort("via_id", "value_id")
    numbered = values.with_columns(
        (pl.int_range(pl.len()).over("via_id")).alias("number"), pl.len().over("via_id").alias("values")
    )
    domains = tables.known.select(
        pl.col("concept_id").alias("target_id"), pl.col("domain_id").cast(pl.String).is_in(_VALUE_DOMAINS).alias("has")
    )
    carriers = direct.join(values, on="via_id", how="semi").join(domains, on="target_id")
    carriers = carriers.filter(pl.col("has") | ~pl.col("has").any().over("via_id")).sort("via_id", "target_id")
    carriers = carriers.with_columns(
        (pl.int_range(pl.len()).over("via_id")).alias("carrier"), pl.len().over("via_id").alias("carriers")
    )
    paired = carriers.join(numbered, on="via_id")
    paired = paired.filter((pl.col("carriers") != pl.col("values")) | (pl.col("carrier") == pl.col("number")))
    return paired.select("via_id", "target_id", "value_id")


def _index_rows(concepts: pl.DataFrame, maps: _Maps, tables: _Tables) -> pl.DataFrame:
    """INDEX_SCHEMA of some vocabularies, sorted. `concepts`: _EXPORTED without names."""
    order = [*_CODE, "is_invalid", "valid_end_date", "concept_id"]
    chosen = (
        concepts.with_columns(pl.col("invalid_reason").is_not_null().alias("is_invalid"))
        .sort(order, descending=[name == "valid_end_date" for name in order])
        .unique(_CODE, keep="first", maintain_order=True)
        .drop("is_invalid", "valid_end_date")
    )
    # Of each table only what this part asks for: a join takes memory by the size of both sides.
    mapped = maps.mapped.join(chosen, left_on="source_id", right_on="concept_id", how="semi")
    direct = maps.direct.join(mapped, on="via_id", how="semi")
    known = tables.known.lazy().select(
        pl.col("concept_id").alias("target_id"),
        pl.col("domain_id").alias("target_domain_id"),
        pl.col("vocabulary_id").alias("target_vocabulary_id"),
    )
    targets = known.join(direct.lazy(), on="target_id", how="semi").collect()
    found = (
        chosen.lazy()
        .join(mapped.lazy(), left_on="concept_id", right_on="source_id", how="left")
        .join(direct.lazy(), on="via_id", how="left")
        .join(maps.values.lazy(), on=["via_id", "target_id"], how="left")
        .join(maps.units.lazy(), left_on="concept_id", right_on="source_id", how="left")
        .join(targets.lazy(), on="target_id", how="left")
        .sort(*_CODE, "target_id", "value_id", nulls_last=True)
        .collect()
    )
    return found.select(
        *_CODE,
        pl.col("concept_id").alias("source_concept_id"),
        pl.col("domain_id").alias("source_domain_id"),
        pl.col("standard_concept").alias("source_standard_concept"),
        pl.col("invalid_reason").alias("source_invalid_reason"),
        (pl.int_range(pl.len()).over(_CODE) + 1).alias("pair_number"),
        pl.col("target_id").alias("target_concept_id"),
        *("target_domain_id", "target_vocabulary_id"),
        pl.col("value_id").alias("value_concept_id"),
        pl.col("unit_id").alias("unit_concept_id"),
    ).cast(pl.Schema(INDEX_SCHEMA))


def _concept_rows(concepts: pl.DataFrame, maps: _Maps) -> pl.DataFrame:
    """CONCEPT_SCHEMA of a range of ids, sorted. `concepts`: _EXPORTED."""
    targets = maps.mapped.join(concepts, left_on="source_id", right_on="concept_id", how="semi")
    lowest = targets.join(maps.direct, on="via_id").group_by("source_id").agg(pl.col("target_id").min())
    found = concepts.join(lowest, left_on="concept_id", right_on="source_id", how="left").sort("concept_id")
    return found.rename({"target_id": "target_concept_id"}).select(*CONCEPT_SCHEMA).cast(pl.Schema(CONCEPT_SCHEMA))


def _write_ancestors(connection: psycopg.Connection, vocab_schema: str, tables: _Tables, path: Path) -> None:
    """concept_ancestor knows standard concepts and classifications alone: between these and others, and among others, what
    relationships say of the next broader one."""
    table = sql.Identifier(vocab_schema, "concept_ancestor")
    columns = {"ancestor_concept_id": "ancestor_concept_id", "descendant_concept_id": "descendant_concept_id"}
    found = id_columns(connection, table, columns, "ancestor_concept_id <> descendant_concept_id")
    exported = path.parent / "tables" / "ancestor"
    exported.mkdir()
    for number, part in enumerate([_broader(tables), *_gathered(found, _MOST_PAIRS)]):
        part.write_parquet(exported / f"{number:04}.parquet", compression="lz4")
    pairs = pl.scan_parquet(exported / "*.parquet")
    below = pairs.select("descendant_concept_id").collect(engine="streaming").to_series()
    ranges = _ranges(below, _MOST_PAIRS)
    del below
    in_range = (
        pairs.filter(pl.col("descendant_concept_id").is_between(lowest, highest))
        .collect(engine="streaming")
        .sort("descendant_concept_id", "ancestor_concept_id")
        .filter(pl.any_horizontal(pl.all() != pl.all().shift(1)).fill_null(True))
        .cast(pl.Schema(ANCESTOR_SCHEMA))
        for lowest, highest in ranges
    )
    _in_parts(path, in_range, ANCESTOR_SCHEMA)


def _broader(tables: _Tables) -> pl.DataFrame:
    """ancestor_concept_id, descendant_concept_id of relationships of which one side at least is not standard."""
    is_a = tables.of_kind(_IS_A).rename(
        {"concept_id_2": "ancestor_concept_id", "concept_id_1": "descendant_concept_id"}
    )
    subsumes = tables.of_kind(_SUBSUMES)
    subsumes = subsumes.rename({"concept_id_1": "ancestor_concept_id", "concept_id_2": "descendant_concept_id"})
    both = pl.concat([is_a.select(*ANCESTOR_SCHEMA), subsumes.select(*ANCESTOR_SCHEMA)])
    known = tables.known.select("concept_id", "is_standard")
    return (
        both.lazy()
        .filter(pl.col("ancestor_concept_id") != pl.col("descendant_concept_id"))
        .join(known.lazy(), left_on="ancestor_concept_id", right_on="concept_id")
        .join(known.lazy(), left_on="descendant_concept_id", right_on="concept_id", suffix="_below")
        .filter(~(pl.col("is_standard") & pl.col("is_standard_below")))
        .select(*ANCESTOR_SCHEMA)
        .collect()
    )


def _distinct(pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs of ids (Int32, never NULL), each once, sorted. `unique` of two columns takes twenty times the memory."""
    first, second = pairs.columns
    number = pl.col(first).cast(pl.Int64) * 2**32 + pl.col(second) + 2**31
    numbers = pairs.select(number.alias("number")).to_series().sort()
    kept = numbers.to_frame().filter((pl.col("number") != pl.col("number").shift(1)).fill_null(True))
    parts = {first: pl.col("number") // 2**32, second: pl.col("number") % 2**32 - 2**31}
    return kept.select(part.cast(pl.Int32).alias(name) for name, part in parts.items())


# --- parts -------------------------------------------------------------------------------------------------------------


def _parted(counts: Iterable[tuple[str, int]], most: int) -> Iterator[list[str]]:
    """Names in their order, as many together as have at most `most` in all; one that has more is alone."""
    part: list[str] = []
    size = 0
    for name, count in counts:
        if part and size + count > most:
            yield part
            part, size = [], 0
        part.append(name)
        size += count
    if part:
        yield part


def _ranges(ids: pl.Series, most: int) -> list[tuple[int, int]]:
    """Ranges of ids, both ends included, that hold about `most` of these each, in their order."""
    if ids.is_empty():
        return []
    count = -(-len(ids) // most)
    if count == 1:
        return [(int(ids.min()), int(ids.max()))]  # type: ignore[arg-type]
    ordered = ids.sort()
    ends = [int(ordered[min(len(ordered), most * number) - 1]) for number in range(1, count + 1)]
    ends = sorted(set(ends))
    starts = [int(ordered[0]), *(end + 1 for end in ends[:-1])]
    return list(zip(starts, ends, strict=True))


def _gathered(frames: Iterable[pl.DataFrame], most: int) -> Iterator[pl.DataFrame]:
    """Small frames put together, up to about `most` rows."""
    waiting: list[pl.DataFrame] = []
    rows = 0
    for frame in frames:
        waiting.append(frame)
        rows += frame.height
        if rows >= most:
            yield pl.concat(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pl.concat(waiting)


def _in_parts(path: Path, frames: Iterable[pl.DataFrame], schema: Mapping[str, pl.DataType] | None = None) -> None:
    """Write frames, one after the other, as one Parquet file. `schema`: of the file where there is no frame."""
    parts = path.with_suffix(".parts")
    parts.mkdir()
    number = 0
    for number, frame in enumerate(frames, start=1):
        frame.write_parquet(parts / f"{number:04}.parquet", row_group_size=_ROW_GROUP, statistics=True)
    if number == 1:
        put_in_place(parts / "0001.parquet", path, is_durable=False)
    elif number:
        _sink(pl.scan_parquet(parts / "*.parquet"), path)
    else:
        pl.DataFrame(schema=dict(schema or {})).write_parquet(path)
    shutil.rmtree(parts)


def _sink(frame: pl.LazyFrame, path: Path) -> None:
    frame.sink_parquet(path, row_group_size=_ROW_GROUP, statistics=True, maintain_order=True)
