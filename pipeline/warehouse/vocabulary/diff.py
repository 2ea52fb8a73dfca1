"""Two releases compared where it matters: codes in use whose result changes, with the rows that hold them.

In use is what the CDM's tables hold: pairs of `*_source_concept_id` and the concept of the row, and codes without a concept
(`etl.unmapped_code`). Results are those that a load would find: both releases' concept indices are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import psycopg
from psycopg import sql

from omop_schema import cdm
from pipeline.transform.concepts.index import ConceptIndex

__all__ = ["CodeChange", "CodesInUse", "changed_codes", "codes_in_use", "reasons_of_selection"]

_USES = {"vocabulary_id": pl.String(), "concept_code": pl.String(), "place": pl.String(), "rows": pl.Int64()}
_SOURCE = "_source_concept_id"


@dataclass(frozen=True)
class CodeChange:
    """One code. `before`, `after`: concept id → name (0: no concept); ids of the values that go with them included."""

    vocabulary_id: str
    concept_code: str
    #: table → rows
    rows: Mapping[str, int]
    before: Mapping[int, str]
    after: Mapping[int, str]
    #: vocabularies of what was found before, its own included
    vocabularies: frozenset[str]

    @property
    def row_count(self) -> int:
        return sum(self.rows.values())


@dataclass(frozen=True)
class CodesInUse:
    """Columns vocabulary_id, concept_code, place (table), rows."""

    frame: pl.DataFrame


def codes_in_use(
    connection: psycopg.Connection,
    *,
    cdm_schema: str,
    vocab_schema: str,
    etl_schema: str,
    vocabulary_of: Callable[[str], str | None],
) -> CodesInUse:
    """Every code that a row of the warehouse came from; one pass over each table that has source concepts.

    `vocab_schema`: of the release by which the rows were made. `vocabulary_of`: of a FHIR system (`Mappings`).
    """
    counted: dict[int, dict[str, int]] = {}
    for table, column in _source_columns(connection, cdm_schema):
        query = sql.SQL("SELECT {0}, count(*) FROM {1} WHERE {0} > 0 GROUP BY 1").format(
            sql.Identifier(column), sql.Identifier(cdm_schema, table)
        )
        for concept, rows in connection.execute(query):
            tables = counted.setdefault(concept, {})
            tables[table] = tables.get(table, 0) + rows
    codes = connection.execute(
        sql.SQL("SELECT concept_id, vocabulary_id, concept_code FROM {} WHERE concept_id = ANY(%s)").format(
            sql.Identifier(vocab_schema, "concept")
        ),
        (list(counted),),
    ).fetchall()
    rows = [
        (vocabulary, code, table, count)
        for concept, vocabulary, code in codes
        for table, count in counted[concept].items()
    ]
    unmapped = connection.execute(
        sql.SQL(
            "SELECT system, code, sum(count)::bigint FROM {} WHERE code IS NOT NULL AND system IS NOT NULL GROUP BY 1, 2"
        ).format(sql.Identifier(etl_schema, "unmapped_code"))
    ).fetchall()
    known = {system: vocabulary_of(system) for system in {row[0] for row in unmapped}}
    rows += [
        (vocabulary, code, "without a concept", count)
        for system, code, count in unmapped
        if (vocabulary := known[system]) is not None
    ]
    frame = pl.DataFrame(rows, schema=_USES, orient="row")
    return CodesInUse(frame.group_by("vocabulary_id", "concept_code", "place").agg(pl.col("rows").sum()))


def changed_codes(used: CodesInUse, before: ConceptIndex, after: ConceptIndex) -> list[CodeChange]:
    """The codes whose concepts differ, those with the most rows first."""
    codes = used.frame.select("vocabulary_id", "concept_code").unique()
    if codes.is_empty():
        return []
    old, new = _results(before, codes), _results(after, codes)
    different = (
        codes.join(old, on=["vocabulary_id", "concept_code"], how="left", nulls_equal=True)
        .join(new, on=["vocabulary_id", "concept_code"], how="left", suffix="_after", nulls_equal=True)
        .filter(pl.col("result").ne_missing(pl.col("result_after")))
    )
    if different.is_empty():
        return []
    names = _names(before, different["result"]), _names(after, different["result_after"])
    rows = used.frame.join(different, on=["vocabulary_id", "concept_code"], how="inner")
    by_code: dict[tuple[str, str], dict[str, int]] = {}
    for vocabulary, code, place, count in rows.select("vocabulary_id", "concept_code", "place", "rows").iter_rows():
        by_code.setdefault((vocabulary, code), {})[place] = count
    changes = [
        _change(vocabulary, code, by_code[vocabulary, code], old_result, new_result, names)
        for vocabulary, code, old_result, new_result in different.select(
            "vocabulary_id", "concept_code", "result", "result_after"
        ).iter_rows()
    ]
    return sorted(changes, key=lambda item: (-item.row_count, item.vocabulary_id, item.concept_code))


def reasons_of_selection(changes: Iterable[CodeChange], selected: frozenset[str] | None) -> list[str]:
    """Where `--only` leaves out a vocabulary that codes in use need: a reason against the download for each."""
    if selected is None:
        return []
    rows: dict[str, int] = {}
    codes: dict[str, int] = {}
    for change in changes:
        for vocabulary in change.vocabularies - selected:
            rows[vocabulary] = rows.get(vocabulary, 0) + change.row_count
            codes[vocabulary] = codes.get(vocabulary, 0) + 1
    return [
        f"--only leaves out {name}, which {codes[name]:,} codes of {rows[name]:,} rows in use need"
        for name in sorted(rows)
    ]


def _source_columns(connection: psycopg.Connection, cdm_schema: str) -> list[tuple[str, str]]:
    known = [
        (table, field.name) for table in cdm.CDM_TABLES for field in cdm.fields(table) if field.name.endswith(_SOURCE)
    ]
    present = set(
        connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s", (cdm_schema,)
        ).fetchall()
    )
    return [item for item in known if item in present]


def _results(index: ConceptIndex, codes: pl.DataFrame) -> pl.DataFrame:
    """vocabulary_id, concept_code, result: the pairs of target and value as one text, in order."""
    found = index.lookup(codes)
    pair = pl.concat_str(
        pl.col("target_concept_id").fill_null(0), pl.col("value_concept_id").fill_null(0), separator=" "
    )
    return found.group_by("vocabulary_id", "concept_code").agg(result=pair.unique().sort().str.join(","))


def _ids(result: str | None) -> list[int]:
    return sorted({int(text) for pair in (result or "0 0").split(",") for text in pair.split()} - {0}) or [0]


def _names(index: ConceptIndex, results: pl.Series) -> dict[int, tuple[str, str]]:
    """concept id → name, vocabulary."""
    ids = sorted({concept for result in results for concept in _ids(result)} - {0})
    rows = index.concepts(ids).select("concept_id", "concept_name", "vocabulary_id").iter_rows()
    return {0: ("no concept", ""), **{concept: (name, vocabulary) for concept, name, vocabulary in rows}}


def _change(
    vocabulary: str,
    code: str,
    rows: Mapping[str, int],
    before: str | None,
    after: str | None,
    names: Sequence[Mapping[int, tuple[str, str]]],
) -> CodeChange:
    old, new = names
    unknown = ("", "")
    needed = {old.get(concept, unknown)[1] for concept in _ids(before)} | {vocabulary}
    return CodeChange(
        vocabulary,
        code,
        rows,
        {concept: old.get(concept, unknown)[0] for concept in _ids(before)},
        {concept: new.get(concept, unknown)[0] for concept in _ids(after)},
        frozenset(needed - {""}),
    )
