"""The compiled index against an oracle in SQL, for vocabularies with everything that downloads may hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.transform.concepts.index import (
    ANCESTOR_FILE,
    ANCESTOR_SCHEMA,
    CONCEPT_FILE,
    CONCEPT_SCHEMA,
    INDEX_FILE,
    INDEX_SCHEMA,
)
from pipeline.warehouse.vocabulary import compiling

ORACLE = (Path(__file__).parents[1] / "oracles" / "concept_index.sql").read_text(encoding="utf-8")
INDEX_QUERY = """
    SELECT vocabulary_id, concept_code, source_concept_id, source_domain_id, source_standard_concept,
           source_invalid_reason, row_number() OVER (PARTITION BY vocabulary_id COLLATE "C", concept_code COLLATE "C"
               ORDER BY target_concept_id, value_concept_id) AS pair_number,
           target_concept_id, target_domain_id, target_vocabulary_id, value_concept_id, unit_concept_id
    FROM index_row ORDER BY vocabulary_id COLLATE "C", concept_code COLLATE "C", pair_number"""
ANCESTOR_QUERY = """
    SELECT ancestor_concept_id, descendant_concept_id FROM vocab.concept_ancestor
    WHERE ancestor_concept_id <> descendant_concept_id
    UNION
    SELECT broader.concept_id, narrower.concept_id
    FROM vocab.concept_relationship AS link
    JOIN vocab.concept AS narrower
    ON narrower.concept_id = CASE relationship_id WHEN 'Is a' THEN concept_id_1 ELSE concept_id_2 END
    JOIN vocab.concept AS broader
    ON broader.concept_id = CASE relationship_id WHEN 'Is a' THEN concept_id_2 ELSE concept_id_1 END
    WHERE relationship_id IN ('Is a', 'Subsumes') AND concept_id_1 <> concept_id_2 AND link.invalid_reason IS NULL
    AND (narrower.standard_concept IS DISTINCT FROM 'S' OR broader.standard_concept IS DISTINCT FROM 'S')
    ORDER BY 2, 1"""

IDS = st.integers(1, 14)
CONCEPT = st.tuples(
    st.sampled_from(["Condition", "Measurement", "Observation"]),
    st.sampled_from(["A", "B", "b", "é"]),
    st.sampled_from(["S", "S", "C", None]),
    st.sampled_from(["1", "2", "a", "Á", "x y", 'quote"d', "com,ma", "é"]),
    st.sampled_from([None, None, "U", "D"]),
    st.sampled_from(["2020-01-01", "2099-12-31"]),
)
KINDS = ["Maps to"] * 4 + [
    "Maps to value",
    "Concept replaced by",
    "Concept replaced by",
    "Maps to unit",
    "Is a",
    "Subsumes",
]
LINKS = st.tuples(IDS, IDS, st.sampled_from([*KINDS, "Mapped from"]), st.sampled_from([None, None, None, "D"]))


@pytest.fixture(scope="module")
def tables(module_database_url) -> Iterator[psycopg.Connection]:
    with psycopg.connect(module_database_url) as connection:
        connection.execute("CREATE SCHEMA vocab")
        connection.execute(
            "CREATE TABLE vocab.concept (concept_id integer, concept_name text, domain_id text, vocabulary_id text,"
            " concept_class_id text, standard_concept text, concept_code text, valid_start_date date,"
            " valid_end_date date, invalid_reason text)"
        )
        connection.execute(
            "CREATE TABLE vocab.concept_relationship (concept_id_1 integer, concept_id_2 integer, relationship_id text,"
            " invalid_reason text)"
        )
        connection.execute(
            "CREATE TABLE vocab.concept_ancestor (ancestor_concept_id integer, descendant_concept_id integer)"
        )
        connection.execute(
            "CREATE TABLE vocab.drug_strength (drug_concept_id integer, ingredient_concept_id integer,"
            " amount_value numeric, amount_unit_concept_id integer, numerator_value numeric,"
            " numerator_unit_concept_id integer, denominator_value numeric, denominator_unit_concept_id integer,"
            " invalid_reason text)"
        )
        connection.commit()
        yield connection


def _expected(connection: psycopg.Connection, query: str, schema: dict[str, pl.DataType]) -> list[tuple[object, ...]]:
    return pl.DataFrame(connection.execute(query).fetchall(), schema=schema, orient="row").rows()  # type: ignore[arg-type]


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    concepts=st.dictionaries(IDS, CONCEPT, max_size=14),
    links=st.lists(LINKS, max_size=40),
    ancestors=st.lists(st.tuples(IDS, IDS), max_size=12),
    most=st.sampled_from([1, 3, 1_000_000]),
)
def test_the_index_is_what_the_oracle_says(
    tables, module_database_url, tmp_path_factory, concepts, links, ancestors, most
):
    # Every relationship is there once, as its key demands; concepts that they name may be missing.
    links = list({link[:3]: link for link in links}.values())
    tables.execute("TRUNCATE vocab.concept, vocab.concept_relationship, vocab.concept_ancestor")
    rows = [
        (number, f'name "{number}"', domain, vocabulary, "class", standard, code, "1970-01-01", end, invalid)
        for number, (domain, vocabulary, standard, code, invalid, end) in concepts.items()
    ]
    with tables.cursor() as cursor:
        cursor.executemany(f"INSERT INTO vocab.concept VALUES ({', '.join(['%s'] * 10)})", rows)
        cursor.executemany("INSERT INTO vocab.concept_relationship VALUES (%s, %s, %s, %s)", links)
        cursor.executemany("INSERT INTO vocab.concept_ancestor VALUES (%s, %s)", list(dict.fromkeys(ancestors)))
    tables.commit()
    folder = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "_MOST_CONCEPTS", most)
        patch.setattr(compiling, "_MOST_PAIRS", most)
        compiling.write_index(module_database_url, "vocab", folder)
    tables.execute(ORACLE.replace("{vocab}", "vocab").encode())
    for name, query, schema in (
        (INDEX_FILE, INDEX_QUERY, INDEX_SCHEMA),
        (CONCEPT_FILE, "SELECT * FROM index_concept ORDER BY concept_id", CONCEPT_SCHEMA),
        (ANCESTOR_FILE, ANCESTOR_QUERY, ANCESTOR_SCHEMA),
    ):
        found = pl.read_parquet(folder / name)
        assert dict(found.schema) == dict(schema)
        assert found.rows() == _expected(tables, query, dict(schema))
    tables.rollback()
