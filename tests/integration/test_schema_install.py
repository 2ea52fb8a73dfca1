"""Installation of the schemas in real PostgreSQL servers: the embedded one and another version by URL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from omop_schema import cdm
from omop_schema.etl import build_metadata
from pipeline.core.errors import WarehouseError
from pipeline.warehouse.schema import _MIGRATIONS, ensure_schemas, install_schemas, schema_differences, transaction

NAMES = {"cdm": "cdm", "vocab": "vocab", "etl": "etl"}


@pytest.fixture(params=["embedded", "other"])
def url(request):
    name = "database_url" if request.param == "embedded" else "other_database_url"
    return request.getfixturevalue(name)


def query(url, statement, *parameters):
    with psycopg.connect(url) as connection:
        return connection.execute(statement, parameters).fetchall()


def constraint_names(url, schema, kind):
    rows = query(
        url,
        "SELECT conname FROM pg_constraint JOIN pg_namespace n ON n.oid = connamespace"
        " WHERE nspname = %s AND contype = %s",
        schema,
        kind,
    )
    return {row[0] for row in rows}


def test_a_fresh_database_gets_everything_and_a_second_installation_changes_nothing(url):
    first = install_schemas(url, **NAMES)
    second = install_schemas(url, **NAMES)

    assert first.tables == 39
    assert first.etl_upgraded
    assert first.changed
    assert not second.changed
    assert second.etl_revision == first.etl_revision
    assert len(query(url, "SELECT 1 FROM pg_tables WHERE schemaname = 'cdm'")) == 29
    assert len(query(url, "SELECT 1 FROM pg_tables WHERE schemaname = 'vocab'")) == 10
    assert "xpk_person" in constraint_names(url, "cdm", "p")
    assert schema_differences(url, etl="etl") == []


def views_written(url):
    """Who wrote the rule of a view: an installation writes each anew."""
    return query(url, "SELECT xmin::text FROM pg_rewrite WHERE ev_class = 'etl.row_source'::regclass")


def test_commands_install_what_is_missing_and_leave_a_whole_installation_alone(url):
    ensure_schemas(url, **NAMES)
    written = views_written(url)
    assert schema_differences(url, etl="etl") == []

    ensure_schemas(url, **NAMES)
    assert views_written(url) == written

    with psycopg.connect(url) as connection:
        connection.execute("DROP INDEX cdm.idx_gender")
        connection.execute("DROP TABLE cdm.cost")
    ensure_schemas(url, **NAMES)
    assert query(url, "SELECT to_regclass('cdm.cost') IS NOT NULL, to_regclass('cdm.idx_gender') IS NOT NULL") == [
        (True, True)
    ]
    again = views_written(url)
    assert again != written

    with psycopg.connect(url) as connection:  # as another version of the program leaves it
        connection.execute("COMMENT ON TABLE etl.alembic_version IS 'epic-omop 0 in cdm, vocab, etl: 1 relations'")
    ensure_schemas(url, **NAMES)
    assert views_written(url) != again
    assert schema_differences(url, etl="etl") == []


def test_the_stable_views_can_be_read(database_url):
    install_schemas(database_url, **NAMES)
    for view in ("row_source", "dead_letter_open", "file_account", "exclusion"):
        assert query(database_url, f"SELECT * FROM etl.{view}") == []


def test_other_schema_names_leave_the_usual_ones_alone(database_url):
    install_schemas(database_url, cdm="omop_a", vocab="omop_v", etl="bookkeeping")
    schemas = {row[0] for row in query(database_url, "SELECT nspname FROM pg_namespace")}
    assert {"omop_a", "omop_v", "bookkeeping"} <= schemas
    assert not {"cdm", "vocab", "etl"} & schemas
    assert schema_differences(database_url, etl="bookkeeping") == []
    tables = {row[0] for row in query(database_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert tables == set()


def test_two_installations_in_one_database_do_not_meet(database_url):
    install_schemas(database_url, **NAMES)
    report = install_schemas(database_url, cdm="cdm_2", vocab="vocab_2", etl="etl_2")
    assert report.tables == 39
    assert schema_differences(database_url, etl="etl_2") == []
    assert schema_differences(database_url, etl="etl") == []


def test_several_installations_at_once(database_url):
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: install_schemas(database_url, **NAMES), range(4)))
    assert sorted(report.tables for report in reports) == [0, 0, 0, 39]
    assert sum(report.etl_upgraded for report in reports) == 1


def test_what_is_missing_is_completed_and_rows_stay(database_url):
    install_schemas(database_url, **NAMES)
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO cdm.location (city) VALUES ('Utrecht')")
        connection.execute("DROP TABLE cdm.dose_era")
        connection.execute("DROP INDEX cdm.idx_measurement_person_id_1")
    report = install_schemas(database_url, **NAMES)
    assert (report.tables, report.primary_keys, report.constraints) == (1, 1, 1)
    assert report.indices == 3  # two of dose_era, one of measurement
    assert query(database_url, "SELECT location_id, city FROM cdm.location") == [(1, "Utrecht")]


def test_a_difference_between_tables_and_revisions_is_seen(database_url):
    install_schemas(database_url, **NAMES)
    with psycopg.connect(database_url) as connection:
        connection.execute("ALTER TABLE etl.dead_letter DROP COLUMN first_seen")
        connection.execute("DROP INDEX etl.row_issue_by_resource")
    assert len(schema_differences(database_url, etl="etl")) == 2


def test_the_migrations_go_down_to_nothing_and_up_again(database_url):
    install_schemas(database_url, **NAMES)
    with transaction(database_url) as connection:
        for view in ("row_source", "dead_letter_open", "file_account", "exclusion"):
            connection.exec_driver_sql(f"DROP VIEW etl.{view}")
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes.update(connection=connection, etl_schema="etl")
        command.downgrade(config, "base")
    left = {row[0] for row in query(database_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'etl'")}
    assert left == {"alembic_version"}
    assert install_schemas(database_url, **NAMES).etl_upgraded
    assert schema_differences(database_url, etl="etl") == []
    tables = {row[0] for row in query(database_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'etl'")}
    assert tables == {table.name for table in build_metadata("etl").tables.values()} | {"alembic_version"}


def test_foreign_keys_inside_the_cdm_hold_and_can_wait_for_the_end_of_a_transaction(database_url):
    install_schemas(database_url, **NAMES)
    insert = (
        "INSERT INTO cdm.observation_period (person_id, observation_period_start_date,"
        " observation_period_end_date, period_type_concept_id) VALUES (7, '2020-01-01', '2020-02-01', 32882)"
    )
    person = "INSERT INTO cdm.person VALUES (7, 8507, 1980, 1, 1, NULL, 0, 0)"
    with pytest.raises(psycopg.errors.ForeignKeyViolation), psycopg.connect(database_url) as connection:
        connection.execute(insert)
    with psycopg.connect(database_url) as connection:
        connection.execute("SET CONSTRAINTS ALL DEFERRED")
        connection.execute(insert)
        connection.execute(person)
    with psycopg.connect(database_url) as connection:  # the same row again, as a publication does
        connection.execute("SET CONSTRAINTS ALL DEFERRED")
        connection.execute("DELETE FROM cdm.person WHERE person_id = 7")
        connection.execute(person)
    assert query(database_url, "SELECT person_id FROM cdm.observation_period") == [(7,)]


def test_vocabulary_constraints_are_made_only_on_request(database_url):
    install_schemas(database_url, **NAMES)
    keys = constraint_names(database_url, "cdm", "f")
    assert "fpk_measurement_person_id" in keys
    assert "fpk_measurement_measurement_concept_id" not in keys
    install_schemas(database_url, **NAMES, include_vocabulary_constraints=True)
    assert "fpk_measurement_measurement_concept_id" in constraint_names(database_url, "cdm", "f")
    assert "fpk_concept_domain_id" in constraint_names(database_url, "vocab", "f")


def test_indices_and_constraints_can_be_dropped_and_made_again(database_url):
    made = install_schemas(database_url, **NAMES)
    with transaction(database_url) as connection:
        assert cdm.drop_constraints(connection, "cdm", "vocab") == made.constraints
        assert cdm.drop_indices(connection, "cdm", "vocab") == made.indices
        assert cdm.drop_primary_keys(connection, "cdm", "vocab") == made.primary_keys
        assert cdm.drop_indices(connection, "cdm", "vocab") == 0
        assert connection.exec_driver_sql("SELECT 1 FROM pg_indexes WHERE schemaname = 'cdm'").all() == []
    with transaction(database_url) as connection:
        only = ("person", "measurement")
        assert cdm.create_primary_keys(connection, "cdm", "vocab", tables=only) == 2
        assert cdm.create_indices(connection, "cdm", "vocab", tables=("death",)) == 1
    again = install_schemas(database_url, **NAMES)
    assert again.primary_keys == made.primary_keys - 2
    assert again.indices == made.indices - 1
    assert again.constraints == made.constraints


def test_a_refusal_of_the_server_is_told_and_leaves_nothing_behind(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = connection.execute("SELECT current_database()").fetchone()[0]
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with pytest.raises(WarehouseError, match=r"takes no changes: .*read-only transaction"):
        install_schemas(database_url, **NAMES)
    assert query(database_url, "SELECT 1 FROM pg_namespace WHERE nspname = 'cdm'") == []
