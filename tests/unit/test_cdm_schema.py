"""The CDM as declared in omop_schema/cdm.py, checked without a database."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest
from sqlalchemy import BigInteger, DateTime, Integer, Numeric, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from omop_schema import cdm, cdm_fields
from omop_schema.versions import CdmVersion


def column(table: str, name: str):
    schema = "v" if table in cdm.VOCABULARY_TABLES else "c"
    return cdm.build_metadata("c", "v").tables[f"{schema}.{table}"].c[name]


@pytest.mark.parametrize(("version", "count", "of_vocabulary"), [("5.4", 39, 10), ("5.5", 42, 13)])
def test_all_tables_are_there_and_only_vocabulary_tables_are_in_the_vocabulary_schema(version, count, of_vocabulary):
    metadata = cdm.build_metadata("c", "v", CdmVersion(version))
    assert len(metadata.tables) == len(cdm.tables_of(CdmVersion(version))) == count
    in_vocab = {table.name for table in metadata.tables.values() if table.schema == "v"}
    assert in_vocab == set(cdm.VOCABULARY_TABLES) & set(cdm.tables_of(CdmVersion(version)))
    assert len(in_vocab) == of_vocabulary
    assert {"cohort", "cohort_definition"} <= set(cdm.CDM_TABLES)
    assert set(cdm.CDM_TABLES) <= set(cdm.tables_of(CdmVersion(version)))


def test_without_a_version_a_database_has_5_4_and_frames_have_the_newest():
    assert cdm.build_metadata("c", "v").tables.keys() == cdm.build_metadata("c", "v", CdmVersion.V5_4).tables.keys()
    assert cdm.tables_of(CdmVersion.V5_5) == cdm.TABLES
    assert "value_as_date" in cdm.polars_schema("observation")


@pytest.mark.requirement("f2o-001")
def test_the_fields_are_as_many_as_the_specification_has():
    counts = {
        version.value: sum(len(cdm.fields(table, version)) for table in cdm.tables_of(version))
        for version in CdmVersion
    }
    assert counts == {"5.4": 432, "5.5": 456}


def test_what_is_new_in_5_5_is_what_its_release_says():
    before, after = (
        {(table, field.name): field for table in cdm.tables_of(version) for field in cdm.fields(table, version)}
        for version in CdmVersion
    )
    assert before.keys() < after.keys()
    new = {name: (after[name].datatype, after[name].foreign_key) for name in after.keys() - before.keys()}
    concept = ("integer", ("concept", "concept_id"))
    assert {name: new[name] for name in new if name[0] in cdm.CDM_TABLES} == {
        ("measurement", "value_as_source_concept_id"): concept,
        ("observation", "value_as_date"): ("date", None),
        ("observation", "unit_source_concept_id"): concept,
        ("observation", "value_as_source_concept_id"): concept,
        ("specimen", "visit_occurrence_id"): ("integer", ("visit_occurrence", "visit_occurrence_id")),
        ("specimen", "visit_detail_id"): ("integer", ("visit_detail", "visit_detail_id")),
        ("cdm_source", "cdm_release_identifier"): ("varchar(255)", None),
    }
    assert {table for table, _ in new} - set(cdm.CDM_TABLES) == {
        "pack_content", "concept_metadata", "concept_relationship_metadata",
    }  # fmt: skip
    assert not any(after[name].required for name in new if name[0] in cdm.CDM_TABLES)
    # Frames are in the form of the newest version: a column that both have has one type, and is in one order.
    assert {name for name in before if before[name].datatype != after[name].datatype} == set()
    for table in cdm.tables_of(CdmVersion.V5_4):
        names = [field.name for field in cdm.fields(table, CdmVersion.V5_4)]
        assert [field.name for field in cdm.fields(table) if field.name in names] == names


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        ("person", "person_id", BigInteger),
        ("person", "gender_concept_id", Integer),
        ("person", "year_of_birth", Integer),
        ("measurement", "visit_occurrence_id", BigInteger),
        ("measurement", "measurement_event_id", BigInteger),
        ("fact_relationship", "fact_id_1", BigInteger),
        ("fact_relationship", "domain_concept_id_1", Integer),
        ("cohort", "subject_id", BigInteger),
        ("concept", "concept_id", Integer),
        ("concept_relationship", "concept_id_1", Integer),
        ("concept_ancestor", "ancestor_concept_id", Integer),
        ("measurement", "value_as_number", Numeric),
        ("visit_occurrence", "visit_start_datetime", DateTime),
        ("note", "note_text", Text),
    ],
)
def test_types(table, name, expected):
    assert type(column(table, name).type) is expected


def test_row_ids_are_64_bit_and_concept_ids_32_bit_in_every_table():
    for table in cdm.build_metadata("c", "v").tables.values():
        for item in table.columns:
            if item.name.endswith("concept_id"):
                assert type(item.type) is Integer, item
            elif item.name.endswith("_id") and isinstance(item.type, Integer):
                assert type(item.type) is BigInteger, item


def test_datetimes_have_no_time_zone():
    assert column("person", "birth_datetime").type.timezone is False


def test_not_null_follows_the_specification():
    assert not column("person", "race_concept_id").nullable
    assert column("person", "location_id").nullable
    assert set(cdm.required_columns("death")) == {"person_id", "death_date"}


def test_lengths():
    assert cdm.column_length("person", "person_source_value") == 50
    assert cdm.column_length("location", "state") == 2
    assert cdm.column_length("note", "note_text") is None
    assert cdm.column_length("person", "person_id") is None
    assert column("observation", "value_as_string").type.length == 60
    with pytest.raises(KeyError, match=r"person\.height"):
        cdm.column_length("person", "height")


def test_primary_keys():
    assert cdm.primary_key("measurement") == "measurement_id"
    assert cdm.primary_key("death") is None
    assert cdm.primary_key("concept") == "concept_id"


def test_ids_of_cdm_tables_come_from_sequences_of_their_own():
    metadata = cdm.build_metadata("warehouse", "v")
    tables = metadata.tables
    ddl = str(CreateTable(tables["warehouse.drug_exposure"]).compile(dialect=postgresql.dialect()))
    assert "nextval('warehouse.drug_exposure_drug_exposure_id_seq')" in ddl
    assert cdm.sequence_name("drug_exposure") == "drug_exposure_drug_exposure_id_seq"
    assert tables["v.concept"].c.concept_id.server_default is None
    assert cdm.sequence_name("concept") is None
    assert cdm.sequence_name("death") is None


def test_the_tables_carry_no_keys_so_that_a_bulk_load_runs_without_them():
    for table in cdm.build_metadata("c", "v").tables.values():
        assert not table.primary_key.columns
        assert not table.foreign_keys
        assert not table.indexes


def test_every_foreign_key_names_an_existing_column():
    for table in cdm.TABLES:
        for field in cdm.fields(table):
            if field.foreign_key:
                target, name = field.foreign_key
                assert name in {item.name for item in cdm.fields(target)}, field


def test_polars_schemas_have_the_columns_of_the_table_in_order():
    for table in cdm.TABLES:
        assert list(cdm.polars_schema(table)) == [field.name for field in cdm.fields(table)]
    schema = cdm.polars_schema("measurement")
    assert schema["measurement_id"] == pl.Int64
    assert schema["measurement_concept_id"] == pl.Int64
    assert schema["measurement_date"] == pl.Date
    assert schema["measurement_datetime"] == pl.Datetime("us")
    assert schema["value_as_number"] == pl.Float64
    assert schema["unit_source_value"] == pl.String


def test_an_unknown_table_is_refused():
    with pytest.raises(KeyError, match="observations"):
        cdm.fields("observations")


def test_names_of_constraints_and_indices_fit_into_postgresql_and_are_unique():
    additions = [
        *cdm._primary_keys(),
        *cdm._foreign_keys(to_vocabulary=True),
        *cdm._foreign_keys(to_vocabulary=False),
        *cdm._indices(),
    ]
    names = [item.name for item in additions]
    assert max(len(name) for name in names) <= 63
    assert len(set(names)) == len(names)


def test_every_listed_index_is_on_an_existing_column_that_no_primary_key_covers():
    for line in cdm_fields.lines_of("cdm_v5_4_indices.csv"):
        assert line["field"] in {field.name for field in cdm.fields(line["table"])}, line
        assert line["field"] != cdm.primary_key(line["table"]), line


def test_every_foreign_key_inside_the_cdm_has_an_index_for_deletes():
    indexed = {(item.table, item.statement.split('("')[1].split('"')[0]) for item in cdm._indices()}
    for table in cdm.CDM_TABLES:
        for field in cdm.fields(table):
            is_made = (table, field.name) not in cdm._LEFT_OUT
            if is_made and field.foreign_key and field.foreign_key[0] in cdm.CDM_TABLES:
                assert (table, field.name) in indexed, field


def test_worker_processes_start_without_sqlalchemy():
    """Its import takes longer than all that a worker of the transform needs."""
    code = "import sys, pipeline.transform.lines; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
