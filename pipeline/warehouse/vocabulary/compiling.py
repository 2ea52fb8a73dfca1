"""The vocabulary tables → the Parquet files of a concept index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import psycopg
from psycopg import sql

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

__all__ = ["INDEX_FORMAT", "write_index"]

#: Counted up when the layout of the index changes, so that old files are not read by new code.
INDEX_FORMAT = 4

#: Rows a row group: small enough that the statistics of sorted codes let a lookup skip most of the file.
_ROW_GROUP = 100_000

_SQL_FILE = Path(__file__).with_name("concept_index.sql")

# Sorted by bytes, as Parquet's statistics compare, whatever the database's collation is.
_INDEX_QUERY = """
    SELECT vocabulary_id, concept_code, source_concept_id, source_domain_id, source_standard_concept,
           source_invalid_reason,
           row_number() OVER (PARTITION BY vocabulary_id COLLATE "C", concept_code COLLATE "C"
                              ORDER BY target_concept_id, value_concept_id) AS pair_number,
           target_concept_id, target_domain_id, target_vocabulary_id, value_concept_id, unit_concept_id
    FROM index_row ORDER BY vocabulary_id COLLATE "C", concept_code COLLATE "C", pair_number
"""
_CONCEPT_QUERY = "SELECT * FROM index_concept ORDER BY concept_id"
# concept_ancestor knows standard concepts and classifications alone: of others their next broader ones in their vocabulary.
_ANCESTOR_QUERY = """
    SELECT ancestor_concept_id, descendant_concept_id FROM {vocab}.concept_ancestor
    WHERE ancestor_concept_id <> descendant_concept_id
    UNION
    SELECT CASE relationship_id WHEN 'Is a' THEN concept_id_2 ELSE concept_id_1 END AS broader, concept_id
    FROM {vocab}.concept_relationship AS relationship JOIN {vocab}.concept
    ON concept_id = CASE relationship_id WHEN 'Is a' THEN concept_id_1 ELSE concept_id_2 END
    WHERE relationship_id IN ('Is a', 'Subsumes') AND concept_id_1 <> concept_id_2
    AND relationship.invalid_reason IS NULL AND standard_concept IS DISTINCT FROM 'S'
    ORDER BY descendant_concept_id, ancestor_concept_id
"""
_VALID_STRENGTHS = "WHERE invalid_reason IS NULL ORDER BY drug_concept_id, ingredient_concept_id"


def write_index(url: str, vocab_schema: str, folder: Path) -> None:
    schema = sql.Identifier(vocab_schema).as_string()
    # psycopg accepts only literal text, or bytes; this text is the project's own, and the schema's name is quoted.
    statements = _SQL_FILE.read_text(encoding="utf-8").replace("{vocab}", schema)
    ancestors = _ANCESTOR_QUERY.replace("{vocab}", schema)
    with connect(url) as connection:
        connection.execute(statements.encode())
        _write_parquet(connection, _INDEX_QUERY, INDEX_SCHEMA, folder / INDEX_FILE)
        _write_parquet(connection, _CONCEPT_QUERY, CONCEPT_SCHEMA, folder / CONCEPT_FILE)
        _write_parquet(connection, ancestors, ANCESTOR_SCHEMA, folder / ANCESTOR_FILE)
        strengths = f"SELECT {', '.join(STRENGTH_SCHEMA)} FROM {schema}.drug_strength {_VALID_STRENGTHS}"
        _write_parquet(connection, strengths, STRENGTH_SCHEMA, folder / STRENGTH_FILE)


def _write_parquet(connection: psycopg.Connection, query: str, schema: Mapping[str, pl.DataType], path: Path) -> None:
    """Stream the rows of a query into a Parquet file, in their order."""
    rows = path.with_suffix(".csv")
    copy_out = f"COPY ({query}) TO STDOUT (FORMAT csv)".encode()
    with rows.open("wb") as target, connection.cursor().copy(copy_out) as copy:
        for chunk in copy:
            target.write(chunk)
    # Without a row there is nothing to scan: polars refuses an empty file.
    frame = (
        pl.scan_csv(rows, has_header=False, schema=dict(schema))
        if rows.stat().st_size
        else pl.LazyFrame(schema=dict(schema))
    )
    frame.sink_parquet(path, row_group_size=_ROW_GROUP, statistics=True, maintain_order=True)
    rows.unlink()
